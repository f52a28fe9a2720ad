"""Watching a GPU around each timed pass: which samples are not the commit's doing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.meter.gpu_state import GpuState
    from harness.meter.nvml import Gpu

_RANGES = ("sm_clock_mhz", "memory_clock_mhz", "temperature_celsius", "power_watts")


@dataclass(frozen=True)
class Disturbance:
    """What makes samples unusable; false where nothing does."""

    throttled: tuple[str, ...] = ()
    foreign: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.throttled or self.foreign)

    def __or__(self, other: Disturbance) -> Disturbance:
        return Disturbance(
            tuple(dict.fromkeys(self.throttled + other.throttled)),
            tuple(sorted({*self.foreign, *other.foreign})),
        )

    def __str__(self) -> str:
        parts = []
        if self.throttled:
            parts.append(f"throttled: {', '.join(self.throttled)}")
        if self.foreign:
            parts.append(f"foreign process: {', '.join(map(str, self.foreign))}")
        return "; ".join(parts) or "undisturbed"


class Watch:
    """Looks before and after each pass, and keeps what it saw for the evidence.

    Another process that computes makes a pass unusable. One that only draws does not, or nothing
    could ever be measured on a machine with a display; it stands in the evidence.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._before: Disturbance | None = None
        self._passes = 0
        self._dropped = {"throttled": 0, "foreign process": 0}
        self._reasons: Counter[str] = Counter()
        self._reasons_told = False
        self._ranges: dict[str, tuple[float, float]] = {}
        self._max_sm_clock: int | None = None
        self._compute: set[int] | None = None
        self._graphics: set[int] | None = None
        self._notes: list[str] = []

    def before(self) -> Disturbance:
        """Look before a pass: the caller may wait rather than begin."""
        self._before = self._look()
        return self._before

    def after(self, samples: int = 1) -> Disturbance:
        """Look after the pass; what was seen on either side makes its ``samples`` unusable.

        They are counted under each kind of disturbance that there was.

        Raises
        ------
        RuntimeError
            Without a look before.

        """
        if self._before is None:
            raise RuntimeError("Watch.after() without Watch.before(): half a look misses half")
        seen, self._before = self._before | self._look(), None
        self._passes += 1
        self._dropped["throttled"] += samples if seen.throttled else 0
        self._dropped["foreign process"] += samples if seen.foreign else 0
        return seen

    @property
    def dropped(self) -> dict[str, int]:
        """Samples that were unusable, by kind of disturbance."""
        return dict(self._dropped)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the sidecar; what NVML did not tell is null."""
        return {
            "gpu": self._gpu.name,
            "uuid": self._gpu.uuid,
            "driver": self._gpu.driver.version,
            "passes": self._passes,
            "dropped": self.dropped,
            "clock_event_reasons": dict(self._reasons) if self._reasons_told else None,
            "max_sm_clock_mhz": self._max_sm_clock,
            **{
                name: list(self._ranges[name]) if name in self._ranges else None for name in _RANGES
            },
            "foreign_processes": _listed(self._compute),
            "graphics_processes": _listed(self._graphics),
            "processes_note": self._notes,
        }

    def _look(self) -> Disturbance:
        state, others = self._gpu.state(), self._gpu.foreign_processes()
        self._keep(state)
        if others.compute is not None:
            self._compute = (self._compute or set()) | {*others.compute}
        if others.graphics is not None:
            self._graphics = (self._graphics or set()) | {*others.graphics}
        if others.note not in self._notes:
            self._notes.append(others.note)
        return Disturbance(state.throttling, others.compute or ())

    def _keep(self, state: GpuState) -> None:
        if state.reasons is not None:
            self._reasons_told = True
            self._reasons.update(state.reasons)
        self._max_sm_clock = state.max_sm_clock_mhz
        for name in _RANGES:
            value = getattr(state, name)
            if value is not None:
                low, high = self._ranges.get(name, (value, value))
                self._ranges[name] = min(low, value), max(high, value)


def _listed(pids: set[int] | None) -> list[int] | None:
    return None if pids is None else sorted(pids)
