"""Timing one family of a token's kernels at a time, on the decoder's own buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.backends.cuda.forward import TOKEN_FAMILIES
from harness.backends.cuda.gpu import translated
from harness.backends.cuda.graph import Graph
from harness.decoder import COPIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.backends.cuda.forward import Forward

_MOVES_ON = "argmax"  # writes the next position and token
# Launched last before a family is timed, these have read other weights since the family's own: in
# a large model more than the L2 holds. Logits come last in a token already.
_READ_BEFORE = {"logits": "gate_up"}
_READ_LAST = "logits"
# The start of a graph takes 4 to 5 us, and up to 0.7 us more in one process than in another: more
# than 3 % of a short family that a token launches once. Those that read no more than the L2 holds
# are launched several times in one replay; from the second on, they find it there.
_COPIES = {"embed": COPIES, _MOVES_ON: COPIES}


class FamilyClock:
    """A decoder's last step, repeated before each timed replay of one family alone.

    A family's graph is captured from ``Forward.token`` with all other kernels left out. Before each
    replay of it the step is repeated but for argmax, untimed: the token stands at its position
    again, every buffer holds what a decode leaves there, and what the family reads of the weights
    and of the cache has been displaced from the L2 by ``read_before`` (for the first of its
    ``COPIES``, where a token launches it once, and shortly). What kernels hand to each other, some
    kilobytes, is as warm as it happens to be; it is the last layer's for every layer, so that all
    of them multiply the experts that the last one chose.

    Parameters
    ----------
    forward
        The decoder's.
    stream
        PyCUDA's, that ``forward`` launches on.
    position, token
        Of the step.
    capacity
        Positions in the cache: each copy of argmax moves on by one, and never past it.
    overlapped
        As the decoder's own graphs (``Graph``).

    Attributes
    ----------
    launches
        Of a token, by family.
    read_before
        By family, the one that is launched last before it is timed.

    """

    def __init__(
        self,
        forward: Forward,
        stream: Any,  # noqa: ANN401 - PyCUDA's
        *,
        position: int,
        token: int,
        capacity: int,
        overlapped: bool,
    ) -> None:
        self._forward, self._stream = forward, stream
        self._copies = {
            family: min(_COPIES.get(family, 1), capacity - position) for family in TOKEN_FAMILIES
        }
        self._step = Graph(overlapped=overlapped)
        self._alone = {family: Graph(overlapped=overlapped) for family in TOKEN_FAMILIES}
        self.read_before = {f: _READ_BEFORE.get(f, _READ_LAST) for f in TOKEN_FAMILIES}
        try:
            with translated("capturing kernel families"):
                self._capture(position, token)
        except BaseException:
            self.close()
            raise
        self.launches = {
            family: graph.nodes // self._copies[family] for family, graph in self._alone.items()
        }

    def _capture(self, position: int, token: int) -> None:
        forward = self._forward
        with (
            forward.only({*TOKEN_FAMILIES} - {_MOVES_ON}),
            self._step.captured(self._stream),
        ):
            forward.put_state(position, token)
            forward.token()
        for family, graph in self._alone.items():
            with forward.only({family}), graph.captured(self._stream):
                for _ in range(self._copies[family]):
                    forward.token()

    def logits(self) -> NDArray[np.float32]:
        """Repeat the step, untimed; its logits, float32 ``[vocab]``."""
        with translated("repeating a step"):
            self._step.replay(self._stream)
            return self._forward.read_logits()

    def milliseconds(self, family: str, repeats: int) -> list[float]:
        """Time all of a family's launches in one token, ``repeats`` times.

        By events, around the replay of a graph, whose launches follow each other, or overlap, as
        the decoder's do. Its start is in the time, a few microseconds; families of one short launch
        a token are launched ``COPIES`` times a replay, and their time is divided. The host is no
        part of it: it has queued the replay before the step ahead of it has ended.

        Raises
        ------
        KeyError
            For an unknown family; lists what exists.

        """
        from pycuda import driver  # noqa: PLC0415 - an extra

        if family not in self._alone:
            raise KeyError(f"no family {family!r}; there are {', '.join(self._alone)}")
        pairs = [(driver.Event(), driver.Event()) for _ in range(repeats)]
        with translated(f"timing {family}"):
            for start, end in pairs:
                self._step.replay(self._stream)
                if self.read_before[family] != _READ_LAST:
                    self._alone[self.read_before[family]].replay(self._stream)
                start.record(self._stream)
                self._alone[family].replay(self._stream)
                end.record(self._stream)
            self._stream.synchronize()
            copies = self._copies[family]
            return [float(end.time_since(start)) / copies for start, end in pairs]

    def left(self) -> bytes:
        """All that the last replay left in the decoder's buffers, but for the cache."""
        with translated("reading what a family left"):
            return self._forward.left()

    def close(self) -> None:
        """Free the graphs."""
        for graph in (self._step, *self._alone.values()):
            graph.close()
