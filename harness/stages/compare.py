"""Two dumps, stage by stage, and the claims of ``falsifiers``: what ``moe-harness diff`` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.stages.distance import finite_or_none
from harness.stages.falsifiers import (
    COSINE_FLOOR,
    Verdict,
    argmax_agreement,
    expert_sets_equal,
    per_layer_cosine,
    sets_that_differ,
)
from harness.stages.names import STAGES, WHOLE_MODEL
from harness.stages.pairs import distances, expert_sets, positions_told, why_incomparable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.stages.aprt import Dump

REL_L2_LIMIT = 1e-4


@dataclass(frozen=True)
class StageDifference:
    """One stage of one layer in both dumps, its worst position; ``reason`` is empty if it passes.

    ``compared`` is whether there was anything to compare. ``position`` is None where the stage is
    compared as a whole.
    """

    stage: str
    layer: int | None
    reason: str
    compared: bool = False
    cosine: float | None = None
    rel_l2: float | None = None
    max_abs: float | None = None
    position: int | None = None

    def line(self) -> str:
        """One line of the table."""
        place = "-" if self.layer is None else str(self.layer)
        figures = (
            f"{self.cosine:.9f} {self.rel_l2:10.3e} {self.max_abs:10.3e}"
            if self.cosine is not None and self.rel_l2 is not None and self.max_abs is not None
            else ""
        )
        return f"{place:>5} {self.stage:<20} {figures:<33} {self.reason or 'ok'}"


@dataclass(frozen=True)
class Comparison:
    """All differences; accepted only if there was something to compare and all of it passes.

    ``positions`` is None where the dumps do not tell it: then ``verdicts`` is empty, and each file
    is compared as a whole.
    """

    differences: tuple[StageDifference, ...]
    positions: int | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """One line for each stage that fails, and for each argmax that differs.

        What the other claims object to is the stage's own reason.
        """
        if not any(difference.compared for difference in self.differences):
            return ["nothing was compared: the dumps share no stage"]
        stages = [
            f"{d.stage}{'' if d.layer is None else f' of layer {d.layer}'}: {d.reason}"
            for d in self.differences
            if d.reason
        ]
        return stages + [
            reason
            for verdict in self.verdicts
            if verdict.claim == "argmax_agreement"
            for reason in verdict.reasons
        ]

    @property
    def accepted(self) -> bool:
        """Whether every stage passes, and every claim holds."""
        return not self.reasons and all(verdict.holds for verdict in self.verdicts)

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "schema": "moe-harness/diff/1",
            "accepted": self.accepted,
            "reasons": self.reasons,
            "positions": self.positions,
            "claims": [verdict.to_json() for verdict in self.verdicts],
            "stages": [vars(difference) for difference in self.differences],
        }


def compare(
    first: Dump,
    second: Dump,
    *,
    rel_l2_limit: float = REL_L2_LIMIT,
    cosine_floor: float = COSINE_FLOOR,
) -> Comparison:
    """Compare every stage that either dump has; one that only one has is a failure.

    Where the dumps tell their positions (``moe_router``), each position is compared by itself, and
    ``moe_router_indices`` as sets; else whole files, and the indices in order, which is stricter.
    """
    order = {stage: index for index, stage in enumerate(STAGES)}
    keys = sorted(
        set(first) | set(second),
        key=lambda key: (key[0] in WHOLE_MODEL, -1 if key[1] is None else key[1], order[key[0]]),
    )
    positions = positions_told(second) or positions_told(first)
    differences = []
    for stage, layer in keys:
        a, b = first.get((stage, layer)), second.get((stage, layer))
        why = why_incomparable(a, b)
        if why is not None or a is None or b is None:
            differences.append(StageDifference(stage, layer, why or "absent"))
        elif stage == "moe_router_indices":
            differences.append(_sets(stage, layer, a, b, positions))
        else:
            seen = _values(stage, layer, a, b, positions, (rel_l2_limit, cosine_floor))
            differences.append(seen)
    compared = {difference.stage for difference in differences if difference.compared}
    verdicts = () if positions is None else _claims(first, second, positions, cosine_floor)
    return Comparison(
        tuple(differences), positions, tuple(v for stage, v in verdicts if stage in compared)
    )


def _claims(
    first: Dump, second: Dump, positions: int, floor: float
) -> tuple[tuple[str, Verdict], ...]:
    """Each claim beside the stage that it is about."""
    return (
        ("moe_ffn_out", per_layer_cosine(first, second, positions=positions, floor=floor)),
        ("moe_router_indices", expert_sets_equal(first, second, positions=positions)),
        ("lm_head", argmax_agreement(first, second, positions=positions)),
    )


def _values(
    stage: str,
    layer: int | None,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    positions: int | None,
    limits: tuple[float, float],
) -> StageDifference:
    seen = distances(stage, a, b, positions or 1)
    if seen.reason:
        return StageDifference(stage, layer, seen.reason, compared=True)
    limit, floor = limits
    rel, cosine = float(seen.rel_l2s.max()), float(seen.cosines.min())
    failing = seen.rel_l2s if not rel <= limit else -seen.cosines
    at = int(np.argmax(failing)) if len(seen.cosines) > 1 else None
    where = "" if at is None else f" at position {at}"
    reason = ""
    if not rel <= limit:
        reason = f"rel_l2 {rel:.3g}{where}, limit {limit:g}"
    elif not cosine >= floor:
        reason = f"cosine {cosine:.6f}{where}, floor {floor:g}"
    return StageDifference(
        stage, layer, reason, True, cosine, finite_or_none(rel), seen.max_abs, at
    )


def _sets(
    stage: str,
    layer: int | None,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    positions: int | None,
) -> StageDifference:
    """Compare expert sets by position; where positions are not known, ids in order."""
    if positions is None:
        differ, reason = a != b, ""
        if differ.any():
            at = int(np.argmax(differ))
            reason = f"ids differ, first at {at}: {a[at]:g} against {b[at]:g}"
        return StageDifference(stage, layer, reason, compared=True)
    seen = expert_sets(a, b, positions)
    return StageDifference(
        stage, layer, seen.reason or sets_that_differ(seen.differ, positions), compared=True
    )
