"""The ``q8_k`` activation format: int8, one scale for each 256 values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.backends.cpu.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP = 256  # values that share a scale
MOST = 127  # largest magnitude of a quant
SUMMED = 32  # values of a sum: a group of Q4_K and Q5_K, which has one min


@compiled("void(float32[::1], int8[::1], float32[::1], int32[::1])")
def round_activations(
    x: NDArray[np.float32],
    rounded: NDArray[np.int8],
    scales: NDArray[np.float32],
    sums: NDArray[np.int32],
) -> None:
    """Round each 256 values: scale ``max|x| / 127``, quant ``rint(x / scale)``, half to even.

    The division is float64's, so that only the scale's own float32 rounding is added to the
    format's definition. A group of zeros gives zeros; one with a NaN or an infinity gives a NaN
    scale, so that it cannot pass unseen.

    Parameters
    ----------
    x
        Activations, a whole number of groups.
    rounded
        Receives the quants, one for each value.
    scales
        Receives a scale for each 256 values.
    sums
        Receives the sum of each 32 quants.

    """
    for group in range(x.size // GROUP):
        start = group * GROUP
        largest = np.float32(0)
        finite = True
        for i in range(start, start + GROUP):
            magnitude = abs(x[i])
            finite = finite and magnitude < np.inf
            largest = max(largest, magnitude)
        if not finite or largest == 0:
            scales[group] = 0 if finite else np.nan
            rounded[start : start + GROUP] = 0
            sums[start // SUMMED : (start + GROUP) // SUMMED] = 0
            continue
        scales[group] = np.float32(np.float64(largest) / MOST)
        inverse = MOST / np.float64(largest)
        for part in range(start, start + GROUP, SUMMED):
            total = 0
            for i in range(part, part + SUMMED):
                quant = int(np.rint(x[i] * inverse))
                rounded[i] = quant
                total += quant
            sums[part // SUMMED] = total
