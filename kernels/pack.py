"""Launches ``pack.cu``: GGUF's blocks into the tiles that the tensor cores are fed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import blocks_for
from kernels.weights import MATRIX

if TYPE_CHECKING:
    from kernels.compiler import Program
    from kernels.launch import Kernel

PACK = struct(
    ("blocks", POINTER),
    ("to", MATRIX),
    ("first_tile", np.int64),
    ("rows", np.int32),
    ("padding", np.int32),
)
FAMILY = Family("pack", {"pack": PACK})
_PER_MULTIPROCESSOR = 8


class Pack:
    """Writes tiles."""

    def __init__(self, program: Program) -> None:
        self._device = program.device
        self._pack = program.kernel(FAMILY, "pack")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (self._pack,)

    def pack(self, blocks: int, rows: int, to: np.void, *, first_row: int, stream: object) -> None:
        """Pack ``rows`` rows (a multiple of 16) of blocks as GGUF has them.

        They become rows ``first_row`` and on of the tiled matrix ``to``, counted over all experts.
        """
        self._pack.launch(
            {"blocks": blocks, "to": to, "first_tile": first_row // 16, "rows": rows},
            grid=(
                blocks_for(
                    rows // 16 * (int(to["columns"]) // 256), 1, self._device, _PER_MULTIPROCESSOR
                ),
            ),
            stream=stream,
        )
