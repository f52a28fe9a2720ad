"""The quant formats that a tensor may have, and their dequantisation to float.

``gguf.quants`` is the reference for every block layout; nothing here restates one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class QuantFormat:
    """One quant format: ``block_values`` values are stored in ``block_bytes`` bytes."""

    name: str
    gguf_type: gguf.GGMLQuantizationType
    block_values: int
    block_bytes: int

    @property
    def is_k_quant(self) -> bool:
        """Whether the format has 256-value superblocks, which ``q8_k`` activations pair with."""
        return self.block_values == gguf.QK_K

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` values, which must be a whole number of blocks."""
        return columns // self.block_values * self.block_bytes


def _format(kind: gguf.GGMLQuantizationType) -> QuantFormat:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    return QuantFormat(kind.name, kind, values, size)


_T = gguf.GGMLQuantizationType
FORMATS: dict[str, QuantFormat] = {
    kind.name: _format(kind)
    for kind in (_T.F32, _T.F16, _T.BF16, _T.Q8_0, _T.Q4_K, _T.Q5_K, _T.Q6_K)
}


def dequantise(blocks: NDArray[np.uint8], fmt: QuantFormat) -> NDArray[np.float32]:
    """Values of whole rows.

    Parameters
    ----------
    blocks
        Raw bytes, shape ``[..., row_bytes]``.
    fmt
        The format they are in.

    Returns
    -------
    float32, shape ``[..., columns]``. Every format's values are exact in float32 except for the
    products inside a K-quant block, which ``gguf.quants`` (the reference) rounds to float32.

    """
    rows = np.ascontiguousarray(blocks)
    values: NDArray[np.float32] = gguf.quants.dequantize(rows, fmt.gguf_type)
    return values.astype(np.float32, copy=False)
