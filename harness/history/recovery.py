"""What was measured, but not yet in asv's file when its run was cut off, put there.

A benchmark's evidence is on disk as soon as it is measured; asv notes a figure when it has asked
for it, in a process of its own for each parameter. A run that is killed in between has sealed
sidecars for figures that asv's file of that commit lacks, be it of some of a parameter's values
alone. Nothing that asv wrote is changed.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from harness.contract.asv_files import FILE, Tracked, read_tracked, result_paths, result_rows
from harness.contract.evidence import Damaged, Sidecar, read_json, read_sidecar, sidecar_paths
from harness.contract.vouching import STATISTICS, Run, as_asv_rounds, parts, vouched
from harness.errors import BadInput
from harness.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


def recover(results: Path) -> list[str]:
    """Fill in what asv's files lack and sealed, accepted sidecars have; says what, a line each.

    What was taken on a tree with uncommitted changes, or with a fault planted, stays out.

    Raises
    ------
    BadInput
        Where asv's list of benchmarks, one of its files or a sidecar is damaged; then nothing is
        written.

    """
    with _named(results / FILE):
        benchmarks = read_tracked(results / FILE)
    by_run = _by_run(results)
    paths = result_paths(results)
    filled: dict[Path, dict[str, Any]] = {}
    lines: list[str] = []
    for path in paths:
        with _named(path):
            data = read_json(path)
            told = _fill(path, data, benchmarks, _of_file(path, by_run, paths))
        if told:
            filled[path], lines = data, lines + told
    for path, data in filled.items():
        write_atomically(path, json.dumps(data))
    return lines


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file is damaged."""
    try:
        yield
    except Damaged as error:
        raise BadInput(f"{path}: {error}; run moe-harness contract check") from None


def _by_run(results: Path) -> dict[Run, Sidecar]:
    found: dict[Run, Sidecar] = {}
    for path in sidecar_paths(results):
        with _named(path):
            sidecar = read_sidecar(path)
            if _counts(sidecar):
                _started_at(sidecar)  # a date that is none is found before anything is written
                found |= dict(parts(sidecar))
    return found


def _counts(sidecar: Sidecar) -> bool:
    """Whether its figures are those of the commit that it names, and accepted."""
    clean = sidecar.content.get("planted") is None and sidecar.ran.get("dirty") is not True
    return sidecar.sealed and sidecar.accepted and clean


def _of_file(
    path: Path, by_run: Mapping[Run, Sidecar], paths: Sequence[Path]
) -> dict[tuple[str, ...], Sidecar]:
    """Sidecars of one of asv's files, by words; of its environment, where they tell.

    A sidecar that does not tell may be of any of its commit's files: it counts where there is one.
    """
    commit, _, environment = path.stem.partition("-")
    of_commit = [each for each in paths if each.match(f"{path.parent.name}/{commit}-*")]
    found: dict[tuple[str, ...], Sidecar] = {}
    for told in ("", environment) if len(of_commit) == 1 else (environment,):
        found |= {
            run.words: sidecar
            for run, sidecar in by_run.items()
            if run[:3] == (path.parent.name, commit, told)
        }
    return found


def _fill(
    path: Path,
    data: dict[str, Any],
    benchmarks: Sequence[Tracked],
    sidecars: Mapping[tuple[str, ...], Sidecar],
) -> list[str]:
    """Add the rows that a file of asv's lacks to ``data``; says which."""
    (rows, columns), commit = result_rows(path, data), path.stem.partition("-")[0]
    filled = []
    for benchmark in benchmarks:
        told = [sidecars.get(words) for words in benchmark.words]
        measured = [sidecar for sidecar in told if sidecar is not None]
        if benchmark.name in rows or not measured:
            continue
        narrowed = benchmark
        if len(measured) < len(told):
            if len(benchmark.params) != 1:
                continue  # a part of a grid is none
            # As asv writes a run that was restricted to these parameters.
            taken = zip(benchmark.params[0], told, strict=True)
            narrowed = replace(benchmark, params=[[each for each, one in taken if one is not None]])
        rows[benchmark.name] = _row(columns, narrowed, measured)
        filled.append(f"{path.parent.name} {commit}: {benchmark.name}")
    return filled


def _row(columns: Sequence[str], benchmark: Tracked, told: Sequence[Sidecar]) -> list[object]:
    """One benchmark as asv writes it: by columns, those at the end left out that have nothing."""
    # A figure that an accepted sidecar does not have is n/a, which is NaN to asv.
    each = [vouched(one).get(benchmark.figure, {"result": math.nan}) for one in told]
    cells: dict[str, object] = {
        "result": [_number(one.get("result"), benchmark.name) for one in each],
        "params": benchmark.params,
        "version": benchmark.version,
        "started_at": min(filter(None, map(_started_at, told)), default=None),
    }
    for key in STATISTICS:
        values = [as_asv_rounds(one.get(key)) for one in each]
        if any(value is not None for value in values):
            cells[f"stats_{key}"] = values
    row = [cells.get(column) for column in columns]
    while row[-1] is None:
        row.pop()
    return row


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damaged(f"{name}: a sidecar has {value!r} for it, which is no number")
    return value


def _started_at(sidecar: Sidecar) -> int | None:
    """Milliseconds since 1970, as asv has them; None where a sidecar has no date.

    Raises
    ------
    Damaged
        For a date that is none.

    """
    if not sidecar.date:
        return None
    try:
        return int(1000 * datetime.fromisoformat(sidecar.date).timestamp())
    except (ValueError, OverflowError, OSError):
        raise Damaged(f"{sidecar.date[:40]!r} is no date (ISO 8601)") from None
