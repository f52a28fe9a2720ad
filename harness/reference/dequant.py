"""Dequantisation in float64 torch, on any device, exact in every format.

Written from the block layouts of ggml (``ggml-common.h``); ``tests/reference`` holds it against
``gguf.quants``, whose products are rounded to float32 where these are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model import QuantFormat

_Blocks = torch.Tensor  # uint8, [blocks, block_bytes]
_Values = torch.Tensor  # float64, [blocks, block_values]


def _half(raw: _Blocks) -> torch.Tensor:
    """Read little-endian float16 pairs of bytes: [n, 2 m] to float64 [n, m]."""
    return raw.contiguous().view(torch.float16).to(torch.float64)


def _f32(raw: _Blocks) -> _Values:
    return raw.view(torch.float32).to(torch.float64)


def _bf16(raw: _Blocks) -> _Values:
    return raw.view(torch.bfloat16).to(torch.float64)


def _q8_0(raw: _Blocks) -> _Values:
    return _half(raw[:, :2]) * raw[:, 2:].contiguous().view(torch.int8).to(torch.float64)


def _scales_and_mins(raw: _Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack the eight 6-bit scales and mins out of 12 bytes: two float64 [n, 8]."""
    a, b, c = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], dim=1)
    mins = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], dim=1)
    return scales.to(torch.float64), mins.to(torch.float64)


def _affine(raw: _Blocks, quants: torch.Tensor) -> _Values:
    """``d * scale * q - dmin * min`` over eight groups of 32; ``quants`` is [n, 8, 32]."""
    scales, mins = _scales_and_mins(raw[:, 4:16])
    d, dmin = _half(raw[:, 0:2]), _half(raw[:, 2:4])
    values = (d * scales)[:, :, None] * quants.to(torch.float64) - (dmin * mins)[:, :, None]
    return values.reshape(len(raw), 256)


def _nibbles(raw: torch.Tensor, run: int) -> torch.Tensor:
    """Low nibbles of each run of bytes, then its high ones: [n, m] to [n, 2 m / run, run]."""
    runs = raw.reshape(len(raw), -1, 1, run)
    return torch.cat([runs & 15, runs >> 4], dim=2).reshape(len(raw), -1, run)


def _q4_k(raw: _Blocks) -> _Values:
    return _affine(raw, _nibbles(raw[:, 16:144], 32))


def _q5_k(raw: _Blocks) -> _Values:
    high = raw[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8, device=raw.device)[:, None]
    return _affine(raw, _nibbles(raw[:, 48:176], 32) | ((high & 1) << 4))


def _q6_k(raw: _Blocks) -> _Values:
    low = _nibbles(raw[:, 0:128], 64).reshape(len(raw), 8, 32)
    pairs = raw[:, 128:192].reshape(len(raw), 2, 1, 32)
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device)[:, None]
    high = ((pairs >> shift) & 3).reshape(len(raw), 8, 32)
    quants = (low | (high << 4)).to(torch.float64) - 32
    scales = raw[:, 192:208].contiguous().view(torch.int8).to(torch.float64)
    values = quants.reshape(len(raw), 16, 16) * (_half(raw[:, 208:210]) * scales)[:, :, None]
    return values.reshape(len(raw), 256)


_DEQUANTISE: dict[str, Callable[[_Blocks], _Values]] = {
    "F32": _f32,
    "F16": _half,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def dequantise(rows: torch.Tensor, fmt: QuantFormat) -> torch.Tensor:
    """Return float64 values ``[..., columns]`` of raw uint8 rows ``[..., row_bytes]``."""
    blocks = rows.reshape(-1, fmt.block_bytes).contiguous()
    return _DEQUANTISE[fmt.name](blocks).reshape(*rows.shape[:-1], -1)
