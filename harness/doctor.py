"""What this machine has for measuring, what it lacks, and what that disables."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was looked for. ``needed``: nothing works without it."""

    name: str
    here: bool
    needed: bool
    found: str
    disables: str
    remedy: str


def examine() -> list[Check]:
    """Look for every part that a command may need; imports nothing that needs a GPU."""
    packages = [
        _package("numpy", "numpy", "everything"),
        _package("torch", "torch", "the oracle, and so every guard"),
        _package("numba", "numba", "the CPU decoder"),
        _package("gguf", "gguf", "opening models"),
        _package("tokenizers", "tokenizers", "text prompts"),
        _package("asv", "asv", "asv run, publish", extra="bench"),
        _package("pycuda", "pycuda", "the CUDA decoder", extra="gpu"),
        _package("nvml", "nvidia-ml-py", "VRAM and energy", extra="gpu"),
    ]
    return [*packages, _tool("git", "the commit of a result"), _nvcc(), _driver()]


def _package(name: str, distribution: str, disables: str, extra: str | None = None) -> Check:
    try:
        found, here = importlib.metadata.version(distribution), True
    except importlib.metadata.PackageNotFoundError:
        found, here = "not installed", False
    wanted = distribution if extra is None else f"moe-harness[{extra}]"
    return Check(name, here, extra is None, found, disables, f"pip install '{wanted}'")


def _tool(name: str, disables: str) -> Check:
    path = shutil.which(name)
    return Check(name, path is not None, False, path or "not on PATH", disables, f"install {name}")


def _nvcc() -> Check:
    check = _tool("nvcc", "compiling kernels with PyCUDA")
    if not check.here:
        return Check(check.name, False, False, check.found, check.disables, "install CUDA 13")
    answer = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False)
    release = [line for line in answer.stdout.splitlines() if "release" in line]
    return Check("nvcc", True, False, (release or [check.found])[0].strip(), check.disables, "")


def _driver() -> Check:
    library = ctypes.util.find_library("cuda")
    return Check(
        "driver",
        library is not None,
        False,
        library or "no libcuda",
        "everything on a GPU",
        "install NVIDIA's driver",
    )
