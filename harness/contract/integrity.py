"""Whether results/ is as it was measured: asv's numbers against the sidecars, these against seals.

Looked at are the figures of each benchmark with their statistics (median, interval, quartiles,
counts), and the machine that asv files them under. What asv notes for itself (``date``,
``started_at``, ``duration``, ``durations``, the benchmarks' versions) is no figure, and asv may
write it anew. What was taken out of asv's files altogether is told by ``absence``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.contract.absence import AsvFile, absent_figures
from harness.contract.asv_files import MOST_COMBINATIONS, plain, result_paths, result_rows
from harness.contract.evidence import (
    Damaged,
    Finding,
    Sidecar,
    read_json,
    read_sidecar,
    sidecar_paths,
)
from harness.contract.figures import derived_figures
from harness.contract.quantities import NotRecorded
from harness.contract.vouching import STATISTICS, Run, as_asv_rounds, find, parts, vouched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    # Value and statistics of one figure; None for what asv has none of.
    Cell: TypeAlias = Mapping[str, float | None]

# Between a figure computed once and the same from the recorded terms, in another order.
_REARRANGED = 1e-9
_SHOWN = 3
_HASH = re.compile(r"[0-9a-f]{8}").fullmatch


@dataclass(frozen=True)
class Stored:
    """What results/ holds: sidecars that are what was written, asv's files, and what is wrong."""

    sidecars: tuple[Sidecar, ...]
    asv_files: int
    findings: tuple[Finding, ...]


def read_results(results: Path) -> Stored:
    """Read everything under ``results/`` and hold it against each other."""
    sidecars, findings = _sidecars(results)
    by_run: dict[Run, Sidecar] = {}
    for sidecar in sidecars:
        findings += _part_by_part(sidecar, by_run)
    damaged = {finding.path for finding in findings}
    files = []
    for path in result_paths(results):
        file, what = _held(path, by_run, damaged)
        files.append(file)
        findings += [Finding(path, each) for each in what]
    sound = {run: each for run, each in by_run.items() if each.path not in damaged}
    findings += absent_figures(results, sound, files)
    believed = tuple(sidecar for sidecar in sidecars if sidecar.path not in damaged)
    return Stored(believed, len(files), tuple(findings))


def _sidecars(results: Path) -> tuple[list[Sidecar], list[Finding]]:
    """Read the sidecars; those that are damaged are findings instead."""
    read, findings = [], []
    for path in sidecar_paths(results):
        try:
            read.append(read_sidecar(path))
        except Damaged as error:
            findings.append(Finding(path, str(error)))
    # What a commit writes is sealed or is not; outside git no commit is known.
    sealed = {(each.machine, each.commit) for each in read if each.sealed and _HASH(each.commit)}
    stripped = [each for each in read if not each.sealed and (each.machine, each.commit) in sealed]
    findings += [
        Finding(each.path, f"its seal was taken out: other sidecars of {each.commit} have theirs")
        for each in stripped
    ]
    return read, findings


def _part_by_part(sidecar: Sidecar, by_run: dict[Run, Sidecar]) -> Iterator[Finding]:
    """Enter a sidecar under what it is of, and hold its figures against what it recorded."""
    for run, part in parts(sidecar):
        other = by_run.get(run)
        kept, left = (other, part) if other is not None and other.sealed else (part, other)
        by_run[run] = kept
        if left is not None:
            twice = f"a second sidecar of {sidecar.benchmark}, beside {kept.path.name}"
            yield Finding(left.path, twice)
        yield from (Finding(sidecar.path, what) for what in _own_figures(part))


def _own_figures(sidecar: Sidecar) -> Iterator[str]:
    """Hold what a sidecar says that asv was given against what it recorded."""
    if not sidecar.accepted and sidecar.content.get("schema") != "moe-harness/peer/1":
        return
    try:
        derived = derived_figures(sidecar.content)
    except NotRecorded as error:
        yield f"lacks what its figures are made of ({error})"
        return
    if not sidecar.sealed:
        return
    given = vouched(sidecar)
    for name, value in derived.items():
        if name not in given or not _close(given[name].get("result"), value):
            yield f"{name} follows from what it recorded as {value!r}, not as it is said to be"


def _held(
    path: Path, by_run: Mapping[Run, Sidecar], damaged: set[Path]
) -> tuple[AsvFile, list[str]]:
    """Read one of asv's files and hold it against the sidecars; say what is wrong with it."""
    machine, (commit, _, environment) = path.parent.name, path.stem.partition("-")
    figures: dict[Run, list[tuple[str, Cell]]] = defaultdict(list)
    try:
        data = read_json(path)
        rows, columns = result_rows(path, data)
        for name, row in rows.items():
            for words, figure, stored in _figures(name, row, columns):
                figures[Run(machine, commit, environment, words)].append((figure, stored))
        what = list(_against_sidecars(data, figures, by_run, damaged))
    except Damaged as error:
        return AsvFile(path, machine, commit, environment, None), [str(error)]
    names = {run.words: frozenset(name for name, _ in told) for run, told in figures.items()}
    return AsvFile(path, machine, commit, environment, names), what


def _against_sidecars(
    data: dict[str, Any],
    figures: Mapping[Run, list[tuple[str, Cell]]],
    by_run: Mapping[Run, Sidecar],
    damaged: set[Path],
) -> Iterator[str]:
    """Hold a file's figures against the sidecars of its machine, commit and environment."""
    unvouched, used = [], {}
    for run, told in figures.items():
        sidecar, words = find(by_run, run), " ".join(run.words)
        if sidecar is None or sidecar.path in damaged:
            there = [figure for figure, stored in told if stored["result"] is not None]
            unvouched += [f"{words} ({', '.join(there)})"] if there else []
            continue
        used[sidecar.path] = sidecar
        for figure, stored in told:
            what = _differs(sidecar, figure, stored)
            if what:
                yield f"{words}: {what} ({sidecar.path.name})"
    if unvouched:
        more = f" and {len(unvouched) - _SHOWN} more" if len(unvouched) > _SHOWN else ""
        yield (
            f"figures that no sidecar vouches for: {'; '.join(unvouched[:_SHOWN])}{more}; restore "
            "the sidecars, or measure again"
        )
    yield from _identity(data, list(used.values()))


def _figures(
    name: str, row: object, columns: list[str]
) -> Iterator[tuple[tuple[str, ...], str, Cell]]:
    """Every figure of one ``track_*``: its benchmark's words, its name, value and statistics.

    A value is None where asv has none: failed (null) or n/a (NaN).
    """
    benchmark, dot, method = name.rpartition(".")
    if not dot or not method.startswith("track_") or not isinstance(row, list):
        raise Damaged(f"{name}: no figure of this project's benchmarks")
    cells = dict(zip(columns, row, strict=False))
    params = cells.get("params") or []
    if not isinstance(params, list) or not all(isinstance(each, list) for each in params):
        raise Damaged(f"{name}: no lists of parameters")
    if math.prod(map(len, params)) > MOST_COMBINATIONS:
        raise Damaged(f"{name}: more than {MOST_COMBINATIONS} combinations of parameters")
    combinations = list(itertools.product(*params))
    values = _column(cells.get("result"), len(combinations), name)
    spread = {
        key: _column(cells.get(f"stats_{key}"), len(combinations), name) for key in STATISTICS
    }
    for index, combination in enumerate(combinations):
        stored = {key: column[index] for key, column in spread.items()}
        words = (benchmark, *(plain(value) for value in combination))
        yield words, method.removeprefix("track_"), {"result": values[index], **stored}


def _column(column: object, length: int, name: str) -> list[float | None]:
    if column is None:
        return [None] * length
    if not isinstance(column, list) or len(column) != length:
        raise Damaged(f"{name}: not a value for each of {length} parameters")
    found: list[float | None] = []
    for value in column:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Damaged(f"{name}: {value!r} is no number")
        found.append(None if value is None or value != value else value)  # noqa: PLR0124
    return found


def _differs(sidecar: Sidecar, figure: str, stored: Cell) -> str:
    """Say how a stored figure differs from what its sidecar vouches for; empty if it does not."""
    value, told = stored["result"], vouched(sidecar).get(figure)
    if told is None:
        return "" if value is None else f"{figure} is {value!r}, for which the sidecar has nothing"
    wanted = told.get("result", math.nan)
    # asv stores the very value it was given; of an unsealed sidecar there is only the derivation.
    same = value == wanted if sidecar.sealed else _close(value, wanted)
    if not same:
        return f"{figure} is {'none' if value is None else repr(value)}, measured was {wanted!r}"
    for key in STATISTICS if sidecar.sealed else ():
        if stored[key] != as_asv_rounds(told.get(key)):
            return f"{figure}'s {key} is {stored[key]!r}, measured was {told.get(key)!r}"
    return ""


def _identity(data: dict[str, Any], sidecars: list[Sidecar]) -> Iterator[str]:
    """Hold asv's account of the machine against what the sidecars of that run tell."""
    params = data.get("params")
    params = params if isinstance(params, dict) else {}
    for sidecar in sidecars:
        told = sidecar.content.get("machine")
        if not sidecar.sealed or not isinstance(told, dict):
            continue
        for key, value in told.items():
            if key in params and params[key] != value:
                yield f"{key} is {params[key]!r}, measured was on {value!r} ({sidecar.path.name})"
                return


def _close(left: object, right: object) -> bool:
    values = []
    for each in (left, right):
        if isinstance(each, bool) or not isinstance(each, int | float):
            return False
        values.append(each)
    try:
        return math.isclose(*values, rel_tol=_REARRANGED, abs_tol=0)
    except OverflowError:  # an integer beyond every float
        return False
