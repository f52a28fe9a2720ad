"""Several sequences decoded together: one set of weights, one graph replay a step."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.backends.cuda.decoder import cache_bytes, check_room
from harness.backends.cuda.gpu import open_gpu, translated
from harness.backends.cuda.graph import Graph
from harness.backends.cuda.weights import weight_sizes
from harness.decoder import TimedPass, check_step
from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from harness.backends.cuda.decoder import CudaDecoder
    from harness.model import Model

    Floats = NDArray[np.float32]


class CudaBatch:
    """Independent sequences on one GPU (``harness.decoder.Batch``).

    Each sequence is a decoder with buffers, state and KV cache of its own, and launches the kernels
    that it launches alone, with the same arguments: both compute the same, bit for bit. A step's
    graph has a branch for each. Branches wait for nothing of one another, so that kernels too short
    to fill the GPU run beside each other, and weights that several sequences read are shared in the
    L2 where they meet.

    Parameters
    ----------
    first
        The first sequence, which brings the weights; it stays its owner's and is not closed.
    size
        Sequences, at least 1.
    plant
        A fault to plant in the last sequence, None for none.

    Raises
    ------
    BadInput
        For a size below 1, or where the sequences do not fit the GPU.
    KeyError
        For an unknown fault.

    """

    def __init__(self, first: CudaDecoder, size: int, plant: str | None = None) -> None:
        check_size(size)
        if plant is not None and size == 1:
            raise ValueError("a fault is planted in the last of several sequences, this is one")
        check_room(first.gpu, 0, first.cache_bytes, size - 1)
        self.members: list[CudaDecoder] = [first]
        self._graph: Graph | None = None
        try:
            for number in range(1, size):
                last = number == size - 1
                sibling = first.sibling(first.capacity, plant=plant if last else None)
                self.members.append(sibling)
        except BaseException:
            self.close()
            raise

    def step(self, tokens: Sequence[int]) -> list[Floats]:
        """Decode one token of each sequence (``harness.decoder.Batch.step``)."""
        for member, token in zip(self.members, tokens, strict=True):
            check_step(member, token, None)
        stream = self.members[0].stream
        with translated(f"decoding position {self.members[0].position} of {len(tokens)} sequences"):
            for member, token in zip(self.members, tokens, strict=True):
                member.put(token)
            self._together().replay(stream)
            stream.synchronize()
            return [member.taken() for member in self.members]

    def timed_pass(self, prompts: Sequence[Sequence[int]], count: int) -> list[TimedPass]:
        """Decode ``prompts``, then ``count`` steps of the device's own choosing, timed by events.

        As ``harness.decoder.Batch.timed_pass``. What the steps are to leave is spoilt before, so
        that nothing of an earlier pass can be taken for it.
        """
        from pycuda import driver  # noqa: PLC0415 - an extra

        self._follow(prompts)
        starts = [member.position for member in self.members]
        if max(starts) + count > self.members[0].capacity:
            raise BadInput(
                f"the cache is full at {self.members[0].capacity} positions; ask for a larger one"
            )
        stream, graph = self.members[0].stream, self._together()
        events = [driver.Event() for _ in range(count + 1)]
        with translated("decoding against the clock"):
            for member in self.members:
                member.poison(count)
            events[0].record(stream)
            for event in events[1:]:
                graph.replay(stream)
                event.record(stream)
            stream.synchronize()
            times = [float(b.time_since(a)) for a, b in pairwise(events)]
            passes = []
            for member, start in zip(self.members, starts, strict=True):
                member.moved(count)
                chosen, last = member.chosen(start - 1, count + 1), member.logits()
                passes.append(TimedPass(times, chosen, {count: last}))
        return passes

    def generate(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Decode ``prompts`` and then ``count`` tokens greedily (``harness.decoder.Batch``)."""
        return [seen.tokens[:count] for seen in self.timed_pass(prompts, count)]

    def ran(self) -> dict[str, object]:
        """Say what computes: as the first sequence's decoder, with the graph of all."""
        first, graph = self.members[0], self._together()
        taken: Counter[str] = Counter()
        for member in self.members:
            taken.update(member.own_memory)
        return {
            **first.ran_on(),
            "graph_nodes": graph.nodes,
            "graph_branches": graph.branches,
            "memory_by_purpose": {**first.weights_memory, **taken},
        }

    def let_go(self) -> None:
        """Free what guarding the sequences one by one took, which no step needs."""
        for member in self.members:
            member.let_go()

    def close(self) -> None:
        """Free all but the first sequence."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for member in self.members[1:]:
            member.close()
        del self.members[1:]

    def _follow(self, prompts: Sequence[Sequence[int]]) -> None:
        lengths = {len(prompt) for prompt in prompts}
        if len(prompts) != len(self.members) or len(lengths) != 1 or not min(lengths):
            raise ValueError(
                f"{len(prompts)} prompts of {sorted(lengths)} tokens, expected one of the same "
                f"length, at least 1, for each of {len(self.members)} sequences"
            )
        for tokens in zip(*prompts, strict=True):
            self.step(tokens)

    def _together(self) -> Graph:
        if self._graph is None:
            first, *others = self.members
            graph = Graph(overlapped=first.gpu.overlaps)
            with graph.captured(first.stream, [other.stream for other in others]):
                for member in self.members:
                    member.launch()
            self._graph = graph
        return self._graph


def check_size(size: int) -> None:
    """Refuse a number of sequences that is none.

    Raises
    ------
    BadInput
        Below 1.

    """
    if size < 1:
        raise BadInput(f"a batch of {size} sequences, expected at least 1")


def check_batch(model: Model, capacity: int, size: int, device: int, *, loaded: bool) -> None:
    """Refuse a batch that the GPU has no room for, before anything is allocated.

    ``loaded``: the weights are there already.

    Raises
    ------
    BadInput
        Where it does not fit, with what is needed; for a size below 1.
    HardwareAbsent
        Without a GPU.

    """
    check_size(size)
    weights = 0 if loaded else sum(weight_sizes(model, tiles=True))
    check_room(open_gpu(device), weights, cache_bytes(model.config, capacity), size)
