"""One kernel alone under Nsight Compute, at the shape that the decoder gives it.

ncu starts this very command again with ``--nvtx``: there the guard comes first, and only the tokens
behind the prompt lie between start and stop. Of them one launch of the kernel is replayed.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput, HardwareAbsent, Rejected
from harness.profile.kinds import KINDS, kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
# ncu's metrics that matter to a kernel bound by memory, in our words, in the order shown.
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM share of peak",
    "dram__bytes_read.sum": "DRAM bytes read",
    "lts__t_sector_hit_rate.pct": "L2 hit rate",
    "l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio": (
        "sectors per load request"
    ),
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy, achieved",
    "sm__maximum_warps_per_active_cycle_pct": "occupancy, possible",
    "launch__registers_per_thread": "registers a thread",
    "launch__waves_per_multiprocessor": "waves",
    _STALL.format("long_scoreboard"): "stalled on memory",
    _STALL.format("lg_throttle"): "stalled on the load queue",
    _STALL.format("short_scoreboard"): "stalled on shared memory",
    _STALL.format("barrier"): "stalled at a barrier",
    _STALL.format("math_pipe_throttle"): "stalled on arithmetic",
    _STALL.format("wait"): "stalled on a fixed latency",
    _STALL.format("not_selected"): "ready, not selected",
}
_COLUMNS = ("Kernel Name", "Metric Name", "Metric Unit", "Metric Value")
_SECONDS = 3600  # the guard of a large model takes minutes, and ncu slows it
_REJECTED = 1


@dataclass(frozen=True)
class Metric:
    """One line: our words, the value, ncu's unit and name."""

    what: str
    value: float
    unit: str
    name: str


def run_ncu(kernel: str, layer: int | None, command: Sequence[str]) -> list[Metric]:
    """Profile one launch of ``kernel`` in ``command``, which marks its tokens.

    ``layer`` is the one whose launch is taken; None for kernels that are not of a layer.

    Raises
    ------
    BadInput
        For an unknown kernel, or where ncu cannot profile.
    HardwareAbsent
        Without ncu.
    Rejected
        Where the guard of the profiled process rejects.

    """
    kind = kind_of(kernel)
    ncu = shutil.which("ncu")
    if ncu is None:
        raise HardwareAbsent(
            "ncu is not on PATH; install Nsight Compute (it comes with the CUDA toolkit)"
        )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        arguments = _arguments(ncu, kind.name, layer, log)
        try:
            done = subprocess.run(
                [*arguments, *command],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BadInput(f"ncu did not end within {_SECONDS} s; profile fewer tokens") from None
        except OSError as error:
            raise BadInput(f"{ncu} cannot be run ({error.strerror}); install it again") from None
        said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    own = [line for line in done.stderr.splitlines() if line.startswith("moe-harness: ")]
    if done.returncode == _REJECTED and own:
        raise Rejected([line.removeprefix("moe-harness: rejected: ") for line in own])
    _refuse(said + done.stdout + done.stderr, own)
    return read_metrics(said, kind.name)


def _arguments(ncu: str, kernel: str, layer: int | None, log: Path) -> list[str]:
    return [
        ncu,
        *("--csv", "--log-file", str(log), "--print-units", "base"),
        *("--profile-from-start", "off"),  # until cudaProfilerStart
        *("--graph-profiling", "node"),  # a kernel in a graph is one as any other
        *("--kernel-name", f"regex:^{kernel}(_tiled)?$"),
        *("--launch-skip", str(layer or 0), "--launch-count", "1"),
        *("--metrics", ",".join(METRICS)),
    ]


def _refuse(said: str, own: list[str]) -> None:
    """Tell ncu's refusals in one line."""
    if "ERR_NVGPUCTRPERM" in said:
        raise BadInput(
            "ncu may not read this GPU's counters (ERR_NVGPUCTRPERM); run as root, or let users: "
            "NVreg_RestrictProfilingToAdminUsers=0"
        )
    if "another tool" in said.lower() or "MULTIPLE_SUBSCRIBERS" in said:
        raise BadInput("ncu found another profiler on this GPU; end it, and run again")
    if own:
        raise BadInput(own[-1].removeprefix("moe-harness: "))
    error = re.search(r"^==ERROR== *(.+)$", said, re.MULTILINE)
    if error is not None:
        raise BadInput(f"ncu failed: {error[1]}")


def read_metrics(text: str, kernel: str) -> list[Metric]:
    """Read ncu's CSV, one line a metric, behind whatever else it says.

    Raises
    ------
    BadInput
        Where there is no profile of that kernel in it.

    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if '"Metric Name"' in line), None)
    rows = [] if start is None else list(csv.DictReader(lines[start:]))
    found: dict[str, Metric] = {}
    for row in rows:
        cells = [row.get(column) or "" for column in _COLUMNS]
        name, metric, unit, value = cells
        if name.split("(", maxsplit=1)[0].removesuffix("_tiled") != kernel:
            continue
        if metric in METRICS and (number := _number(value)) is not None:
            found[metric] = Metric(METRICS[metric], number, unit, metric)
    if not found:
        raise BadInput(
            f"ncu profiled no launch of {kernel}; expected one of {', '.join(KINDS)}, of a layer "
            "that exists"
        )
    return [found[name] for name in METRICS if name in found]


def metric_lines(kernel: str, layer: int | None, metrics: Sequence[Metric]) -> list[str]:
    """Lines of the ``--ncu`` table."""
    where = "" if layer is None else f", layer {layer}"
    return [
        f"{kernel}{where}, alone under ncu (caches flushed, clocks held at base)",
        *(f"{metric.what:<27} {metric.value:>16,.2f} {metric.unit}" for metric in metrics),
        "stalls: warps waiting so, for each instruction issued",
        "verdict: ACCEPTED",
    ]


def metrics_json(kernel: str, layer: int | None, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Plain data of the ``--ncu`` table."""
    return {
        "schema": "moe-harness/profile-ncu/1",
        "kernel": kernel,
        "layer": layer,
        "metrics": [vars(metric) for metric in metrics],
        "verdict": {"accepted": True, "reasons": []},
    }


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:  # "n/a": not on this GPU
        return None
