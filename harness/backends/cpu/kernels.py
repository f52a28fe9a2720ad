"""The CPU decoder's products by themselves, over buffers that rotate beyond its caches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.backends.cpu.decoder import cpu_name, source_hash
from harness.backends.cpu.products import (
    Activations,
    Batch,
    Matrix,
    default_threads,
    using_threads,
)
from harness.errors import BadInput
from harness.model import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from harness.model import Model
    from harness.numerics import Numerics

# What the decoder multiplies in one go, by tensor; experts are those of one token.
FAMILIES = {
    "attention_qkv": ("attn_q", "attn_k", "attn_v"),
    "attention_output": ("attn_output",),
    "expert_gate_up": ("ffn_gate_exps", "ffn_up_exps"),
    "expert_down": ("ffn_down_exps",),
    "output": ("output",),
}
_OWN_INPUT = "expert_down"  # every expert multiplies a vector of its own
_MOST_BYTES = 1 << 30
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")


class ProductKernel:
    """One family of products of a model, ready to be launched on any of its copies.

    Copy ``i`` holds the weights of layer ``i % layers`` (and of experts drawn for that layer), so
    copies beyond the first ``layers`` repeat them; all of them lie at different addresses and
    together take twice the last-level cache (at most 1 GiB).

    Attributes
    ----------
    copies
        How many there are.
    distinct
        How many of them, from the first on, differ.
    bytes
        Of weights that one launch reads.
    operands
        For each distinct copy the ``(blocks, format, x)`` of its products, in order.

    Raises
    ------
    BadInput
        For an unknown family.

    """

    def __init__(self, model: Model, family: str, numerics: Numerics, seed: int = 0) -> None:
        if family not in FAMILIES:
            raise BadInput(f"kernel {family!r}, expected one of {', '.join(FAMILIES)}")
        self.name, self.numerics, self._threads = family, numerics, default_threads()
        rng = np.random.default_rng(seed)
        layers = 1 if family == "output" else model.config.layers
        weights = [_weights(model, family, layer, rng) for layer in range(layers)]
        self.distinct = layers
        self.bytes = sum(tensor.nbytes for tensor in weights[0])
        wanted = min(_MOST_BYTES, 2 * last_level_cache())
        self.copies = max(layers, -(-wanted // self.bytes))
        columns = weights[0][0].shape[-1]
        own = len(weights[0]) if family == _OWN_INPUT else 1
        vectors = rng.standard_normal((own, columns), dtype=np.float32)
        rounds = numerics.activation == "q8_k"
        self._x = Activations(vectors.size, rounds=rounds)
        self._x.load(vectors)
        starts = [index * columns if own > 1 else 0 for index in range(len(weights[0]))]
        self._batches = [
            Batch(
                [
                    Matrix.of(_copied(tensor), rounds=rounds)
                    for tensor in weights[copy % self.distinct]
                ],
                starts,
            )
            for copy in range(self.copies)
        ]
        self._rows = [tensor.shape[0] for tensor in weights[0]]
        # NaN, so that a row that was never written cannot pass unseen.
        self._out = np.full((self.copies, sum(self._rows)), np.nan, dtype=np.float32)
        self.operands = [
            [
                (tensor.blocks, tensor.format, vectors[index if own > 1 else 0])
                for index, tensor in enumerate(tensors)
            ]
            for tensors in weights
        ]

    def launch(self, copy: int) -> None:
        """Compute the products of one copy."""
        with using_threads(self._threads):
            self._batches[copy].run(self._x, self._out[copy], self._threads)

    def results(self, copy: int) -> list[NDArray[np.float32]]:
        """What the copy's last launch gave: float32 ``[rows]`` of each product."""
        ends = np.cumsum(self._rows)
        return [part.copy() for part in np.split(self._out[copy], ends[:-1])]

    def ran(self) -> Mapping[str, object]:
        """Say what computes, on what."""
        return {
            "backend": "cpu",
            "device": cpu_name(),
            "threads": self._threads,
            "source_hash": source_hash(),
            "kernel": self.name,
            "copies": self.copies,
            "bytes_rotated": self.copies * self.bytes,
        }


def last_level_cache() -> int:
    """Bytes of the largest cache that the kernel reports; 64 MiB where it reports none."""
    sizes = []
    for path in _CACHE.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=64 << 20)


def _weights(model: Model, family: str, layer: int, rng: np.random.Generator) -> list[Tensor]:
    if family == "output":
        return [model.output]
    tensors = [model.layer(layer, short) for short in FAMILIES[family]]
    if len(tensors[0].shape) == 2:
        return tensors
    c = model.config
    chosen = rng.choice(c.experts, c.top_k, replace=False)
    return [
        Tensor(tensor.name, tensor.format, tensor.shape[1:], tensor.blocks[expert])
        for tensor in tensors
        for expert in chosen
    ]


def _copied(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.format, tensor.shape, np.array(tensor.blocks))
