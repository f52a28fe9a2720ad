"""What this machine has for measuring, what it lacks, and what that disables."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HardwareAbsent
from harness.meter.gpu_driver import installed_driver

# Pinned together: left alone, a newer nvvm writes PTX that the older ptxas refuses.
_NVCC_WHEELS = (
    "nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 "
    "nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96"
)


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
        _package("bindings", "cuda-bindings", "CUDA graphs, and so the CUDA decoder", extra="gpu"),
        _package("nvml", "nvidia-ml-py", "VRAM and energy", extra="gpu"),
    ]
    compiler = find_nvcc()
    toolkit = None if compiler is None else _release(compiler)
    return [
        *packages,
        _tool("git", "the commit of a result"),
        _nvcc(compiler, toolkit),
        _driver(),
        _match(toolkit),
    ]


def find_nvcc() -> Path | None:
    """On PATH, or else where PyPI's wheels put it: ``site-packages/nvidia/cu13/bin``."""
    on_path = shutil.which("nvcc")
    if on_path is not None:
        return Path(on_path)
    wheels = importlib.util.find_spec("nvidia")
    roots = [] if wheels is None else wheels.submodule_search_locations or []
    found = (shutil.which("nvcc", path=Path(root) / "cu13" / "bin") for root in roots)
    return next((Path(path) for path in found if path is not None), None)


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


def _release(compiler: Path) -> tuple[int, int] | None:
    """CUDA release of a compiler; None where it does not run or does not tell."""
    try:
        answer = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    release = re.search(r"release (\d+)\.(\d+)", answer.stdout)
    return None if release is None else (int(release[1]), int(release[2]))


def _nvcc(compiler: Path | None, toolkit: tuple[int, int] | None) -> Check:
    found = "neither on PATH nor in site-packages/nvidia/cu13/bin"
    if compiler is not None:
        found = f"{compiler}, " + (
            "does not run" if toolkit is None else f"CUDA {_dotted(toolkit)}"
        )
    return Check(
        "nvcc",
        toolkit is not None,
        False,
        found,
        "compiling kernels",
        f"install CUDA 13, or pip install {_NVCC_WHEELS}",
    )


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


def _match(toolkit: tuple[int, int] | None) -> Check:
    """Whether the driver runs what the toolkit compiles.

    Minor releases count: a driver refuses PTX of a newer one (CUDA_ERROR_UNSUPPORTED_PTX_VERSION).
    """
    name, unknown = "driver match", "knowing beforehand that kernels will load"
    try:
        driver = installed_driver()
    except HardwareAbsent as absent:
        return Check(name, False, False, f"not known: {absent}", unknown, "look again then")
    runs = f"driver {driver.version} runs CUDA {_dotted(driver.cuda)}"
    if toolkit is None:
        return Check(name, False, False, f"{runs}, no toolkit to compare", unknown, "see nvcc")
    wanted = _dotted(toolkit)
    if driver.cuda < toolkit:
        found = f"{runs}, older than the toolkit's {wanted}"
        remedy = f"install a driver for CUDA {wanted} or newer"
        return Check(name, False, False, found, "loading kernels that nvcc compiled", remedy)
    return Check(name, True, False, f"{runs}, the toolkit is {wanted}", "", "")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
