"""A model's matrices in float64, and other readings of their bytes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.model import FORMATS
from harness.model.quantise import quantise, round_to_nearest
from harness.reference.dequant import dequantise
from harness.reference.product import rounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from harness.lab.rounding import Floats
    from harness.model import Model, QuantFormat, Tensor

_REQUANTISED = ("Q4_K", "Q6_K", "Q8_0")


def matrix(tensor: Tensor, expert: int | None = None) -> Floats:
    """Dequantise a matrix, or an expert's: float64 ``[rows, columns]``."""
    return _values(_blocks(tensor, expert), tensor.format)


def vector(model: Model, layer: int | None, short: str) -> Floats:
    """Return a norm's weights, float64."""
    name = f"{short}.weight" if layer is None else f"blk.{layer}.{short}.weight"
    return model[name].values().astype(np.float64)


def rounded_activations(x: Floats, fmt: QuantFormat) -> Floats:
    """Round ``x`` to ``q8_k``, as before a product with weights of ``fmt``."""
    return np.asarray(rounded(torch.from_numpy(np.ascontiguousarray(x)), fmt, "q8_k").numpy())


def other_readings(tensor: Tensor, expert: int | None) -> Iterator[tuple[str, str, Floats]]:
    """Other matrices that a decoder could have multiplied by, the likeliest first.

    Yields ``(kind, words, matrix)``; ``kind`` is ``quant type`` (the values in another type's
    grid, or the same bytes read as another type) or ``expert`` (another expert's matrix).
    """
    own, blocks = tensor.format, _blocks(tensor, expert)
    plain = _values(blocks, own).astype(np.float32)
    for name in _REQUANTISED:
        if name == own.name or plain.shape[-1] % FORMATS[name].block_values:
            continue
        for encode in (quantise, round_to_nearest):
            yield (
                "quant type",
                f"multiplies by {name}, the file has {own.name}",
                _values(encode(plain, name), FORMATS[name]),
            )
    for name, fmt in FORMATS.items():
        if fmt.block_values == own.block_values and fmt.block_bytes < own.block_bytes:
            kept = fmt.row_bytes(tensor.shape[-1])
            # Bytes read as scales may be infinities and NaN: then so are the products.
            yield "quant type", f"reads {own.name} bytes as {name}", _values(blocks[:, :kept], fmt)
    if expert is not None:
        count = tensor.shape[0]
        for step in range(1, count):
            other = (expert + step) % count
            yield "expert", f"takes expert {other} for {expert}", matrix(tensor, other)


def _blocks(tensor: Tensor, expert: int | None) -> NDArray[np.uint8]:
    return tensor.blocks if expert is None else tensor.blocks[expert]


def _values(blocks: NDArray[np.uint8], fmt: QuantFormat) -> Floats:
    with warnings.catch_warnings():
        # torch warns that a map is read-only; nothing here writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        raw = torch.from_numpy(np.ascontiguousarray(blocks))
    return np.asarray(dequantise(raw, fmt).numpy())
