"""Which machine this is: its GPU, or its processor where it has none.

asv files results under the machine's name and splits series by every field of its identity. So
there is nothing in it that differs between two hosts of one kind: no RAM, no host name, no path,
not how many GPUs stand beside the one that is measured. Where there is a GPU, the processor beside
it is no part of it either. What the host had besides goes into the evidence (``host_details``).
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.files import write_atomically

_ASV_VERSION = 1


def machine_identity() -> dict[str, str]:
    """Fields of asv's machine file, and ``gpu`` (empty where there is none).

    Where there is one, ``cpu`` and ``num_cpu`` are empty.
    """
    gpu = ", ".join(sorted(set(gpu_models())))
    cpu, cores = ("", "") if gpu else (cpu_model(), str(os.cpu_count() or 1))
    return {
        "machine": _slug(gpu or f"{cpu} {cores}c"),
        "arch": platform.machine(),
        "cpu": cpu,
        "num_cpu": cores,
        "os": platform.system(),
        "gpu": gpu,
    }


def host_details() -> dict[str, object]:
    """Say what this host has, for the evidence: nothing here tells series apart."""
    return {
        "cpu": cpu_model(),
        "num_cpu": os.cpu_count() or 1,
        "ram_gib": round(_ram_bytes() / 2**30),
        "gpus": gpu_models(),
    }


def write_asv_machine(path: Path | None = None) -> Path:
    """Put this machine into ``~/.asv-machine.json``; other machines in it are kept.

    Raises
    ------
    BadInput
        Where the file there is none of asv's, or cannot be written.

    """
    path = path or Path.home() / ".asv-machine.json"
    known: dict[str, Any] = {}
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: no JSON ({error}); mend or remove it") from None
        if not isinstance(known, dict) or known.get("version", _ASV_VERSION) != _ASV_VERSION:
            raise BadInput(f"{path}: no machine file of asv version 1; mend or remove it")
    identity = machine_identity()
    known |= {identity["machine"]: identity, "version": _ASV_VERSION}
    write_atomically(path, json.dumps(known, indent=4, sort_keys=True) + "\n")
    return path


def cpu_model() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_models() -> list[str]:
    """Model name of every GPU that NVML sees, in its order."""
    try:
        import pynvml  # noqa: PLC0415 - an extra: machines without a GPU do not have it
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _slug(text: str) -> str:
    """Lower case, digits and dashes: a folder's name on any file system."""
    plain = re.sub(r"\((r|tm)\)", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
