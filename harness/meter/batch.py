"""Measuring a guarded decode of several sequences at once: each is guarded, then all are timed.

As ``harness.meter.decode`` has it for one. A number exists only if the guard accepts every sequence
and every pass of the batch gives each of them, bit by bit, what was guarded.
"""

from __future__ import annotations

import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from harness.decoder import TimedPass
from harness.errors import BadInput, Rejected
from harness.meter.decode import (
    NOT_ARGMAXES,
    GuardedRun,
    Workload,
    cache_allowed,
    follow,
    restart,
    sample,
    seeded_cache,
    told_of,
)
from harness.meter.lock import measuring
from harness.meter.measurement import Measurement
from harness.meter.stopping import StoppingRule
from harness.meter.traffic import Traffic, batch_traffic, distinct_experts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from harness.decoder import Batch, Decoder
    from harness.meter.decode import Cache, DecodeEvidence
    from harness.meter.instruments import Instruments
    from harness.meter.memory import PeakMemory


class Seen(NamedTuple):
    """What a guard saw of one sequence, and the experts chosen, ``[positions, layers, top_k]``."""

    evidence: DecodeEvidence
    experts: NDArray[np.integer]


if TYPE_CHECKING:
    BatchCheck: TypeAlias = Callable[[Decoder, Sequence[int], Cache | None], Seen]
    Guarding: TypeAlias = Callable[[Decoder], AbstractContextManager[BatchCheck]]


@dataclass(frozen=True)
class BatchWorkload:
    """What is decoded: ``tokens`` after each prompt, with ``depth`` positions cached before each.

    Raises
    ------
    BadInput
        Without prompts, or where they are not of one length: sequences move on together.

    """

    prompts: tuple[tuple[int, ...], ...]
    depth: int
    tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        lengths = sorted({len(prompt) for prompt in self.prompts})
        if len(lengths) != 1 or not lengths[0]:
            raise BadInput(f"prompts of {lengths} tokens, expected one length, at least 1")

    @property
    def sequences(self) -> tuple[Workload, ...]:
        """Each by itself; each has a cache of its own seed."""
        return tuple(
            Workload(prompt, self.depth, self.tokens, self.seed + number)
            for number, prompt in enumerate(self.prompts)
        )


@dataclass(frozen=True)
class BatchVerdict:
    """Accepted where every sequence is."""

    reasons: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether there is no reason against."""
        return not self.reasons

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return {"accepted": self.accepted, "reasons": list(self.reasons)}


@dataclass(frozen=True)
class BatchEvidence:
    """What the guard saw of each sequence, in their order."""

    sequences: tuple[DecodeEvidence, ...]

    @property
    def verdict(self) -> BatchVerdict:
        """Reasons of every sequence, with its number; no sequences are a reason, too."""
        reasons: list[str] = []
        for number, evidence in enumerate(self.sequences):
            if evidence.verdict.accepted is not True:
                told = evidence.verdict.reasons or ["rejected without a reason"]
                reasons += [f"sequence {number}: {reason}" for reason in told]
        return BatchVerdict(tuple(reasons if self.sequences else ["nothing was compared"]))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the sidecar."""
        sequences = [evidence.to_json() for evidence in self.sequences]
        return {
            "schema": "moe-harness/batch-parity/1",
            "verdict": self.verdict.to_json(),
            "ran": sequences[0].get("ran") if sequences else None,
            "sequences": sequences,
        }


@dataclass(frozen=True)
class BatchMeasurement:
    """Time per step of a batch, and everything that says what it was taken on.

    ``distinct`` are the experts that any sequence chose, by layer, the mean over the steps timed.
    """

    time: Measurement
    workload: BatchWorkload
    tokens: tuple[tuple[int, ...], ...]
    stopped_by: str
    memory: PeakMemory
    memory_allowed: int
    joules_per_step: float | None
    traffic: Traffic
    distinct: tuple[float, ...]
    bandwidth: float
    conditions: dict[str, Any]
    ran: dict[str, object]

    @property
    def size(self) -> int:
        """Sequences."""
        return len(self.workload.prompts)

    @property
    def tokens_per_second(self) -> float:
        """Of the median time, all sequences together."""
        return 1000 * self.size / self.time.median

    @property
    def joules_per_token(self) -> float | None:
        """Energy of a token of any sequence; None where none is told."""
        return None if self.joules_per_step is None else self.joules_per_step / self.size

    @property
    def distinct_experts(self) -> float:
        """Of a layer, the mean over layers and steps."""
        return statistics.fmean(self.distinct)

    @property
    def roofline_fraction(self) -> float:
        """Bytes that a step needs per second, as a share of the measured read bandwidth."""
        return self.traffic.total / (self.time.median / 1000) / self.bandwidth

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of ``decode --batch``."""
        evidence = self.time.evidence.to_json()
        return {
            "schema": "moe-harness/batch/1",
            "batch": self.size,
            "workload": {**vars(self.workload), "prompts": [*map(list, self.workload.prompts)]},
            "depth_source": "seeded caches" if self.workload.depth else "none",
            "tokens": [*map(list, self.tokens)],
            "texts": None,
            "ms_per_step": {
                "median": self.time.median,
                "p99": self.time.p99,
                "samples": list(self.time.samples),
                "stopped_by": self.stopped_by,
            },
            "tokens_per_second": self.tokens_per_second,
            "memory": {
                **vars(self.memory),
                "weights_and_cache_bytes": self.memory_allowed,
                "share": self.memory.peak_bytes / self.memory_allowed,
            },
            "energy_joules_per_token": self.joules_per_token,
            "conditions": self.conditions,
            "distinct_experts": {
                "by_layer": list(self.distinct),
                "mean": self.distinct_experts,
            },
            "bytes_per_step": self.traffic.total,
            "bytes_by_purpose": self.traffic.terms,
            "read_bandwidth": self.bandwidth,
            "roofline_fraction": self.roofline_fraction,
            "ran": self.ran,
            "verdict": evidence["verdict"],
            "evidence": evidence,
        }


def measure_batch(
    batch: Batch,
    workload: BatchWorkload,
    guarding: Guarding,
    *,
    instruments: Instruments,
    rule: StoppingRule | None = None,
) -> BatchMeasurement:
    """Guard every sequence, time them together, and prove that what was timed is what was guarded.

    ``guarding(member)`` opens what they are guarded with, closed before they are timed; its
    ``check(member, ids, cache)`` runs the guard over the very tokens of one sequence. Each timed
    pass must choose every sequence's guarded tokens, its last rows must be bit-equal to the guarded
    ones, and before the first and after the last of them a pass shows every row of every sequence.

    Raises
    ------
    Rejected
        Where the guard rejects a sequence, or a pass computed something else for one.
    BadInput
        Where the device is being measured by another process.

    """
    first = batch.members[0]
    with measuring(first.device_id):
        run = guarded_batch(batch, workload, guarding)
        samples, stopped_by = sample(run, instruments, rule or StoppingRule())
        memory = instruments.memory()
        energy = instruments.joules_per_sample(run.one_pass)
        run.every_row()
        bandwidth = instruments.read_bandwidth()
    distinct, (one, *_) = run.distinct, workload.sequences
    size = len(batch.members)
    return BatchMeasurement(
        time=Measurement.accept(samples, "ms/step", run.evidence),
        workload=workload,
        tokens=tuple(tuple(each.tokens) for each in run.sequences),
        stopped_by=stopped_by,
        memory=memory,
        memory_allowed=first.model.weight_bytes + size * cache_allowed(first, one),
        joules_per_step=energy,
        traffic=batch_traffic(first.model, first.backend, one.positions, size, distinct),
        distinct=tuple(distinct),
        bandwidth=bandwidth,
        conditions=instruments.to_json(),
        ran=told_of(first, batch.ran()),
    )


def guarded_batch(batch: Batch, workload: BatchWorkload, guarding: Guarding) -> GuardedBatch:
    """Decode together, and guard each sequence; what comes back repeats what was guarded.

    Raises
    ------
    Rejected
        Where the guard rejects a sequence; all of them are guarded first, and told of.

    """
    sequences, members = workload.sequences, batch.members
    _restart(batch, sequences)
    tokens = batch.generate(workload.prompts, workload.tokens)
    seen = []
    with guarding(members[0]) as check:
        for member, one, decoded in zip(members, sequences, tokens, strict=True):
            seen.append(check(member, [*one.prompt, *decoded], seeded_cache(member, one)))
            # What its trace took is not resident when another is guarded, or memory is measured.
            batch.let_go()
    evidence = BatchEvidence(tuple(each.evidence for each in seen))
    if not evidence.verdict.accepted:
        raise Rejected(list(evidence.verdict.reasons), evidence.to_json())
    unlike = [
        f"sequence {number}: {NOT_ARGMAXES}"
        for number, (one, decoded, each) in enumerate(zip(sequences, tokens, seen, strict=True))
        if not follow(decoded, one, each.evidence)
    ]
    if unlike:
        raise Rejected(unlike, evidence.to_json())
    _restart(batch, sequences)
    runs = [
        GuardedRun(member, one, decoded, each.evidence)
        for member, one, decoded, each in zip(members, sequences, tokens, seen, strict=True)
    ]
    behind = len(workload.prompts[0])
    chosen = np.stack([each.experts[behind:] for each in seen])
    return GuardedBatch(batch, workload, runs, evidence, distinct_experts(chosen))


class GuardedBatch:
    """One pass after the other over the guarded tokens, each sequence checked after it was timed.

    Attributes
    ----------
    sequences
        What was guarded of each.
    evidence
        What the guard saw of all.
    distinct
        Experts that any sequence chose, by layer, the mean over the steps behind the prompts.

    """

    def __init__(
        self,
        batch: Batch,
        workload: BatchWorkload,
        sequences: Sequence[GuardedRun],
        evidence: BatchEvidence,
        distinct: Sequence[float],
    ) -> None:
        self._batch, self._workload = batch, workload
        self.sequences, self.evidence, self.distinct = sequences, evidence, distinct

    def every_row(self) -> None:
        """Step by step, untimed: every row of every sequence is compared."""
        self._rewind()
        prompts = list(zip(*self._workload.prompts, strict=True))
        fed = [*prompts, *zip(*(each.tokens for each in self.sequences), strict=True)]
        rows = [self._batch.step(tokens) for tokens in fed][len(prompts) - 1 :]
        for number, run in enumerate(self.sequences):
            own = [row[number] for row in rows]
            with _of_sequence(number):
                # No times: nothing here was timed.
                run.compare(TimedPass([], [int(row.argmax()) for row in own], dict(enumerate(own))))

    def one_pass(self) -> list[float]:
        """Time each step of the decode; milliseconds. The prompts are not timed."""
        self._rewind()
        passes = self._batch.timed_pass(self._workload.prompts, self._workload.tokens)
        for number, (run, seen) in enumerate(zip(self.sequences, passes, strict=True)):
            with _of_sequence(number):
                run.compare(seen)
        return list(passes[0].milliseconds)

    def _rewind(self) -> None:
        for member in self._batch.members:
            member.rewind(self._workload.depth)


def _restart(batch: Batch, sequences: Sequence[Workload]) -> None:
    for member, one in zip(batch.members, sequences, strict=True):
        restart(member, seeded_cache(member, one))


@contextmanager
def _of_sequence(number: int) -> Iterator[None]:
    """Say of which sequence a rejection is."""
    try:
        yield
    except Rejected as error:
        reasons = [f"sequence {number}: {reason}" for reason in error.reasons]
        raise Rejected(reasons, error.evidence) from None
