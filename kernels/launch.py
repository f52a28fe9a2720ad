"""Launching a kernel by PyCUDA: arguments, configuration, launch.

A kernel's ``function`` is PyCUDA's, a ``stream`` too; device memory is given by address. Importing
this module needs no CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.weights import is_tiled

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 256  # of a block, unless its kernel says otherwise (kThreads)
WARPS = THREADS // 32
_ROUNDED = 256  # values that share a scale (kRounded)
_LIMB_PADDING = 32  # kLimbPadding
BLOCK_ROWS = 16  # that a block computes at a time (kBlockRows)


@dataclass(frozen=True)
class Device:
    """What launchers need to know of the GPU: its multiprocessors, shared memory of a block."""

    multiprocessors: int
    shared_bytes: int


class Kernel:
    """One kernel, ready to be launched.

    ``after`` sees each launch by name, so that an error can be told where it happened; it does
    nothing unless set. While ``left_out`` is true nothing is launched, so that other kernels can be
    captured without this one.
    """

    def __init__(self, function: Any, name: str, arguments: np.dtype[np.void]) -> None:  # noqa: ANN401
        self.function, self.name, self.arguments = function, name, arguments
        self.after: Callable[[str], None] = lambda _name: None
        self.left_out = False
        self._shared = 48 << 10  # what a block may have without asking

    def launch(
        self,
        values: dict[str, object],
        *,
        grid: tuple[int, ...],
        stream: object,
        threads: int = THREADS,
        shared: int = 0,
    ) -> None:
        """Launch with the struct's fields by name; fields left out are zero (null)."""
        if self.left_out:
            return
        arguments = np.zeros((), self.arguments)
        for key, value in values.items():
            arguments[key] = value
        if shared > self._shared:
            self._allow(shared)
        self.function(arguments[()], grid=grid, block=(threads, 1, 1), stream=stream, shared=shared)
        self.after(self.name)

    def _allow(self, shared: int) -> None:
        from pycuda.driver import function_attribute  # noqa: PLC0415 - needs CUDA

        self.function.set_attribute(function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        self._shared = shared


@dataclass(frozen=True)
class RowKernel:
    """A kernel over rows: its form for plain matrices and, if there is one, for tiles."""

    plain: Kernel
    tiled: Kernel | None

    def of(self, *matrices: np.void) -> Kernel:
        """Return the form for these matrices, which are all tiled or none.

        Raises
        ------
        ValueError
            For a mixture, or tiles where this numerics has none.

        """
        tiles = {is_tiled(m) for m in matrices}
        if tiles == {False}:
            return self.plain
        if tiles == {True} and self.tiled is not None:
            return self.tiled
        raise ValueError(
            f"{self.plain.name}: matrices are tiled in part, or this numerics has none"
        )

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Both forms."""
        return (self.plain,) if self.tiled is None else (self.plain, self.tiled)


def input_bytes(columns: int, activation: str) -> int:
    """Shared memory of a staged input (``input.cuh``)."""
    total = 4 * (columns + (columns // 64 + 1) * 4)
    if activation == "q8_k":
        total += columns // _ROUNDED * (_ROUNDED + 4)
    elif activation == "i24" and columns % _ROUNDED == 0:
        limbs = 3 * (columns + _LIMB_PADDING)
        total += columns // _ROUNDED * 4 + columns // 32 * 36 + limbs
    return total


def blocks_for(items: int, per_block: int, device: Device, per_multiprocessor: int) -> int:
    """Blocks that cover ``items``; no more than fit the GPU at once: then each takes several."""
    return max(1, min(-(-items // per_block), per_multiprocessor * device.multiprocessors))
