"""Two dumps, stage by stage: what ``moe-harness diff`` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.stages.names import STAGES, WHOLE_MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.stages.aprt import Dump

REL_L2_LIMIT = 1e-4
COSINE_FLOOR = 0.99


@dataclass(frozen=True)
class StageDifference:
    """One stage of one layer in both dumps; ``reason`` is empty where it passes."""

    stage: str
    layer: int | None
    reason: str
    cosine: float | None = None
    rel_l2: float | None = None
    max_abs: float | None = None

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
    """All differences; accepted only if there was something to compare and all of it passes."""

    differences: tuple[StageDifference, ...]

    @property
    def reasons(self) -> list[str]:
        """One line for each stage that fails."""
        if not any(difference.cosine is not None for difference in self.differences):
            return ["nothing was compared: the dumps share no stage"]
        return [
            f"{d.stage}{'' if d.layer is None else f' of layer {d.layer}'}: {d.reason}"
            for d in self.differences
            if d.reason
        ]

    @property
    def accepted(self) -> bool:
        """Whether every stage passes."""
        return not self.reasons

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "schema": "moe-harness/diff/1",
            "accepted": self.accepted,
            "reasons": self.reasons,
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

    ``moe_router_indices`` is compared as sets, position by position. A file does not say where a
    position ends; ``moe_router`` does, as the k weights of a position sum to 1.
    """
    order = {stage: index for index, stage in enumerate(STAGES)}
    keys = sorted(
        set(first) | set(second),
        key=lambda key: (key[0] in WHOLE_MODEL, -1 if key[1] is None else key[1], order[key[0]]),
    )
    differences = []
    for stage, layer in keys:
        a, b = first.get((stage, layer)), second.get((stage, layer))
        if a is None or b is None:
            reason = f"absent in the {'first' if a is None else 'second'}"
            differences.append(StageDifference(stage, layer, reason))
        elif a.shape != b.shape or not a.size:
            reason = f"{a.size} values against {b.size}"
            differences.append(StageDifference(stage, layer, reason))
        elif stage == "moe_router_indices":
            top_k = _top_k(first.get(("moe_router", layer)))
            differences.append(_sets(stage, layer, a, b, top_k))
        else:
            differences.append(_values(stage, layer, a, b, rel_l2_limit, cosine_floor))
    return Comparison(tuple(differences))


def _values(
    stage: str,
    layer: int | None,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    limit: float,
    floor: float,
) -> StageDifference:
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        at = int(np.argmin(np.isfinite(a) & np.isfinite(b)))
        return StageDifference(stage, layer, f"not finite at {at}: {a[at]} against {b[at]}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    same_zero = not x.any() and not y.any()
    cosine = 1.0 if same_zero else float(x @ y) / lengths if lengths > 0 else 0.0
    norm = float(np.linalg.norm(y))
    error = float(np.linalg.norm(x - y))
    rel = 0.0 if error == 0 else error / norm if norm > 0 else float(np.finfo(np.float64).max)
    reason = ""
    if not rel <= limit:
        reason = f"rel_l2 {rel:.3g}, limit {limit:g}"
    elif not cosine >= floor:
        reason = f"cosine {cosine:.6f}, floor {floor:g}"
    return StageDifference(stage, layer, reason, cosine, rel, float(np.abs(x - y).max()))


def _top_k(weights: NDArray[np.float32] | None) -> int | None:
    """Weights of one position sum to 1: the first k that does so is top-k."""
    if weights is None:
        return None
    sums = np.cumsum(weights.astype(np.float64))
    hits = np.flatnonzero(np.abs(sums - 1) < 1e-4)
    return int(hits[0]) + 1 if hits.size else None


def _sets(
    stage: str,
    layer: int | None,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    top_k: int | None,
) -> StageDifference:
    """Compare expert sets by position; without top-k in order, which is stricter."""
    if top_k is None or a.size % top_k:
        top_k = 1
    rows = [np.sort(ids.reshape(-1, top_k), axis=1) for ids in (a, b)]
    equal = (rows[0] == rows[1]).all(axis=1)
    if equal.all():
        return StageDifference(stage, layer, "", 1.0, 0.0, 0.0)
    at = int(np.argmin(equal))
    only = [
        sorted({int(e) for e in rows[i][at]} - {int(e) for e in rows[1 - i][at]}) for i in (0, 1)
    ]
    return StageDifference(
        stage,
        layer,
        f"{int((~equal).sum())} of {len(equal)} expert sets differ, first at position {at}: "
        f"{only[0]} against {only[1]}",
    )
