"""What NVML says of one GPU, found by its UUID.

The package (nvidia-ml-py) and the library behind it are looked for when a GPU is opened and no
sooner: machines without a GPU have neither. A query that this GPU, its driver or the container
does not answer gives None; any other error of NVML, such as a GPU that fell off the bus, raises.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import UUID

from harness.errors import BadInput, HardwareAbsent
from harness.meter.gpu_driver import read_driver, start_nvml
from harness.meter.gpu_processes import OtherProcesses, tell_apart
from harness.meter.gpu_state import GpuState, decode_reasons

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_COMPUTE = "nvmlDeviceGetComputeRunningProcesses_v3"
_GRAPHICS = "nvmlDeviceGetGraphicsRunningProcesses_v3"
# Newer and older drivers' name of the same query.
_CLOCK_EVENTS = (
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)
_NO_ANSWER = (
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_FUNCTION_NOT_FOUND",
)


class UsedMemory(NamedTuple):
    """Bytes in use on the GPU, and where the figure comes from."""

    bytes: int
    source: str


def normalised_uuid(uuid: str | bytes) -> str:
    """``GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx``, as NVML writes it.

    From the same with or without ``GPU-`` or dashes in any case, or from the 16 bytes that the
    CUDA driver gives.

    Raises
    ------
    BadInput
        For anything else.

    """
    try:
        if isinstance(uuid, bytes):
            return f"GPU-{UUID(bytes=uuid)}"
        digits = uuid[4:] if uuid[:4].upper() == "GPU-" else uuid
        return f"GPU-{UUID(digits)}"
    except ValueError:
        raise BadInput(
            f"{uuid!r} is no GPU UUID; expected GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx or its "
            "16 bytes (nvidia-smi -L lists them)"
        ) from None


class Gpu:
    """One GPU, held open until ``close``; ``open`` and ``at`` find it."""

    def __init__(self, nvml: ModuleType, handle: object) -> None:
        self._nvml, self._handle, self._open = nvml, handle, True
        self._baseline: int | None = None
        self.name = str(nvml.nvmlDeviceGetName(handle))
        self.uuid = str(nvml.nvmlDeviceGetUUID(handle))
        self.driver = read_driver(nvml)

    @classmethod
    def open(cls, uuid: str | bytes) -> Gpu:
        """Open the GPU of this UUID, which is the same for CUDA and for NVML.

        Raises
        ------
        BadInput
            For what is no UUID.
        HardwareAbsent
            Where nvidia-ml-py, NVML or that GPU is missing.

        """
        wanted = normalised_uuid(uuid)
        return cls._found(wanted, lambda nvml: nvml.nvmlDeviceGetHandleByUUID(wanted))

    @classmethod
    def at(cls, index: int) -> Gpu:
        """Open the GPU at a place in NVML's order (by PCI bus; CUDA's may be another).

        Raises
        ------
        HardwareAbsent
            Where nvidia-ml-py, NVML or that GPU is missing.

        """
        return cls._found(f"number {index}", lambda nvml: nvml.nvmlDeviceGetHandleByIndex(index))

    @classmethod
    def _found(cls, wanted: str, find: Callable[[ModuleType], object]) -> Gpu:
        nvml = start_nvml()
        try:
            return cls(nvml, find(nvml))
        except nvml.NVMLError as error:
            try:
                here = ", ".join(_gpus(nvml)) or "none"
            finally:
                nvml.nvmlShutdown()
            raise HardwareAbsent(f"no GPU {wanted} for NVML ({error}); here: {here}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of NVML; a second call does nothing."""
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    @property
    def total_bytes(self) -> int | None:
        """Memory of the GPU."""
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.total)

    @property
    def used_bytes(self) -> int | None:
        """Memory in use on the GPU, by whomever."""
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def ask(self, query: str, *arguments: object) -> Any:  # noqa: ANN401 - NVML's own structs
        """Ask NVML for something of this GPU; None where it has no answer to that.

        Raises
        ------
        BadInput
            On any other error of NVML.

        """
        nvml = self._nvml
        if not hasattr(nvml, query):  # this version of the package does not know it
            return None
        try:
            return getattr(nvml, query)(self._handle, *arguments)
        except nvml.NVMLError as error:
            if error.value in [getattr(nvml, name) for name in _NO_ANSWER]:
                return None
            raise BadInput(
                f"NVML failed on {self.name} {self.uuid}: {query}: {error}; see what nvidia-smi "
                "says of it"
            ) from error

    def state(self) -> GpuState:
        """Read clocks, temperature, power and what holds the clocks down."""
        nvml = self._nvml
        milliwatts = self.ask("nvmlDeviceGetPowerUsage")
        masks = (self.ask(query) for query in _CLOCK_EVENTS)
        mask = next((mask for mask in masks if mask is not None), None)
        return GpuState(
            sm_clock_mhz=self.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            max_sm_clock_mhz=self.ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
            temperature_celsius=self.ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            reasons=None if mask is None else decode_reasons(nvml, mask),
        )

    def memory_baseline(self) -> int | None:
        """Note what is in use before this process has allocated anything, its context included.

        ``memory`` subtracts it where NVML does not tell processes apart.
        """
        self._baseline = self.used_bytes
        return self._baseline

    def memory(self, pid: int | None = None) -> UsedMemory | None:
        """Memory that a process (this one unless given) uses; None where nothing is told.

        In containers NVML may list the host's PIDs, or no memory for each. Then it is what the
        whole device uses, less the baseline. Without a baseline, or where less than that is in
        use now, nothing is subtracted: rather too high than too low.
        """
        wanted = os.getpid() if pid is None else pid
        own = [
            process.usedGpuMemory for process in self.ask(_COMPUTE) or () if process.pid == wanted
        ]
        if own and all(own):  # None: not told. 0: not told either, a context alone takes more
            who = "this process" if pid is None else f"process {pid}"
            return UsedMemory(sum(own), f"NVML, {who}")
        used = self.used_bytes
        if used is None:
            return None
        if self._baseline is None:
            return UsedMemory(used, "NVML, all that is used on the device; no baseline was taken")
        before = f"{self._baseline / 1e6:.1f} MB before the decoder was opened"
        if used < self._baseline:
            return UsedMemory(used, f"NVML, all that is used on the device, less than {before}")
        return UsedMemory(used - self._baseline, f"NVML, device used minus {before}")

    def foreign_processes(self) -> OtherProcesses:
        """List who else is on the GPU."""
        return tell_apart(self._pids(_COMPUTE), self._pids(_GRAPHICS))

    def _pids(self, query: str) -> set[int] | None:
        processes = self.ask(query)
        return None if processes is None else {int(process.pid) for process in processes}


def _gpus(nvml: ModuleType) -> list[str]:
    """Name and UUID of each GPU that can be opened."""
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append(f"{nvml.nvmlDeviceGetName(handle)} {nvml.nvmlDeviceGetUUID(handle)}")
        except nvml.NVMLError:  # lost, or not given to this container
            continue
    return found
