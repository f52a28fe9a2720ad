"""The status of each criterion, derived from stored evidence.

For each subject (a kind of GPU) and each benchmark that a criterion names, the newest run counts.
A run that was planted with a fault, that was taken on an uncommitted tree, of another model, or
whose sidecar is not sealed, is no evidence; one that the guard rejected is evidence against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from harness.contract.quantities import QUANTITIES, NotRecorded
from harness.staleness import why_stale

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from harness.contract.evidence import Finding, Sidecar
    from harness.contract.integrity import Stored
    from harness.contract.schema import Contract, Criterion

_DECODE = "moe-harness/decode/1"


class Status(StrEnum):
    """From the worst on; a criterion has the worst status of its subjects."""

    NOT_MET = "not met"
    STALE = "stale"
    NO_EVIDENCE = "no evidence"
    MET = "met"


@dataclass(frozen=True)
class Judgement:
    """A criterion for one subject: its status and why; the worst value where there is one."""

    subject: str
    status: Status
    why: str
    value: float | None = None
    evidence: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A criterion and how it stands for each subject."""

    criterion: Criterion
    judgements: tuple[Judgement, ...]

    @property
    def status(self) -> Status:
        """The worst of its subjects."""
        order = list(Status)
        return min((each.status for each in self.judgements), key=order.index)


@dataclass(frozen=True)
class Report:
    """All criteria; it holds only if each is met and results/ is as it was measured."""

    contract: Contract
    judged: tuple[Judged, ...]
    sealed: int
    unsealed: int
    asv_files: int
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is missing and nothing is against it."""
        return not self.findings and all(each.status is Status.MET for each in self.judged)

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "schema": "moe-harness/contract-check/1",
            "contract": self.contract.name,
            "version": self.contract.version,
            "holds": self.holds,
            "criteria": [
                {
                    "id": each.criterion.ident,
                    "title": each.criterion.title,
                    "quantity": each.criterion.quantity,
                    each.criterion.comparison: each.criterion.limit,
                    "status": each.status.value,
                    "subjects": [
                        {
                            "subject": one.subject,
                            "status": one.status.value,
                            "value": one.value,
                            "why": one.why,
                            "evidence": [str(path) for path in one.evidence],
                        }
                        for one in each.judgements
                    ],
                }
                for each in self.judged
            ],
            "sidecars": {"sealed": self.sealed, "unsealed": self.unsealed},
            "asv_files": self.asv_files,
            "findings": [{"path": str(each.path), "what": each.what} for each in self.findings],
        }


def judge(contract: Contract, stored: Stored, sources: Mapping[str, str]) -> Report:
    """Derive every status. ``sources``: the hash of what computes now, by backend."""
    sealed = [sidecar for sidecar in stored.sidecars if sidecar.sealed]
    judged = tuple(
        Judged(criterion, tuple(_judgements(contract, criterion, stored.sidecars, sources)))
        for criterion in contract.criteria
    )
    unsealed = len(stored.sidecars) - len(sealed)
    return Report(contract, judged, len(sealed), unsealed, stored.asv_files, stored.findings)


def _judgements(
    contract: Contract,
    criterion: Criterion,
    sidecars: Iterable[Sidecar],
    sources: Mapping[str, str],
) -> list[Judgement]:
    wanted = [sidecar for sidecar in sidecars if sidecar.benchmark in criterion.evidence]
    unfit = {sidecar.path: _unfit(contract, sidecar) for sidecar in wanted}
    subjects = {sidecar.subject for sidecar in wanted if not unfit[sidecar.path]}
    if not subjects:
        why = f"no sidecar of {criterion.evidence[0]}"
        if wanted:
            counted = [why for why in unfit.values() if why]
            kinds = {why: counted.count(why) for why in sorted(set(counted))}
            why = "; ".join(f"{number} {kind}" for kind, number in kinds.items())
        return [Judgement("-", Status.NO_EVIDENCE, why)]
    return [
        _judgement(
            subject,
            criterion,
            [each for each in wanted if each.subject == subject and not unfit[each.path]],
            sources,
        )
        for subject in sorted(subjects)
    ]


def _judgement(
    subject: str, criterion: Criterion, sidecars: Sequence[Sidecar], sources: Mapping[str, str]
) -> Judgement:
    """Judge the newest run of each benchmark; whatever is worst decides."""
    newest: dict[str, Sidecar] = {}
    for sidecar in sorted(sidecars, key=lambda each: (each.date, each.path)):
        newest[sidecar.benchmark] = sidecar
    paths = tuple(newest[name].path for name in criterion.evidence if name in newest)
    stale = _stale(newest.values(), sources)
    rejected = [each for each in newest.values() if not each.accepted]
    if stale:
        return Judgement(subject, Status.STALE, stale, None, paths)
    if rejected:
        reasons = "; ".join(rejected[0].reasons[:1]) or "no verdict"
        why = f"{rejected[0].path.name} was rejected by the guard: {reasons}"
        return Judgement(subject, Status.NOT_MET, why, None, paths)
    missing = [name for name in criterion.evidence if name not in newest]
    try:
        values = {
            name: QUANTITIES[criterion.quantity](sidecar.content)
            for name, sidecar in newest.items()
        }
    except NotRecorded as error:
        why = f"the evidence does not record {error}; measure again"
        return Judgement(subject, Status.NO_EVIDENCE, why, None, paths)
    name, value = _worst(values, lowest=criterion.comparison != "at_most")
    told = value if math.isfinite(value) else None
    if not criterion.kept_by(value):
        return Judgement(subject, Status.NOT_MET, f"{value:.6g} in {name}", told, paths)
    if missing:
        why = f"no sidecar of {', '.join(missing)}"
        return Judgement(subject, Status.NO_EVIDENCE, why, told, paths)
    return Judgement(subject, Status.MET, f"{value:.6g} in {name}", told, paths)


def _worst(values: Mapping[str, float], *, lowest: bool) -> tuple[str, float]:
    """The benchmark with the worst value; NaN is the worst there is."""

    def badness(item: tuple[str, float]) -> float:
        value = item[1]
        return math.inf if math.isnan(value) else -value if lowest else value

    return max(values.items(), key=badness)


def _stale(sidecars: Iterable[Sidecar], sources: Mapping[str, str]) -> str:
    for sidecar in sidecars:
        backend, taken_on = str(sidecar.ran.get("backend")), str(sidecar.ran.get("source_hash"))
        if not sidecar.accepted and "source_hash" not in sidecar.ran:
            continue  # rejected before anything told what ran: that stands until it is run again
        why = why_stale(sidecar.path, taken_on, sources.get(backend, f"no {backend} backend"))
        if why is not None:
            return f"{why}; measure {sidecar.benchmark} again (asv run), and commit results/"
    return ""


def _unfit(contract: Contract, sidecar: Sidecar) -> str:
    """Say why a sidecar is no evidence for the contract; empty where it is."""
    if not sidecar.sealed:
        return "unsealed, from before sidecars had seals: measure again"
    if sidecar.content.get("planted") is not None:
        return "with a fault planted"
    if sidecar.ran.get("dirty") is True:
        return "taken on a tree with uncommitted changes"
    if sidecar.content.get("schema") == _DECODE:
        evidence = sidecar.content.get("evidence")
        model = evidence.get("model") if isinstance(evidence, dict) else None
        shape = {key: (model or {}).get(key) for key in contract.model}
        if shape != contract.model:
            return "of a model of another shape"
    return ""
