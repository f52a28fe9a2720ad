"""What was measured, but not yet in asv's file when its run was cut off, put there.

A benchmark's evidence is on disk as soon as it is measured; asv notes a figure when it has asked
for it, in a process of its own for each parameter. A run that is killed in between has sealed
sidecars for figures that asv's file of that commit lacks. Nothing that asv wrote is changed.
"""

from __future__ import annotations

import itertools
import json
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from harness.contract.evidence import Damaged, Sidecar, read_json, read_sidecar, sidecar_paths
from harness.contract.integrity import STATISTICS, as_asv_rounds, parts, plain, vouched
from harness.errors import BadInput
from harness.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_COMMIT_DIGITS = 8


def recover(results: Path) -> list[str]:
    """Fill in what asv's files lack and sealed, accepted sidecars have; says what, a line each.

    Raises
    ------
    BadInput
        Where asv's list of benchmarks, one of its files or a sidecar is damaged.

    """
    path = results / "benchmarks.json"
    try:
        benchmarks = read_json(path)
        by_run = _by_run(results)
        files = [
            path
            for path in sorted(results.glob("*/*.json"))
            if path.name != "machine.json" and path.parent != results
        ]
        return [line for path in files for line in _fill(path, read_json(path), benchmarks, by_run)]
    except Damaged as error:
        raise BadInput(f"{results}: {error}; run moe-harness contract check") from None


def _by_run(results: Path) -> dict[tuple[str, str, tuple[str, ...]], Sidecar]:
    found = {}
    for path in sidecar_paths(results):
        sidecar = read_sidecar(path)
        if sidecar.sealed and sidecar.accepted and sidecar.content.get("planted") is None:
            for words, part in parts(sidecar):
                found[sidecar.machine, sidecar.commit, words] = part
    return found


def _fill(
    path: Path,
    data: dict[str, Any],
    benchmarks: Mapping[str, Any],
    by_run: Mapping[tuple[str, str, tuple[str, ...]], Sidecar],
) -> list[str]:
    commit, rows = str(data.get("commit_hash", ""))[:_COMMIT_DIGITS], data.get("results")
    columns = data.get("result_columns")
    if not isinstance(rows, dict) or not isinstance(columns, list):
        raise Damaged(f"{path.name} is no result file of asv")
    filled = []
    for name, benchmark in benchmarks.items():
        if name in rows or not isinstance(benchmark, dict):
            continue
        owner, _, method = name.rpartition(".")
        told = []
        for combination in itertools.product(*benchmark["params"]):
            words = (owner, *(plain(value) for value in combination))
            sidecar = by_run.get((path.parent.name, commit, words))
            told.append(None if sidecar is None else vouched(sidecar) | {"": sidecar.date})
        if not told or None in told:
            continue  # not measured, or not all of it
        rows[name] = _row(columns, benchmark, method.removeprefix("track_"), told)
        filled.append(f"{path.parent.name} {commit}: {name}")
    if filled:
        write_atomically(path, json.dumps(data))
    return filled


def _row(
    columns: list[str], benchmark: Mapping[str, Any], figure: str, told: list[Any]
) -> list[object]:
    """One benchmark as asv writes it: by columns, those at the end left out that have nothing."""
    # A figure that an accepted sidecar does not have is n/a, which is NaN to asv.
    each = [one.get(figure, {"result": math.nan}) for one in told]
    cells: dict[str, object] = {
        "result": [one["result"] for one in each],
        "params": benchmark["params"],
        "version": benchmark["version"],
        "started_at": min(_milliseconds(one[""]) for one in told),
    }
    for key in STATISTICS:
        values = [as_asv_rounds(one.get(key)) for one in each]
        if any(value is not None for value in values):
            cells[f"stats_{key}"] = values
    row = [cells.get(column) for column in columns]
    while row[-1] is None:
        row.pop()
    return row


def _milliseconds(date: str) -> int:
    return int(1000 * datetime.fromisoformat(date).timestamp())
