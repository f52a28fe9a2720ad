"""A recording as a trace that Perfetto and chrome://tracing open.

The Trace Event Format: complete events (``X``, microseconds) that nest on one thread, token over
layer over kernel over its stages; metadata events (``M``) name process and threads.
Source: "Trace Event Format", Google, the Catapult project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.profile.kinds import kind_of, layers_of
from harness.profile.table import warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.profile.recording import Recording

_PROCESS, _TOKENS = 1, 1


def chrome_trace(recording: Recording) -> dict[str, Any]:
    """Return the trace as JSON: every token that was recorded.

    A kernel that overlaps the one before it, or reaches beyond its layer, would break the nesting:
    it goes to a thread of its own, at its true times.
    """
    ran, warned = recording.ran, warning(recording)
    name = f"{ran['model']} on {ran['device']}, {ran['backend']}:{ran['numerics']}"
    if warned is not None:
        name = f"{warned}: {name}"
    free = [0]  # when each thread is free again
    slices = [
        event
        for token in range(len(recording.traced.starts))
        for event in _token(recording, token, free)
    ]
    lanes = sorted({event["tid"] for event in slices})
    return {
        "traceEvents": [
            _named("process_name", _TOKENS, name),
            *(
                _named("thread_name", lane, "tokens" if lane == _TOKENS else f"overlap {lane - 1}")
                for lane in lanes
            ),
            *slices,
        ],
        "displayTimeUnit": "ns",
        "otherData": {
            "schema": "moe-harness/trace/1",
            "accepted": recording.accepted,
            "warning": warned,
            "tracer": recording.traced.tracer,
            "commit": str(ran.get("commit")),
        },
    }


def _token(recording: Recording, token: int, free: list[int]) -> Iterator[dict[str, Any]]:
    traced = recording.traced
    starts, ends = traced.starts[token].tolist(), traced.ends[token].tolist()
    layers = layers_of(traced.names, recording.layers)
    begin, stop = starts[0], max(ends)
    if token + 1 < len(traced.starts):
        stop = min(stop, int(traced.starts[token + 1][0]))
    depth = recording.workload.get("depth")
    yield _slice(f"token {token}", "token", begin, stop, {"depth": depth})
    borders = _layer_borders(layers, starts, ends, stop)
    for number, (start, end) in borders.items():
        yield _slice(f"layer {number}", "layer", start, end, {})
    for index, (name, layer) in enumerate(zip(traced.names, layers, strict=True)):
        start, end = starts[index], ends[index]
        limit: int = stop if layer is None else borders[layer][1]
        following = layers[index + 1] if index + 1 < len(layers) else None
        if layer is None and following is not None:
            limit = min(limit, borders[following][0])
        fits = [i for i, at in enumerate(free) if at <= start and (i or end <= limit)]
        lane = fits[0] if fits else len(free)
        if lane == len(free):
            free.append(0)
        free[lane] = end
        yield from _kernel(recording, index, name, layer, (start, end), _TOKENS + lane)


def _layer_borders(
    layers: list[int | None], starts: list[int], ends: list[int], stop: int
) -> dict[int, tuple[int, int]]:
    """Start and end of each layer; one ends where the next launch that is not its own starts."""
    borders: dict[int, tuple[int, int]] = {}
    for index, layer in enumerate(layers):
        if layer is None:
            continue
        start = borders.get(layer, (starts[index], 0))[0]
        end = max(borders.get(layer, (0, 0))[1], ends[index])
        following = starts[index + 1] if index + 1 < len(layers) else stop
        if index + 1 == len(layers) or layers[index + 1] != layer:
            end = min(end, following, stop)
        borders[layer] = start, end
    return borders


def _kernel(
    recording: Recording,
    index: int,
    name: str,
    layer: int | None,
    times: tuple[int, int],
    lane: int,
) -> Iterator[dict[str, Any]]:
    kind, moved, (start, end) = kind_of(name), recording.bytes[index], times
    arguments: dict[str, Any] = {"launched as": name, "bytes": moved}
    if layer is not None:
        arguments["layer"] = layer
    if moved and end > start:
        rate = moved / (end - start)  # bytes a nanosecond are GB/s
        arguments["GB/s"] = round(rate, 2)
        arguments["share of bandwidth"] = round(rate * 1e9 / recording.read_bandwidth, 4)
    yield _slice(kind.name, kind.part, start, end, arguments, lane)
    if kind.stages:
        yield _slice(" + ".join(kind.stages), "stages", start, end, {}, lane)


def _slice(
    name: str, category: str, start: int, end: int, arguments: dict[str, Any], lane: int = _TOKENS
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start / 1e3,
        "dur": (end - start) / 1e3,
        "pid": _PROCESS,
        "tid": lane,
        "args": arguments,
    }


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": _PROCESS, "tid": thread, "args": {"name": name}}
