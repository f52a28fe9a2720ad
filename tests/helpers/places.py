"""Where a test launches single kernels: on this CPU (helpers/emulated), or on a GPU."""

from pathlib import Path

from helpers import emulated

from harness.backends.cuda.gpu import open_gpu
from harness.backends.cuda.memory import DeviceMemory, download
from kernels.launch import Device

# Enough for several chunks a head, and chunks of several tiles a warp.
MULTIPROCESSORS = 12


class ThisCpu:
    """Kernels run here, in the memory of the arrays themselves."""

    def __init__(self, cache):
        self._cache, self.stream = Path(cache), emulated.Stream()

    def program(self, variant, heads):
        device = Device(MULTIPROCESSORS, emulated.SHARED)
        return emulated.EmulatedProgram(variant, heads, "sm_90", device, self._cache)

    def put(self, array):
        return array.ctypes.data

    def get(self, address, array):
        pass


class AGpu:
    """Kernels run on copies of the arrays."""

    def __init__(self):
        self._gpu, self._memory = open_gpu(), DeviceMemory()
        from pycuda import driver  # noqa: PLC0415 - an extra, which open_gpu asks for

        self.stream = driver.Stream()

    def program(self, variant, heads):
        return self._gpu.program(variant, heads)

    def put(self, array):
        return self._memory.array(array, "test")

    def get(self, address, array):
        self.stream.synchronize()
        download(address, array)

    def free(self):
        self._memory.free()
