"""Which layers diverge, and whether a layer's error was born there or inherited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.distance import finite_or_none

if TYPE_CHECKING:
    from harness.guard import Evidence
    from harness.guard.evidence import PassEvidence
    from harness.guard.routing import Swap
    from harness.numerics import Limits, Tolerance


@dataclass(frozen=True)
class LayerError:
    """Relative error (l2, worst position) of ``moe_ffn_out``; None where a pass was not made.

    ``born`` is the teacher-forced error: of the layer itself, on the reference's own input.
    ``inherited`` is what the free-running error has above it. ``reasons`` say what is beyond its
    limit, in the passes that are judged.
    """

    layer: int
    born: float | None
    inherited: float | None
    reasons: tuple[str, ...]

    @property
    def diverges(self) -> bool:
        """Whether anything is beyond its limit."""
        return bool(self.reasons)

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "layer": self.layer,
            "born_rel_l2": finite_or_none(self.born),
            "inherited_rel_l2": finite_or_none(self.inherited),
            "diverges": self.diverges,
            "reasons": list(self.reasons),
        }


def layer_errors(evidence: Evidence, tolerance: Tolerance) -> list[LayerError]:
    """One for each layer, whether it passes or not."""
    free, forced = evidence.free, evidence.forced
    found = []
    for layer in range(len(evidence.decisive.moe_cosine)):
        born = None if forced is None else float(forced.moe_rel_l2[layer].max())
        inherited = None
        if free is not None and born is not None:
            all_of_it = float(free.moe_rel_l2[layer].max())
            # Two infinities have no difference: nothing is inherited by what is no number itself.
            inherited = max(0.0, all_of_it - born) if np.isfinite(born) else 0.0
        reasons: list[str] = []
        for name, seen, limits in (
            ("free-running", free, tolerance.free),
            ("teacher-forced", forced, tolerance.forced),
        ):
            if seen is not None and limits is not None:
                reasons += [f"{name} {what}" for what in _beyond(seen, layer, limits, tolerance)]
        found.append(LayerError(layer, born, inherited, tuple(reasons)))
    return found


def first_divergent(errors: list[LayerError]) -> LayerError | None:
    """The first layer with anything beyond its limit."""
    return next((error for error in errors if error.diverges), None)


def all_swaps(evidence: Evidence) -> list[tuple[str, Swap]]:
    """Every expert set that differs, by pass, first layers first."""
    found = [
        (name, swap)
        for name, seen in (("free-running", evidence.free), ("teacher-forced", evidence.forced))
        if seen is not None
        for swap in seen.swaps
    ]
    return sorted(found, key=lambda item: (item[0], item[1].layer, item[1].position))


def swap_json(name: str, swap: Swap) -> dict[str, object]:
    """One swap, named and ruled."""
    return {
        "pass": name,
        "layer": swap.layer,
        "position": swap.position,
        "only_candidate": list(swap.only_candidate),
        "only_reference": list(swap.only_reference),
        "margin": finite_or_none(swap.margin),
        "bound": finite_or_none(swap.bound),
        "ruling": "tie" if swap.is_tie else "fault",
    }


def _beyond(seen: PassEvidence, layer: int, limits: Limits, tolerance: Tolerance) -> list[str]:
    """What of a layer is beyond its limit; NaN is."""
    reasons = []
    for what, values, limit in (
        ("moe_ffn_out", seen.moe_rel_l2, limits.rel_l2),
        ("post_attn_residual", seen.attention_rel_l2, limits.rel_l2),
        ("post_ffn_residual", seen.residual_rel_l2, limits.rel_l2),
        ("router weights", seen.router_weight, limits.router_weight),
        ("moe_ffn_out cosine", 1 - seen.moe_cosine, 1 - tolerance.cosine_floor),
        ("a row of moe_ffn_out", seen.moe_row, limits.row_rel_l2),
        ("a row of post_attn_residual", seen.attention_row, limits.row_rel_l2),
    ):
        worst = float(np.max(np.nan_to_num(values[layer], nan=np.inf)))
        if not worst <= limit:
            reasons.append(f"{what} {worst:.2e} (limit {limit:.1e})")
    faults = [swap for swap in seen.swaps if swap.layer == layer and not swap.is_tie]
    if faults:
        reasons.append(f"expert sets, {len(faults)} beyond a tie")
    return reasons
