"""Launches ``embedding.cu``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import THREADS, Kernel
from kernels.weights import MATRIX

if TYPE_CHECKING:
    from kernels.compiler import Program

EMBED = struct(
    ("table", MATRIX),
    ("state", POINTER),
    ("frequencies", POINTER),
    ("x", POINTER),
    ("rotation", POINTER),
    ("half_dim", np.int32),
    ("padding", np.int32),
)
FAMILY = Family("embedding", {"embed": EMBED}, plants=("rope_q_off_by_one",))


class Embedding:
    """A token's row of the embedding, and the rotation of its position."""

    def __init__(self, program: Program) -> None:
        self._embed = program.kernel(FAMILY, "embed")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (self._embed,)

    def embed(
        self,
        table: np.void,
        *,
        state: int,
        frequencies: int,
        x: int,
        rotation: int,
        half_dim: int,
        stream: object,
    ) -> None:
        """Write the row of ``state``'s token into ``x``, float32 ``[hidden]``.

        ``rotation`` receives cosines and sines ``[2, 2, half_dim]``, of queries and of keys, out of
        ``frequencies``, float64 ``[half_dim]``.
        """
        self._embed.launch(
            {
                "table": table,
                "state": state,
                "frequencies": frequencies,
                "x": x,
                "rotation": rotation,
                "half_dim": half_dim,
            },
            grid=(-(-int(table["columns"]) // THREADS),),
            stream=stream,
        )
