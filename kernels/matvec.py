"""Launches ``matvec.cu``: products of weight matrices and one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import (
    ANNOUNCER_BYTES,
    BLOCK_ROWS,
    SUPERBLOCK,
    TileStream,
    blocks_for,
    fixed_bytes,
    input_bytes,
)
from kernels.weights import MATRIX, is_tiled

if TYPE_CHECKING:
    from kernels.compiler import Program
    from kernels.launch import Device, Kernel, RowKernel

QKV = struct(
    ("q", MATRIX),
    ("k", MATRIX),
    ("v", MATRIX),
    ("x", POINTER),
    ("norm", POINTER),
    ("out", POINTER),
    ("trace_norm", POINTER),
    ("announced", POINTER),
    ("eps", np.float32),
    ("batch", np.int32),
    ("experts", np.int32),
    ("padding", np.int32),
)
ANNOUNCING = struct(
    ("router", POINTER),
    ("norm", POINTER),
    ("folded", POINTER),
    ("logits", POINTER),
    ("experts", np.int32),
    ("hidden", np.int32),
)
ATTENTION_OUTPUT = struct(
    ("o", MATRIX),
    ("mixed", POINTER),
    ("residual", POINTER),
    ("sum", POINTER),
    ("trace_out", POINTER),
    ("announcing", ANNOUNCING),
    ("batch", np.int32),
    ("padding", np.int32),
)
LOGITS = struct(
    ("output", MATRIX),
    ("x", POINTER),
    ("norm", POINTER),
    ("logits", POINTER),
    ("trace_norm", POINTER),
    ("eps", np.float32),
    ("batch", np.int32),
)
MATVEC = struct(
    ("m", MATRIX),
    ("x", POINTER),
    ("out", POINTER),
    ("batch", np.int32),
    ("padding", np.int32),
)
FAMILY = Family(
    "matvec",
    {
        "qkv": QKV,
        "attention_output": ATTENTION_OUTPUT,
        "logits": LOGITS,
        "matvec": MATVEC,
    },
    choices=("accumulator", "activation"),
)
_PER_MULTIPROCESSOR = 3  # blocks over plain rows
# Tiles that a warp holds (the depth of each kernel's TileStream).
_QKV_DEPTH, _OUTPUT_DEPTH, MOST_DEPTH = 2, 1, 2


@dataclass(frozen=True)
class Announcing:
    """Logits of the experts that ``attention_output`` is to announce (``announce.cuh``).

    Attributes
    ----------
    router
        Address of the router's matrix, float32 ``[experts, hidden]``.
    norm
        Address of the weight of the RMSNorm before it, float32 ``[hidden]``.
    folded
        Address of the router behind ``o``, float32 ``[experts, q_width]`` (``fold.py``).
    logits
        Address of float32 ``[experts]``, which ``qkv`` has forgotten.
    experts, hidden
        How many there are.

    """

    router: int
    norm: int
    folded: int
    logits: int
    experts: int
    hidden: int

    @property
    def argument(self) -> np.void:
        """As the kernel reads it."""
        described = np.zeros((), ANNOUNCING)
        for name in ANNOUNCING.names or ():
            described[name] = getattr(self, name)
        return described[()]  # type: ignore[return-value] # numpy's types take () for a slice


class Matvec:
    """Q, K and V; the attention's output; the logits; any one matrix."""

    def __init__(self, program: Program) -> None:
        self._device, self._activation = program.device, program.variant.activation
        self._qkv = program.row_kernel(FAMILY, "qkv")
        self._attention_output = program.row_kernel(FAMILY, "attention_output")
        self._logits = program.row_kernel(FAMILY, "logits")
        self._matvec = program.row_kernel(FAMILY, "matvec")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        rows = (self._qkv, self._attention_output, self._logits, self._matvec)
        return tuple(kernel for each in rows for kernel in each.kernels)

    def qkv(
        self,
        q: np.void,
        k: np.void,
        v: np.void,
        *,
        x: int,
        norm: int,
        eps: float,
        out: int,
        stream: object,
        announced: int = 0,
        experts: int = 0,
        trace_norm: int = 0,
    ) -> None:
        """Norm ``x`` and multiply: ``out`` is float32 ``[q_width + 2 kv_width]``.

        ``announced`` is the address of logits of ``experts`` to forget, or 0.
        """
        self._launch(
            self._qkv,
            (q, k, v),
            {
                "q": q,
                "k": k,
                "v": v,
                "x": x,
                "norm": norm,
                "eps": eps,
                "out": out,
                "announced": announced,
                "experts": experts,
                "trace_norm": trace_norm,
            },
            stream,
            _QKV_DEPTH,
        )

    def attention_output(
        self,
        o: np.void,
        *,
        mixed: int,
        residual: int,
        total: int,
        stream: object,
        announcing: Announcing | None = None,
        trace_out: int = 0,
    ) -> None:
        """Add ``o`` times ``mixed`` to ``residual``: ``total``, float32 ``[hidden]``.

        Raises
        ------
        ValueError
            For logits to announce, and a plain matrix.

        """
        if announcing is not None and not is_tiled(o):
            raise ValueError("attention_output: only over tiles are logits announced")
        values = {
            "o": o,
            "mixed": mixed,
            "residual": residual,
            "sum": total,
            "trace_out": trace_out,
        }
        if announcing is not None:
            values["announcing"] = announcing.argument
        self._launch(self._attention_output, (o,), values, stream, _OUTPUT_DEPTH, ANNOUNCER_BYTES)

    def logits(
        self,
        output: np.void,
        *,
        x: int,
        norm: int,
        eps: float,
        logits: int,
        stream: object,
        trace_norm: int = 0,
    ) -> None:
        """Norm ``x`` and multiply by the output matrix: ``logits`` is float32 ``[vocab]``."""
        self._launch(
            self._logits,
            (output,),
            {
                "output": output,
                "x": x,
                "norm": norm,
                "eps": eps,
                "logits": logits,
                "trace_norm": trace_norm,
            },
            stream,
            MOST_DEPTH,
        )

    def matvec(self, m: np.void, *, x: int, out: int, stream: object) -> None:
        """Multiply one matrix: ``out`` is float32 ``[rows]``."""
        self._launch(self._matvec, (m,), {"m": m, "x": x, "out": out}, stream, MOST_DEPTH)

    def _launch(
        self,
        rows: RowKernel,
        matrices: tuple[np.void, ...],
        values: dict[str, object],
        stream: object,
        depth: int,
        besides: int = 0,
    ) -> None:
        kernel = rows.of(*matrices)
        if kernel is rows.tiled:
            plan = row_stream(*matrices, depth=depth, besides=besides, device=self._device)
            plan.launch(kernel, values, stream)
            return
        kernel.launch(
            values,
            grid=(blocks_for(_sixteens(*matrices), 1, self._device, _PER_MULTIPROCESSOR),),
            stream=stream,
            shared=input_bytes(int(matrices[0]["columns"]), self._activation),
        )


def row_stream(
    *matrices: np.void, depth: int = MOST_DEPTH, besides: int = 0, device: Device
) -> TileStream:
    """Plan a kernel over tiles of matrices that meet the same input: an item is a row of tiles."""
    columns = int(matrices[0]["columns"])
    return TileStream.of(
        *matrices,
        items=_sixteens(*matrices),
        parts=columns // SUPERBLOCK,
        besides=fixed_bytes(columns) + besides,
        depth=depth,
        device=device,
    )


def _sixteens(*matrices: np.void) -> int:
    return sum(-(-int(m["rows"]) // BLOCK_ROWS) for m in matrices)
