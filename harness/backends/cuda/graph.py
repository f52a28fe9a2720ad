"""CUDA graphs, which PyCUDA lacks, through cuda-bindings: all of it is here.

PyCUDA's streams are the driver's: what PyCUDA launches on a stream that is being captured becomes
part of the graph, and the graph runs in the same primary context.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator


class Graph:
    """A captured sequence of launches; replayed as one."""

    def __init__(self) -> None:
        self._executable: Any = None
        self.nodes = 0

    @contextmanager
    def captured(self, stream: Any) -> Iterator[None]:  # noqa: ANN401 - PyCUDA's
        """Capture what is launched on ``stream`` inside; nothing of it runs."""
        from cuda.bindings import driver  # noqa: PLC0415 - an extra

        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver.cuStreamBeginCapture(stream.handle, mode), "capturing a graph")
        graph = None
        try:
            yield
        finally:
            # Ended whatever happened: a stream left capturing refuses everything afterwards.
            error, graph = driver.cuStreamEndCapture(stream.handle)
        _check((error,), "capturing a graph")
        self.nodes = int(driver.cuGraphGetNodes(graph)[-1])
        self._executable = _check(driver.cuGraphInstantiate(graph, 0), "instantiating a graph")
        _check(driver.cuGraphDestroy(graph), "freeing a graph")

    def replay(self, stream: Any) -> None:  # noqa: ANN401 - PyCUDA's
        """Launch all of it; returns at once."""
        from cuda.bindings import driver  # noqa: PLC0415

        _check(driver.cuGraphLaunch(self._executable, stream.handle), "replaying a graph")

    def close(self) -> None:
        """Free it."""
        from cuda.bindings import driver  # noqa: PLC0415

        if self._executable is not None:
            _check(driver.cuGraphExecDestroy(self._executable), "freeing a graph")
            self._executable = None


def _check(answer: tuple[Any, ...], doing: str) -> Any:  # noqa: ANN401 - whatever the call gives
    error, *values = answer
    if int(error) != 0:
        raise BadInput(
            f"the GPU failed {doing} ({error.name}); its context is lost: start again, and run "
            "compute-sanitizer if it comes back"
        )
    return values[0] if values else None
