"""One measurement at a time on a device: two at once would measure each other."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator

_WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.5


@contextmanager
def measuring(
    device: str, *, wait: float = _WAIT_SECONDS, folder: Path | None = None
) -> Iterator[None]:
    """Hold the machine-wide lock of a device (``cpu``, or a GPU's UUID).

    The kernel releases it when the process ends, however it ends. ``folder`` is the system's
    folder for temporary files unless given.

    Raises
    ------
    BadInput
        Where another process holds it for longer than ``wait`` seconds.

    """
    folder = folder or Path(tempfile.gettempdir())
    path = folder / f"moe-harness-{re.sub(r'[^A-Za-z0-9-]', '-', device)}.lock"
    # Shared by all users of the machine: whoever comes first must not lock the others out.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _take(handle, device, wait)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int, device: str, wait: float) -> None:
    until = time.monotonic() + wait
    said = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace") or "unknown"
            if time.monotonic() >= until:
                raise BadInput(
                    f"{device} is being measured by process {holder} for over {wait:.0f} s; "
                    "wait for it to end"
                ) from None
            if not said:
                print(f"waiting for process {holder} to end measuring {device}", file=sys.stderr)
                said = True
            time.sleep(min(_POLL_SECONDS, max(0.0, wait / 4)))
        else:
            return
