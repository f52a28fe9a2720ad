"""Launches ``read_bandwidth.cu``: what this GPU can read at most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct

if TYPE_CHECKING:
    from kernels.compiler import Program
    from kernels.launch import Kernel

READ_ALL = struct(("buffer", POINTER), ("out", POINTER), ("count", np.int64))
FAMILY = Family("read_bandwidth", {"read_all": READ_ALL})


class ReadBandwidth:
    """A kernel that only reads."""

    def __init__(self, program: Program) -> None:
        self._device = program.device
        self._read_all = program.kernel(FAMILY, "read_all")

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (self._read_all,)

    def read_all(
        self, *, buffer: int, nbytes: int, out: int, blocks_each: int, stream: object
    ) -> None:
        """Read ``nbytes`` (a multiple of 16) with ``blocks_each`` blocks a multiprocessor."""
        self._read_all.launch(
            {"buffer": buffer, "out": out, "count": nbytes // 16},
            grid=(blocks_each * self._device.multiprocessors,),
            stream=stream,
        )
