"""CUDA graphs, which PyCUDA lacks, through cuda-bindings: all of it is here.

PyCUDA's streams are the driver's: what PyCUDA launches on a stream that is being captured becomes
part of the graph, and the graph runs in the same primary context.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Graph:
    """Captured launches; replayed as one.

    ``overlapped``: a kernel begins before its predecessor has ended (programmatic dependent launch;
    compute capability 9.0 and later). Each of its kernels must then itself wait for the one before
    (``take_over`` in ``kernels/common.cuh``). Copies are waited for as ever.

    Attributes
    ----------
    nodes
        Launches and copies.
    branches
        Of them, those that wait for none: one for each stream that was captured.

    """

    def __init__(self, *, overlapped: bool = False) -> None:
        self._overlapped = overlapped
        self._executable: Any = None
        self.nodes = self.branches = 0

    @contextmanager
    def captured(
        self,
        stream: Any,  # noqa: ANN401 - PyCUDA's
        beside: Sequence[Any] = (),
    ) -> Iterator[None]:
        """Capture what is launched on ``stream`` inside; nothing of it runs.

        What is launched on the streams ``beside`` it becomes branches: no launch of one waits for
        any of another, and a replay has ended when all of them have.
        """
        from cuda.bindings import driver  # noqa: PLC0415 - an extra

        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver.cuStreamBeginCapture(stream.handle, mode), "capturing a graph")
        graph = None
        try:
            # Before anything was launched there is nothing to wait for: a stream is only made to
            # take part. The first stream waits for what each was given, or it could not end.
            for other in beside:
                _await(other, stream)
            yield
            for other in beside:
                _await(stream, other)
        finally:
            # Ended whatever happened: a stream left capturing refuses everything afterwards.
            error, graph = driver.cuStreamEndCapture(stream.handle)
        _check((error,), "capturing a graph")
        if self._overlapped:
            _overlap(graph)
        self.nodes = int(driver.cuGraphGetNodes(graph)[-1])
        self.branches = int(driver.cuGraphGetRootNodes(graph)[-1])
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


def _await(waiting: Any, stream: Any) -> None:  # noqa: ANN401 - PyCUDA's
    """Let a stream wait for what another was given so far."""
    from pycuda import driver  # noqa: PLC0415 - an extra

    event = driver.Event(driver.event_flags.DISABLE_TIMING)
    event.record(stream)
    waiting.wait_for_event(event)


def _overlap(graph: Any) -> None:  # noqa: ANN401 - the driver's
    """Make edges from kernel to kernel programmatic ones, which PyCUDA cannot ask for.

    Where branches part or meet they stay full: ``take_over`` is about one predecessor.
    """
    from cuda.bindings import driver  # noqa: PLC0415

    doing = "overlapping a graph's kernels"
    *_, count = _check(driver.cuGraphGetEdges(graph), doing)
    before, after, data, _ = _check(driver.cuGraphGetEdges(graph, count), doing)
    kernel = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    alone = in_line([int(node) for node in before], [int(node) for node in after])
    edges = [
        (a, b, edge)
        for a, b, edge, line in zip(before, after, data, alone, strict=True)
        if line and all(_check(driver.cuGraphNodeGetType(node), doing) == kernel for node in (a, b))
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


def in_line(before: Sequence[int], after: Sequence[int]) -> list[bool]:
    """Of edges from ``before`` to ``after``, whether each is the only one at both of its ends."""
    leave, arrive = Counter(before), Counter(after)
    return [leave[a] == arrive[b] == 1 for a, b in zip(before, after, strict=True)]


def _check(answer: tuple[Any, ...], doing: str) -> Any:  # noqa: ANN401 - whatever the call gives
    error, *values = answer
    if int(error) != 0:
        raise BadInput(
            f"the GPU failed {doing} ({error.name}); its context is lost: start again, and run "
            "compute-sanitizer if it comes back"
        )
    return values[0] if len(values) == 1 else values
