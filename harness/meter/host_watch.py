"""Whether anything else ran on this machine's cores while a pass was timed.

A decoder's threads wait for each other at every product: with one foreign task on one core a
product of 20 us takes a scheduler's slice, 8 ms, and a token of 1.3 ms takes 300. Such a figure is
not noise about the true one; it is another quantity.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal of the first line

# Cores that others may take: a quiet machine's housekeeping stays below, a running task does not.
MOST_FOREIGN_CORES = 0.3


class HostWatch:
    """CPU time of others since ``begin``.

    Ask only over a quarter of a second and more: the system counts in ticks of 10 ms.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count from here."""
        self._wall, self._own, self._all = time.monotonic(), time.process_time(), _busy_seconds()

    def foreign_cores(self) -> float | None:
        """Cores that other processes (and a hypervisor) kept busy; None where it is not told."""
        busy = _busy_seconds()
        if busy is None or self._all is None:
            return None
        own = time.process_time() - self._own  # of all threads of this process
        return max(0.0, busy - self._all - own) / (time.monotonic() - self._wall)


def _busy_seconds() -> float | None:
    try:
        fields = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    return sum(int(fields[index]) for index in _BUSY) / os.sysconf("SC_CLK_TCK")
