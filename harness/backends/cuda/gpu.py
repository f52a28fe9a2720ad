"""Opening a GPU: the primary context that PyCUDA, torch and cuda-bindings share."""

from __future__ import annotations

import atexit
import functools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput, HardwareAbsent
from kernels.compiler import ARCHITECTURES, CompileError, Program, compiler_version, find_nvcc
from kernels.launch import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kernels.family import Heads, Variant


@dataclass(frozen=True)
class Gpu:
    """One GPU that the kernels can be compiled for."""

    ordinal: int
    name: str
    uuid: str
    arch: str
    multiprocessors: int
    shared_bytes: int  # that a block may ask for
    l2_bytes: int
    driver: tuple[int, int]  # CUDA version that the driver speaks
    compiler: tuple[int, int]

    def program(self, variant: Variant, heads: Heads) -> Program:
        """Kernels of a variant for this GPU."""
        return Program(variant, heads, self.arch, Device(self.multiprocessors, self.shared_bytes))

    @property
    def overlaps(self) -> bool:
        """Whether a kernel may begin before its predecessor has ended."""
        return int(self.arch.removeprefix("sm_")) >= 90

    def free_bytes(self) -> int:
        """Memory that nobody has taken."""
        from pycuda import driver  # noqa: PLC0415 - an extra

        return int(driver.mem_get_info()[0])

    def to_json(self) -> dict[str, object]:
        """Plain data for evidence."""
        return {
            "gpu": self.name,
            "gpu_uuid": self.uuid,
            "arch": self.arch,
            "multiprocessors": self.multiprocessors,
            "l2_bytes": self.l2_bytes,
            "cuda_driver": ".".join(map(str, self.driver)),
            "cuda_compiler": ".".join(map(str, self.compiler)),
        }


@functools.cache
def open_gpu(ordinal: int = 0) -> Gpu:
    """Open a GPU and make its primary context current, until the process ends.

    Raises
    ------
    HardwareAbsent
        As ``find_gpu``.

    """
    gpu = find_gpu(ordinal)
    from pycuda import driver  # noqa: PLC0415 - an extra, which find_gpu asks for in words

    context = driver.Device(ordinal).retain_primary_context()
    context.push()
    atexit.register(context.pop)
    return gpu


@functools.cache
def find_gpu(ordinal: int = 0) -> Gpu:
    """Look at a GPU; nothing is allocated on it.

    Raises
    ------
    HardwareAbsent
        Where PyCUDA, a driver, that GPU or nvcc is missing, or the driver is older than nvcc.

    """
    try:
        from pycuda import driver  # noqa: PLC0415 - an extra: machines without CUDA have none
    except ImportError as error:
        raise HardwareAbsent(
            f"the cuda backend needs PyCUDA ({error}); on a GPU host: "
            "pip install 'moe-harness[gpu]'"
        ) from None
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise HardwareAbsent(f"no CUDA driver answers ({error}); install NVIDIA's driver") from None
    if ordinal >= count:
        raise HardwareAbsent(f"GPU {ordinal} does not exist, there are {count}; choose --device")
    device = driver.Device(ordinal)
    arch = "sm_{}{}".format(*device.compute_capability())
    if arch not in ARCHITECTURES:
        raise HardwareAbsent(
            f"{device.name()} is {arch}, expected one of {', '.join(ARCHITECTURES)}; use another"
        )
    spoken = divmod(driver.get_driver_version() // 10, 100)
    try:
        compiler = compiler_version(find_nvcc())
    except CompileError as error:
        raise HardwareAbsent(str(error)) from None
    if spoken < compiler:
        raise HardwareAbsent(
            "the driver speaks CUDA {}.{}, nvcc is {}.{}; update the driver, or put an nvcc of at "
            "most the driver's version first on PATH".format(*spoken, *compiler)
        )
    attributes = driver.device_attribute

    def of(name: str) -> int:
        return int(device.get_attribute(getattr(attributes, name)))

    return Gpu(
        ordinal=ordinal,
        name=device.name(),
        uuid=_uuid(ordinal),
        arch=arch,
        multiprocessors=of("MULTIPROCESSOR_COUNT"),
        shared_bytes=of("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        l2_bytes=of("L2_CACHE_SIZE"),
        driver=spoken,
        compiler=compiler,
    )


def is_here() -> bool:
    """Whether the cuda backend can run on this machine; allocates nothing on its GPU."""
    try:
        find_gpu(0)
    except HardwareAbsent:
        return False
    return True


@contextmanager
def translated(doing: Any) -> Iterator[None]:  # noqa: ANN401 - anything that says itself as text
    """Turn PyCUDA's errors into one clear line; ``doing`` says what was being done."""
    from pycuda import driver  # noqa: PLC0415

    try:
        yield
    except driver.MemoryError:
        free, total = driver.mem_get_info()
        raise BadInput(
            f"out of GPU memory {doing}: {free / 1e9:.2f} of {total / 1e9:.2f} GB are free; "
            "free some, or use a smaller context"
        ) from None
    except driver.Error as error:
        raise BadInput(
            f"the GPU failed {doing} ({error}); its context is lost: start again, and run "
            "compute-sanitizer if it comes back"
        ) from None
    except CompileError as error:
        raise BadInput(str(error)) from None


def _uuid(ordinal: int) -> str:
    from cuda.bindings import driver as bindings  # noqa: PLC0415 - an extra

    _, device = bindings.cuDeviceGet(ordinal)
    _, uuid = bindings.cuDeviceGetUuid(device)
    text = bytes(uuid.bytes).hex()
    return "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
