"""Device memory of a decoder, by purpose: taken once, at the start, and freed together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.backends.cuda.gpu import translated
from kernels.weights import matrix, pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from harness.model import Tensor
    from kernels.pack import Pack

_STAGING = 64 << 20
_ALIGNED = 256
_NAN_F32, _NAN_F16 = 0x7FFFFFFF, 0x7FFF  # what memory holds before anything wrote to it


class DeviceMemory:
    """Allocations in the present context.

    ``by_purpose`` counts their bytes.
    """

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._reserved = range(0)  # addresses
        self.by_purpose: Counter[str] = Counter()

    def reserve(self, sizes: Iterable[int], purpose: str) -> None:
        """Allocate what will be taken by these sizes, at once: each allocation is whole 2 MiB."""
        nbytes = sum(map(_whole, sizes))
        with translated(f"taking {nbytes / 1e6:.1f} MB for {purpose}"):
            start = self._allocate(nbytes)
        self._reserved = range(start, start + nbytes)

    def take(self, nbytes: int, purpose: str) -> int:
        """Allocate; the address, a multiple of 256. Contents are undefined."""
        with translated(f"taking {nbytes / 1e6:.1f} MB for {purpose}"):
            address = self._cut(_whole(nbytes)) or self._allocate(nbytes)
        self.by_purpose[purpose] += nbytes
        return address

    def _allocate(self, nbytes: int) -> int:
        from pycuda import driver  # noqa: PLC0415 - an extra

        allocation = driver.mem_alloc(max(16, nbytes))
        self._held.append(allocation)
        return int(allocation)

    def _cut(self, nbytes: int) -> int:
        """Cut out of what is reserved; 0 where that is not enough."""
        if nbytes > len(self._reserved):
            return 0
        address = self._reserved.start
        self._reserved = self._reserved[nbytes:]
        return address

    def floats(self, count: int, purpose: str) -> int:
        """Float32 values, all NaN."""
        address = self.take(4 * count, purpose)
        poison_f32(address, count)
        return address

    def halves(self, count: int, purpose: str) -> int:
        """Float16 values, all NaN."""
        address = self.take(2 * count, purpose)
        poison_f16(address, count)
        return address

    def zeros(self, count: int, purpose: str) -> int:
        """32-bit words, all zero."""
        from pycuda import driver  # noqa: PLC0415

        address = self.take(4 * count, purpose)
        driver.memset_d32(address, 0, count)
        return address

    def array(self, values: NDArray[Any], purpose: str) -> int:
        """Upload an array."""
        address = self.take(values.nbytes, purpose)
        upload(address, values)
        return address

    def weights(self, tensor: Tensor, tiler: Tiler | None = None) -> np.void:
        """Upload a tensor in the kernels' form, in tiles if a tiler is given; its ``Matrix``."""
        fmt, purpose = tensor.format.name, f"weights {tensor.format.name}"
        if tiler is not None:
            address = self.take(tensor.nbytes, purpose)
            described = matrix(address, f"{fmt}_TILED", tensor.shape, tensor.nbytes)
            tiler.write(tensor, described)
            return described
        address = self.array(pack(tensor.blocks, fmt), purpose)
        return matrix(address, fmt, tensor.shape, tensor.nbytes)

    @property
    def total(self) -> int:
        """Bytes taken."""
        return sum(self.by_purpose.values())

    def free(self) -> None:
        """Give everything back."""
        for allocation in self._held:
            allocation.free()
        self._held.clear()
        self._reserved = range(0)
        self.by_purpose.clear()


def _whole(nbytes: int) -> int:
    return (nbytes + _ALIGNED - 1) // _ALIGNED * _ALIGNED


class Tiler:
    """Uploads blocks piece by piece and has the GPU cut them into tiles.

    ``kernel`` is the launcher; its staging memory is given back by ``close``.
    """

    def __init__(self, kernel: Pack, stream: Any) -> None:  # noqa: ANN401 - PyCUDA's
        self._kernel, self._stream = kernel, stream
        self._memory = DeviceMemory()
        self._staging = self._memory.take(_STAGING, "staging")

    def write(self, tensor: Tensor, to: np.void) -> None:
        """Fill the tiled matrix ``to``."""
        rows = tensor.blocks.reshape(-1, tensor.blocks.shape[-1])
        step = max(16, _STAGING // rows.shape[1] // 16 * 16)
        for first in range(0, len(rows), step):
            piece = rows[first : first + step]
            upload(self._staging, piece)
            self._kernel.pack(self._staging, len(piece), to, first_row=first, stream=self._stream)
            self._stream.synchronize()  # before the staging memory is written again

    def close(self) -> None:
        """Give the staging memory back."""
        self._memory.free()


def upload(address: int, values: NDArray[Any]) -> None:
    """Copy an array to the device; returns when it is there."""
    from pycuda import driver  # noqa: PLC0415

    with translated(f"uploading {values.nbytes / 1e6:.1f} MB"):
        driver.memcpy_htod(address, np.ascontiguousarray(values))


def download(address: int, into: NDArray[Any]) -> None:
    """Copy from the device into an array; waits for all launches before."""
    from pycuda import driver  # noqa: PLC0415

    driver.memcpy_dtoh(into, address)


def poison_f32(address: int, count: int) -> None:
    """Fill with NaN."""
    from pycuda import driver  # noqa: PLC0415

    driver.memset_d32(address, _NAN_F32, count)


def poison_f16(address: int, count: int) -> None:
    """Fill with NaN."""
    from pycuda import driver  # noqa: PLC0415

    driver.memset_d16(address, _NAN_F16, count)
