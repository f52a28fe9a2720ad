"""Three claims about a decoder that two folders of stage files can refute.

They need no decoder and no model: APRT files in, a verdict out. The first dump is the candidate's,
the second the reference's. ``moe-harness diff`` and the pytest plugin both ask these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import BadInput
from harness.stages.names import ALIASES, PER_LAYER
from harness.stages.pairs import distances, expert_sets, positions_told, why_incomparable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from harness.stages.aprt import Dump

COSINE_FLOOR = 0.99  # of the contract that this project began with


@dataclass(frozen=True)
class Verdict:
    """One claim: what was looked at, how it came out, and each reason against it.

    A claim about nothing is refuted: ``checked`` (layers, or positions) must be above 0.
    """

    claim: str
    checked: int
    summary: str
    reasons: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return self.checked > 0 and not self.reasons

    def lines(self) -> list[str]:
        """The claim in one line, then each reason against it."""
        outcome = "ok" if self.holds else "REFUTED"
        return [f"{self.claim}: {self.summary}: {outcome}", *(f"  {r}" for r in self.reasons)]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "claim": self.claim,
            "holds": self.holds,
            "checked": self.checked,
            "summary": self.summary,
            "reasons": list(self.reasons),
        }


def positions_of(first: Dump, second: Dump, given: int | None = None) -> int:
    """How many positions both dumps hold: as given, or as the reference's router weights tell.

    Raises
    ------
    BadInput
        Where nobody tells.

    """
    if given is not None:
        if given < 1:
            raise BadInput(f"{given} positions, expected at least 1")
        return given
    told = positions_told(second) or positions_told(first)
    if told is None:
        raise BadInput(
            "the stage files do not tell how many positions they hold: expected moe_router, whose "
            "weights sum to 1 for each; dump it too, or give the number of positions"
        )
    return told


def per_layer_cosine(
    first: Dump,
    second: Dump,
    *,
    positions: int,
    floor: float = COSINE_FLOOR,
    stage: str = "moe_ffn_out",
    layers: int | None = None,
) -> Verdict:
    """Claim that a stage's cosine reaches ``floor`` at every position of every layer.

    ``layers`` is how many layers the model has: without it, those count that either dump holds.
    """
    stage = ALIASES.get(stage, stage)
    if stage not in PER_LAYER or stage == "moe_router_indices":
        raise BadInput(f"{stage!r} has no cosine by layer; expected a stage such as moe_ffn_out")
    reasons, worst = [], (float("inf"), -1, -1)
    every = _layers(first, second, stage, layers)
    for layer in every:
        why, seen = _of_layer(first, second, stage, layer), None
        if why is None:
            seen = distances(stage, first[stage, layer], second[stage, layer], positions)
            why = seen.reason or None
        if seen is not None and why is None:
            at = int(np.argmin(seen.cosines))
            value = float(seen.cosines[at])
            worst = min(worst, (value, layer, at))
            if not value >= floor:
                why = f"cosine {value:.6f} at position {at}, floor {floor:g}"
        if why is not None:
            reasons.append(f"{stage} of layer {layer}: {why}")
    summary = f"{len(every)} layers of {stage}"
    if worst[1] >= 0:
        summary += f", worst {worst[0]:.9f} at layer {worst[1]}, position {worst[2]}"
    return _verdict("per_layer_cosine", len(every), summary, reasons, stage)


def expert_sets_equal(
    first: Dump, second: Dump, *, positions: int, layers: int | None = None
) -> Verdict:
    """Claim that every layer chose the same experts at every position, in whatever order."""
    stage = "moe_router_indices"
    reasons, differ = [], 0
    every = _layers(first, second, stage, layers)
    for layer in every:
        why = _of_layer(first, second, stage, layer)
        if why is None:
            seen = expert_sets(first[stage, layer], second[stage, layer], positions)
            differ += len(seen.differ)
            why = seen.reason or sets_that_differ(seen.differ, positions)
        if why:
            reasons.append(f"{stage} of layer {layer}: {why}")
    summary = f"{len(every)} layers, {differ} of {len(every) * positions} expert sets differ"
    return _verdict("expert_sets_equal", len(every), summary, reasons, stage)


def argmax_agreement(
    first: Dump, second: Dump, *, positions: int, at_least: float = 1.0
) -> Verdict:
    """Claim that the two choose the same token at a share of at least ``at_least`` positions."""
    if not 0 < at_least <= 1:
        raise BadInput(f"a share of {at_least:g} positions, expected above 0 and at most 1")
    stage, reasons = "lm_head", []
    a, b = first.get((stage, None)), second.get((stage, None))
    why = "absent in both" if a is None and b is None else why_incomparable(a, b)
    agree = 0
    if why is None and a is not None and b is not None:
        if a.size % positions:
            why = f"{a.size} values are no {positions} positions"
        else:
            differing = list(_argmaxes(a.reshape(positions, -1), b.reshape(positions, -1)))
            agree = positions - len(differing)
            if not agree / positions >= at_least:
                reasons = [
                    f"argmax at position {p}: {left} against {right}"
                    for p, left, right in differing
                ]
    if why is not None:
        reasons = [f"{stage}: {why}"]
    summary = f"{agree} of {positions} positions agree, at least {at_least:g} of them asked for"
    return Verdict("argmax_agreement", 0 if why else positions, summary, tuple(reasons))


def sets_that_differ(
    differ: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...], positions: int
) -> str:
    """Say how many sets differ and show the first; empty where none does."""
    if not differ:
        return ""
    at, left, right = differ[0]
    return (
        f"{len(differ)} of {positions} expert sets differ, first at position {at}: "
        f"{list(left)} against {list(right)}"
    )


def _argmaxes(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> Iterator[tuple[int, str, str]]:
    """Positions that choose different tokens. A row that is not finite chooses none."""
    for position, rows in enumerate(zip(first, second, strict=True)):
        left, right = (
            str(int(row.argmax())) if np.isfinite(row).all() else "none (not finite)"
            for row in rows
        )
        if left != right or not left.isdigit():
            yield position, left, right


def _layers(first: Dump, second: Dump, stage: str, layers: int | None) -> list[int]:
    """Which layers are looked at: all of the model, or those that either dump holds."""
    held = {layer for name, layer in (*first, *second) if name == stage and layer is not None}
    if layers is None:
        return sorted(held)
    if layers < 1:
        raise BadInput(f"{layers} layers, expected at least 1")
    return sorted(held | set(range(layers)))


def _of_layer(first: Dump, second: Dump, stage: str, layer: int) -> str | None:
    a, b = first.get((stage, layer)), second.get((stage, layer))
    return "absent in both" if a is None and b is None else why_incomparable(a, b)


def _verdict(claim: str, checked: int, summary: str, reasons: list[str], stage: str) -> Verdict:
    if not checked:
        reasons = [f"neither dump holds {stage}: nothing was compared"]
    return Verdict(claim, checked, summary, tuple(reasons))
