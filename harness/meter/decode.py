"""Measuring a guarded decode: evidence first, then time, then proof that it was the same code."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from harness.decoder import DeviceTimed, TimedPass
from harness.errors import Rejected
from harness.meter.commit import provenance
from harness.meter.instruments import HostInstruments, Instruments
from harness.meter.lock import measuring
from harness.meter.measurement import Evidence, Measurement
from harness.meter.stopping import StoppingRule
from harness.meter.traffic import Traffic, token_traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.meter.memory import PeakMemory

    Cache: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


class DecodeEvidence(Evidence, Protocol):
    """Evidence of a decode: it also holds the logits that the timed run must reproduce."""

    @property
    def candidate_logits(self) -> NDArray[np.float32]:
        """Float32 ``[positions, vocab]``."""


if TYPE_CHECKING:
    Check: TypeAlias = Callable[[Decoder, Sequence[int], Cache | None], DecodeEvidence]

_ROUNDED_UP = 256  # positions that a cache is counted in
_POOL = 1 << 22  # values that a seeded cache is tiled from


@dataclass(frozen=True)
class Workload:
    """What is decoded: ``tokens`` after ``prompt``, with ``depth`` positions cached before."""

    prompt: tuple[int, ...]
    depth: int
    tokens: int
    seed: int = 0

    @property
    def positions(self) -> int:
        """Positions that the last token attends to, itself included."""
        return self.depth + len(self.prompt) + self.tokens


@dataclass(frozen=True)
class DecodeMeasurement:
    """Time per token of a workload, and everything that says what it was taken on."""

    time: Measurement
    workload: Workload
    tokens: tuple[int, ...]
    stopped_by: str
    memory: PeakMemory
    memory_allowed: int
    energy: float | None
    traffic: Traffic
    bandwidth: float
    conditions: dict[str, Any]
    ran: dict[str, object]

    @property
    def tokens_per_second(self) -> float:
        """Of the median time."""
        return 1000 / self.time.median

    @property
    def roofline_fraction(self) -> float:
        """Bytes moved per second, as a share of this machine's measured read bandwidth."""
        return self.traffic.total * self.tokens_per_second / self.bandwidth

    def to_json(self) -> dict[str, Any]:
        """Return the ``decode`` JSON of DESIGN.md."""
        evidence = self.time.evidence
        return {
            "schema": "moe-harness/decode/1",
            "workload": vars(self.workload),
            "depth_source": "seeded cache" if self.workload.depth else "none",
            "tokens": list(self.tokens),
            "text": None,
            "ms_per_token": {
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
            "energy_joules_per_token": self.energy,
            "conditions": self.conditions,
            "bytes_per_token": self.traffic.total,
            "bytes_by_purpose": self.traffic.terms,
            "read_bandwidth": self.bandwidth,
            "roofline_fraction": self.roofline_fraction,
            "ran": self.ran,
            "verdict": evidence.to_json()["verdict"],
            "evidence": evidence.to_json(),
        }


def measure_decode(
    decoder: Decoder,
    workload: Workload,
    check: Check,
    *,
    instruments: Instruments | None = None,
    rule: StoppingRule | None = None,
) -> DecodeMeasurement:
    """Guard, time, and prove that what was timed is what was guarded.

    ``check(decoder, ids, cache)`` runs the guard over the very tokens that will be timed. Each
    timed pass must choose the tokens of the guarded run, and every row of logits that it can show
    must be bit-equal to the guarded run's; before the first of them one pass shows every row.
    ``instruments`` are those of the host unless given.

    Raises
    ------
    Rejected
        Where the guard rejects, or a timed pass computed something else.
    BadInput
        Where the device is being measured by another process.

    """
    rule = rule or StoppingRule()
    instruments = instruments or HostInstruments()
    with measuring(decoder.device_id):
        run = guarded_run(decoder, workload, check)
        samples, stopped_by = sample(run, instruments, rule)
        memory = instruments.memory()
        energy = instruments.joules_per_sample(run.one_pass)
        bandwidth = instruments.read_bandwidth()
    return DecodeMeasurement(
        time=Measurement.accept(samples, "ms/token", run.evidence),
        workload=workload,
        tokens=tuple(run.tokens),
        stopped_by=stopped_by,
        memory=memory,
        memory_allowed=decoder.model.weight_bytes + cache_allowed(decoder, workload),
        energy=energy,
        traffic=token_traffic(decoder.model, decoder.backend, workload.positions),
        bandwidth=bandwidth,
        conditions=instruments.to_json(),
        ran=what_ran(decoder),
    )


def guarded_run(
    decoder: Decoder, workload: Workload, check: Check, *, unguarded: bool = False
) -> GuardedRun:
    """Decode and guard; what comes back repeats the guarded tokens, each pass held against them.

    ``unguarded`` goes on where the guard rejects: its evidence then says so, and passes that
    differ are noted (``GuardedRun.differences``) instead of refused.

    Raises
    ------
    Rejected
        Where the guard rejects, or the tokens are not the argmaxes of the guarded logits.

    """
    cache = seeded_cache(decoder, workload)
    restart(decoder, cache)
    tokens = decoder.generate(workload.prompt, workload.tokens)
    evidence = check(decoder, [*workload.prompt, *tokens], cache)
    if not (evidence.verdict.accepted or unguarded):
        raise Rejected(list(evidence.verdict.reasons), evidence.to_json())
    if not (follow(tokens, workload, evidence) or unguarded):
        raise Rejected([NOT_ARGMAXES])
    restart(decoder, cache)
    return GuardedRun(decoder, workload, tokens, evidence, unguarded=unguarded)


class Repeated(Protocol):
    """What is timed pass by pass, each held against what was guarded."""

    def every_row(self) -> None:
        """Untimed: every row of logits is compared."""

    def one_pass(self) -> list[float]:
        """Timed; milliseconds."""


def sample(run: Repeated, instruments: Instruments, rule: StoppingRule) -> tuple[list[float], str]:
    """Time passes until the rule ends it: milliseconds of each token, and why it ended."""
    run.every_row()
    run.one_pass()  # warm-up: its samples are not kept, its results are checked
    instruments.begin()
    samples: list[float] = []
    start = time.monotonic()
    reason = None
    while reason is None:
        samples += instruments.undisturbed(run.one_pass)
        reason = rule.ends(samples, time.monotonic() - start)
    return samples, reason


NOT_ARGMAXES = "the tokens decoded are not the argmaxes of the guarded logits"


def follow(tokens: Sequence[int], workload: Workload, evidence: DecodeEvidence) -> bool:
    """Whether the tokens that are reported as decoded follow from the logits that were guarded."""
    behind = evidence.candidate_logits[len(workload.prompt) - 1 :][: len(tokens)]
    return list(tokens) == [int(row.argmax()) for row in behind]


def what_ran(decoder: Decoder) -> dict[str, object]:
    """Say what computed on what, and of which commit."""
    return told_of(decoder, decoder.ran())


def told_of(decoder: Decoder, ran: Mapping[str, object]) -> dict[str, object]:
    """Say of what computed (``ran``) which model and numerics it had, and of which commit it is."""
    return {
        **ran,
        "model": decoder.model.name,
        "model_fingerprint": decoder.model.fingerprint,
        "numerics": decoder.numerics.name,
        **provenance(),
    }


class GuardedRun:
    """One pass after the other over the guarded tokens, each checked after it was timed.

    Attributes
    ----------
    decoder, workload
        What runs, and on what.
    tokens
        Those decoded behind the prompt.
    evidence
        What the guard saw of them.
    differences
        Of an unguarded run: how passes differed from what the guard saw.

    """

    def __init__(
        self,
        decoder: Decoder,
        workload: Workload,
        tokens: Sequence[int],
        evidence: DecodeEvidence,
        *,
        unguarded: bool = False,
    ) -> None:
        self.decoder, self.workload = decoder, workload
        self.tokens, self.evidence, self._unguarded = tokens, evidence, unguarded
        self.differences: list[str] = []
        self._logits = evidence.candidate_logits[len(workload.prompt) - 1 :]
        self._chosen = [int(row.argmax()) for row in self._logits]

    def every_row(self) -> None:
        """Step by step, untimed: every row of logits is compared."""
        self.stepped(self.decoder.step)

    def stepped(self, step: Callable[[int], NDArray[np.float32]]) -> list[float]:
        """Decode by ``step``, timed by the host; milliseconds of each token, argmax included.

        Every row of logits is compared.
        """
        self.decoder.rewind(self.workload.depth)
        seen = self._by_host(step)
        self.compare(seen)
        return seen.milliseconds

    def one_pass(self) -> list[float]:
        """Time each token of the decode, argmax included; milliseconds.

        The prompt is not timed: prefill is another workload.
        """
        self.decoder.rewind(self.workload.depth)
        if isinstance(self.decoder, DeviceTimed):
            seen = self.decoder.timed_pass(self.workload.prompt, len(self.tokens))
        else:
            seen = self._by_host(self.decoder.step)
        self.compare(seen)
        return seen.milliseconds

    def _by_host(self, step: Callable[[int], NDArray[np.float32]]) -> TimedPass:
        """A token is not decoded before its id is known: the argmax is part of the time."""
        for token in self.workload.prompt:
            got = step(token)
        rows, chosen = [got], [int(got.argmax())]
        times = []
        for token in self.tokens:
            start = time.perf_counter_ns()
            got = step(token)
            best = int(got.argmax())
            times.append((time.perf_counter_ns() - start) / 1e6)
            chosen.append(best)
            rows.append(got)
        return TimedPass(times, chosen, dict(enumerate(rows)))

    def compare(self, seen: TimedPass) -> None:
        """Hold a pass against the guarded one.

        Raises
        ------
        Rejected
            Where a token, or a bit of logits, is another; noted instead in an unguarded run.

        """
        wrong = [
            index
            for index, (took, guarded) in enumerate(zip(seen.tokens, self._chosen, strict=True))
            if took != guarded
        ]
        # Bits, not values: NaN differs from itself, and -0 equals 0.
        wrong += [
            index
            for index, row in seen.logits.items()
            if row.tobytes() != self._logits[index].tobytes()
        ]
        if wrong or len(self.tokens) not in seen.logits:
            reason = (
                "the timed run computed something else than the guarded run: logits differ at "
                f"position {len(self.workload.prompt) - 1 + min(wrong, default=len(self.tokens))}"
            )
            if not self._unguarded:
                raise Rejected([reason])
            if reason not in self.differences:
                self.differences.append(reason)


def restart(decoder: Decoder, cache: Cache | None) -> None:
    """Go back to the position behind the cached ones, and have these cached."""
    decoder.reset()
    if cache is not None:
        decoder.fill_cache(*cache)


def cache_allowed(decoder: Decoder, workload: Workload) -> int:
    """Cache of the run's positions, rounded up to 256: memory is judged by it and the weights."""
    per_position = decoder.cache_bytes // decoder.capacity
    rounded_up = -(-workload.positions // _ROUNDED_UP) * _ROUNDED_UP
    return per_position * rounded_up


def seeded_cache(decoder: Decoder, workload: Workload) -> Cache | None:
    """Keys and values of unit scale for the positions before the prompt, the same for a seed.

    Tiled from a pool, from a place of its own in each layer: a long context has billions of values.
    """
    if not workload.depth:
        return None
    c = decoder.model.config
    rng = np.random.default_rng(workload.seed)
    pool = rng.standard_normal(_POOL, dtype=np.float32)
    shape = (c.layers, workload.depth, c.kv_heads, c.head_dim)
    keys, values = (np.empty(shape, dtype=np.float32) for _ in range(2))
    for each in (keys, values):
        for layer in each:
            flat, at = layer.reshape(-1), 0
            start = int(rng.integers(_POOL))
            while at < flat.size:
                part = pool[start : start + flat.size - at]
                flat[at : at + part.size] = part
                at, start = at + part.size, 0
    return keys, values
