"""What asv's own result files say: each metric over the commits."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.fields import Damaged, Fields, as_number, read_fields

if TYPE_CHECKING:
    from pathlib import Path

_VERSION = 2  # of asv's result files


@dataclass(frozen=True)
class Point:
    """One commit's median, with its 99 % interval where there is one; None: failed there."""

    commit: str
    when: dt.datetime
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One metric of one benchmark with one choice of parameters, on one machine, oldest first."""

    machine: str
    benchmark: str
    metric: str
    parameters: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class ResultFile:
    """One of asv's: one commit on one machine."""

    path: Path
    machine: str
    commit: str
    when: dt.datetime
    rows: dict[str, _Row]


@dataclass(frozen=True)
class _Row:
    version: str | None
    parameters: tuple[tuple[str, ...], ...]
    values: tuple[float | None, ...]  # NaN: n/a
    lows: tuple[Any, ...]
    highs: tuple[Any, ...]


def read_result(path: Path) -> ResultFile:
    """Read one of asv's result files.

    Raises
    ------
    Damaged
        For anything that is not asv's, or not of this version of it.

    """
    data = read_fields(path)
    if data.number("version") != _VERSION:
        raise Damaged(f"version: found {data.number('version'):g}, expected {_VERSION}")
    columns = data.texts("result_columns")
    milliseconds = data.number("date")
    try:
        when = dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        raise Damaged(f"date: found {milliseconds:g}, expected milliseconds since 1970") from None
    rows = {}
    for name, cells in data.child("results").items():
        if not isinstance(cells, list):
            raise Damaged(f"results.{name[:60]}: found no list, expected one")
        rows[name] = _row(name[:60], dict(zip(columns, cells, strict=False)))
    machine = data.child("params").text("machine")
    return ResultFile(path, machine, data.text("commit_hash"), when, rows)


@dataclass(frozen=True)
class Benchmark:
    """What benchmarks.json says of one: figures of another version differ in kind."""

    version: str
    parameter_names: tuple[str, ...]


def read_benchmarks(path: Path) -> dict[str, Benchmark]:
    """Read benchmarks.json.

    Raises
    ------
    Damaged
        Where it is no such file.

    """
    return {
        name: Benchmark(Fields(value).text("version"), Fields(value).texts("param_names"))
        for name, value in read_fields(path).items()
        if isinstance(value, dict)
    }


def collect(files: list[ResultFile], known: dict[str, Benchmark]) -> list[Series]:
    """Put every metric's points in the order of their commits; n/a leaves no point."""
    found: dict[tuple[str, str, str], dict[str, Point]] = {}
    for file in sorted(files, key=lambda file: (file.when, file.commit)):
        for name, row in file.rows.items():
            benchmark = known.get(name)
            if benchmark is not None and row.version not in (None, benchmark.version):
                continue
            for index, (parameters, value) in enumerate(
                zip(_labels(row, benchmark), row.values, strict=True)
            ):
                if value is not None and math.isnan(value):
                    continue
                point = Point(
                    file.commit, file.when, value, _cell(row.lows, index), _cell(row.highs, index)
                )
                found.setdefault((file.machine, name, parameters), {})[file.commit] = point
    series = []
    for (machine, name, parameters), points in found.items():
        kind, _, metric = name.partition(".track_")
        series.append(Series(machine, kind, metric, parameters, tuple(points.values())))
    return series


def _labels(row: _Row, benchmark: Benchmark | None) -> list[str]:
    """Say each choice of parameters: numbers with their names, words without."""
    names = benchmark.parameter_names if benchmark else ()
    return [
        " ".join(
            f"{names[place]}={value}" if value.isdecimal() and place < len(names) else value
            for place, value in enumerate(choice)
        )
        for choice in row.parameters
    ]


def _row(name: str, cells: dict[str, Any]) -> _Row:
    params, values = cells.get("params") or [], cells.get("result")
    if not isinstance(params, list) or not all(isinstance(choices, list) for choices in params):
        raise Damaged(f"results.{name}: found no parameters, expected lists of them")
    count = math.prod(len(choices) for choices in params)
    if values is None:  # asv's short for: all failed
        values = [None] * min(count, 1000)
    if not isinstance(values, list) or len(values) != count:
        raise Damaged(f"results.{name}: expected {count} values, one for each choice of parameters")
    choices = [tuple(map(_plain, choice)) for choice in itertools.product(*params)]
    version = cells.get("version")
    return _Row(
        version=version if isinstance(version, str) else None,
        parameters=tuple(choices),
        values=tuple(_value(name, value) for value in values),
        lows=tuple(cells.get("stats_ci_99_a") or ()),
        highs=tuple(cells.get("stats_ci_99_b") or ()),
    )


def _plain(choice: object) -> str:
    """A parameter as it was written: asv stores its repr."""
    text = choice if isinstance(choice, str) else json.dumps(choice)
    return text[1:-1] if text[:1] == text[-1:] == "'" and len(text) > 1 else text


def _value(name: str, value: object) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return value
    return as_number(value, f"results.{name}")


def _cell(values: tuple[Any, ...], index: int) -> float | None:
    """One end of an interval; None where asv has none, or an infinite one (too few samples)."""
    try:
        return as_number(values[index], "")
    except (IndexError, Damaged):
        return None
