"""Launches ``router.cu``: which experts, and with what weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import Kernel, blocks_for, input_bytes
from kernels.weights import MATRIX

if TYPE_CHECKING:
    from kernels.compiler import Program

ROUTE = struct(
    ("router", MATRIX),
    ("x", POINTER),
    ("norm", POINTER),
    ("logits", POINTER),
    ("arrived", POINTER),
    ("ids", POINTER),
    ("weights", POINTER),
    ("trace_norm", POINTER),
    ("eps", np.float32),
    ("top_k", np.int32),
)
FAMILY = Family(
    "router",
    {"route": ROUTE},
    choices=("accumulator", "activation", "softmax", "top_k_epsilon"),
    plants=("uniform_weights", "unnormalised_weights", "last_expert_at_tie"),
)
_EXPERTS = 1  # of a block at a time (kExperts)
_PER_MULTIPROCESSOR = 1


class Router:
    """Logits of all experts, softmax, top-k, renormalised, in one launch."""

    def __init__(self, program: Program) -> None:
        self._device, self._activation = program.device, program.variant.activation
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
        top_k: int,
        logits: int,
        arrived: int,
        ids: int,
        weights: int,
        stream: object,
        trace_norm: int = 0,
    ) -> None:
        """Norm ``x`` and choose: ``ids`` int32 and ``weights`` float32 ``[top_k]``, best first.

        ``logits`` receives float32 ``[experts]``; ``arrived`` is uint32 ``[1]``, zero.
        """
        self._route.launch(
            {
                "router": router,
                "x": x,
                "norm": norm,
                "eps": eps,
                "top_k": top_k,
                "logits": logits,
                "arrived": arrived,
                "ids": ids,
                "weights": weights,
                "trace_norm": trace_norm,
            },
            grid=(blocks_for(int(router["rows"]), _EXPERTS, self._device, _PER_MULTIPROCESSOR),),
            stream=stream,
            # Logits, their keys and the ids take the input's place.
            shared=max(
                input_bytes(int(router["columns"]), self._activation), 12 * int(router["rows"])
            ),
        )
