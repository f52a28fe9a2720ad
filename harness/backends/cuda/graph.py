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
    """A captured sequence of launches; replayed as one.

    ``overlapped``: a kernel begins before its predecessor has ended (programmatic dependent launch;
    compute capability 9.0 and later). Each of its kernels must then itself wait for the one before
    (``take_over`` in ``kernels/common.cuh``). Copies are waited for as ever.
    """

    def __init__(self, *, overlapped: bool = False) -> None:
        self._overlapped = overlapped
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
        if self._overlapped:
            _overlap(graph)
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


def _overlap(graph: Any) -> None:  # noqa: ANN401 - the driver's
    """Make every edge from kernel to kernel a programmatic one, which PyCUDA cannot ask for."""
    from cuda.bindings import driver  # noqa: PLC0415

    doing = "overlapping a graph's kernels"
    *_, count = _check(driver.cuGraphGetEdges(graph), doing)
    before, after, data, _ = _check(driver.cuGraphGetEdges(graph, count), doing)
    kernel = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    edges = [
        (a, b, edge)
        for a, b, edge in zip(before, after, data, strict=True)
        if all(_check(driver.cuGraphNodeGetType(node), doing) == kernel for node in (a, b))
    ]
    if not edges:
        return
    sources, targets, full = (list(column) for column in zip(*edges, strict=True))
    programmatic = driver.CUgraphEdgeData()
    programmatic.from_port = driver.CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC
    programmatic.type = driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC.value
    count = len(edges)
    _check(driver.cuGraphRemoveDependencies(graph, sources, targets, full, count), doing)
    _check(
        driver.cuGraphAddDependencies(graph, sources, targets, [programmatic] * count, count), doing
    )


def _check(answer: tuple[Any, ...], doing: str) -> Any:  # noqa: ANN401 - whatever the call gives
    error, *values = answer
    if int(error) != 0:
        raise BadInput(
            f"the GPU failed {doing} ({error.name}); its context is lost: start again, and run "
            "compute-sanitizer if it comes back"
        )
    return values[0] if len(values) == 1 else values
