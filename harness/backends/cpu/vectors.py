"""What a layer does between its products: norm, rotation, and mixing values by attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from harness.backends.cpu.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Positions whose weighted values are summed apart before they join the total: the rounding error
# of a long context then grows with the square root of its length.
_STRIDE = 64


@compiled("void(float32[:, ::1], float32[::1], float64, float32[:, ::1])")
def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float, out: NDArray[np.float32]
) -> None:
    """RMSNorm of each row of ``x`` ``[rows, n]``: ``x / sqrt(mean(x^2) + eps) * weight``.

    The mean is float64, the rest float32. ``out`` may be ``x``.
    """
    for row in range(x.shape[0]):
        # Four sums, because each addition waits for the last one.
        s0 = s1 = s2 = s3 = 0.0
        whole = x.shape[1] // 4 * 4
        for i in range(0, whole, 4):
            s0 += np.float64(x[row, i]) * np.float64(x[row, i])
            s1 += np.float64(x[row, i + 1]) * np.float64(x[row, i + 1])
            s2 += np.float64(x[row, i + 2]) * np.float64(x[row, i + 2])
            s3 += np.float64(x[row, i + 3]) * np.float64(x[row, i + 3])
        for i in range(whole, x.shape[1]):
            s0 += np.float64(x[row, i]) * np.float64(x[row, i])
        mean = ((s0 + s1) + (s2 + s3)) / x.shape[1]
        scale = np.float32(1 / np.sqrt(mean + eps))
        for i in range(x.shape[1]):
            out[row, i] = x[row, i] * scale * weight[i]


@compiled("void(float32[:, ::1], int64[::1], int64[::1], float32[::1], float32[::1])")
def rotate(
    heads: NDArray[np.float32],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
) -> None:
    """RoPE in place: turn each pair ``(low[i], high[i])`` of every head by its angle.

    ``heads`` is ``[heads, head_dim]``; the others are ``[head_dim / 2]``.
    """
    for head in range(heads.shape[0]):
        for i in range(low.size):
            a, b = heads[head, low[i]], heads[head, high[i]]
            heads[head, low[i]] = a * cos[i] - b * sin[i]
            heads[head, high[i]] = b * cos[i] + a * sin[i]


_MIX = "float32[:, ::1], float32[:, :, ::1], float32[:, ::1]"


@compiled(f"void({_MIX}, int64)")
def _mix_head(
    weights: NDArray[np.float32],
    values: NDArray[np.float32],
    out: NDArray[np.float32],
    head: int,
) -> None:
    positions, width = weights.shape[1], values.shape[2]
    kv_head = head // (weights.shape[0] // values.shape[1])
    part = np.empty(width, dtype=np.float32)
    out[head] = 0
    for start in range(0, positions, _STRIDE):
        part[:] = 0
        for position in range(start, min(start + _STRIDE, positions)):
            weight = weights[head, position]
            for i in range(width):
                part[i] += weight * values[position, kv_head, i]
        for i in range(width):
            out[head, i] += part[i]


@compiled(f"void({_MIX})")
def mix_in_turn(
    weights: NDArray[np.float32], values: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Sum values by attention weight.

    ``weights`` ``[heads, positions]``, ``values`` ``[capacity, kv_heads, head_dim]`` of which only
    the first ``positions`` are read, ``out`` ``[heads, head_dim]``.
    """
    for head in range(weights.shape[0]):
        _mix_head(weights, values, out, head)


@compiled(f"void({_MIX})", parallel=True)
def mix_in_parallel(
    weights: NDArray[np.float32], values: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Do the same, heads in parallel."""
    for head in numba.prange(weights.shape[0]):
        _mix_head(weights, values, out, head)
