"""Replay: where rounding alone decides, the oracle goes the candidate's way, and it is counted.

Two decisions of a forward pass are not smooth, so that two right decoders can come out apart by
far more than they round: which experts are taken at a near-tie, and which way a value near the
middle of two float16 falls when it is cached. Both are replayed only within bounds that come from
the oracle and the numerics, never from the candidate's own error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.guard.routing import compare_sets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.numerics import Tolerance
    from harness.reference import Routing
    from harness.stages import Capture

CACHED_STAGES = ("k_post_rope", "qkv_matmul")  # the values are the last of the second


class CandidateReplay:
    """What the oracle takes from one pass of a candidate (``harness.reference.Replay``).

    Parameters
    ----------
    captures
        The candidate's, by position; None to take nothing and only to note the routing.
    tolerance
        Brings the bounds.
    start
        Position of the first capture in the sequence.

    Attributes
    ----------
    seen
        The oracle's routing by layer and place in the prompt.
    cached_values, cached_replayed
        Values that a float16 cache was given, and those of them that are the candidate's.

    """

    def __init__(
        self, captures: Sequence[Capture] | None, tolerance: Tolerance, start: int
    ) -> None:
        self._captures, self._tolerance, self._start = captures, tolerance, start
        self.seen: dict[tuple[int, int], Routing] = {}
        self.cached_values = self.cached_replayed = 0

    def experts(self, routing: Routing) -> NDArray[np.int64] | None:
        """Return the candidate's experts at a proven tie."""
        place = routing.position - self._start
        self.seen[routing.layer, place] = routing
        if self._captures is None:
            return None
        ids = self._captures[place]["moe_router_indices", routing.layer]
        swap = compare_sets(routing, ids, self._tolerance.tie_epsilon)
        return ids.astype(np.int64) if swap is not None and swap.is_tie else None

    def cached(
        self, layer: int, own: NDArray[np.float64], first: int
    ) -> NDArray[np.float64] | None:
        """Return what the candidate keeps, where something within the bound rounds to it.

        The bound is ``cache_epsilon`` times the length of the head's vector: as in a tie of
        experts, what the numerics' rounding may do to a value of it. A head that is off as a whole,
        by less a value, is taken too: ``cached_errors`` is what it is judged by.
        """
        captures, epsilon = self._captures, self._tolerance.cache_epsilon
        if captures is None or not epsilon or (CACHED_STAGES[0], layer) not in captures[0]:
            return None
        place = slice(first - self._start, first - self._start + own.shape[1])
        keys = np.stack([capture["k_post_rope", layer] for capture in captures[place]])
        width = keys.shape[1]
        values = np.stack([capture["qkv_matmul", layer][-width:] for capture in captures[place]])
        if keys.size + values.size != own.size:
            return None  # of another length: nothing of it is taken, and the comparison rejects it
        reach = epsilon * np.linalg.norm(own, axis=-1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are not taken
            kept = np.stack([keys, values]).reshape(own.shape).astype(np.float16)
            low, high = (own - reach).astype(np.float16), (own + reach).astype(np.float16)
            mine = own.astype(np.float16)
            within = (low <= kept) & (kept <= high) & np.isfinite(kept)
        self.cached_values += own.size
        self.cached_replayed += int((within & (kept != mine)).sum())
        return np.where(within, kept, mine).astype(np.float64)


def cached_errors(
    candidate: Sequence[Capture], truth: Sequence[Capture], layer: int, head_dim: int
) -> dict[str, NDArray[np.float64]]:
    """``|candidate - oracle| / |oracle|`` of what goes into the cache, before it is rounded.

    Returns ``keys`` and ``values``, each ``[positions]``, the worst head's; infinite where the
    candidate's are not finite or not as many. A head shorter than its position's others counts as
    one of their length (root mean square).
    """
    width = truth[0]["k_post_rope", layer].shape[0]
    found = {}
    for what, stage in zip(("keys", "values"), CACHED_STAGES, strict=True):
        true, mine = ([seen[stage, layer] for seen in captures] for captures in (truth, candidate))
        pairs = zip(mine, true, strict=True)
        if any(a.shape != b.shape or not np.isfinite(a).all() for a, b in pairs):
            found[what] = np.full(len(truth), np.inf)
            continue
        heads = np.stack(true)[:, -width:].astype(np.float64).reshape(len(true), -1, head_dim)
        error = np.stack(mine)[:, -width:].astype(np.float64).reshape(heads.shape) - heads
        lengths = np.linalg.norm(heads, axis=-1)
        typical = np.sqrt(np.mean(lengths**2, axis=-1, keepdims=True))
        error, scale = np.linalg.norm(error, axis=-1), np.maximum(lengths, typical)
        unequal = np.where(error > 0, np.inf, 0.0)  # all zeros on both sides are equal
        found[what] = np.divide(error, scale, out=unequal, where=scale > 0).max(-1)
    return found
