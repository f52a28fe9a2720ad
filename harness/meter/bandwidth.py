"""Read bandwidth of this machine, measured: what a decode could reach at most."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Several times any last-level cache that such a machine has.
_BUFFER_BYTES = 512 << 20
_REPEATS = 7


@numba.njit(parallel=True, cache=True, fastmath=True)
def _sum(values: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for index in numba.prange(values.size):
        total += values[index]
    return total


@cache
def cpu_read_bandwidth() -> float:
    """Bytes per second that all threads together read: the best of several passes."""
    values = np.ones(_BUFFER_BYTES // 4, dtype=np.float32)
    _sum(values)  # compiles, and wakes the clocks
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        _sum(values)
        best = min(best, time.perf_counter() - start)
    return _BUFFER_BYTES / best
