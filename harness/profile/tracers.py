"""Who records a pass: CUPTI through torch on a GPU, the host's clock between stages on the CPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.errors import BadInput
from harness.profile.kinds import KINDS, kind_of, layers_of
from harness.profile.recording import Traced
from harness.settings import foreign_profiler
from harness.stages import Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from harness.meter.decode import GuardedRun

    Floats = NDArray[np.float32]
    Launch = tuple[str, int, int]  # name, start and end in nanoseconds

# What CUPTI records on a device beside kernels.
_NO_KERNELS = ("Memcpy", "Memset", "Context Sync", "Event Sync", "Stream Sync", "Stream Wait")


class Tracer(Protocol):
    """Records one pass of a guarded run."""

    def record(self, run: GuardedRun) -> Traced:
        """Run a pass and return the launches of the tokens behind the prompt."""


class CuptiTracer:
    """Records the kernels of a GPU, those inside CUDA graphs too, by torch's profiler.

    ``device`` is the GPU's ordinal.
    """

    def __init__(self, device: int) -> None:
        self._device = device

    def record(self, run: GuardedRun) -> Traced:
        """Run a pass, its kernels timed by the GPU's own clock.

        Raises
        ------
        BadInput
            Where nothing, or not everything, could be recorded.

        """
        import torch  # noqa: PLC0415 - slow to load, and not needed on the CPU
        from torch.profiler import ProfilerActivity, profile, supported_activities  # noqa: PLC0415

        check_cupti()
        if ProfilerActivity.CUDA not in supported_activities():  # type: ignore[no-untyped-call]
            raise BadInput(
                f"torch {torch.__version__} is built without CUDA, and its profiler records no "
                "kernels; install torch's CUDA build"
            )
        with (
            torch.cuda.device(self._device),
            profile(acc_events=True, activities=[ProfilerActivity.CUDA]) as session,
        ):
            token_ms = run.one_pass()
        events = session.profiler.kineto_results.events()
        kernels = gpu_kernels(events, self._device)
        prompt = len(run.workload.prompt)
        rows = by_token(kernels, prompt + len(run.tokens))[prompt:]
        return _traced(rows, token_ms, "CUPTI, by torch.profiler")


def check_cupti() -> None:
    """Refuse to record where another profiler is at work: CUPTI serves one at a time.

    Raises
    ------
    BadInput
        With the profiler's name.

    """
    other = foreign_profiler()
    if other is not None:
        raise BadInput(
            f"CUPTI is taken: this process runs under {other}, and CUPTI serves one profiler at a "
            "time; run without it, or with --nvtx, which marks tokens and records nothing itself"
        )


def gpu_kernels(events: Iterable[Any], device: int) -> list[Launch]:
    """Kernels among kineto's events, on one GPU, in the order of their starts."""
    found = [
        (str(event.name()), int(event.start_ns()), int(event.start_ns() + event.duration_ns()))
        for event in events
        if event.device_type().name == "CUDA"
        and event.device_index() == device
        and not event.name().startswith(_NO_KERNELS)
    ]
    return sorted(found, key=lambda launch: launch[1])


def by_token(kernels: Sequence[Launch], tokens: int) -> list[list[Launch]]:
    """Cut the kernels of a pass into its tokens, which all launch the same ones.

    Raises
    ------
    BadInput
        Without kernels, with one that is none of a token's, or where they are no whole tokens.

    """
    if not kernels:
        raise BadInput(
            "the profiler recorded no kernel: CUPTI is taken by another tool "
            "(CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED), or not allowed in this container; "
            "end the other tool, or see what torch.profiler said above"
        )
    for name in sorted({name for name, _, _ in kernels}):
        kind_of(name)  # refuses what is no kernel of a token
    count, rest = divmod(len(kernels), tokens)
    rows = [list(kernels[i * count : (i + 1) * count]) for i in range(tokens)]
    orders = {tuple(name for name, _, _ in row) for row in rows}
    if rest or len(orders) != 1:
        raise BadInput(
            f"{len(kernels)} kernels were recorded in {tokens} tokens, expected the same ones in "
            "each; records were lost: record fewer tokens (--tokens)"
        )
    return rows


class PhaseTracer:
    """Records the phases of a decoder on the CPU: the clock is read where a stage is seen.

    A phase is what lies between the last stage of one kernel and the last of the next, Python and
    all; there are no gaps. What the host does between two tokens is not timed, and cut out.
    """

    def record(self, run: GuardedRun) -> Traced:
        """Run a pass step by step, as the CPU's tokens are timed."""
        clocks: list[_Clock] = []

        def step(token: int) -> Floats:
            clock = _Clock()
            logits = run.decoder.step(token, clock)
            clocks.append(clock)
            return logits

        token_ms = run.stepped(step)
        decoded = clocks[len(run.workload.prompt) :]
        rows, now = [], 0
        for clock, took in zip(decoded, token_ms, strict=True):
            rows.append([(name, now + a, now + b) for name, a, b in clock.phases(took)])
            now = rows[-1][-1][2]
        names = [name for name, _, _ in rows[0]]
        layers_of(names, run.decoder.model.config.layers)
        return _traced(rows, token_ms, "host clock between stages")


class _Clock(Capture):
    """Takes no stage's values: notes when each is seen."""

    def __init__(self) -> None:
        super().__init__(Plan.parse("all"))
        self._marks: list[tuple[str, int | None, int]] = []
        self._start = time.perf_counter_ns()

    def put(self, stage: str, layer: int | None, values: NDArray[np.generic]) -> None:  # noqa: ARG002
        self._marks.append((stage, layer, time.perf_counter_ns()))

    def phases(self, token_ms: float) -> list[Launch]:
        """Phases of the token, from 0 on; what is left of its time is the argmax."""
        found: list[tuple[str, int | None, int]] = []  # kernel, layer, end
        for stage, layer, at in self._marks:
            if stage == "embedding" and layer:
                continue  # a layer's input is the last one's output: nothing was computed
            kernel = _COMPUTED_BY[stage]
            where = layer if KINDS[kernel].per_layer else None
            if found and found[-1][:2] == (kernel, where):
                found.pop()
            found.append((kernel, where, at - self._start))
        last = found[-1][2]
        found.append(("argmax", None, max(last, round(token_ms * 1e6))))
        starts = [0, *(end for _, _, end in found)]
        return [(name, start, end) for start, (name, _, end) in zip(starts, found, strict=False)]


_COMPUTED_BY = {stage: kind.name for kind in KINDS.values() for stage in kind.stages}


def _traced(rows: Sequence[Sequence[Launch]], token_ms: Sequence[float], tracer: str) -> Traced:
    first = rows[0][0][1]
    return Traced(
        names=tuple(name for name, _, _ in rows[0]),
        starts=np.array([[start for _, start, _ in row] for row in rows], np.int64) - first,
        ends=np.array([[end for _, _, end in row] for row in rows], np.int64) - first,
        token_ms=tuple(token_ms),
        tracer=tracer,
    )
