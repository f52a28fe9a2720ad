"""Products of weight matrices and activations, batched into parallel regions."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numba
import numpy as np

from harness.backends.cpu import matvec
from harness.backends.cpu.activations import GROUP, SUMMED, round_activations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from harness.model import Tensor

_CODES = {
    "F32": matvec.F32,
    "F16": matvec.F16,
    "BF16": matvec.BF16,
    "Q8_0": matvec.Q8_0,
    "Q4_K": matvec.Q4_K,
    "Q5_K": matvec.Q5_K,
    "Q6_K": matvec.Q6_K,
}
_ROUNDED_CODES = {
    "Q4_K": matvec.Q4_K_ROUNDED,
    "Q5_K": matvec.Q5_K_ROUNDED,
    "Q6_K": matvec.Q6_K_ROUNDED,
}

# Waking the other threads costs some ten microseconds; one core reads this much in that time.
_SERIAL_BYTES = 48 << 10


class Activations:
    """One or more vectors to multiply by, and their ``q8_k`` form where a numerics asks for it.

    ``values`` is flat; several vectors lie one behind the other. ``rounds`` says whether
    K-quants are multiplied by the rounded form.
    """

    def __init__(self, size: int, *, rounds: bool) -> None:
        self.values = np.empty(size, dtype=np.float32)
        # No K-quant has rows that are not whole groups, so other sizes are never rounded.
        self._rounds = rounds and size % GROUP == 0
        groups = size // GROUP if self._rounds else 0
        self.rounded = np.empty(groups * GROUP, dtype=np.int8)
        self.scales = np.empty(groups, dtype=np.float32)
        self.sums = np.empty(groups * (GROUP // SUMMED), dtype=np.int32)

    def load(self, values: NDArray[np.float32]) -> None:
        """Take the values (any shape of the right size) and round them once for all products."""
        self.values[:] = values.reshape(-1)
        if self._rounds:
            round_activations(self.values, self.rounded, self.scales, self.sums)


@dataclass(frozen=True)
class Matrix:
    """Where a weight tensor's rows lie: ``[rows, columns]``, or that for each of many experts.

    ``blocks`` keeps the memory alive that ``address`` points into.
    """

    code: int
    address: int
    row_bytes: int
    rows: int
    columns: int
    blocks: NDArray[np.uint8]

    @classmethod
    def of(cls, tensor: Tensor, *, rounds: bool) -> Matrix:
        """Describe a tensor; ``rounds``: its K-quants meet rounded activations."""
        blocks = np.ascontiguousarray(tensor.blocks)
        name = tensor.format.name
        code = _ROUNDED_CODES.get(name, _CODES[name]) if rounds else _CODES[name]
        rows, columns = tensor.shape[-2:]
        return cls(code, blocks.ctypes.data, blocks.shape[-1], rows, columns, blocks)

    @property
    def expert_bytes(self) -> int:
        """Bytes from one expert's matrix to the next one's."""
        return self.rows * self.row_bytes


class Batch:
    """Products that run together, their results one behind the other in ``out``.

    Parameters
    ----------
    matrices
        One for each product.
    inputs
        For each product, where in the activations its vector begins.

    """

    def __init__(self, matrices: Sequence[Matrix], inputs: Sequence[int] | None = None) -> None:
        self._table = np.zeros((len(matrices), 7), dtype=np.int64)
        self._matrices = tuple(matrices)  # keeps their memory alive
        starts = inputs if inputs is not None else [0] * len(matrices)
        at = 0
        for line, matrix, start in zip(self._table, matrices, starts, strict=True):
            line[matvec.CODE], line[matvec.ADDRESS] = matrix.code, matrix.address
            line[matvec.STRIDE], line[matvec.COLUMNS] = matrix.row_bytes, matrix.columns
            line[matvec.ROWS], line[matvec.INPUT], line[matvec.OUTPUT] = matrix.rows, start, at
            at += matrix.rows
        self._bases = self._table[:, matvec.ADDRESS].copy()
        self._steps = np.array([matrix.expert_bytes for matrix in matrices], dtype=np.int64)
        self._rows = at
        self._bytes = sum(matrix.expert_bytes for matrix in matrices)

    @property
    def rows(self) -> int:
        """Rows of all products together: the length of the result."""
        return self._rows

    def choose(self, experts: NDArray[np.int64]) -> None:
        """Point each product at the matrix of that expert; ids ``[products]``."""
        self._table[:, matvec.ADDRESS] = self._bases + experts * self._steps

    def run(self, x: Activations, out: NDArray[np.float32], threads: int) -> None:
        """Compute every product into ``out``, float32 ``[rows]``."""
        _run(self._table, x, out, self._rows, self._bytes, threads)


def attention_scores(
    query: Activations,
    keys: NDArray[np.float32],
    positions: int,
    heads: int,
    threads: int,
) -> NDArray[np.float32]:
    """Multiply each query head with its keys: float32 ``[heads, positions]``, not yet scaled.

    Keys are ``[capacity, kv_heads, head_dim]``, one F32 matrix for each head with a row in each
    position; those behind ``positions`` are not read.
    """
    _, kv_heads, head_dim = keys.shape
    head = np.arange(heads)
    table = np.empty((heads, 7), dtype=np.int64)
    table[:, matvec.CODE] = matvec.F32
    table[:, matvec.ADDRESS] = keys.ctypes.data + head // (heads // kv_heads) * keys.strides[1]
    table[:, matvec.STRIDE] = keys.strides[0]
    table[:, matvec.COLUMNS] = head_dim
    table[:, matvec.ROWS] = positions
    table[:, matvec.INPUT] = head * head_dim
    table[:, matvec.OUTPUT] = head * positions
    scores = np.empty((heads, positions), dtype=np.float32)
    rows = heads * positions
    _run(table, query, scores.reshape(-1), rows, rows * head_dim * 4, threads)
    return scores


def _run(
    table: NDArray[np.int64],
    x: Activations,
    out: NDArray[np.float32],
    rows: int,
    nbytes: int,
    threads: int,
) -> None:
    operands = (table, x.values, x.rounded, x.scales, x.sums, out)
    if threads == 1 or nbytes < _SERIAL_BYTES:
        matvec.rows_in_turn(*operands, 0, rows)
    else:
        matvec.rows_in_parallel(*operands, rows, threads)


def most_threads() -> int:
    """Threads that numba started with (``NUMBA_NUM_THREADS``), which is the most it can use."""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def default_threads() -> int:
    """Threads that numba has, but no more than the cgroup's CPU quota pays for."""
    return max(1, min(numba.get_num_threads(), _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """Whole CPUs that a cgroup (v2) may use; as many as there are where it does not say."""
    everything = os.cpu_count() or 1
    try:
        quota, period = path.read_text().split()
        return everything if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return everything


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Let numba use that many threads inside, and what it used before outside."""
    before = numba.get_num_threads()
    if before == threads:
        yield
        return
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
