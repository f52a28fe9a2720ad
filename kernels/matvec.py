"""Launches ``matvec.cu``: products of weight matrices and one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import BLOCK_ROWS, Kernel, blocks_for, input_bytes
from kernels.weights import MATRIX

if TYPE_CHECKING:
    from kernels.compiler import Program

QKV = struct(
    ("q", MATRIX),
    ("k", MATRIX),
    ("v", MATRIX),
    ("x", POINTER),
    ("norm", POINTER),
    ("out", POINTER),
    ("trace_norm", POINTER),
    ("eps", np.float32),
    ("padding", np.int32),
)
ATTENTION_OUTPUT = struct(
    ("o", MATRIX), ("mixed", POINTER), ("residual", POINTER), ("trace_out", POINTER)
)
LOGITS = struct(
    ("output", MATRIX),
    ("x", POINTER),
    ("norm", POINTER),
    ("logits", POINTER),
    ("trace_norm", POINTER),
    ("eps", np.float32),
    ("padding", np.int32),
)
MATVEC = struct(("m", MATRIX), ("x", POINTER), ("out", POINTER))
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
_PER_MULTIPROCESSOR = 3  # blocks: as many as fit at a time (kResident)


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
        trace_norm: int = 0,
    ) -> None:
        """Norm ``x`` and multiply: ``out`` is float32 ``[q_width + 2 kv_width]``."""
        rows = sum(int(m["rows"]) for m in (q, k, v))
        self._launch(
            self._qkv.of(q, k, v),
            rows,
            int(q["columns"]),
            {
                "q": q,
                "k": k,
                "v": v,
                "x": x,
                "norm": norm,
                "eps": eps,
                "out": out,
                "trace_norm": trace_norm,
            },
            stream,
        )

    def attention_output(
        self, o: np.void, *, mixed: int, residual: int, stream: object, trace_out: int = 0
    ) -> None:
        """Add ``o`` times ``mixed`` to ``residual``, float32 ``[hidden]``, in place."""
        self._launch(
            self._attention_output.of(o),
            int(o["rows"]),
            int(o["columns"]),
            {"o": o, "mixed": mixed, "residual": residual, "trace_out": trace_out},
            stream,
        )

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
            self._logits.of(output),
            int(output["rows"]),
            int(output["columns"]),
            {
                "output": output,
                "x": x,
                "norm": norm,
                "eps": eps,
                "logits": logits,
                "trace_norm": trace_norm,
            },
            stream,
        )

    def matvec(self, m: np.void, *, x: int, out: int, stream: object) -> None:
        """Multiply one matrix: ``out`` is float32 ``[rows]``."""
        self._launch(
            self._matvec.of(m),
            int(m["rows"]),
            int(m["columns"]),
            {"m": m, "x": x, "out": out},
            stream,
        )

    def _launch(
        self, kernel: Kernel, rows: int, columns: int, values: dict[str, object], stream: object
    ) -> None:
        kernel.launch(
            values,
            grid=(blocks_for(rows, BLOCK_ROWS, self._device, _PER_MULTIPROCESSOR),),
            stream=stream,
            shared=input_bytes(columns, self._activation),
        )
