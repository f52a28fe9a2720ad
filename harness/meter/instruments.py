"""What a measurement is read off from, on a CPU and on a GPU: one interface for the meter."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import BadInput
from harness.meter.bandwidth import cpu_read_bandwidth
from harness.meter.gpu_energy import Energy, EnergyWindow
from harness.meter.gpu_peak import GpuPeak
from harness.meter.gpu_watch import Watch
from harness.meter.host_watch import MOST_FOREIGN_CORES, HostWatch
from harness.meter.memory import PeakMemory, ProcessPeak
from harness.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.meter.nvml import Gpu

_ENERGY_SECONDS = 2.0  # the counter moves every 100 ms: 5 % of this
_WINDOW_SECONDS = 0.25  # the system counts CPU time in ticks of 10 ms: 4 % of this
_MOST_DISTURBED = 50  # passes in a row, after which nothing undisturbed is to be expected


class Instruments(Protocol):
    """Peak memory, disturbances, energy and bandwidth of the device that is measured."""

    def begin(self) -> None:
        """Note that the timed region begins: peak memory counts from here."""

    def undisturbed(self, timed: Callable[[], list[float]]) -> list[float]:
        """Run timed passes, one or a window of them; no samples where something disturbed them.

        Raises
        ------
        BadInput
            Where nothing undisturbed is to be expected any more.

        """

    def memory(self) -> PeakMemory:
        """Peak memory since ``begin``."""

    def joules_per_sample(self, timed: Callable[[], list[float]]) -> float | None:
        """Energy of a sample, over a window long enough for the sensor; None where none is told.

        What a pass does between its samples (the prompt, its checks) is in it too.
        """

    def read_bandwidth(self) -> float:
        """Bytes per second that this device reads at most, measured."""

    def to_json(self) -> dict[str, Any]:
        """Return what was seen, for the evidence."""


class HostInstruments:
    """Of what runs on the CPU: the process's peak memory, and whether others ran; no energy.

    ``bear_others`` keeps samples that others disturbed, and says so in the evidence: for machines
    that are never quiet, and figures that nobody compares.
    """

    def __init__(self, *, bear_others: bool | None = None) -> None:
        self._peak = ProcessPeak()
        self._bears = settings().busy if bear_others is None else bear_others
        self._watch, self._disturbed, self._dropped = HostWatch(), 0, 0
        self._foreign = 0.0  # the most, of samples that were kept

    def begin(self) -> None:
        """Note that the timed region begins."""
        self._peak = ProcessPeak()

    def undisturbed(self, timed: Callable[[], list[float]]) -> list[float]:
        """Repeat the pass for a quarter of a second; nothing of it where others took the cores."""
        self._watch.begin()
        start = time.monotonic()
        samples = timed()
        while time.monotonic() - start < _WINDOW_SECONDS:
            samples += timed()
        foreign = self._watch.foreign_cores() or 0.0
        if foreign <= MOST_FOREIGN_CORES or self._bears:
            self._disturbed, self._foreign = 0, max(self._foreign, foreign)
            return samples
        self._disturbed, self._dropped = self._disturbed + 1, self._dropped + len(samples)
        if self._disturbed >= _MOST_DISTURBED:
            raise BadInput(
                f"other processes kept {foreign:.1f} cores of this machine busy, expected at most "
                f"{MOST_FOREIGN_CORES}; measure on a quiet machine (MOE_HARNESS_BUSY=1 measures "
                "all the same, and says so in the evidence)"
            )
        return []

    def memory(self) -> PeakMemory:
        """Peak resident memory of the process."""
        return self._peak.read()

    def joules_per_sample(self, timed: Callable[[], list[float]]) -> None:  # noqa: ARG002
        """Nothing: no counter is read on CPUs."""
        return

    def read_bandwidth(self) -> float:
        """What all threads together read."""
        return cpu_read_bandwidth()

    def to_json(self) -> dict[str, Any]:
        """What others took of the cores while the samples were taken, and what was dropped."""
        return {
            "foreign_cores": self._foreign,
            "most_foreign_cores": None if self._bears else MOST_FOREIGN_CORES,
            "dropped": {"foreign process": self._dropped},
        }


class GpuInstruments:
    """Of one GPU, through NVML.

    Parameters
    ----------
    gpu
        Opened before the decoder, with its memory baseline taken.
    read_bandwidth
        Measures it, in the decoder's context.

    """

    def __init__(self, gpu: Gpu, read_bandwidth: Callable[[], float]) -> None:
        self._gpu, self._bandwidth = gpu, read_bandwidth
        self._total_bytes = gpu.total_bytes  # now: evidence is written when NVML is closed again
        self._watch = Watch(gpu)
        self._peak: GpuPeak | None = None
        self._disturbed = 0
        self._energy: Energy | None = None
        self._no_energy: str | None = "not measured"

    def begin(self) -> None:
        """Note that the timed region begins."""
        self._peak = GpuPeak(self._gpu)

    def undisturbed(self, timed: Callable[[], list[float]]) -> list[float]:
        """Run the pass between two looks at clocks and processes."""
        self._watch.before()
        samples = timed()
        seen = self._watch.after(len(samples))
        if self._peak is not None:
            self._peak.sample()
        if not seen:
            self._disturbed = 0
            return samples
        self._disturbed += 1
        if self._disturbed >= _MOST_DISTURBED:
            raise BadInput(
                f"{self._gpu.name}: {self._disturbed} passes in a row were disturbed ({seen}); "
                "let the GPU cool, or end the other process"
            )
        return []

    def memory(self) -> PeakMemory:
        """Peak memory of the process on the GPU."""
        if self._peak is None:
            raise RuntimeError("memory() before begin(): there was no timed region")
        return self._peak.read()

    def joules_per_sample(self, timed: Callable[[], list[float]]) -> float | None:
        """Repeat the pass for seconds, as the counter moves slowly."""
        window = EnergyWindow(self._gpu)
        window.start()
        count, milliseconds = 0, 0.0
        while milliseconds < 1000 * _ENERGY_SECONDS:
            samples = timed()
            count += len(samples)
            milliseconds += sum(samples)
        self._energy, self._no_energy = window.stop(), window.reason
        return None if self._energy is None else self._energy.joules / count

    def read_bandwidth(self) -> float:
        """What a kernel that only reads reaches."""
        return self._bandwidth()

    def to_json(self) -> dict[str, Any]:
        """Clocks, temperatures, processes, what was dropped; the energy window."""
        energy = self._energy
        return {
            **self._watch.to_json(),
            "energy": None
            if energy is None
            else {
                "joules": energy.joules,
                "seconds": energy.seconds,
                "watts": energy.watts,
                "source": energy.source,
            },
            "no_energy": self._no_energy,
            "memory_total_bytes": self._total_bytes,
        }
