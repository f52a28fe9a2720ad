"""Bytes that decoding one token must move, counted from the model and the experts routed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.model import Model

_CACHE_BYTES = {"cpu": 4, "cuda": 2}  # of one cached value: float32 on CPU, float16 on CUDA


@dataclass(frozen=True)
class Traffic:
    """Bytes of one token, by what they are for."""

    terms: dict[str, int]

    @property
    def total(self) -> int:
        """All terms together."""
        return sum(self.terms.values())


def token_traffic(model: Model, backend: str, positions: int) -> Traffic:
    """Count one token at batch 1 that attends to ``positions`` positions (itself included).

    Each of the layers reads exactly ``top_k`` experts, whichever they are: experts of a layer are
    equal in size. Activations are not counted, as they stay in caches.
    """
    c = model.config

    def layers(*names: str) -> int:
        return sum(model.layer(n, name).nbytes for n in range(c.layers) for name in names)

    norms = ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm")
    experts = layers("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    cached = c.layers * 2 * c.kv_width * _CACHE_BYTES[backend]
    return Traffic(
        {
            # one row of the embedding
            "embedding": model["token_embd.weight"].nbytes // c.vocab,
            # Q, K, V and O
            "attention": layers("attn_q", "attn_k", "attn_v", "attn_output"),
            # both norms, and those of Q and K
            "norms": layers(*norms) + model["output_norm.weight"].nbytes,
            # the router sees every expert
            "router": layers("ffn_gate_inp"),
            # of all experts, the k that were chosen
            "experts": experts * c.top_k // c.experts,
            # keys and values of every position before, read; of this one, written
            "kv_cache": cached * positions,
            # the whole output matrix
            "output": model.output.nbytes,
        }
    )
