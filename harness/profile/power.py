"""Power of a GPU over time, read beside passes that repeat."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.meter.gpu_state import GpuState

_EVERY_SECONDS = 0.05  # NVML's own reading moves no faster


class PowerWatch:
    """Reads power and clock in the background while it is entered.

    ``readings`` holds seconds, watts and the SM clock in MHz (None where NVML does not tell it).
    """

    def __init__(self, read: Callable[[], GpuState]) -> None:
        self._read, self._stop = read, threading.Event()
        self._failure: Exception | None = None
        self.readings: list[tuple[float, float, int | None]] = []
        self._thread = threading.Thread(target=self._keep_reading, name="power", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and exception[0] is None:
            raise self._failure

    def _keep_reading(self) -> None:
        start = time.monotonic()
        try:
            while True:
                state = self._read()
                if state.power_watts is not None:
                    at = time.monotonic() - start
                    self.readings.append((at, state.power_watts, state.sm_clock_mhz))
                if self._stop.wait(_EVERY_SECONDS):
                    return
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            self._failure = error
