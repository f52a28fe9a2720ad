"""Launches ``experts.cu``: what the chosen experts compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import BLOCK_ROWS, Kernel, blocks_for, input_bytes
from kernels.weights import MATRIX

if TYPE_CHECKING:
    from kernels.compiler import Program

GATE_UP = struct(
    ("gate", MATRIX),
    ("up", MATRIX),
    ("x", POINTER),
    ("norm", POINTER),
    ("ids", POINTER),
    ("gated", POINTER),
    ("trace_norm", POINTER),
    ("trace_gate", POINTER),
    ("trace_up", POINTER),
    ("trace_silu", POINTER),
    ("eps", np.float32),
    ("top_k", np.int32),
    ("experts", np.int32),
    ("padding", np.int32),
)
DOWN = struct(
    ("down", MATRIX),
    ("gated", POINTER),
    ("ids", POINTER),
    ("weights", POINTER),
    ("state", POINTER),
    ("residual", POINTER),
    ("trace_down", POINTER),
    ("trace_moe", POINTER),
    ("top_k", np.int32),
    ("experts", np.int32),
    ("last_layer", np.int32),
    ("padding", np.int32),
)
FAMILY = Family(
    "experts",
    {"gate_up": GATE_UP, "down": DOWN},
    choices=("accumulator", "activation", "weighted_sum", "swiglu"),
    plants=(
        "wrong_expert",
        "drop_top_expert",
        "drop_lowest_expert",
        "swap_two_weights",
        "silu_on_wrong_factor",
        "nan",
    ),
)
_PLAIN_ROWS = 2  # of the residual that a block computes at a time without tiles (kDownRows)
_PER_MULTIPROCESSOR = 3  # blocks: as many as fit at a time (kResident)


class Experts:
    """Gate and up with SwiGLU; down with the weighted sum and the residual."""

    def __init__(self, program: Program) -> None:
        self._device, self._activation = program.device, program.variant.activation
        self._gate_up = program.row_kernel(FAMILY, "gate_up")
        self._down = program.row_kernel(FAMILY, "down")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (*self._gate_up.kernels, *self._down.kernels)

    def gate_up(
        self,
        gate: np.void,
        up: np.void,
        *,
        x: int,
        norm: int,
        eps: float,
        ids: int,
        top_k: int,
        experts: int,
        gated: int,
        stream: object,
        trace_norm: int = 0,
        trace_gate: int = 0,
        trace_up: int = 0,
        trace_silu: int = 0,
    ) -> None:
        """Norm ``x``; ``gated`` receives silu(gate x) * up x, float32 ``[top_k, width]``."""
        items = top_k * -(-int(gate["rows"]) // BLOCK_ROWS)
        self._gate_up.of(gate, up).launch(
            {
                "gate": gate,
                "up": up,
                "x": x,
                "norm": norm,
                "eps": eps,
                "ids": ids,
                "top_k": top_k,
                "experts": experts,
                "gated": gated,
                "trace_norm": trace_norm,
                "trace_gate": trace_gate,
                "trace_up": trace_up,
                "trace_silu": trace_silu,
            },
            grid=(blocks_for(items, 1, self._device, _PER_MULTIPROCESSOR),),
            stream=stream,
            shared=input_bytes(int(gate["columns"]), self._activation),
        )

    def down(
        self,
        down: np.void,
        *,
        gated: int,
        ids: int,
        weights: int,
        top_k: int,
        experts: int,
        state: int,
        residual: int,
        last_layer: bool,
        stream: object,
        trace_down: int = 0,
        trace_moe: int = 0,
    ) -> None:
        """Add the experts' weighted outputs to ``residual``, float32 ``[hidden]``, in place."""
        kernel = self._down.of(down)
        rows = BLOCK_ROWS if kernel is self._down.tiled else _PLAIN_ROWS
        staged = input_bytes(top_k * int(down["columns"]), self._activation)
        kernel.launch(
            {
                "down": down,
                "gated": gated,
                "ids": ids,
                "weights": weights,
                "state": state,
                "residual": residual,
                "top_k": top_k,
                "experts": experts,
                "last_layer": last_layer,
                "trace_down": trace_down,
                "trace_moe": trace_moe,
            },
            grid=(blocks_for(int(down["rows"]), rows, self._device, _PER_MULTIPROCESSOR),),
            stream=stream,
            shared=-(-staged // 16) * 16 + 4 * top_k * rows,
        )
