"""``moe-harness report``: reads, writes, and says what is on the page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from harness.files import write_atomically
from harness.report.model import gather
from harness.report.page import render

if TYPE_CHECKING:
    from pathlib import Path


def write_report(results: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Write the page; returns it as plain data, and what to print.

    A file under ``results`` that cannot be used is named on stderr and on the page, and does not
    hide the others.

    Raises
    ------
    BadInput
        Where there is nothing to tell, or the page cannot be written.

    """
    report = gather(results)
    for each in report.unreadable:
        print(f"moe-harness: left out: {each.path}: {each.why}", file=sys.stderr)
    write_atomically(out, render(report))
    machines = [
        f"{machine.name}: {len(machine.decodes)} decodes, {len(machine.kernels)} kernels, "
        f"{len(machine.parities)} parities, {len(machine.peers)} peers"
        for machine in report.machines
    ]
    last = f"{len(report.rejections)} rejected, {len(report.unreadable)} unreadable"
    return report.to_json(), [*machines, last, f"written: {out}"]
