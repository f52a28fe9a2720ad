"""Expert sets: who differs, by what margin, and whether that is a tie or a fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.reference import Routing


@dataclass(frozen=True)
class Swap:
    """A layer and position where the candidate's expert set is not the oracle's.

    ``margin``: the highest oracle logit that the candidate dropped minus the lowest that it took
    instead. ``bound``: what the numerics' rounding could explain. The margin is infinite, and the
    bound 0, where the candidate's ids are no set of ``k`` experts at all, or where the oracle's
    logits are not finite and so prove nothing.
    """

    layer: int
    position: int
    only_candidate: tuple[int, ...]
    only_reference: tuple[int, ...]
    margin: float
    bound: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding explains it; if not it is a fault."""
        return self.margin <= self.bound

    def to_json(self) -> list[object]:
        """``[position, [only candidate], [only reference], margin]``."""
        return [self.position, list(self.only_candidate), list(self.only_reference), self.margin]


def valid_ids(ids: NDArray[np.generic], experts: int, top_k: int) -> bool:
    """Whether ``ids`` are ``top_k`` different experts."""
    values = ids.astype(np.float64)
    return (
        values.shape == (top_k,)
        and bool(np.isfinite(values).all())
        and bool((values == np.floor(values)).all())
        and bool(((values >= 0) & (values < experts)).all())
        and len(set(values.tolist())) == top_k
    )


def compare_sets(seen: Routing, ids: NDArray[np.generic], epsilon: float) -> Swap | None:
    """Compare the candidate's ``ids`` with what the oracle would choose; None where equal.

    The bound comes from the oracle and the numerics alone, never from the candidate's own error:
    a hidden state that is off by ``epsilon * |x|`` moves the difference of two logits by at most
    ``epsilon * |x| * |w_i - w_j|`` (Cauchy-Schwarz).
    """
    chosen = {int(expert) for expert in seen.chosen}
    if not valid_ids(ids, len(seen.logits), len(chosen)):
        return Swap(seen.layer, seen.position, (), tuple(sorted(chosen)), np.inf, 0.0)
    taken = {int(expert) for expert in ids}
    if taken == chosen:
        return None
    only_candidate, only_reference = sorted(taken - chosen), sorted(chosen - taken)
    dropped = max(only_reference, key=lambda expert: seen.logits[expert])
    took = min(only_candidate, key=lambda expert: seen.logits[expert])
    margin = float(seen.logits[dropped] - seen.logits[took])
    apart = float(np.linalg.norm(seen.weights[dropped] - seen.weights[took]))
    bound = epsilon * float(np.linalg.norm(seen.x)) * apart
    if not (np.isfinite(margin) and np.isfinite(bound)):
        margin, bound = np.inf, 0.0
    return Swap(
        seen.layer,
        seen.position,
        tuple(only_candidate),
        tuple(only_reference),
        margin,
        bound,
    )


def renormalised(logits: NDArray[np.float64], ids: Sequence[int]) -> NDArray[np.float64]:
    """Oracle weights of a given expert set, in its order: softmax over ``ids`` alone.

    Softmax over all experts, then renormalised to sum 1, is the same thing.
    """
    chosen = logits[list(ids)]
    powers = np.exp(chosen - chosen.max())
    return np.asarray(powers / powers.sum())
