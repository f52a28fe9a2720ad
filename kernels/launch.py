"""Launching a kernel by PyCUDA: arguments, configuration, launch.

A kernel's ``function`` is PyCUDA's, a ``stream`` too; device memory is given by address. Importing
this module needs no CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.weights import FORMATS, is_tiled

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 256  # of a block, unless its kernel says otherwise (kThreads)
WARPS = THREADS // 32
SUPERBLOCK = 256  # values that share a scale (kRounded), a unit (kUnit)
BLOCK_ROWS = 16  # that a block computes at a time (kBlockRows)

_TILED_WARPS = 16  # of a block over tiles (kTiledWarps)
_LIMB_PADDING = 16  # kLimbPadding
ANNOUNCER_BYTES = 4 * _TILED_WARPS  # shared memory that announcing takes: a float a warp
_TILE_BYTES = {"Q4_K_TILED": 2304, "Q6_K_TILED": 3360}  # kTileQ4_K, kTileQ6_K
_MOST_TILES = 64  # whose products a block keeps at a time, if an item has no more
_MOST_ITEMS = 8  # whose rows have their lanes (kRowLanes)
_CHOOSING_ROUND = 16  # up to a multiple of which experts are filled up (kRound)
DECLARED = 512  # bytes of shared memory, at most, that a kernel over plain rows declares by itself
_UNASKED = 48 << 10  # shared memory that a block may have without asking
_DEEPER = (112 << 10, 200 << 10)  # shared memory from which a warp holds a tile more (kDeepest)


@dataclass(frozen=True)
class Device:
    """What launchers need to know of the GPU: its multiprocessors, shared memory of a block."""

    multiprocessors: int
    shared_bytes: int


class Kernel:
    """One kernel, ready to be launched.

    ``after`` sees each launch by name, so that an error can be told where it happened; it does
    nothing unless set. While ``left_out`` is true nothing is launched, so that other kernels can be
    captured without this one.
    """

    def __init__(self, function: Any, name: str, arguments: np.dtype[np.void]) -> None:  # noqa: ANN401
        self.function, self.name, self.arguments = function, name, arguments
        self.after: Callable[[str], None] = lambda _name: None
        self.left_out = False
        self._shared = -1  # bytes that a block may have; nothing is set before the first launch

    def launch(
        self,
        values: dict[str, object],
        *,
        grid: tuple[int, ...],
        stream: object,
        threads: int = THREADS,
        shared: int = 0,
    ) -> None:
        """Launch with the struct's fields by name; fields left out are zero (null)."""
        if self.left_out:
            return
        arguments = np.zeros((), self.arguments)
        for key, value in values.items():
            arguments[key] = value
        if shared > self._shared:
            self._allow(shared)
        self.function(arguments[()], grid=grid, block=(threads, 1, 1), stream=stream, shared=shared)
        self.after(self.name)

    def _allow(self, shared: int) -> None:
        from pycuda.driver import function_attribute  # noqa: PLC0415 - needs CUDA

        # All kernels divide the L1 alike, or a multiprocessor would have to fall idle between two.
        self.function.set_attribute(function_attribute.PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
        if shared > _UNASKED:
            self.function.set_attribute(function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        self._shared = shared


@dataclass(frozen=True)
class RowKernel:
    """A kernel over rows: its form for plain matrices and, if there is one, for tiles."""

    plain: Kernel
    tiled: Kernel | None

    def of(self, *matrices: np.void) -> Kernel:
        """Return the form for these matrices, which are all tiled or none.

        Raises
        ------
        ValueError
            For a mixture, or tiles where this numerics has none.

        """
        tiles = {is_tiled(m) for m in matrices}
        if tiles == {False}:
            return self.plain
        if tiles == {True} and self.tiled is not None:
            return self.tiled
        raise ValueError(
            f"{self.plain.name}: matrices are tiled in part, or this numerics has none"
        )

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Both forms."""
        return (self.plain,) if self.tiled is None else (self.plain, self.tiled)


def input_bytes(columns: int, activation: str) -> int:
    """Shared memory of a staged input (``input.cuh``)."""
    total = 4 * (columns + (columns // 64 + 1) * 4)
    if activation == "q8_k":
        total += columns // SUPERBLOCK * (SUPERBLOCK + 4)
    return total


@dataclass(frozen=True)
class TileStream:
    """How a kernel over tiles is launched (``stream.cuh``).

    Attributes
    ----------
    blocks
        One a multiprocessor, or fewer.
    batch
        Items that a block takes at a time.
    shared
        Bytes of shared memory of a block.

    """

    blocks: int
    batch: int
    shared: int

    @classmethod
    def of(
        cls, *matrices: np.void, items: int, parts: int, besides: int, depth: int, device: Device
    ) -> TileStream:
        """Plan ``items`` of ``parts`` tiles each, of these matrices.

        A warp holds up to ``depth`` tiles; ``besides`` them a block has that much shared memory.
        """
        slot = max(_TILE_BYTES[FORMATS[int(m["format"])]] for m in matrices)
        blocks = max(1, min(items, device.multiprocessors))
        batch = max(1, min(-(-items // blocks), _MOST_TILES // parts, _MOST_ITEMS))
        deepest = 1 + sum(device.shared_bytes >= least for least in _DEEPER)
        slots = min(depth, deepest) * _TILED_WARPS
        if items <= batch * blocks:  # there is no further batch to ask for
            slots = min(slots, batch * parts)
        return cls(blocks, batch, slots * slot + 2 * batch * parts * BLOCK_ROWS * 4 + besides)

    def launch(self, kernel: Kernel, values: dict[str, object], stream: object) -> None:
        """Launch it so."""
        kernel.launch(
            {**values, "batch": self.batch},
            grid=(self.blocks,),
            stream=stream,
            threads=32 * _TILED_WARPS,
            shared=self.shared,
        )


def fixed_bytes(columns: int) -> int:
    """Shared memory of an input staged as fixed point (``fixed.cuh``)."""
    limbs = SUPERBLOCK + 3 * (columns + _LIMB_PADDING)
    return (limbs + columns // 32 * 4 + columns // SUPERBLOCK * 8 + 4 + 15) // 16 * 16


def choose_bytes(experts: int, top_k: int) -> int:
    """Shared memory of the choice of experts (``choose.cuh``)."""
    filled = -(-experts // _CHOOSING_ROUND) * _CHOOSING_ROUND
    return (8 * filled + 8 * top_k + 15) // 16 * 16


def blocks_for(items: int, per_block: int, device: Device, per_multiprocessor: int) -> int:
    """Blocks that cover ``items``; no more than fit the GPU at once: then each takes several."""
    return max(1, min(-(-items // per_block), per_multiprocessor * device.multiprocessors))
