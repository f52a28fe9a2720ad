"""From a divergence to its cause: local residuals at the layers that diverge, then seven tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.distance import finite_or_none
from harness.guard.peer import PeerReference
from harness.lab.hypotheses import (
    CONFIRMED,
    PRODUCTS,
    Case,
    Finding,
    Side,
    left_over,
    put_to_test,
)
from harness.lab.layers import first_divergent
from harness.lab.steps import Steps
from harness.stages import STAGES, Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.decoder import Decoder
    from harness.guard import Evidence
    from harness.lab.layers import LayerError
    from harness.reference import Oracle

_MOST_POSITIONS = 3  # of a layer: each costs a float64 pass over the layer's weights

# What attention keeps of each position is in the first two; scores are recomputed.
_PLAN = frozenset(STAGES) - {"attn_scores", "attn_softmax", "qkv_bias"}


@dataclass(frozen=True)
class Explanation:
    """What a divergence is owed to.

    ``causes`` are the hypotheses that were confirmed; ``left`` are steps that are off and that no
    hypothesis is about.
    """

    places: tuple[tuple[int, int], ...]  # layer, position
    case: Case
    findings: tuple[Finding, ...]
    left: tuple[str, ...]

    @property
    def causes(self) -> list[str]:
        """Names of the confirmed hypotheses."""
        return [finding.name for finding in self.findings if finding.status == CONFIRMED]

    @property
    def conclusion(self) -> str:
        """What is left, in words."""
        if self.causes:
            also = f" (and {len(self.left)} other steps that are off)" if self.left else ""
            return f"what is left: {', '.join(self.causes)}{also}"
        if self.left:
            return f"none of the seven; what is left: {self.left[0]}"
        return "unexplained: every step is within float32's rounding where it was looked at"

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "places": [list(place) for place in self.places],
            "hypotheses": [finding.to_json() for finding in self.findings],
            "causes": self.causes,
            "left": list(self.left),
            "conclusion": self.conclusion,
            "steps": [
                {
                    "side": side.name,
                    "step": r.step,
                    "layer": r.layer,
                    "position": r.position,
                    "tensor": r.tensor,
                    "expert": r.expert,
                    "rel_l2": finite_or_none(r.error),
                    "limit": finite_or_none(r.limit),
                    "rounded_rel_l2": finite_or_none(r.rounded),
                    "rounded_limit": finite_or_none(r.rounded_limit),
                }
                for side in self.case.sides
                for r in side.residuals
            ],
        }

    def lines(self) -> list[str]:
        """A line for each hypothesis, then what is left."""
        lines = [
            f"{finding.status:<12} {finding.name:<22} {_figure(finding.measured)} against "
            f"{_figure(finding.threshold)}: {finding.words}"
            for finding in self.findings
        ]
        lines += [f"OFF          {line}" for line in self.left]
        return [*lines, self.conclusion]


def explain(
    candidate: Decoder,
    reference: Oracle,
    ids: Sequence[int],
    evidence: Evidence,
    errors: list[LayerError],
) -> Explanation:
    """Decode ``ids`` free-running once more with both, and recompute every step where they part.

    Looked at are the first divergent layer and the worst one, and of each the worst positions.
    Nothing is replayed. The reference's weights are the true ones.
    """
    places = _places(evidence, errors)
    layers = tuple(sorted({layer for layer, _ in places}))
    plan = Plan(_PLAN, layers[0], layers[-1] + 1)
    captures = [Capture(plan) for _ in ids]
    candidate.reset()
    for token, capture in zip(ids, captures, strict=True):
        candidate.step(token, capture)
    reference.reset()
    truths = reference.run(ids, plan).captures
    model = reference.model
    behind = first_divergent(errors) is None
    peer = reference.decoder.numerics if isinstance(reference, PeerReference) else None
    cache = reference.cache if peer is None else peer.cache
    peer_epsilon = 0.0 if peer is None else peer.top_k_epsilon
    name = f"{candidate.backend}:{candidate.numerics.name}"
    numerics = candidate.numerics
    sides = [
        _side(name, Steps(model, captures, numerics.cache, numerics.top_k_epsilon), places, behind),
        _side(reference.name, Steps(model, truths, cache, peer_epsilon), places, behind),
    ]
    main = evidence.decisive
    case = Case(model, layers, sides[0], sides[1], main.swaps, main.moe_cosine.size)
    return Explanation(places, case, tuple(put_to_test(case)), tuple(left_over(case)))


def _side(name: str, steps: Steps, places: Sequence[tuple[int, int]], behind: bool) -> Side:
    residuals = [residual for place in places for residual in steps.of(*place)]
    if behind:
        residuals += steps.output(places[-1][1])
    choices = [choice for place in places if (choice := steps.choice(*place)) is not None]
    readings, tried = [], set()
    for residual in residuals:
        # The same tensor misread at every place is found at the first.
        what = residual.tensor, residual.expert
        if residual.step not in PRODUCTS or residual.sound or what in tried:
            continue
        tried.add(what)
        if (reading := steps.reading(residual)) is not None:
            readings.append(reading)
    return Side(name, tuple(residuals), tuple(choices), tuple(readings))


def _places(evidence: Evidence, errors: list[LayerError]) -> tuple[tuple[int, int], ...]:
    """Layer and position, in that order: the first divergent layer's and the worst one's."""
    main = evidence.decisive
    off = np.maximum(main.moe_rel_l2, main.attention_rel_l2)
    off = np.maximum(off, np.nan_to_num(main.router_weight, nan=np.inf))
    for swap in main.swaps:
        if not swap.is_tie:
            off[swap.layer, swap.position] = np.inf
    ranked = np.nan_to_num(off, nan=np.inf)
    first = first_divergent(errors)
    worst = int(ranked.max(1).argmax()) if first is not None else len(errors) - 1
    layers = {worst} if first is None else {first.layer, worst}
    return tuple(
        (layer, int(position))
        for layer in sorted(layers)
        for position in sorted(np.argsort(-ranked[layer], kind="stable")[:_MOST_POSITIONS])
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
