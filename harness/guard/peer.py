"""A decoder in the oracle's place: parity against another backend or numerics.

A peer that can be told what to decide (``harness.decoder.Instructed``: the CPU's) replays a
candidate as the oracle does. One that cannot is judged teacher-forced alone: free-running, one
near-tie that falls the other way changes everything below it, and proves nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.decoder import Instructed
from harness.numerics import Limits, Tolerance
from harness.reference import Oracle, Routing, Run
from harness.stages import Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.numerics import Numerics
    from harness.reference import Replay


_NOTHING = Plan(frozenset())

# Keys and values that differ by one float32 rounding may be kept one float16 step apart, which is
# at most 2^-10 of the value: the mixture of values moves by that, and its weights (softmax of
# q k / sqrt(head_dim), heads normed) by about as much again.
_F16_STEPS = 2 * 2**-10


class PeerReference(Oracle):
    """Answers as an oracle, with a decoder's values.

    Router logits come from the decoder's own ``ffn_norm`` stage times the router's weights in
    float64; a single layer's experts (asked for at ties) are computed by the oracle's arithmetic.
    """

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        super().__init__(decoder.model, "cpu", decoder.numerics.oracle_activation, capacity)
        self.decoder = decoder

    @property
    def name(self) -> str:
        """``<backend>:<numerics>``, and the cache where it is not the numerics' own to say."""
        cache = self.decoder.numerics.cache
        kept = f":{cache} cache" if self.decoder.backend == "cpu" and cache != "f32" else ""
        return f"{self.decoder.backend}:{self.decoder.numerics.name}{kept}"

    def tolerance(self, candidate: Numerics) -> Tolerance:
        """How far a candidate may be from this peer, if both are right.

        Each is within its own tolerance of the truth, so of each other within the sum. Where
        their activations are rounded to different formats there is no common truth: the
        candidate's own tolerance then asks whether the formats make a difference.
        """
        peer = self.decoder.numerics
        if candidate.oracle_activation != peer.oracle_activation:
            return candidate.tolerance
        both = _sum(candidate.tolerance, peer.tolerance)
        if isinstance(self.decoder, Instructed):
            return both
        steps = _F16_STEPS if "f16" in (candidate.cache, peer.cache) else 0.0
        return replace(
            both, free=None, forced=_wider(both.forced, steps), tie_epsilon=both.tie_epsilon + steps
        )

    def reset(self) -> None:
        """Forget the sequence."""
        super().reset()
        self.decoder.reset()

    def rewind(self, position: int) -> None:
        """Go back to an earlier position."""
        super().rewind(position)
        self.decoder.rewind(position)

    def close(self) -> None:
        """Close the decoder too."""
        super().close()
        self.decoder.close()

    def fill_cache(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Fill the decoder's cache."""
        self.decoder.fill_cache(keys, values)
        self.position = keys.shape[1]

    def run(
        self,
        ids: Sequence[int],
        plan: Plan = _NOTHING,
        forced: NDArray[np.floating] | None = None,
        replay: Replay | None = None,
    ) -> Run:
        """Decode tokens; ``replay``'s answers are taken where the decoder can be told."""
        captures, logits = [], []
        told = isinstance(self.decoder, Instructed) and replay is not None
        seen_too = {"ffn_norm", "moe_router_indices"}
        for place, token in enumerate(ids):
            seen = Capture(replace(plan, stages=plan.stages | seen_too))
            given = None if forced is None else forced[place].astype(np.float32)
            if isinstance(self.decoder, Instructed) and replay is not None:
                self.decoder.decisions = _Decisions(self, replay)
            try:
                row = self.decoder.step(token, seen, given)
            finally:
                if isinstance(self.decoder, Instructed):
                    self.decoder.decisions = None
            logits.append(row.astype(np.float64))
            captures.append(seen)
            if replay is not None and not told:
                for layer in range(self.config.layers):
                    x, chosen = seen["ffn_norm", layer], seen["moe_router_indices", layer]
                    replay.experts(self.routing(layer, x, chosen))
            self.position += 1
        return Run(captures, np.stack(logits))

    def routing(
        self, layer: int, normed: NDArray[np.generic], chosen: NDArray[np.generic]
    ) -> Routing:
        """What the decoder's router saw at its present position."""
        x = normed.astype(np.float64)
        if layer not in self._routers:
            router = self.model.layer(layer, "ffn_gate_inp").values()
            self._routers[layer] = router.astype(np.float64)
        weights = self._routers[layer]
        return Routing(layer, self.position, weights @ x, x, weights, chosen.astype(np.int64))


class _Decisions:
    """Asks a replay on a decoder's behalf (``harness.decoder.Decisions``)."""

    def __init__(self, peer: PeerReference, replay: Replay) -> None:
        self._peer, self._replay = peer, replay

    def experts(
        self, layer: int, normed: NDArray[np.float32], chosen: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        return self._replay.experts(self._peer.routing(layer, normed, chosen))

    def cached(self, layer: int, own: NDArray[np.float32]) -> NDArray[np.floating] | None:
        exact = own[:, None].astype(np.float64)
        kept = self._replay.cached(layer, exact, self._peer.position)
        return None if kept is None else kept[:, 0]


def _sum(a: Tolerance, b: Tolerance) -> Tolerance:
    """Triangle inequality, field by field."""
    return Tolerance(
        forced=_added(a.forced, b.forced),
        free=None if a.free is None or b.free is None else _added(a.free, b.free),
        tie_epsilon=a.tie_epsilon + b.tie_epsilon,
        tie_share=a.tie_share + b.tie_share,
        cosine_floor=max(a.cosine_floor, b.cosine_floor),
        cache_epsilon=a.cache_epsilon + b.tie_epsilon if a.cache_epsilon else 0.0,
    )


def _added(a: Limits, b: Limits) -> Limits:
    return Limits(
        a.rel_l2 + b.rel_l2,
        a.row_rel_l2 + b.row_rel_l2,
        a.router_weight + b.router_weight,
        a.logits_rel_l2 + b.logits_rel_l2,
    )


def _wider(limits: Limits, by: float) -> Limits:
    return _added(limits, Limits(by, by, by, by))
