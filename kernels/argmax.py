"""Launches ``argmax.cu``: the next token, on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct

if TYPE_CHECKING:
    from kernels.compiler import Program
    from kernels.launch import Kernel

ARGMAX = struct(
    ("logits", POINTER),
    ("best", POINTER),
    ("best_id", POINTER),
    ("arrived", POINTER),
    ("state", POINTER),
    ("tokens", POINTER),
    ("vocab", np.int32),
    ("padding", np.int32),
)
FAMILY = Family("argmax", {"argmax": ARGMAX})
BLOCKS = 64


class Argmax:
    """The token of the largest logit, ties to the lower id; moves ``state`` on."""

    def __init__(self, program: Program) -> None:
        self._argmax = program.kernel(FAMILY, "argmax")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (self._argmax,)

    def argmax(
        self,
        *,
        logits: int,
        vocab: int,
        best: int,
        best_id: int,
        arrived: int,
        state: int,
        tokens: int,
        stream: object,
    ) -> None:
        """Choose the next token into ``state`` and into ``tokens`` at the present position.

        ``best`` (float32) and ``best_id`` (int32) are scratch of ``BLOCKS`` values each;
        ``arrived`` is uint32 ``[1]``, zero.
        """
        self._argmax.launch(
            {
                "logits": logits,
                "vocab": vocab,
                "best": best,
                "best_id": best_id,
                "arrived": arrived,
                "state": state,
                "tokens": tokens,
            },
            grid=(BLOCKS,),
            stream=stream,
        )
