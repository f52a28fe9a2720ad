"""Peak memory of this process over a region, on CPU."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size


@dataclass(frozen=True)
class PeakMemory:
    """Bytes, and where the figure comes from."""

    peak_bytes: int
    source: str


class ProcessPeak:
    """Peak resident memory of this process from construction on.

    Where the kernel cannot reset its high-water mark the peak counts from the process's start;
    ``source`` says which.
    """

    def __init__(self) -> None:
        try:
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
            self._source = "VmHWM of the process over the timed region"
        except OSError:
            self._source = "ru_maxrss of the process since its start"

    def read(self) -> PeakMemory:
        """Read the peak so far."""
        if self._source.startswith("VmHWM"):
            for line in _STATUS.read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return PeakMemory(int(line.split()[1]) * 1024, self._source)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # ru_maxrss is in kilobytes on Linux, in bytes on macOS (getrusage(2)).
        scale = 1 if sys.platform == "darwin" else 1024
        return PeakMemory(peak * scale, "ru_maxrss of the process since its start")
