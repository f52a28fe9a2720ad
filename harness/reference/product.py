"""A weight matrix times a vector, in float64: what every product kernel is held against."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.reference.dequant import dequantise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.model import QuantFormat

_Q8_K_GROUP, _Q8_K_MOST = 256, 127


def rounded(x: torch.Tensor, fmt: QuantFormat, activation: str) -> torch.Tensor:
    """Round activations as ``activation`` does before a product with weights of ``fmt``."""
    if activation == "f32" or not fmt.is_k_quant:
        return x
    groups = x.reshape(-1, _Q8_K_GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / _Q8_K_MOST
    quants = torch.round(groups / torch.where(scale > 0, scale, 1.0))
    return (quants * scale).view(x.shape)


def product(
    blocks: NDArray[np.uint8], fmt: QuantFormat, x: NDArray[np.float32], activation: str
) -> NDArray[np.float64]:
    """Dequantise, then multiply: blocks uint8 ``[rows, bytes]``, x ``[columns]``; ``[rows]``."""
    with warnings.catch_warnings():
        # torch warns that a map is read-only; nothing here writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        raw = torch.from_numpy(blocks)
    vector = rounded(torch.from_numpy(x.astype(np.float64)), fmt, activation)
    result: NDArray[np.float64] = (dequantise(raw, fmt) @ vector).numpy()
    return result
