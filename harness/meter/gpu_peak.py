"""Peak memory on a GPU, by sampling."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from harness.errors import HardwareAbsent
from harness.meter.memory import PeakMemory

if TYPE_CHECKING:
    from harness.meter.nvml import Gpu, UsedMemory

_EVERY_SECONDS = 0.02  # a reading takes about 10 µs


class GpuPeak:
    """The most memory that a process had on a GPU, of all samples from construction on.

    NVML keeps no high-water mark. A decoder that allocates when it is opened and never after is
    seen by any sample; what comes and goes between two samples is not. ``background`` takes one
    every 20 ms until ``close``.

    Raises
    ------
    HardwareAbsent
        Where NVML tells no memory of this GPU.

    """

    def __init__(self, gpu: Gpu, *, pid: int | None = None, background: bool = False) -> None:
        self._gpu, self._pid = gpu, pid
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._failure: Exception | None = None
        self._peak = self._used()
        self._thread = threading.Thread(target=self._keep_sampling, name="GPU peak", daemon=True)
        if background:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End sampling in the background; a second call does nothing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def sample(self) -> None:
        """Look once."""
        used = self._used()
        with self._lock:
            self._peak = max(self._peak, used)

    def read(self) -> PeakMemory:
        """Look once more and tell the peak so far, with the source of that very sample.

        Raises
        ------
        Exception
            Whatever ended the sampling in the background: a peak with gaps is none.

        """
        if self._failure is not None:
            raise self._failure
        self.sample()
        with self._lock:
            return PeakMemory(self._peak.bytes, self._peak.source)

    def _used(self) -> UsedMemory:
        used = self._gpu.memory(self._pid)
        if used is None:
            raise HardwareAbsent(f"NVML tells no memory of {self._gpu.name}: no peak can be taken")
        return used

    def _keep_sampling(self) -> None:
        try:
            while not self._stop.wait(_EVERY_SECONDS):
                self.sample()
        except Exception as error:  # noqa: BLE001 - raised again by read(), in the caller's thread
            self._failure = error
