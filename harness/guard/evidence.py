"""Everything that the guard saw, and the verdict that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.distance import finite_or_none

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from harness.guard.routing import Swap


@dataclass(frozen=True)
class Verdict:
    """Accepted, or rejected with reasons: an accepted verdict has none, a rejected one some."""

    reasons: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether a number may be built on the evidence."""
        return not self.reasons

    def to_json(self) -> dict[str, object]:
        """As DESIGN.md has it."""
        return {"accepted": self.accepted, "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Finding:
    """One quantity beside its limit: ``value / limit`` is its distance; above 1 it rejects."""

    what: str
    value: float
    limit: float

    @property
    def distance(self) -> float:
        """``value / limit``; infinite where either makes no sense (NaN never passes)."""
        if not np.isfinite(self.value) or np.isnan(self.limit):
            return float("inf")
        if self.limit <= 0:
            return 0.0 if self.value <= 0 else float("inf")
        return max(0.0, self.value / self.limit)


@dataclass(frozen=True)
class PassEvidence:
    """One pass (free-running or teacher-forced) against the oracle.

    Arrays are ``[layers, positions]`` unless said otherwise. ``attention_rel_l2`` is the error
    of ``post_attn_residual`` relative to what attention added (forced) or to the whole residual
    (free). ``*_row`` are worst rows, ``[layers]``. ``cached_rel_l2``: errors of ``keys`` and
    ``values`` before a float16 cache rounds them, the worst head's, empty where no such cache is
    replayed; ``cached_values``, ``cached_replayed``: values that it was given, and those that the
    oracle took from the candidate (``guard.replay``). Of the candidate
    alone: ``router_sum`` is what its k weights sum to; ``non_finite`` counts the values of every
    required stage that are NaN or infinite; ``lengths`` are values a position, by stage.
    ``routing_margin``: the oracle's logit of its last expert chosen, less that of the best left
    out; infinite where none is left out.
    """

    moe_cosine: NDArray[np.float64]
    moe_rel_l2: NDArray[np.float64]
    moe_row: NDArray[np.float64]
    attention_rel_l2: NDArray[np.float64]
    attention_row: NDArray[np.float64]
    residual_rel_l2: NDArray[np.float64]
    router_weight: NDArray[np.float64]
    router_cosine: NDArray[np.float64]
    routing_margin: NDArray[np.float64]
    swaps: tuple[Swap, ...]
    final_norm_rel_l2: NDArray[np.float64]  # [positions]
    logits_rel_l2: NDArray[np.float64]  # [positions]
    logits_cosine: NDArray[np.float64]  # [positions]
    logits_row: float
    argmax_agree: int
    argmax_margins: tuple[tuple[int, int, int, float, float], ...]
    cached_rel_l2: Mapping[str, NDArray[np.float64]]
    cached_values: int
    cached_replayed: int
    router_sum: NDArray[np.float64]
    non_finite: int
    lengths: Mapping[str, int]

    @property
    def argmax_ties(self) -> int:
        """Positions whose argmax differs within the bound of the numerics."""
        return sum(margin <= bound for *_, margin, bound in self.argmax_margins)

    @property
    def argmax_faults(self) -> int:
        """Positions whose argmax differs beyond it."""
        return len(self.argmax_margins) - self.argmax_ties


@dataclass(frozen=True)
class LayerEvidence:
    """One line of the parity table; None where that pass was not made."""

    layer: int
    moe_ffn_out_cosine: float | None
    moe_ffn_out_rel_l2: float | None
    forced_cosine: float | None
    forced_rel_l2: float | None
    experts_equal: bool
    experts_differ: tuple[Swap, ...]
    router_cosine: float
    routing_margin: float

    def to_json(self) -> dict[str, object]:
        """As DESIGN.md has it; infinities become None, as JSON has none."""
        return {
            "layer": self.layer,
            "moe_ffn_out_cosine": finite_or_none(self.moe_ffn_out_cosine),
            "moe_ffn_out_rel_l2": finite_or_none(self.moe_ffn_out_rel_l2),
            "forced_cosine": finite_or_none(self.forced_cosine),
            "forced_rel_l2": finite_or_none(self.forced_rel_l2),
            "experts_equal": self.experts_equal,
            "experts_differ": [
                [*swap.to_json()[:3], finite_or_none(swap.margin)] for swap in self.experts_differ
            ],
            "router_cosine": finite_or_none(self.router_cosine),
            "routing_margin": finite_or_none(self.routing_margin),
        }


@dataclass(frozen=True)
class Evidence:
    """Everything the guard saw of one candidate on one prompt.

    ``judged`` names the pass that decides: ``free`` or ``forced`` (``both`` judges both).
    ``candidate_logits`` is float32 ``[positions, vocab]`` of the free-running pass (of the forced
    one where there was no other): what a timed run must reproduce bit by bit.
    """

    reference: str
    backend: str
    numerics: str
    mode: str
    prompt_ids: tuple[int, ...]
    cached_positions: int
    free: PassEvidence | None
    forced: PassEvidence | None
    judged: tuple[str, ...]
    findings: tuple[Finding, ...]
    verdict: Verdict
    ran: Mapping[str, object]
    model: Mapping[str, object]
    candidate_logits: NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def worst(self) -> Finding:
        """The finding that is farthest out."""
        return max(self.findings, key=lambda finding: finding.distance)

    @property
    def distance(self) -> float:
        """The worst finding's distance: above 1 the run is rejected."""
        return self.worst.distance

    @property
    def decisive(self) -> PassEvidence:
        """The pass whose expert sets and argmaxes stand in the table."""
        chosen = self.free if "free" in self.judged else self.forced
        if chosen is None:
            raise ValueError("evidence without a judged pass")
        return chosen

    @property
    def layers(self) -> list[LayerEvidence]:
        """One line a layer, the worst position of each."""
        free, forced, main = self.free, self.forced, self.decisive
        lines = []
        for layer in range(len(main.moe_cosine)):
            swaps = tuple(swap for swap in main.swaps if swap.layer == layer)
            lines.append(
                LayerEvidence(
                    layer,
                    None if free is None else float(free.moe_cosine[layer].min()),
                    None if free is None else float(free.moe_rel_l2[layer].max()),
                    None if forced is None else float(forced.moe_cosine[layer].min()),
                    None if forced is None else float(forced.moe_rel_l2[layer].max()),
                    not swaps,
                    swaps,
                    float(main.router_cosine[layer].min()),
                    float(main.routing_margin[layer].min()),
                )
            )
        return lines

    def to_json(self) -> dict[str, object]:
        """Return the ``parity`` JSON of DESIGN.md, with what else was seen."""
        main = self.decisive
        return {
            "schema": "moe-harness/parity/1",
            "verdict": self.verdict.to_json(),
            "reference": self.reference,
            "backend": self.backend,
            "numerics": self.numerics,
            "mode": self.mode,
            "judged": list(self.judged),
            "prompt_ids": list(self.prompt_ids),
            "cached_positions": self.cached_positions,
            "layers": [line.to_json() for line in self.layers],
            "argmax": {
                "positions": len(self.prompt_ids),
                "agree": main.argmax_agree,
                "ties": main.argmax_ties,
                "faults": main.argmax_faults,
            },
            "argmax_differ": [
                [position, candidate, reference, finite_or_none(margin), finite_or_none(bound)]
                for position, candidate, reference, margin, bound in main.argmax_margins
            ],
            "logits_cosine": finite_or_none(float(main.logits_cosine.min())),
            "free_running": _summary(self.free),
            "teacher_forced": _summary(self.forced),
            "replays": _replays(self.free if "free" in self.judged else None),
            "forced_replays": _replays(self.forced),
            "findings": [
                {"what": f.what, "value": finite_or_none(f.value), "limit": finite_or_none(f.limit)}
                for f in self.findings
            ],
            "worst": self.worst.what,
            "distance": finite_or_none(self.distance),
            "ran": dict(self.ran),
            "model": dict(self.model),
        }


def _replays(seen: PassEvidence | None) -> list[list[object]]:
    """Every tie at which the oracle took the candidate's experts: layer, then as in the table."""
    if seen is None:
        return []
    return [[swap.layer, *swap.to_json(), swap.bound] for swap in seen.swaps if swap.is_tie]


def _summary(seen: PassEvidence | None) -> dict[str, object] | None:
    """Whole-pass extremes: over all layers and positions."""
    if seen is None:
        return None
    return {
        "worst_moe_ffn_out_cosine": finite_or_none(float(seen.moe_cosine.min())),
        "worst_moe_ffn_out_rel_l2": finite_or_none(float(seen.moe_rel_l2.max())),
        "worst_row_rel_l2": finite_or_none(
            float(max(seen.moe_row.max(), seen.attention_row.max()))
        ),
        "worst_attention_rel_l2": finite_or_none(float(seen.attention_rel_l2.max())),
        "worst_router_weight_difference": finite_or_none(float(seen.router_weight.max())),
        "expert_sets_differ": len(seen.swaps),
        "expert_sets": int(seen.moe_cosine.size),
        "worst_logits_cosine": finite_or_none(float(seen.logits_cosine.min())),
        "worst_logits_rel_l2": finite_or_none(float(seen.logits_rel_l2.max())),
        "argmax_agree": seen.argmax_agree,
        **{
            f"worst_cached_{what}_rel_l2": finite_or_none(float(values.max()))
            for what, values in seen.cached_rel_l2.items()
        },
        "cached_values": seen.cached_values,
        "cached_replayed": seen.cached_replayed,
        "worst_router_sum_error": finite_or_none(float(np.abs(seen.router_sum - 1).max())),
        "non_finite": seen.non_finite,
        "lengths": dict(seen.lengths),
    }
