"""What the page tells, in the order in which it tells it: by machine, newest first."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import BadInput
from harness.meter.sidecar import ENDING
from harness.report.contract import judged_contracts
from harness.report.fields import Damaged, read_fields
from harness.report.series import Series, collect, read_benchmarks, read_result
from harness.report.sidecars import (
    Batch,
    Decode,
    Kernel,
    Origin,
    Parity,
    Peer,
    Rejection,
    read_sidecar,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.report.contract import Contract
    from harness.report.series import ResultFile
    from harness.report.sidecars import Record

_BY_HAND = "checks"  # results/checks/: measured by hand, on a machine that asv does not know
_LONG_AGO = dt.datetime.min.replace(tzinfo=dt.UTC)
_SHORT = 8
_NO_GPU = "no GPU"

AnyRecord = TypeVar("AnyRecord", Decode, Batch, Parity, Kernel, Peer, Rejection)


@dataclass(frozen=True)
class Machine:
    """One machine's figures: of each benchmark the newest that was accepted.

    Attributes
    ----------
    name, title, detail
        asv's name for it; its GPU, or else its processor; what else is known of it.
    decodes, batches, parities, kernels, peers
        Newest of each benchmark.
    overtaken
        Benchmarks whose newest run was rejected: their figures here are older.
    series
        Every metric over the commits.

    """

    name: str
    title: str
    detail: str
    decodes: tuple[Decode, ...]
    batches: tuple[Batch, ...]
    parities: tuple[Parity, ...]
    kernels: tuple[Kernel, ...]
    peers: tuple[Peer, ...]
    overtaken: frozenset[str]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Unreadable:
    """A file under results/ that could not be used, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Hole:
    """Where asv has a failure and no evidence says why: it crashed, or ran out of time."""

    machine: str
    benchmark: str
    parameters: str
    commit: str


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    machines: tuple[Machine, ...]
    rejections: tuple[Rejection, ...]
    holes: tuple[Hole, ...]
    contracts: tuple[Contract, ...]
    unreadable: tuple[Unreadable, ...]
    newest: dt.datetime | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"schema": "moe-harness/report/1", **_plain(asdict(self))}


def gather(results: Path) -> Report:
    """Read everything under ``results``.

    A file that cannot be used is named in the report and does not hide the others.

    Raises
    ------
    BadInput
        Where there is no such folder, or nothing in it that can be used.

    """
    if not results.is_dir():
        raise BadInput(f"{results}: no such folder; expected asv's results, name one: --results")
    reader = _Reader(results)
    files = reader.each("*/*-*.json", read_result)
    benchmarks = reader.each("benchmarks.json", read_benchmarks)
    dates = {file.commit[:_SHORT]: file.when for file in files}
    # A check by hand has its evidence beside it, a machine that asv knows in a folder of its own.
    found = [
        record
        for pattern in (f"*/evidence/*{ENDING}", f"{_BY_HAND}/*{ENDING}")
        for records in reader.each(pattern, lambda path: read_sidecar(path, dates))
        for record in records
    ]
    if not (files or found):
        bad = f"; {len(reader.unreadable)} unreadable" if reader.unreadable else ""
        raise BadInput(f"{results}: no result in it{bad}; expected those of asv run")
    names = {path.parent.name: path for path in sorted(results.glob("*/machine.json"))}
    told = {name: reader.each(f"{name}/machine.json", _told) for name in names}
    series = collect(files, benchmarks[0] if benchmarks else {})
    machines = [
        _machine(name, told.get(name) or [], records, series)
        for name, records in _by_machine(found, files).items()
    ]
    rejections = [record for record in found if isinstance(record, Rejection)]
    rejections.sort(key=lambda record: _age(record.origin), reverse=True)
    return Report(
        machines=tuple(sorted(machines, key=_rank)),
        rejections=tuple(rejections),
        holes=tuple(_holes(series, rejections)),
        contracts=tuple(judged_contracts(results)),
        unreadable=tuple(reader.unreadable),
        newest=max(
            (record.origin.measured for record in found if record.origin.measured), default=None
        ),
    )


class _Reader:
    """Reads many files, and keeps what was wrong with those that it could not."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self.unreadable: list[Unreadable] = []

    def each(self, pattern: str, read: Callable[[Path], Any]) -> list[Any]:
        """Read every file of that pattern that can be read."""
        found = []
        for path in sorted(self._results.glob(pattern)):
            try:
                found.append(read(path))
            except Damaged as error:
                name = path.relative_to(self._results).as_posix()
                self.unreadable.append(Unreadable(name, str(error)))
        return found


def _holes(series: list[Series], rejections: list[Rejection]) -> list[Hole]:
    explained = {
        (each.origin.machine, each.origin.benchmark, each.origin.commit[:_SHORT])
        for each in rejections
    }
    found = {
        Hole(each.machine, each.benchmark, each.parameters, point.commit[:_SHORT])
        for each in series
        for point in each.points
        if point.value is None
    }
    return sorted(
        (
            hole
            for hole in found
            if (hole.machine, f"{hole.benchmark} {hole.parameters}".strip(), hole.commit)
            not in explained
        ),
        key=lambda hole: (hole.machine, hole.benchmark, hole.parameters, hole.commit),
    )


def _told(path: Path) -> tuple[str, str]:
    """Title and detail of a machine, by its machine.json."""
    data = read_fields(path)
    gpu = data.text("gpu") if "gpu" in data else ""
    cpu = data.text("cpu") if "cpu" in data else ""
    cores = f"{data.text('num_cpu')} cores" if data.text("num_cpu") else ""
    where = f"{data.text('os')} {data.text('arch')}"
    title = gpu or ", ".join(filter(None, (cpu, cores))) or path.parent.name
    return title, where if gpu else f"{_NO_GPU}, {where}"


def _by_machine(found: list[Record], files: list[ResultFile]) -> dict[str, list[Record]]:
    """Records by the machine's name; a check by hand goes by its device."""
    machines: dict[str, list[Record]] = {file.machine: [] for file in files}
    for record in found:
        origin = record.origin
        machines.setdefault(origin.machine or f"{origin.device}, by hand", []).append(record)
    return machines


def _rank(machine: Machine) -> tuple[bool, bool, str]:
    """GPUs first, what was measured by hand last."""
    return not machine.series, machine.detail.startswith(_NO_GPU), machine.name


def _machine(
    name: str, told: list[tuple[str, str]], records: list[Record], series: list[Series]
) -> Machine:
    own = tuple(each for each in series if each.machine == name)
    title, detail = told[0] if told else (name, "" if own else f"results/{_BY_HAND}/")
    latest: dict[str, Record] = {}
    for record in records:
        known = latest.get(record.origin.benchmark)
        if known is None or _age(known.origin) <= _age(record.origin):
            latest[record.origin.benchmark] = record
    return Machine(
        name=name,
        title=title,
        detail=detail,
        decodes=_newest(records, Decode),
        batches=_newest(records, Batch),
        parities=_newest(records, Parity),
        kernels=_newest(records, Kernel),
        peers=_newest(records, Peer),
        overtaken=frozenset(
            benchmark for benchmark, record in latest.items() if isinstance(record, Rejection)
        ),
        series=own,
    )


def _newest(records: list[Record], kind: type[AnyRecord]) -> tuple[AnyRecord, ...]:
    newest: dict[str, AnyRecord] = {}
    for record in records:
        if isinstance(record, kind):
            known = newest.get(record.origin.benchmark)
            if known is None or _age(known.origin) <= _age(record.origin):
                newest[record.origin.benchmark] = record
    return tuple(sorted(newest.values(), key=lambda record: _natural(record.origin.benchmark)))


def _natural(name: str) -> tuple[str, int]:
    """So that depth=512 comes before depth=4096."""
    head, _, tail = name.rpartition("=")
    return (head, int(tail)) if tail.isdecimal() and len(tail) < 10 else (name, 0)


def _age(origin: Origin) -> tuple[dt.datetime, dt.datetime]:
    return origin.when or _LONG_AGO, origin.measured or _LONG_AGO


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Turn dates, paths and sets into text, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
