"""Launches ``router.cu``: the experts' logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import Kernel, input_bytes
from kernels.weights import MATRIX

if TYPE_CHECKING:
    from kernels.compiler import Program

ROUTE = struct(
    ("router", MATRIX),
    ("x", POINTER),
    ("norm", POINTER),
    ("logits", POINTER),
    ("eps", np.float32),
    ("padding", np.int32),
)
FAMILY = Family("router", {"route": ROUTE}, choices=("accumulator", "activation"))


class Router:
    """Logits of all experts."""

    def __init__(self, program: Program) -> None:
        self._activation = program.variant.activation
        self._route = program.kernel(FAMILY, "route")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (self._route,)

    def route(
        self,
        router: np.void,
        *,
        x: int,
        norm: int,
        eps: float,
        logits: int,
        stream: object,
    ) -> None:
        """Norm ``x`` and multiply: ``logits`` is float32 ``[experts]``."""
        self._route.launch(
            {
                "router": router,
                "x": x,
                "norm": norm,
                "eps": eps,
                "logits": logits,
            },
            grid=(int(router["rows"]),),
            stream=stream,
            shared=input_bytes(int(router["columns"]), self._activation),
        )
