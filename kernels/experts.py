"""Launches ``experts.cu``: what the chosen experts compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import (
    BLOCK_ROWS,
    SUPERBLOCK,
    TileStream,
    blocks_for,
    choose_bytes,
    fixed_bytes,
    input_bytes,
)
from kernels.weights import MATRIX

if TYPE_CHECKING:
    from kernels.compiler import Program
    from kernels.launch import Device, Kernel

CHOOSING = struct(
    ("logits", POINTER),
    ("weights", POINTER),
    ("trace_ids", POINTER),
    ("trace_weights", POINTER),
    ("experts", np.int32),
    ("top_k", np.int32),
    ("announced", np.int32),
    ("padding", np.int32),
)
GATE_UP = struct(
    ("gate", MATRIX),
    ("up", MATRIX),
    ("choosing", CHOOSING),
    ("x", POINTER),
    ("norm", POINTER),
    ("gated", POINTER),
    ("trace_norm", POINTER),
    ("trace_gate", POINTER),
    ("trace_up", POINTER),
    ("trace_silu", POINTER),
    ("eps", np.float32),
    ("batch", np.int32),
)
DOWN = struct(
    ("down", MATRIX),
    ("choosing", CHOOSING),
    ("gated", POINTER),
    ("state", POINTER),
    ("before", POINTER),
    ("residual", POINTER),
    ("trace_down", POINTER),
    ("trace_moe", POINTER),
    ("last_layer", np.int32),
    ("batch", np.int32),
)
FAMILY = Family(
    "experts",
    {"gate_up": GATE_UP, "down": DOWN},
    choices=("accumulator", "activation", "softmax", "top_k_epsilon", "weighted_sum", "swiglu"),
    plants=(
        "uniform_weights",
        "unnormalised_weights",
        "last_expert_at_tie",
        "wrong_expert",
        "drop_top_expert",
        "drop_lowest_expert",
        "swap_two_weights",
        "silu_on_wrong_factor",
        "nan",
    ),
)
_PLAIN_ROWS = 2  # of the residual that a block computes at a time without tiles (kWarpRows)
_PER_MULTIPROCESSOR = 3  # blocks over plain rows
# Tiles that a warp holds (the depth of each kernel's TileStream).
_GATE_UP_DEPTH, _DOWN_DEPTH = 3, 2


@dataclass(frozen=True)
class Choosing:
    """What experts are chosen by, and where the choice is traced.

    Attributes
    ----------
    logits
        Address of the router's, float32 ``[experts]``, or of announced ones.
    weights
        Address of float32 ``[top_k]``, which ``gate_up`` leaves to ``down``.
    experts, top_k
        How many there are, and are chosen.
    announced
        Whether the logits are announced (``announce.cuh``), less the norm's scale.
    trace_ids, trace_weights
        Addresses of int32 and float32 ``[top_k]``, best first, or 0.

    """

    logits: int
    weights: int
    experts: int
    top_k: int
    announced: bool = False
    trace_ids: int = 0
    trace_weights: int = 0

    @property
    def argument(self) -> np.void:
        """As the kernels read it."""
        described = np.zeros((), CHOOSING)
        for name in (CHOOSING.names or ())[:-1]:
            described[name] = getattr(self, name)
        return described[()]  # type: ignore[return-value] # numpy's types take () for a slice

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a block chooses in."""
        return choose_bytes(self.experts, self.top_k)


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
        choosing: Choosing,
        *,
        x: int,
        norm: int,
        eps: float,
        gated: int,
        stream: object,
        trace_norm: int = 0,
        trace_gate: int = 0,
        trace_up: int = 0,
        trace_silu: int = 0,
    ) -> None:
        """Norm ``x``; ``gated`` receives silu(gate x) * up x, float32 ``[top_k, width]``.

        Raises
        ------
        ValueError
            For announced logits and plain matrices, where their scale is not known.

        """
        kernel = self._gate_up.of(gate, up)
        if choosing.announced and kernel is self._gate_up.plain:
            raise ValueError("gate_up: logits are announced, but its matrices are not tiled")
        items = choosing.top_k * -(-int(gate["rows"]) // BLOCK_ROWS)
        values: dict[str, object] = {
            "gate": gate,
            "up": up,
            "choosing": choosing.argument,
            "x": x,
            "norm": norm,
            "eps": eps,
            "gated": gated,
            "trace_norm": trace_norm,
            "trace_gate": trace_gate,
            "trace_up": trace_up,
            "trace_silu": trace_silu,
        }
        if kernel is self._gate_up.tiled:
            gate_up_stream(gate, up, choosing, self._device).launch(kernel, values, stream)
            return
        kernel.launch(
            values,
            grid=(blocks_for(items, 1, self._device, _PER_MULTIPROCESSOR),),
            stream=stream,
            shared=gate_up_bytes(int(gate["columns"]), choosing, self._activation),
        )

    def down(
        self,
        down: np.void,
        choosing: Choosing,
        *,
        gated: int,
        state: int,
        before: int,
        residual: int,
        last_layer: bool,
        stream: object,
        trace_down: int = 0,
        trace_moe: int = 0,
    ) -> None:
        """Add the experts' weighted outputs to ``before``: ``residual``, float32 ``[hidden]``."""
        kernel = self._down.of(down)
        values = {
            "down": down,
            "choosing": choosing.argument,
            "gated": gated,
            "state": state,
            "before": before,
            "residual": residual,
            "last_layer": last_layer,
            "trace_down": trace_down,
            "trace_moe": trace_moe,
        }
        if kernel is self._down.tiled:
            down_stream(down, choosing, self._device).launch(kernel, values, stream)
            return
        kernel.launch(
            values,
            grid=(blocks_for(int(down["rows"]), _PLAIN_ROWS, self._device, _PER_MULTIPROCESSOR),),
            stream=stream,
            shared=down_bytes(int(down["columns"]), choosing, self._activation),
        )


def gate_up_bytes(columns: int, choosing: Choosing, activation: str) -> int:
    """Shared memory of ``gate_up`` over plain rows."""
    return _aligned(input_bytes(columns, activation)) + choosing.shared_bytes


def down_bytes(columns: int, choosing: Choosing, activation: str) -> int:
    """Shared memory of ``down`` over plain rows, each of ``columns`` an expert."""
    staged = _aligned(input_bytes(choosing.top_k * columns, activation))
    return staged + choosing.shared_bytes + 4 * choosing.top_k * _PLAIN_ROWS


def gate_up_stream(gate: np.void, up: np.void, choosing: Choosing, device: Device) -> TileStream:
    """Plan ``gate_up`` over tiles: an item has a row of gate's and one of up's."""
    columns = int(gate["columns"])
    return TileStream.of(
        gate,
        up,
        items=choosing.top_k * (int(gate["rows"]) // BLOCK_ROWS),
        parts=2 * columns // SUPERBLOCK,
        besides=fixed_bytes(columns) + choosing.shared_bytes,
        depth=_GATE_UP_DEPTH,
        device=device,
    )


def down_stream(down: np.void, choosing: Choosing, device: Device) -> TileStream:
    """Plan ``down`` over tiles: an item has a row of every chosen expert's."""
    columns = choosing.top_k * int(down["columns"])
    return TileStream.of(
        down,
        items=int(down["rows"]) // BLOCK_ROWS,
        parts=columns // SUPERBLOCK,
        besides=fixed_bytes(columns) + choosing.shared_bytes,
        depth=_DOWN_DEPTH,
        device=device,
    )


def _aligned(nbytes: int) -> int:
    return (nbytes + 15) // 16 * 16
