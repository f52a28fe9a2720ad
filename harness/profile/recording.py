"""What a session recorded: plain data, to a file and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import BadInput
from harness.files import write_atomically
from harness.profile.kinds import layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Nanoseconds = NDArray[np.int64]

SCHEMA = "moe-harness/recording/1"
_MOST_BYTES = 256 << 20  # of a file: a thousand tokens of the largest models stay far below


@dataclass(frozen=True)
class Traced:
    """Launches of the tokens of one pass, recorded while they ran.

    Attributes
    ----------
    names
        Of a token's launches, in order; every token has the same.
    starts, ends
        Nanoseconds from the first start on, int64 ``[tokens, launches]``.
    token_ms
        Of each token, as decode times them, under the tracer.
    tracer
        What recorded.

    """

    names: tuple[str, ...]
    starts: Nanoseconds
    ends: Nanoseconds
    token_ms: tuple[float, ...]
    tracer: str


@dataclass(frozen=True)
class Undisturbed:
    """The same tokens without a tracer: milliseconds a token, how many, and why it ended."""

    median_ms: float
    p99_ms: float
    samples: int
    stopped_by: str


@dataclass(frozen=True)
class Recording:
    """A session, whole.

    Attributes
    ----------
    traced, undisturbed
        The token under the tracer, and without.
    layers
        Of the model.
    bytes
        That each launch must move.
    positions
        That the counted token attends to: the middle one of those decoded.
    read_bandwidth
        Of this device, measured: bytes per second.
    verdict
        Of the guard, ``accepted`` and ``reasons``; for an unguarded session also how its passes
        differed from one another.
    memory
        Peak and its source, and what was allocated, by purpose.
    energy
        Joules a token and readings of power over time; None where it was not asked for.
    workload, ran, conditions
        As ``decode`` tells them.

    """

    traced: Traced
    undisturbed: Undisturbed
    layers: int
    bytes: tuple[int, ...]
    positions: int
    read_bandwidth: float
    verdict: Mapping[str, Any]
    memory: Mapping[str, Any]
    energy: Mapping[str, Any] | None
    workload: Mapping[str, Any]
    ran: Mapping[str, Any]
    conditions: Mapping[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the guard accepted what was recorded."""
        return self.verdict["accepted"] is True

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        traced = self.traced
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "workload": self.workload,
            "ran": self.ran,
            "conditions": self.conditions,
            "layers": self.layers,
            "positions": self.positions,
            "read_bandwidth": self.read_bandwidth,
            "undisturbed": vars(self.undisturbed),
            "memory": self.memory,
            "energy": self.energy,
            "bytes": list(self.bytes),
            "traced": {
                "tracer": traced.tracer,
                "token_ms": list(traced.token_ms),
                "names": list(traced.names),
                "starts_ns": traced.starts.tolist(),
                "durations_ns": (traced.ends - traced.starts).tolist(),
            },
        }

    def write(self, path: Path) -> None:
        """Write it: few blanks, as it is mostly numbers."""
        text = json.dumps(self.to_json(), allow_nan=False, separators=(",", ":"))
        write_atomically(path, text + "\n")


def read_recording(path: Path) -> Recording:
    """Read a recording and check it.

    Raises
    ------
    BadInput
        For what is none.

    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadInput(f"{path}: over {_MOST_BYTES >> 20} MB, no recording is; name another")
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); name the recording.json of a session"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: no JSON ({error}); name the recording.json of a session") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise BadInput(f"{path}: schema {found!r}, expected {SCHEMA}; record it again")
    try:
        return _checked(data)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"{path}: no whole recording ({what}); record it again") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def _checked(data: Mapping[str, Any]) -> Recording:
    traced, calm = data["traced"], data["undisturbed"]
    names = tuple(_text(name) for name in traced["names"])
    starts, durations = _times(traced["starts_ns"]), _times(traced["durations_ns"])
    if starts.shape != durations.shape or starts.shape[1] != len(names):
        raise ValueError(
            f"starts {starts.shape} and durations {durations.shape} of {len(names)} launches"
        )
    if (durations < 0).any() or (np.diff(starts.reshape(-1)) < 0).any():
        raise ValueError("a launch ends before it starts, or starts before the one ahead of it")
    layers, positions = _whole(data["layers"]), _whole(data["positions"])
    token_ms = tuple(_positive(value) for value in traced["token_ms"])
    moved = tuple(_whole(value, least=0) for value in data["bytes"])
    if len(token_ms) != len(starts) or len(moved) != len(names):
        raise ValueError(f"{len(token_ms)} tokens and {len(moved)} byte counts do not fit")
    layers_of(names, layers)  # refuses what is no token of that many layers
    if not sum(moved) or not np.median(durations, axis=0).sum():
        raise ValueError("a token that moves no byte or takes no time")
    return Recording(
        Traced(names, starts, starts + durations, token_ms, _text(traced["tracer"])),
        Undisturbed(
            _positive(calm["median_ms"]),
            _positive(calm["p99_ms"]),
            _whole(calm["samples"]),
            _text(calm["stopped_by"]),
        ),
        layers=layers,
        bytes=moved,
        positions=positions,
        read_bandwidth=_positive(data["read_bandwidth"]),
        verdict=_verdict(data["verdict"]),
        memory=_memory(data["memory"]),
        energy=None if data["energy"] is None else _energy(data["energy"]),
        workload=_object(data["workload"]),
        ran=_ran(data["ran"]),
        conditions=_object(data["conditions"]),
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _times(rows: object) -> Nanoseconds:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise TypeError("times are no rows of numbers")
    if not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows of times differ in length, or are empty")
    return np.array([[_whole(value, least=0) for value in row] for row in rows], dtype=np.int64)


def _whole(value: object, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 60:
        raise ValueError(f"{value!r}, expected a whole number from {least} on")
    return value


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r}, expected a number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{value!r}, expected a finite number above 0")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r}, expected text")
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r}, expected an object")
    return value


def _ran(value: object) -> dict[str, Any]:
    ran = _object(value)
    for key in ("backend", "device", "numerics", "model"):
        _text(ran[key])
    return ran


def _verdict(value: object) -> dict[str, Any]:
    verdict = _object(value)
    if not isinstance(verdict["accepted"], bool) or not isinstance(verdict["reasons"], list):
        raise TypeError("the verdict is none")
    for reason in verdict["reasons"]:
        _text(reason)
    return verdict


def _energy(value: object) -> dict[str, Any]:
    energy = _object(value)
    if energy["joules_per_token"] is not None:
        _positive(energy["joules_per_token"])
    before = 0.0
    for at, watts, clock in energy["power"]:
        if at < before:
            raise ValueError("readings of power go back in time")
        before = at
        _positive(watts)
        if clock is not None:
            _whole(clock)
    return energy


def _memory(value: object) -> dict[str, Any]:
    memory = _object(value)
    _whole(memory["peak_bytes"])
    _text(memory["source"])
    for size in _object(memory["by_purpose"]).values():
        _whole(size, least=0)
    return memory
