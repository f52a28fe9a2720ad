"""Bytes that decoding one token must move, counted from the model and the experts routed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.model import Model

_CACHE_BYTES = {"cpu": 4, "cuda": 2}  # of one cached value: float32 on CPU, float16 on CUDA

# For what purpose a token reads a tensor, and which family of CUDA kernels reads it first.
_READ_BY = {
    # one row of the embedding
    "token_embd": ("embedding", "embed"),
    # Q, K, V and O
    "attn_q": ("attention", "qkv"),
    "attn_k": ("attention", "qkv"),
    "attn_v": ("attention", "qkv"),
    "attn_output": ("attention", "attention_output"),
    # both norms, and those of Q and K; gate_up reads ffn_norm again, when it is in a cache
    "attn_norm": ("norms", "qkv"),
    "attn_q_norm": ("norms", "append"),
    "attn_k_norm": ("norms", "append"),
    "ffn_norm": ("norms", "route"),
    "output_norm": ("norms", "logits"),
    # the router sees every expert
    "ffn_gate_inp": ("router", "route"),
    # of all experts, the k that were chosen
    "ffn_gate_exps": ("experts", "gate_up"),
    "ffn_up_exps": ("experts", "gate_up"),
    "ffn_down_exps": ("experts", "down"),
    # keys and values: of every position before, read; of this one, written
    "cached before": ("kv_cache", "attend"),
    "cached now": ("kv_cache", "append"),
    # the whole output matrix
    "output": ("output", "logits"),
}


@dataclass(frozen=True)
class Traffic:
    """Bytes of one token, by what they are for, or by what reads them."""

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
    counted = _counted(model, backend, positions)
    return _summed((_READ_BY[name][0], nbytes) for name, nbytes in counted.items())


def family_traffic(model: Model, positions: int) -> Traffic:
    """Count the same bytes by the family of CUDA kernels that reads them.

    Argmax reads logits, which are activations: no bytes of it count.
    """
    counted = _counted(model, "cuda", positions)
    read = _summed((_READ_BY[name][1], nbytes) for name, nbytes in counted.items())
    return Traffic({**read.terms, "argmax": 0})


def _counted(model: Model, backend: str, positions: int) -> dict[str, int]:
    """Bytes by tensor, over all layers, and those of the cache."""
    c = model.config
    cached = c.layers * 2 * c.kv_width * _CACHE_BYTES[backend]
    counted = {
        "token_embd": model["token_embd.weight"].nbytes // c.vocab,
        "output_norm": model["output_norm.weight"].nbytes,
        "output": model.output.nbytes,
        "cached before": cached * (positions - 1),
        "cached now": cached,
    }
    for name in _READ_BY.keys() - counted.keys():
        nbytes = sum(model.layer(n, name).nbytes for n in range(c.layers))
        counted[name] = nbytes * c.top_k // c.experts if name.endswith("_exps") else nbytes
    return {name: counted[name] for name in _READ_BY}


def _summed(terms: Iterable[tuple[str, int]]) -> Traffic:
    summed: Counter[str] = Counter()
    for name, nbytes in terms:
        summed[name] += nbytes
    return Traffic(dict(summed))
