"""Weight matrices as the kernels read them: in aligned planes (``formats.cuh``), or tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, struct

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Their index is the kernels' code; the tiled ones are for tensor cores (``tiles.cuh``).
FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q4_K_TILED", "Q6_K_TILED")
_TILE_ROWS = 16

# Bytes of each plane of a block, in the order in which the planes lie; other formats have one.
_PLANES = {"Q6_K": ((0, 192), (192, 208), (208, 210)), "Q8_0": ((2, 34), (0, 2))}
_BLOCK_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}

MATRIX = struct(
    ("base", POINTER),
    ("blocks", np.int64),
    ("rows", np.int32),
    ("columns", np.int32),
    ("format", np.int32),
    ("padding", np.int32),
)


def pack(blocks: NDArray[np.uint8], fmt: str) -> NDArray[np.uint8]:
    """Bytes to upload: flat uint8, as long as ``blocks``.

    ``blocks`` are GGUF's (any shape, rows whole); formats whose blocks are not aligned have their
    planes pulled apart, all blocks' first planes first.
    """
    planes = _PLANES.get(fmt)
    flat = np.ascontiguousarray(blocks).reshape(-1)
    if planes is None:
        return flat
    by_block = flat.reshape(-1, _BLOCK_BYTES[fmt])
    return np.concatenate([by_block[:, start:stop].reshape(-1) for start, stop in planes])


def can_be_tiled(fmt: str, shape: tuple[int, ...]) -> bool:
    """Whether a matrix of that format and shape ``[..., rows, columns]`` can be cut into tiles."""
    return f"{fmt}_TILED" in FORMATS and shape[-2] % _TILE_ROWS == 0


def is_tiled(described: np.void) -> bool:
    """Whether a matrix lies in tiles."""
    return FORMATS[int(described["format"])].endswith("_TILED")


def matrix(address: int, fmt: str, shape: tuple[int, ...], nbytes: int) -> np.void:
    """Describe a packed matrix ``[rows, columns]``, or experts of them, at a device address."""
    described = np.zeros((), MATRIX)
    described["base"] = address
    described["blocks"] = nbytes // _BLOCK_BYTES[fmt.removesuffix("_TILED")]
    described["rows"], described["columns"] = shape[-2:]
    described["format"] = FORMATS.index(fmt)
    return described[()]  # type: ignore[return-value] # numpy's types take () for a slice
