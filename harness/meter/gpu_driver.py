"""NVIDIA's driver as NVML tells it: whether there is one, and which CUDA it runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import HardwareAbsent

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class Driver:
    """The driver's version, and the newest CUDA (major, minor) that it runs."""

    version: str
    cuda: tuple[int, int]


def start_nvml() -> ModuleType:
    """Import and initialise NVML; to be matched by its ``nvmlShutdown``.

    Raises
    ------
    HardwareAbsent
        Where nvidia-ml-py, or the library that comes with the driver, is missing.

    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise HardwareAbsent(
            "NVML cannot be asked: nvidia-ml-py is not installed; pip install 'moe-harness[gpu]'"
        ) from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise HardwareAbsent(
            f"NVML cannot be used: {error}; install NVIDIA's driver, or give this container "
            "access to it (libnvidia-ml.so.1)"
        ) from None
    return nvml


def read_driver(nvml: ModuleType) -> Driver:
    """Ask an initialised NVML; its errors pass through."""
    cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())  # 13010 is CUDA 13.1
    return Driver(str(nvml.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10))


def installed_driver() -> Driver:
    """Start NVML for this one question.

    Raises
    ------
    HardwareAbsent
        Where nvidia-ml-py or the driver is missing.

    """
    nvml = start_nvml()
    try:
        return read_driver(nvml)
    except nvml.NVMLError as error:
        raise HardwareAbsent(f"NVML does not tell the driver's version: {error}") from None
    finally:
        nvml.nvmlShutdown()
