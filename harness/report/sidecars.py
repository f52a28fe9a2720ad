"""What the evidence sidecars say, each as the kind of figure that it is."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from harness.numerics import find_numerics
from harness.report.fields import Damaged, Fields, read_fields

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping
    from pathlib import Path

_DECODE, _PARITY, _PEER = (f"moe-harness/{kind}/1" for kind in ("decode", "parity", "peer"))
_BATCH = "moe-harness/batch/1"
_FAMILIES = "moe-harness/families/1"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Origin:
    """Where a figure comes from.

    ``machine`` is None for what was measured by hand (results/checks/): then only ``device`` says
    what ran. ``when`` orders figures: the commit's time where asv tells it (an old commit may be
    measured late), else ``measured``, the time of the run; None where neither is known.
    """

    path: Path
    machine: str | None
    benchmark: str
    device: str
    commit: str
    dirty: bool
    measured: dt.datetime | None
    when: dt.datetime | None


@dataclass(frozen=True)
class Layer:
    """Cosines of one layer's ``moe_ffn_out`` against the oracle; None where not computed."""

    layer: int
    free: float | None
    forced: float | None


@dataclass(frozen=True)
class Parity:
    """How near a decoder came to its reference."""

    origin: Origin
    numerics: str
    reference: str
    judged: tuple[str, ...]
    layers: tuple[Layer, ...]
    distance: float


@dataclass(frozen=True)
class Decode:
    """A guarded decode; times in ms/token, memory in bytes."""

    origin: Origin
    model: str
    fingerprint: str
    numerics: str
    depth: int
    ms_median: float
    ms_p99: float
    tokens_per_second: float
    peak_bytes: float
    joules_per_token: float | None
    roofline_fraction: float | None
    bytes_per_token: float
    parity: Parity


@dataclass(frozen=True)
class Batch:
    """Guarded sequences, decoded at once; times in ms/step, tokens/s of all of them together.

    ``distinct_experts`` are those of a layer that any sequence chose in a step, the mean.
    """

    origin: Origin
    model: str
    numerics: str
    size: int
    depth: int
    ms_median: float
    ms_p99: float
    tokens_per_second: float
    peak_bytes: float
    memory_share: float
    roofline_fraction: float
    distinct_experts: float
    joules_per_token: float | None


@dataclass(frozen=True)
class Kernel:
    """A guarded kernel by itself, cold; ``bandwidth`` is the machine's, in bytes/s."""

    origin: Origin
    name: str
    numerics: str
    us_median: float
    us_p99: float
    bytes: float
    bandwidth: float
    roofline_fraction: float


@dataclass(frozen=True)
class Peer:
    """Another engine's own figure, without a guard."""

    origin: Origin
    peer: str
    build: str
    fingerprint: str
    depth: int
    tokens_per_second: float
    deviation: float
    ms_per_token: float


@dataclass(frozen=True)
class Rejection:
    """A run without a figure, and why. ``planted``: the fault that it was run with."""

    origin: Origin
    reasons: tuple[str, ...]
    planted: str | None


Record: TypeAlias = Decode | Batch | Parity | Kernel | Peer | Rejection


def read_sidecar(path: Path, commit_dates: Mapping[str, dt.datetime]) -> list[Record]:
    """Read one sidecar; nothing of a kind that this page does not show.

    ``commit_dates`` maps the short hashes of file names to commit times, for evidence that carries
    no time of its own.

    Raises
    ------
    Damaged
        For anything that is no sound evidence.

    """
    data = read_fields(path)
    if data.text("schema") == _FAMILIES:
        return _families(path, data, commit_dates)
    readers: dict[str, Callable[[Origin, Fields], Record]] = {
        _DECODE: _decode,
        _BATCH: _batch,
        _PARITY: _parity,
        _PEER: _peer,
    }
    reader = readers.get(data.text("schema"), _kernel if "us" in data else None)
    if reader is None and "verdict" not in data:
        return []
    origin = _origin(path, data, commit_dates)
    why_not = None if reader is _peer else _rejection(origin, data)
    if why_not is not None:
        return [why_not]
    return [] if reader is None else [reader(origin, data)]


def _rejection(origin: Origin, data: Fields) -> Rejection | None:
    """Say why a guarded run has no figure, or None where it has one."""
    verdict = (data if "verdict" in data else data.child("evidence")).child("verdict")
    planted = data.text("planted") if "planted" in data else None
    if not verdict.flag("accepted"):
        return Rejection(origin, verdict.texts("reasons"), planted)
    if planted is None:
        return None
    why = f"fault {planted} was planted and accepted: no figure, and a guard to mend"
    return Rejection(origin, (why,), planted)


def _origin(path: Path, data: Fields, commit_dates: Mapping[str, dt.datetime]) -> Origin:
    ran = data.child("ran") if "ran" in data else Fields({})
    short = path.name.partition("-")[0]
    machine = data.child("machine").text("machine") if "machine" in data else None
    named = [ran.text(key) for key in ("gpu", "device") if key in ran]
    named += [data.text("gpu_info")] if "gpu_info" in data else []
    measured = ran.moment("date") if "date" in ran else None
    if "test_time" in data:
        measured = data.moment("test_time")
    return Origin(
        path=path,
        machine=machine,
        benchmark=data.text("benchmark") if "benchmark" in data else path.stem,
        device=next(iter(named), machine or _UNKNOWN),
        commit=ran.text("commit") if "commit" in ran else short,
        dirty=ran.flag("dirty") if "dirty" in ran else False,
        measured=measured,
        when=commit_dates.get(short, measured),
    )


def _decode(origin: Origin, data: Fields) -> Decode:
    ran, time, memory = (data.child(name) for name in ("ran", "ms_per_token", "memory"))
    energy, share = "energy_joules_per_token", "roofline_fraction"
    return Decode(
        origin=origin,
        model=ran.text("model"),
        fingerprint=ran.text("model_fingerprint"),
        numerics=ran.text("numerics"),
        depth=int(data.child("workload").number("depth")),
        ms_median=time.positive("median"),
        ms_p99=time.positive("p99"),
        tokens_per_second=data.positive("tokens_per_second"),
        peak_bytes=memory.positive("peak_bytes"),
        joules_per_token=data.positive(energy) if energy in data else None,
        roofline_fraction=data.positive(share) if share in data else None,
        bytes_per_token=data.positive("bytes_per_token"),
        parity=_parity(origin, data.child("evidence")),
    )


def _batch(origin: Origin, data: Fields) -> Batch:
    ran, time, memory = (data.child(name) for name in ("ran", "ms_per_step", "memory"))
    energy, size = "energy_joules_per_token", int(data.positive("batch"))
    guarded = data.child("evidence").children("sequences")
    if len(guarded) != size or not all(each.child("verdict").flag("accepted") for each in guarded):
        raise Damaged(f"evidence.sequences: found no accepted evidence of each of {size} sequences")
    return Batch(
        origin=origin,
        model=ran.text("model"),
        numerics=ran.text("numerics"),
        size=size,
        depth=int(data.child("workload").number("depth")),
        ms_median=time.positive("median"),
        ms_p99=time.positive("p99"),
        tokens_per_second=data.positive("tokens_per_second"),
        peak_bytes=memory.positive("peak_bytes"),
        memory_share=memory.positive("share"),
        roofline_fraction=data.positive("roofline_fraction"),
        distinct_experts=data.child("distinct_experts").positive("mean"),
        joules_per_token=data.positive(energy) if energy in data else None,
    )


def _parity(origin: Origin, evidence: Fields) -> Parity:
    layers = tuple(
        Layer(
            layer=int(line.number("layer")),
            free=_cosine(line, "moe_ffn_out_cosine"),
            forced=_cosine(line, "forced_cosine"),
        )
        for line in evidence.children("layers")
    )
    return Parity(
        origin=origin,
        numerics=evidence.text("numerics"),
        reference=evidence.text("reference"),
        judged=evidence.texts("judged"),
        layers=layers,
        distance=evidence.number("distance"),
    )


def _cosine(line: Fields, name: str) -> float | None:
    if name not in line:
        return None
    value = line.number(name)
    if not -1.001 <= value <= 1.001:  # rounding may exceed 1
        raise Damaged(f"{name}: found {value:g}, expected a cosine")
    return value


def _kernel(origin: Origin, data: Fields) -> Kernel:
    evidence, time = data.child("evidence"), data.child("us")
    return Kernel(
        origin=origin,
        name=evidence.text("kernel"),
        numerics=evidence.text("numerics") if "numerics" in evidence else "",
        us_median=time.positive("median"),
        us_p99=time.positive("p99"),
        bytes=data.positive("bytes"),
        bandwidth=data.positive("read_bandwidth"),
        roofline_fraction=data.positive("roofline_fraction"),
    )


def _families(path: Path, data: Fields, commit_dates: Mapping[str, dt.datetime]) -> list[Record]:
    """Kernel families of the numerics that decodes by default; asv's site has the others."""
    origin, ran = _origin(path, data, commit_dates), data.child("ran")
    why_not = _rejection(origin, data)
    if why_not is not None:
        return [why_not]
    if ran.text("numerics") != find_numerics(None, "cuda").name:
        return []
    families = data.child("families")
    return [
        Kernel(
            origin=replace(origin, benchmark=f"{origin.benchmark} {name}"),
            name=name,
            numerics=ran.text("numerics"),
            us_median=family.child("us").positive("median"),
            us_p99=family.child("us").positive("p99"),
            bytes=family.positive("bytes_per_token") / family.positive("launches_per_token"),
            bandwidth=data.positive("read_bandwidth"),
            roofline_fraction=family.positive("roofline_fraction"),
        )
        for name, _ in families.items()
        if (family := families.child(name)).number("bytes_per_token")  # argmax reads none
    ]


def _peer(origin: Origin, data: Fields) -> Peer:
    times = [Fields({"ms": value}).positive("ms") for value in data.array("ms_per_token")]
    if not times:
        raise Damaged("ms_per_token: found no sample, expected one at least")
    version = f", {data.text('version')}" if "version" in data else ""
    return Peer(
        origin=origin,
        peer=data.text("peer"),
        build=f"{data.text('build_commit')}{version}",
        fingerprint=data.text("model_fingerprint"),
        depth=int(data.number("n_depth")),
        tokens_per_second=data.positive("avg_ts"),
        deviation=data.number("stddev_ts"),
        ms_per_token=statistics.median(times),
    )
