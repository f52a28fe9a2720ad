"""A model's shape, read from GGUF metadata and checked.

An architecture is a table of facts, not a branch in a decoder: ``ARCHITECTURES`` lists them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping

ARCHITECTURES = ("qwen3moe",)

# What a real model of this family stays far below; above it a header is damaged or hostile.
_MOST = {
    "block_count": 4096,
    "embedding_length": 1 << 20,
    "head_count": 1 << 14,
    "key_length": 1 << 14,
    "expert_count": 1 << 16,
    "expert_feed_forward_length": 1 << 20,
    "context_length": 1 << 30,
    "vocab_size": 1 << 26,
}


@dataclass(frozen=True)
class Config:
    """Shape of a ``qwen3moe`` model. All counts are positive; ``top_k <= experts``."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    expert_width: int
    vocab: int
    rms_eps: float
    rope_base: float
    context_length: int
    tied_output: bool

    @property
    def q_width(self) -> int:
        """Values of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Values of all key (or value) heads together."""
        return self.kv_heads * self.head_dim


class _Keys:
    """The architecture's keys, each read with its bounds."""

    def __init__(self, metadata: Mapping[str, object], architecture: str, path: str) -> None:
        self._metadata, self._architecture, self._path = metadata, architecture, path

    def _get(self, key: str, default: float | None) -> tuple[str, object]:
        name = f"{self._architecture}.{key}"
        value = self._metadata.get(name, default)
        if value is None:
            raise BadInput(f"{self._path}: metadata {name} is missing; convert the model again")
        return name, value

    def whole(self, key: str, default: int | None = None) -> int:
        name, value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadInput(f"{self._path}: {name} is {value!r}, expected a whole number")
        most = _MOST.get(key.removeprefix("attention."), 1 << 20)
        if not 1 <= value <= most:
            raise BadInput(f"{self._path}: {name} is {value}, expected 1 to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        name, value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadInput(f"{self._path}: {name} is {value!r}, expected a number")
        if not math.isfinite(value) or value <= 0:
            raise BadInput(f"{self._path}: {name} is {value}, expected a finite number above 0")
        return float(value)


def read_config(
    metadata: Mapping[str, object], *, vocab_rows: int, tied_output: bool, path: str
) -> Config:
    """Read the config out of GGUF metadata.

    Parameters
    ----------
    metadata
        Decoded key-value pairs of the header.
    vocab_rows
        Rows of ``token_embd``: the vocabulary where ``vocab_size`` is absent.
    tied_output
        Whether the file lacks ``output.weight``.
    path
        For messages.

    Raises
    ------
    BadInput
        For a missing, mistyped or absurd value.

    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BadInput(
            f"{path}: architecture is {architecture!r}, expected one of "
            f"{', '.join(ARCHITECTURES)}; use a Qwen3-MoE GGUF"
        )

    keys = _Keys(metadata, str(architecture), path)
    heads = keys.whole("attention.head_count")
    hidden = keys.whole("embedding_length")
    kv_heads = keys.whole("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise BadInput(
            f"{path}: {heads} query heads are not a multiple of {kv_heads} key-value heads"
        )
    head_dim = keys.whole("attention.key_length", hidden // heads)
    if head_dim % 2:
        raise BadInput(f"{path}: head_dim is {head_dim}, expected an even number (RoPE pairs)")
    if keys.whole("attention.value_length", head_dim) != head_dim:
        raise BadInput(f"{path}: value_length differs from key_length {head_dim}")
    experts, top_k = keys.whole("expert_count"), keys.whole("expert_used_count")
    if top_k > experts:
        raise BadInput(f"{path}: top-k is {top_k}, but there are only {experts} experts")
    vocab = keys.whole("vocab_size", vocab_rows)
    if vocab != vocab_rows:
        raise BadInput(f"{path}: vocab_size is {vocab}, but token_embd has {vocab_rows} rows")
    return Config(
        architecture=str(architecture),
        layers=keys.whole("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        experts=experts,
        top_k=top_k,
        expert_width=keys.whole("expert_feed_forward_length"),
        vocab=vocab,
        rms_eps=keys.real("attention.layer_norm_rms_epsilon"),
        rope_base=keys.real("rope.freq_base", 10000.0),
        context_length=keys.whole("context_length"),
        tied_output=tied_output,
    )


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name to shape (rows first, values of a row last) of every tensor that the model needs."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (c.vocab, c.hidden)}
    per_layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (c.hidden,),
        "attn_q": (c.q_width, c.hidden),
        "attn_k": (c.kv_width, c.hidden),
        "attn_v": (c.kv_width, c.hidden),
        "attn_q_norm": (c.head_dim,),
        "attn_k_norm": (c.head_dim,),
        "attn_output": (c.hidden, c.q_width),
        "ffn_norm": (c.hidden,),
        "ffn_gate_inp": (c.experts, c.hidden),
        "ffn_gate_exps": (c.experts, c.expert_width, c.hidden),
        "ffn_up_exps": (c.experts, c.expert_width, c.hidden),
        "ffn_down_exps": (c.experts, c.hidden, c.expert_width),
    }
    for layer in range(c.layers):
        for name, shape in per_layer.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    shapes["output_norm.weight"] = (c.hidden,)
    if not c.tied_output:
        shapes["output.weight"] = (c.vocab, c.hidden)
    return shapes
