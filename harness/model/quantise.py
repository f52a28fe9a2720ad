"""Quantising float rows to the block formats of GGUF.

``gguf.quants`` dequantises every format here but quantises no K-quant. The byte layouts are
those that ``gguf.quants.dequantize`` reads; the search for scales follows the idea of
llama.cpp's ``make_qkx2_quants`` and ``make_qx_quants`` (``ggml/src/ggml-quants.c``): try a few
grid widths, fit the scale by weighted least squares for each, keep the best. Everything is
vectorised over all groups of a chunk of rows, so memory stays bounded.

Relative RMS error on normal values, searched beside round-to-nearest (tests measure it again):
Q4_K 0.0720 and 0.0785, Q6_K 0.0173 and 0.0193, Q8_0 0.0050 and 0.0054.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Grid = tuple[Floats, Floats]

_CHUNK_VALUES = 1 << 19  # 2 MiB a temporary: large enough to vectorise, small enough for caches
_SUPERBLOCK = 256
_Q4_K_GROUP = 32
_Q6_K_GROUP = 16
_Q8_0_BLOCK = 32


def quantise(values: Floats, fmt: str) -> Bytes:
    """Quantise rows, searching for the scales that keep the error small.

    Parameters
    ----------
    values
        float32, shape ``[rows, columns]``; columns a multiple of the format's block.
    fmt
        ``Q4_K``, ``Q6_K``, ``Q8_0``, or the unblocked ``F32``, ``F16``, ``BF16``.

    Returns
    -------
    uint8, shape ``[rows, row_bytes]``.

    Raises
    ------
    ValueError
        For NaN or infinity, a magnitude that the format cannot hold, columns that are no whole
        number of blocks, or an unknown format.

    """
    return _by_chunks(values, fmt, _SEARCHED)


def round_to_nearest(values: Floats, fmt: str) -> Bytes:
    """Quantise rows with the plainest scales: the baseline that ``quantise`` is held against.

    The grid spans minimum to maximum (Q4_K) or the largest magnitude (Q6_K, Q8_0); each value
    goes to its nearest point. Layout, shapes and errors are those of ``quantise``.
    """
    return _by_chunks(values, fmt, _PLAIN)


def _by_chunks(values: Floats, fmt: str, encoders: dict[str, _Encoder]) -> Bytes:
    if fmt not in encoders:
        raise ValueError(f"cannot quantise to {fmt!r}; known formats: {', '.join(encoders)}")
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"values of shape {values.shape}; expected [rows, columns]")
    block, block_bytes, encode = encoders[fmt]
    rows, columns = values.shape
    if columns == 0 or columns % block:
        raise ValueError(f"{columns} columns; {fmt} needs a positive multiple of {block}")
    out = np.empty((rows, columns // block * block_bytes), dtype=np.uint8)
    step = max(1, _CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        chunk = np.ascontiguousarray(values[start : start + step])
        if not np.isfinite(chunk).all():
            raise ValueError(f"NaN or infinity among rows {start}..{start + len(chunk) - 1}")
        out[start : start + step] = encode(chunk.reshape(-1, block)).reshape(len(chunk), -1)
    return out


# --- Q4_K: value = d * sc[g] * nibble - dmin * m[g], 8 groups of 32 -----------------------------


def _q4_k_span(x: Floats) -> Grid:
    """Scale and minimum (subtracted, >= 0) that span each group's range; x is ``[groups, 32]``."""
    low = np.minimum(x.min(axis=1), 0)
    return (x.max(axis=1) - low) / np.float32(15), -low


def _q4_k_search(x: Floats) -> Grid:
    """Scale and minimum of each group by weighted least squares over 21 grid widths.

    Weights are rms + |x|: large values matter more, small ones still count. For given nibbles
    ``l`` the best scale s and offset o minimise sum w (s*l + o - x)^2; an offset above zero
    cannot be stored (the minimum is unsigned), so then o = 0 and s is fitted alone.
    """
    scale, minimum = _q4_k_span(x)
    low = -minimum
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, 1 / scale, 0).astype(np.float32)
    inverse[~np.isfinite(inverse)] = 0
    weight = np.sqrt(np.mean(x * x, axis=1, keepdims=True)) + np.abs(x)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), np.float32(1e-30))
    weighted_x = weight * x
    sum_x = weighted_x.sum(axis=1)

    def error(s: Floats, o: Floats, nibbles: Floats) -> Floats:
        difference = s[:, None] * nibbles + o[:, None] - x
        total: Floats = np.einsum("gi,gi,gi->g", weight, difference, difference)
        return total

    shifted = x - low[:, None]
    nibbles = np.clip(np.rint(shifted * inverse[:, None]), 0, 15)
    offset = low.copy()
    best = error(scale, offset, nibbles)
    for step in range(21):
        width = np.float32((14 + 0.1 * step) / 15)
        nibbles = np.clip(np.rint(shifted * (inverse * width)[:, None]), 0, 15)
        sum_l = np.einsum("gi,gi->g", weight, nibbles)
        sum_ll = np.einsum("gi,gi,gi->g", weight, nibbles, nibbles)
        sum_xl = np.einsum("gi,gi->g", weighted_x, nibbles)
        determinant = sum_ll - sum_l * sum_l
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            s = (sum_xl - sum_x * sum_l) / determinant
            o = (sum_ll * sum_x - sum_l * sum_xl) / determinant
            alone = o > 0
            s = np.where(alone, sum_xl / sum_ll, s)
            o = np.where(alone, 0, o)
            usable = (determinant > 0) & np.isfinite(s) & np.isfinite(o) & (s > 0)
            candidate = np.where(usable, error(s, o, nibbles), np.inf)
        better = candidate < best
        best = np.where(better, candidate, best)
        scale = np.where(better, s, scale)
        offset = np.where(better, o, offset)
    return scale, -offset


def _q4_k(x: Floats, grid: Callable[[Floats], Grid]) -> Bytes:
    """Blocks of 144 bytes from ``[blocks, 256]``; nibbles fit the *quantised* scales."""
    groups = x.reshape(-1, 8, _Q4_K_GROUP)
    scale, minimum = (part.reshape(-1, 8) for part in grid(x.reshape(-1, _Q4_K_GROUP)))
    d = _half(scale.max(axis=1) / np.float32(63), "Q4_K scale")
    dmin = _half(minimum.max(axis=1) / np.float32(63), "Q4_K minimum")
    sc = np.clip(np.rint(_divide(scale, d[:, None])), 0, 63).astype(np.uint8)
    m = np.clip(np.rint(_divide(minimum, dmin[:, None])), 0, 63).astype(np.uint8)
    actual = (d[:, None] * sc)[:, :, None]
    below = (dmin[:, None] * m)[:, :, None]
    nibbles = np.clip(np.rint(_divide(groups + below, actual)), 0, 15).astype(np.uint8)
    packed = np.concatenate(
        [
            (sc[:, :4] & 63) | ((sc[:, 4:] >> 4) << 6),
            (m[:, :4] & 63) | ((m[:, 4:] >> 4) << 6),
            (sc[:, 4:] & 15) | ((m[:, 4:] & 15) << 4),
        ],
        axis=1,
    )
    pairs = nibbles.reshape(-1, 4, 2, _Q4_K_GROUP)
    plane = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), packed, plane], axis=1)


# --- Q6_K and Q8_0: value = scale * integer ------------------------------------------------------


def _largest(x: Floats) -> Floats:
    """Return the value of largest magnitude of each group, with its sign; ``[groups]``."""
    picked: Floats = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    return picked


def _symmetric_search(x: Floats, bound: int, lowest: int, highest: int) -> Floats:
    """Scale of each group by least squares over 19 widths around ``largest / bound``.

    For given integers l the best scale is <x,l>/<l,l>, and the squared error it leaves is
    <x,x> - <x,l>^2/<l,l>: the candidate with the largest gain <x,l>^2/<l,l> wins. With a
    negative ``bound`` the largest value sits on the longer, negative side of the range.
    """
    largest = _largest(x)
    # In units of the largest value nothing over- or underflows, however extreme the magnitudes.
    unit = _divide(x, largest[:, None])
    best = np.full(len(x), -1, dtype=np.float32)
    scale = np.zeros(len(x), dtype=np.float32)
    for step in [0, *range(-9, 0), *range(1, 10)]:
        inverse = np.float32(bound + np.sign(bound) * 0.1 * step)
        integers = np.clip(np.rint(unit * inverse), lowest, highest)
        cross = np.einsum("gi,gi->g", unit, integers)
        square = np.einsum("gi,gi->g", integers, integers)
        fitted = _divide(cross, square)
        gain = cross * fitted
        better = gain > best
        best = np.where(better, gain, best)
        scale = np.where(better, fitted, scale)
    found: Floats = scale * largest
    return found


def _q6_k_search(x: Floats) -> Floats:
    return _symmetric_search(x, -32, -32, 31)


def _q6_k_span(x: Floats) -> Floats:
    return np.asarray(np.abs(x).max(axis=1) / np.float32(31))


def _q6_k(x: Floats, grid: Callable[[Floats], Floats]) -> Bytes:
    """Blocks of 210 bytes from ``[blocks, 256]``: 16 groups with an int8 scale each."""
    groups = x.reshape(-1, 16, _Q6_K_GROUP)
    scale = grid(x.reshape(-1, _Q6_K_GROUP)).reshape(-1, 16)
    d = _half(_largest(scale) / np.float32(-128), "Q6_K scale")
    sc = np.clip(np.rint(_divide(scale, d[:, None])), -128, 127)
    actual = (d[:, None] * sc)[:, :, None]
    integers = np.clip(np.rint(_divide(groups, actual)), -32, 31)
    codes = (integers + 32).astype(np.uint8)
    low = (codes & 15).reshape(-1, 2, 2, 64)
    high = (codes >> 4).reshape(-1, 2, 4, 32)
    plane = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return np.concatenate(
        [plane, pairs.reshape(-1, 64), sc.astype(np.int8).view(np.uint8), _half_bytes(d)], axis=1
    )


def _q8_0_search(x: Floats) -> Floats:
    return np.abs(_symmetric_search(x, 127, -127, 127))


def _q8_0_span(x: Floats) -> Floats:
    return np.asarray(np.abs(x).max(axis=1) / np.float32(127))


def _q8_0(x: Floats, grid: Callable[[Floats], Floats]) -> Bytes:
    """Blocks of 34 bytes from ``[blocks, 32]``: an f16 scale and 32 int8."""
    d = _half(grid(x), "Q8_0 scale")
    integers = np.clip(np.rint(_divide(x, d[:, None])), -127, 127).astype(np.int8)
    return np.concatenate([_half_bytes(d), integers.view(np.uint8)], axis=1)


# --- unblocked -----------------------------------------------------------------------------------


def _f32(x: Floats) -> Bytes:
    return x.view(np.uint8)


def _f16(x: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"magnitude {np.abs(x).max():.3g} does not fit F16; use BF16 or F32")
    return half.view(np.uint8)


def _bf16(x: Floats) -> Bytes:
    """Round to nearest even on the upper 16 bits of the float32 pattern."""
    bits = x.view(np.uint32).astype(np.uint64)
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if ((upper & 0x7F80) == 0x7F80).any():
        raise ValueError(f"magnitude {np.abs(x).max():.3g} does not fit BF16; use F32")
    return upper.view(np.uint8)


# --- helpers -------------------------------------------------------------------------------------


def _half(scale: Floats, what: str) -> Floats:
    """Round to what f16 holds, as float32; a scale that underflows becomes 0 (values become 0)."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            f"{what} {np.abs(scale).max():.3g} does not fit f16 (at most 65504); rescale the values"
        )
    return half.astype(np.float32)


def _half_bytes(half: Floats) -> Bytes:
    return half.astype("<f2").view(np.uint8).reshape(-1, 2)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient in float32, 0 where the denominator is 0; never NaN."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    out = np.zeros(shape, dtype=np.float32)
    with np.errstate(over="ignore"):
        np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


_Encoder = tuple[int, int, Callable[[Floats], Bytes]]
_UNBLOCKED: dict[str, _Encoder] = {"F32": (1, 4, _f32), "F16": (1, 2, _f16), "BF16": (1, 2, _bf16)}
_SEARCHED: dict[str, _Encoder] = {
    "Q4_K": (_SUPERBLOCK, 144, lambda x: _q4_k(x, _q4_k_search)),
    "Q6_K": (_SUPERBLOCK, 210, lambda x: _q6_k(x, _q6_k_search)),
    "Q8_0": (_Q8_0_BLOCK, 34, lambda x: _q8_0(x, _q8_0_search)),
    **_UNBLOCKED,
}
_PLAIN: dict[str, _Encoder] = {
    "Q4_K": (_SUPERBLOCK, 144, lambda x: _q4_k(x, _q4_k_span)),
    "Q6_K": (_SUPERBLOCK, 210, lambda x: _q6_k(x, _q6_k_span)),
    "Q8_0": (_Q8_0_BLOCK, 34, lambda x: _q8_0(x, _q8_0_span)),
    **_UNBLOCKED,
}
