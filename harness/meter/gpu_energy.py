"""Energy that a GPU took over a window long enough for its sensor."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.meter.nvml import Gpu

# The counter moves about every 100 ms: a window of 1 s is uncertain by 10 %, a shorter one by more.
_LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class Energy:
    """Of the whole board, whoever used it."""

    joules: float
    seconds: float
    source: str

    @property
    def watts(self) -> float:
        """Mean power over the window."""
        return self.joules / self.seconds


class EnergyWindow:
    """From ``start`` to ``stop``; ``reason`` says why the last ``stop`` gave none."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._began: tuple[float, int | None] | None = None
        self.reason: str | None = None

    def start(self) -> None:
        """Begin a window; one that is under way is forgotten."""
        self._began = time.monotonic(), self._millijoules()

    def stop(self) -> Energy | None:
        """End the window; None, and a ``reason``, where there is no honest figure.

        Raises
        ------
        RuntimeError
            Without a window under way.

        """
        if self._began is None:
            raise RuntimeError("no energy window was started")
        (start, before), self._began = self._began, None
        after, seconds = self._millijoules(), time.monotonic() - start
        self.reason = _why_not(before, after, seconds)
        if self.reason is not None or before is None or after is None:
            return None
        source = "NVML, total energy of the board, a counter that moves about every 100 ms"
        return Energy((after - before) / 1000, seconds, source)

    def _millijoules(self) -> int | None:
        counter = self._gpu.ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if counter is None else int(counter)


def _why_not(before: int | None, after: int | None, seconds: float) -> str | None:
    if before is None or after is None:
        return "NVML tells no energy of this GPU"
    if seconds < _LEAST_SECONDS:
        return (
            f"a window of {seconds:.2f} s is too short for the counter, {_LEAST_SECONDS} s is least"
        )
    if after <= before:
        return f"the counter went from {before} to {after} mJ: it was reset, or stands still"
    return None
