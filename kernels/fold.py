"""Launches ``fold.cu``: the router behind the attention's output matrix, as one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.family import POINTER, Family, struct
from kernels.launch import THREADS
from kernels.weights import MATRIX

if TYPE_CHECKING:
    import numpy as np

    from kernels.compiler import Program
    from kernels.launch import Kernel

FOLD = struct(("router", MATRIX), ("o", MATRIX), ("norm", POINTER), ("folded", POINTER))
FAMILY = Family("fold", {"fold": FOLD})
_EXPERTS = 8  # of a block (kFoldExperts)


class Fold:
    """Folds two matrices into one."""

    def __init__(self, program: Program) -> None:
        self._fold = program.kernel(FAMILY, "fold")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (self._fold,)

    def fold(self, router: np.void, o: np.void, *, norm: int, folded: int, stream: object) -> None:
        """Multiply ``router`` (F32), the RMSNorm's weight and ``o`` (not tiled).

        ``folded`` is float32 ``[experts, q_width]``.
        """
        grid = (-(-int(o["columns"]) // THREADS), -(-int(router["rows"]) // _EXPERTS))
        self._fold.launch(
            {"router": router, "o": o, "norm": norm, "folded": folded}, grid=grid, stream=stream
        )
