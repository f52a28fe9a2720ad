"""Bytes that decoding one token must move, counted from the model and the experts routed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

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
    "attn_q_norm": ("norms", "attend"),
    "attn_k_norm": ("norms", "attend"),
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
    "cached now": ("kv_cache", "attend"),
    # the whole output matrix
    "output": ("output", "logits"),
}


# What reads a family's bytes where a token launches none of it: the router's logits are announced.
_READ_INSTEAD = {"route": "attention_output"}


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
    return _summed((_READ_BY[name][0], nbytes) for (name, _), nbytes in counted.items())


def batch_traffic(
    model: Model, backend: str, positions: int, sequences: int, distinct: Sequence[float]
) -> Traffic:
    """Count one step of several sequences, each of which attends to ``positions`` positions.

    What all of them read alike counts once; experts once for each of the union that they chose; the
    row of the embedding and the cache for each sequence.

    Parameters
    ----------
    model
        The opened model.
    backend
        As it keeps the cache.
    positions
        Of each sequence, the present one included.
    sequences
        How many.
    distinct
        By layer, the experts that any of them chose (``distinct_experts``).

    Raises
    ------
    ValueError
        Where ``distinct`` has not a number for each layer, or one that sequences cannot choose.

    """
    c = model.config
    most = min(c.experts, sequences * c.top_k)
    if len(distinct) != c.layers or not all(c.top_k <= each <= most for each in distinct):
        raise ValueError(
            f"distinct experts of {len(distinct)} layers, expected {c.top_k} to {most} in each of "
            f"{c.layers}"
        )
    counted = _counted(model, backend, positions)
    times = {"embedding": float(sequences), "kv_cache": float(sequences)}
    terms: Counter[str] = Counter()
    for (name, layer), nbytes in counted.items():
        purpose = _READ_BY[name][0]
        if purpose == "experts" and layer is not None:
            terms[purpose] += round(nbytes * distinct[layer] / c.top_k)
        else:
            terms[purpose] += round(nbytes * times.get(purpose, 1.0))
    return Traffic(dict(terms))


def distinct_experts(chosen: NDArray[np.integer]) -> list[float]:
    """By layer, how many experts any sequence chose in a step: the mean over steps.

    Parameters
    ----------
    chosen
        Ids, ``[sequences, steps, layers, top_k]``.

    """
    _, steps, layers, _ = chosen.shape
    return [
        sum(np.unique(chosen[:, step, layer]).size for step in range(steps)) / steps
        for layer in range(layers)
    ]


def family_traffic(
    model: Model, positions: int, launched: Collection[str] | None = None
) -> Traffic:
    """Count the same bytes by the family of CUDA kernels that reads them.

    Argmax reads logits, which are activations: no bytes of it count. ``launched`` are the families
    that a token launches; all, unless given.
    """
    launches = launch_traffic(model, "cuda", positions, launched)
    return _summed((family, nbytes) for (family, _), nbytes in launches.items())


def launch_traffic(
    model: Model,
    backend: str,
    positions: int,
    launched: Collection[str | tuple[str, int | None]] | None = None,
) -> dict[tuple[str, int | None], int]:
    """Count the same bytes by family and layer; None for what is not of a layer.

    ``launched`` as in ``family_traffic``; or families with their layers, where not all of them
    launch the same.
    """
    moved: Counter[tuple[str, int | None]] = Counter({("argmax", None): 0})
    for (name, layer), nbytes in _counted(model, backend, positions).items():
        family = _READ_BY[name][1]
        if launched is not None and not {family, (family, layer)} & set(launched):
            family = _READ_INSTEAD.get(family, family)
        moved[family, layer] += nbytes
    return dict(moved)


def _counted(model: Model, backend: str, positions: int) -> dict[tuple[str, int | None], int]:
    """Bytes by tensor and layer, and those of the cache."""
    c = model.config
    cached = 2 * c.kv_width * _CACHE_BYTES[backend]
    counted: dict[tuple[str, int | None], int] = {
        ("token_embd", None): model["token_embd.weight"].nbytes // c.vocab,
        ("output_norm", None): model["output_norm.weight"].nbytes,
        ("output", None): model.output.nbytes,
    }
    whole = {name for name, _ in counted}
    for layer in range(c.layers):
        for name in _READ_BY:
            if name in whole:
                continue
            if name == "cached before":
                nbytes = cached * (positions - 1)
            elif name == "cached now":
                nbytes = cached
            else:
                nbytes = model.layer(layer, name).nbytes
            routed = name.endswith("_exps")
            counted[name, layer] = nbytes * c.top_k // c.experts if routed else nbytes
    return counted


def _summed(terms: Iterable[tuple[str, int]]) -> Traffic:
    summed: Counter[str] = Counter()
    for name, nbytes in terms:
        summed[name] += nbytes
    return Traffic(dict(summed))
