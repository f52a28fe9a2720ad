"""A declaration's buffers on the GPU, many times over, and the graph that launches on each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.backends.cuda.gpu import translated
from harness.backends.cuda.graph import Graph
from harness.backends.cuda.memory import DeviceMemory, download

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.workbench.declaration import Arrays, Declaration
    from kernels.compiler import Program

_ALIGNED = 256  # as cuMemAlloc's
_NAN_WORD = 0x7FFFFFFF  # NaN as float16 (both halves), float32 and float64 (two of them)


@dataclass(frozen=True)
class _Arena:
    """One output of all copies, side by side, so that one call poisons them."""

    address: int
    stride: int  # bytes from copy to copy
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def of(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """One copy's values out of its bytes, uint8 ``[stride]``."""
        nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        return raw[:nbytes].view(self.dtype).reshape(self.shape)


class Copies:
    """Fresh inputs and poisoned outputs, ``count`` times; freed by ``close``.

    Attributes
    ----------
    inputs
        What was drawn for each copy.
    buffers
        Device addresses of each copy's inputs and outputs, by name.

    """

    def __init__(self, declaration: Declaration, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.count, self._declaration = count, declaration
        self.inputs = [declaration.drawn(rng) for _ in range(count)]
        _require_alike(declaration, self.inputs)
        self._memory = DeviceMemory()
        try:
            self.buffers = [
                {name: self._memory.array(array, "inputs") for name, array in given.items()}
                for given in self.inputs
            ]
            self._arenas = {name: self._arena(name) for name in declaration.outputs}
        except BaseException:
            self._memory.free()
            raise
        for copy, buffers in enumerate(self.buffers):
            for name, arena in self._arenas.items():
                buffers[name] = arena.address + copy * arena.stride

    def _arena(self, output: str) -> _Arena:
        shape, given = self._declaration.outputs[output]
        dtype = np.dtype(given)
        stride = -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNED) * _ALIGNED
        return _Arena(self._memory.take(stride * self.count, "outputs"), stride, shape, dtype)

    @property
    def bytes_read(self) -> int:
        """Bytes that a launch reads, over all copies."""
        return sum(self._declaration.bytes(given) for given in self.inputs)

    @cached_property
    def truths(self) -> list[Arrays]:
        """Each copy's reference; first asked for after the kernel has run."""
        return [self._declaration.truth(given) for given in self.inputs]

    def poison(self, stream: object) -> None:
        """Fill every output with NaN, in the stream's order."""
        from pycuda import driver  # noqa: PLC0415 - an extra

        for arena in self._arenas.values():
            driver.memset_d32_async(
                arena.address, _NAN_WORD, arena.stride * self.count // 4, stream
            )

    def outputs(self) -> list[dict[str, NDArray[Any]]]:
        """Download what every copy's outputs hold; waits for what was launched before."""
        found: list[dict[str, NDArray[Any]]] = [{} for _ in range(self.count)]
        for name, arena in self._arenas.items():
            raw = np.empty((self.count, arena.stride), dtype=np.uint8)
            download(arena.address, raw)
            for copy in range(self.count):
                found[copy][name] = arena.of(raw[copy])
        return found

    def close(self) -> None:
        """Free all of it."""
        self._memory.free()


class Launches:
    """One launch on each copy, captured: what is guarded and what is timed; freed by ``close``."""

    def __init__(self, program: Program, declaration: Declaration, copies: Copies) -> None:
        from pycuda import driver  # noqa: PLC0415 - an extra

        self._doing, self._copies = f"running {declaration.name}", copies
        self._program = program  # holds the code that the graph runs: unloaded, a replay crashes
        self._stream, self._graph = driver.Stream(), Graph()
        with translated(self._doing):
            # Compiles and loads, which a capture does not allow.
            declaration.launch(program, copies.buffers[0], self._stream)
            self._stream.synchronize()
            with self._graph.captured(self._stream):
                for buffers in copies.buffers:
                    declaration.launch(program, buffers, self._stream)

    def run(self) -> list[dict[str, NDArray[Any]]]:
        """Launch once on every copy, into NaN; the outputs."""
        with translated(self._doing):
            self._copies.poison(self._stream)
            self._graph.replay(self._stream)
            self._stream.synchronize()
        return self.outputs()

    def outputs(self) -> list[dict[str, NDArray[Any]]]:
        """What the last launches left."""
        with translated(self._doing):
            return self._copies.outputs()

    def milliseconds(self, rotations: int) -> list[float]:
        """Time ``rotations`` passes over all copies, each into NaN.

        All are queued before any is waited for, behind one that is not timed: else the time in
        which the host queues the next one would count as the kernel's.
        """
        from pycuda import driver  # noqa: PLC0415

        pairs = [(driver.Event(), driver.Event()) for _ in range(1 + rotations)]
        with translated(self._doing):
            for start, end in pairs:
                self._copies.poison(self._stream)
                start.record(self._stream)
                self._graph.replay(self._stream)
                end.record(self._stream)
            self._stream.synchronize()
            return [float(end.time_since(start)) for start, end in pairs[1:]]

    def close(self) -> None:
        """Free the graph."""
        self._graph.close()


def copies_needed(declaration: Declaration, given: Arrays, l2_bytes: int, most: int = 4096) -> int:
    """Copies whose reads together are more than twice the L2; at least 2.

    Raises
    ------
    BadInput
        Where these would be more than ``most``.

    """
    read = declaration.bytes(given)
    count = max(2, 2 * l2_bytes // read + 1)
    if count > most:
        raise declaration.bad(
            f"a launch reads {read} bytes, so that going over the L2 takes {count} copies, more "
            f"than {most}; give a launch more to do, such as several rows"
        )
    return count


def _require_alike(declaration: Declaration, drawn: Sequence[Arrays]) -> None:
    """Refuse inputs that change their shape: the launcher is told addresses alone."""
    forms = [{name: (array.shape, array.dtype) for name, array in given.items()} for given in drawn]
    if any(form != forms[0] for form in forms):
        raise declaration.bad("its inputs change shape or type from one drawing to the next")
