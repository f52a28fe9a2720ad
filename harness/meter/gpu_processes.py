"""Who else is on the GPU: telling this process from the others that NVML lists."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherProcesses:
    """Processes on the GPU beside this one, by PID; None where NVML does not list them.

    ``graphics`` holds those that only draw. ``note`` says how this process was told from the
    others.
    """

    compute: tuple[int, ...] | None
    graphics: tuple[int, ...] | None
    note: str


def tell_apart(computing: set[int] | None, drawing: set[int] | None) -> OtherProcesses:
    """Take this process out of what NVML lists.

    A container may see the host's PIDs, under which this process does not find itself. If there
    is exactly one, and no process here has that PID, it is taken to be this one.
    """
    own = {os.getpid()}
    if computing is None:
        note = "NVML does not list compute processes here: others are not seen"
    elif os.getpid() in computing:
        note = "NVML lists this process by its PID"
    elif not computing:
        note = "NVML lists no compute process, this one neither: others may be hidden as well"
    elif any(_is_here(pid) for pid in computing):
        note = "NVML lists other processes of this machine, but not this one"
    elif len(computing) == 1:
        own |= computing
        note = (
            f"NVML lists one process, as {max(computing)}, a PID of the host: taken to be this one"
        )
    else:
        note = (
            f"NVML lists {len(computing)} processes under PIDs of the host: one may be this one, "
            "the others are not"
        )
    return OtherProcesses(
        compute=None if computing is None else tuple(sorted(computing - own)),
        graphics=None if drawing is None else tuple(sorted(drawing - (computing or set()) - own)),
        note=note,
    )


def _is_here(pid: int) -> bool:
    """Whether this PID means a process of our own PID namespace."""
    if pid <= 0:  # the kernel's number for a process that cannot be seen from here
        return False
    try:
        os.kill(pid, 0)  # signal 0 is not sent; only the look-up is made
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
