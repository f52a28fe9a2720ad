"""Faults that the CPU decoder can be told to plant in its own arithmetic.

``Sound`` is what a layer decides outside its kernels; each planted fault overrides one decision.
The guard must reject every one of ``PLANTS`` (``harness.guard.faults``). ``CAUSES`` are others:
one step each in float16, which the laboratory must name (``harness.lab``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.model import Tensor

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float32]


class Sound:
    """No fault."""

    qk_norm = True
    silu_on_up = False
    query_shift = 0  # positions by which the query's rotation is off

    def pairs(self, head_dim: int) -> tuple[Ids, Ids]:
        """Values that RoPE turns together: ``i`` with ``i + head_dim / 2`` (NeoX)."""
        return np.arange(head_dim // 2), np.arange(head_dim // 2, head_dim)

    def writes_cache(self, position: int) -> bool:  # noqa: ARG002 - a fault asks
        """Whether the keys and values of a position reach the cache."""
        return True

    def choose(self, ranked: Ids, top_k: int) -> Ids:
        """Choose among all experts, best first."""
        return ranked[:top_k]

    def weigh(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of the chosen experts, out of their softmax probabilities."""
        return np.asarray(probabilities / probabilities.sum())

    def computed(self, chosen: Ids, experts: int) -> Ids:  # noqa: ARG002 - a fault asks
        """Experts whose matrices are multiplied for those chosen."""
        return chosen

    def mixed(self, weights: Floats) -> Floats:
        """Weights with which the experts' outputs are summed."""
        return weights

    def silu(self, gate: Floats) -> Floats:
        """``gate * sigmoid(gate)``."""
        return np.asarray(gate / (1 + np.exp(-gate)))

    def summed(self, weights: Floats, down: Floats) -> Floats:
        """Sum the experts' outputs ``[top_k, hidden]``, one after the other, in router order."""
        # A BLAS might choose an order of its own.
        return np.asarray((weights[:, None] * down).sum(axis=0))

    def attention_out(self, out: Floats, weights: Tensor, mixed: Floats) -> Floats:  # noqa: ARG002
        """What attention adds to the residual: ``out``, the product of the other two."""
        return out

    def moe_out(self, out: Floats, position: int, *, last_layer: bool) -> Floats:  # noqa: ARG002
        """What the mixture adds to the residual."""
        return out

    def logits(self, logits: Floats, before: Floats | None) -> Floats:  # noqa: ARG002
        """What a step returns; ``before`` are the step before's true logits."""
        return logits


class _WrongExpert(Sound):
    def computed(self, chosen: Ids, experts: int) -> Ids:
        """Take the neighbour's matrices for the top expert; the ids reported stay right."""
        return np.concatenate([(chosen[:1] + 1) % experts, chosen[1:]])


class _DropTopExpert(Sound):
    def mixed(self, weights: Floats) -> Floats:
        return np.concatenate([np.zeros_like(weights[:1]), weights[1:]])


class _DropLowestExpert(Sound):
    def mixed(self, weights: Floats) -> Floats:
        return np.concatenate([weights[:-1], np.zeros_like(weights[:1])])


class _UniformWeights(Sound):
    def weigh(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full_like(probabilities, 1 / len(probabilities))


class _SwapTwoWeights(Sound):
    def mixed(self, weights: Floats) -> Floats:
        swapped = weights.copy()
        swapped[[0, -1]] = weights[[-1, 0]]
        return swapped


class _UnnormalisedWeights(Sound):
    def weigh(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return probabilities


class _SiluOnWrongFactor(Sound):
    silu_on_up = True


class _StaleKv(Sound):
    def writes_cache(self, position: int) -> bool:
        return position != 1


class _RopeQOffByOne(Sound):
    query_shift = 1


class _RopeInterleaved(Sound):
    def pairs(self, head_dim: int) -> tuple[Ids, Ids]:
        return np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)


class _LastExpertAtTie(Sound):
    def choose(self, ranked: Ids, top_k: int) -> Ids:
        return np.concatenate([ranked[: top_k - 1], ranked[-1:]])


class _NoQkNorm(Sound):
    qk_norm = False


class _Nan(Sound):
    def moe_out(self, out: Floats, position: int, *, last_layer: bool) -> Floats:
        """One element of one layer at one position."""
        if last_layer and position == 1:
            out[len(out) // 2] = np.nan
        return out


class _CachedOutput(Sound):
    def logits(self, logits: Floats, before: Floats | None) -> Floats:
        return logits if before is None else before


class _SoftmaxF16(Sound):
    def weigh(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        halves = probabilities.astype(np.float16)
        return np.asarray(halves / halves.sum(dtype=np.float16), dtype=np.float64)


class _WeightedSumF16(Sound):
    def summed(self, weights: Floats, down: Floats) -> Floats:
        total = np.zeros(down.shape[1], dtype=np.float16)
        for weight, row in zip(weights, down, strict=True):
            total = (total + weight * row).astype(np.float16)
        return total.astype(np.float32)


class _SwigluF16(Sound):
    def silu(self, gate: Floats) -> Floats:
        halves = gate.astype(np.float16)
        return np.asarray(halves / (1 + np.exp(-halves)), dtype=np.float32)


class _ReductionF16(Sound):
    def attention_out(self, out: Floats, weights: Tensor, mixed: Floats) -> Floats:
        """Sum in float16, one column after the other."""
        total = np.zeros_like(out, dtype=np.float16)
        for column in (weights.values() * mixed.reshape(-1)).T:
            total = (total + column).astype(np.float16)
        return total.astype(np.float32)


_CAUSES: dict[str, type[Sound]] = {
    "softmax_f16": _SoftmaxF16,
    "weighted_sum_f16": _WeightedSumF16,
    "swiglu_f16": _SwigluF16,
    "reduction_f16": _ReductionF16,
}
_FAULTS: dict[str, type[Sound]] = {
    "wrong_expert": _WrongExpert,
    "drop_top_expert": _DropTopExpert,
    "drop_lowest_expert": _DropLowestExpert,
    "uniform_weights": _UniformWeights,
    "swap_two_weights": _SwapTwoWeights,
    "unnormalised_weights": _UnnormalisedWeights,
    "silu_on_wrong_factor": _SiluOnWrongFactor,
    "stale_kv": _StaleKv,
    "rope_q_off_by_one": _RopeQOffByOne,
    "rope_interleaved": _RopeInterleaved,
    "last_expert_at_tie": _LastExpertAtTie,
    "no_qk_norm": _NoQkNorm,
    "nan": _Nan,
    "cached_output": _CachedOutput,
}
PLANTS: tuple[str, ...] = tuple(_FAULTS)
CAUSES: tuple[str, ...] = tuple(_CAUSES)


def planted(name: str | None) -> Sound:
    """Return the decisions of a decoder with that fault planted; None: of a sound one.

    Raises
    ------
    KeyError
        For an unknown name; lists what exists.

    """
    if name is None:
        return Sound()
    known = _FAULTS | _CAUSES
    if name not in known:
        raise KeyError(f"no fault {name!r} to plant; there are {', '.join(known)}")
    return known[name]()
