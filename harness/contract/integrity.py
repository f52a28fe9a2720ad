"""Whether results/ is as it was measured: asv's numbers against the sidecars, these against seals.

Looked at are the figures of each benchmark with their statistics (median, interval, quartiles,
counts), and the machine that asv files them under. What asv notes for itself (``date``,
``started_at``, ``duration``, ``durations``, the benchmarks' versions) is no figure, and asv may
write it anew.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.contract.evidence import Damaged, Sidecar, read_json, read_sidecar, sidecar_paths
from harness.contract.figures import FAMILY, derived_figures
from harness.contract.quantities import NotRecorded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_MACHINE_FILE = "machine.json"
_COMMIT_DIGITS = 8  # of the hash, in the names of asv's files
STATISTICS = ("ci_99_a", "ci_99_b", "q_25", "q_75", "number", "repeat")
# Between a figure computed once and the same from the recorded terms, in another order.
_REARRANGED = 1e-9
_SHOWN = 3
_MOST_COMBINATIONS = 10_000


@dataclass(frozen=True)
class Finding:
    """A file that is not what was measured, and in what."""

    path: Path
    what: str


@dataclass(frozen=True)
class Stored:
    """What results/ holds: sidecars that are what was written, asv's files, and what is wrong."""

    sidecars: tuple[Sidecar, ...]
    asv_files: int
    findings: tuple[Finding, ...]


def read_results(results: Path) -> Stored:
    """Read everything under ``results/`` and hold it against each other."""
    sidecars: list[Sidecar] = []
    findings: list[Finding] = []
    by_run: dict[tuple[str, str, tuple[str, ...]], Sidecar] = {}
    for path in sidecar_paths(results):
        try:
            sidecar = read_sidecar(path)
            sidecars.append(sidecar)
            for words, part in parts(sidecar):
                key = (sidecar.machine, sidecar.commit, words)
                other = by_run.get(key)
                kept, left = (other, part) if other is not None and other.sealed else (part, other)
                by_run[key] = kept
                if left is not None:
                    twice = f"a second sidecar of {sidecar.benchmark}, beside {kept.path.name}"
                    findings.append(Finding(left.path, twice))
                findings += [Finding(path, what) for what in _own_figures(part)]
        except Damaged as error:
            findings.append(Finding(path, str(error)))
    damaged = {finding.path for finding in findings}
    files = [path for path in sorted(results.glob("*/*.json")) if path.name != _MACHINE_FILE]
    for path in files:
        try:
            what = list(_of_file(path, read_json(path), by_run, damaged))
        except Damaged as error:
            what = [str(error)]
        findings += [Finding(path, each) for each in what]
    sound = tuple(sidecar for sidecar in sidecars if sidecar.path not in damaged)
    return Stored(sound, len(files), tuple(findings))


def parts(sidecar: Sidecar) -> Iterator[tuple[tuple[str, ...], Sidecar]]:
    """What asv has a row of its own for: the sidecar, or each kernel family that it tells of.

    With the words that asv names it by: a family's name stands behind the benchmark's, unless it is
    the only one.
    """
    words, families = _words(sidecar.benchmark), sidecar.content.get("families")
    if not isinstance(families, dict):
        yield words, sidecar
        return
    figures = sidecar.content.get("figures")
    for family, data in families.items():
        told = figures.get(family) if isinstance(figures, dict) else None
        content = {**sidecar.content, "schema": FAMILY, "family": data, "figures": told}
        name, *rest = words
        yield (
            (name, *rest) if len(families) == 1 else (name, family, *rest),
            replace(sidecar, content=content),
        )


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


def _of_file(
    path: Path,
    data: dict[str, Any],
    by_run: Mapping[tuple[str, str, tuple[str, ...]], Sidecar],
    damaged: set[Path],
) -> Iterator[str]:
    """Hold one of asv's files against the sidecars of its machine and commit."""
    machine, commit = path.parent.name, str(data.get("commit_hash", ""))[:_COMMIT_DIGITS]
    if len(commit) < _COMMIT_DIGITS or not path.name.startswith(f"{commit}-"):
        yield f"commit_hash {commit!r} is not the one in its name"
        return
    results, columns = data.get("results"), data.get("result_columns")
    if (
        not isinstance(results, dict)
        or not isinstance(columns, list)
        or not all(isinstance(column, str) for column in columns)
    ):
        yield "no result file of asv (no results by columns)"
        return
    unvouched, used = defaultdict(list), set()
    for name, row in results.items():
        for words, figure, stored in _figures(name, row, columns):
            sidecar = by_run.get((machine, commit, words))
            if sidecar is None or sidecar.path in damaged:
                if stored.get("result") is not None:
                    unvouched[" ".join(words)].append(figure)
                continue
            used.add(sidecar.path)
            what = _differs(sidecar, figure, stored)
            if what:
                yield f"{' '.join(words)}: {what} ({sidecar.path.name})"
    if unvouched:
        shown = [f"{words} ({', '.join(figures)})" for words, figures in unvouched.items()]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        yield (
            f"figures that no sidecar vouches for: {'; '.join(shown[:_SHOWN])}{more}; restore the "
            "sidecars, or measure again"
        )
    yield from _identity(data, [each for each in by_run.values() if each.path in used])


def _figures(
    name: str, row: object, columns: list[str]
) -> Iterator[tuple[tuple[str, ...], str, dict[str, float | None]]]:
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
    if math.prod(map(len, params)) > _MOST_COMBINATIONS:
        raise Damaged(f"{name}: more than {_MOST_COMBINATIONS} combinations of parameters")
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


def _differs(sidecar: Sidecar, figure: str, stored: Mapping[str, float | None]) -> str:
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


def vouched(sidecar: Sidecar) -> dict[str, dict[str, float]]:
    """Figures that a sidecar vouches for, with their statistics where they have any."""
    if not sidecar.sealed:
        try:
            derived = derived_figures(sidecar.content)
        except NotRecorded:
            return {}
        return {name: {"result": value} for name, value in derived.items()}
    figures = sidecar.content.get("figures")
    return {
        name: figure if isinstance(figure, dict) else {"result": figure}
        for name, figure in (figures if isinstance(figures, dict) else {}).items()
    }


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


def as_asv_rounds(value: float | None) -> float | None:
    """Round to five significant digits, as asv stores statistics (asv.util.truncate_float_list)."""
    return float(f"{value:.4e}") if isinstance(value, float) else value


def _words(benchmark: str) -> tuple[str, ...]:
    """``decode.X depth=0`` as ``("decode.X", "0")``: parameters by value alone, as asv has them."""
    name, *rest = benchmark.split()
    return name, *(word.rpartition("=")[2] for word in rest)


def plain(value: object) -> str:
    """Read a parameter, of which asv stores the ``repr``."""
    try:
        return str(ast.literal_eval(str(value)))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return str(value)


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
