"""What the page shows of the contracts and their criteria."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.contract.integrity import read_results
from harness.contract.schema import read_contract
from harness.contract.status import Status, judge
from harness.sources import source_hashes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.contract.status import Judged, Report

    State = Literal["met", "failed", "open"]

_STATES: Mapping[Status, State] = {Status.MET: "met", Status.NOT_MET: "failed"}


@dataclass(frozen=True)
class Criterion:
    """One criterion, judged: ``met``, ``failed``, or ``open`` with stale evidence or none."""

    name: str
    demand: str
    state: State
    found: str


@dataclass(frozen=True)
class Contract:
    """A contract's name, the state it has by its criteria, and those."""

    name: str
    state: str
    criteria: tuple[Criterion, ...]


def judged_contracts(results: Path) -> list[Contract]:
    """Judge every contract beside ``results`` by the evidence in it; empty: no contract is there.

    Raises
    ------
    BadInput
        For a file among them that is no contract.

    """
    paths = sorted((results.parent / "contracts").glob("*.yaml"))
    stored = read_results(results) if paths else None
    return [
        _shown(judge(read_contract(path), stored, source_hashes()))
        for path in paths
        if stored is not None
    ]


def _shown(report: Report) -> Contract:
    states = [judged.status for judged in report.judged]
    counted = ", ".join(f"{states.count(state)} {state.value}" for state in dict.fromkeys(states))
    changed = f"; {len(report.findings)} files were changed" if report.findings else ""
    name = f"{report.contract.name} {report.contract.version}"
    return Contract(name, counted + changed, tuple(map(_criterion, report.judged)))


def _criterion(judged: Judged) -> Criterion:
    asked = judged.criterion
    return Criterion(
        f"{asked.ident} {asked.title}",
        f"{asked.quantity} {asked.comparison.replace('_', ' ')} {asked.limit:g}",
        _STATES.get(judged.status, "open"),
        "; ".join(f"{each.subject}: {each.status.value}, {each.why}" for each in judged.judgements),
    )
