"""Measuring a guarded decode: evidence first, then time, then proof that it was the same code."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from harness.errors import Rejected
from harness.meter.bandwidth import cpu_read_bandwidth
from harness.meter.commit import provenance
from harness.meter.lock import measuring
from harness.meter.measurement import Evidence, Measurement
from harness.meter.memory import PeakMemory, ProcessPeak
from harness.meter.stopping import StoppingRule
from harness.meter.traffic import Traffic, token_traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder

    Cache: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


class DecodeEvidence(Evidence, Protocol):
    """Evidence of a decode: it also holds the logits that the timed run must reproduce."""

    @property
    def candidate_logits(self) -> NDArray[np.float32]:
        """Float32 ``[positions, vocab]``."""


@dataclass(frozen=True)
class Workload:
    """What is decoded: ``tokens`` after ``prompt``, with ``depth`` positions cached before."""

    prompt: tuple[int, ...]
    depth: int
    tokens: int
    seed: int = 0


@dataclass(frozen=True)
class DecodeMeasurement:
    """Time per token of a workload, and everything that says what it was taken on."""

    time: Measurement
    workload: Workload
    tokens: tuple[int, ...]
    stopped_by: str
    memory: PeakMemory
    traffic: Traffic
    bandwidth: float
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
            "memory": vars(self.memory),
            "energy_joules_per_token": None,
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
    check: Callable[[Decoder, Sequence[int], Cache | None], DecodeEvidence],
    *,
    rule: StoppingRule | None = None,
) -> DecodeMeasurement:
    """Guard, time, and prove that what was timed is what was guarded.

    ``check(decoder, ids, cache)`` runs the guard over the very tokens that will be timed. After
    each timed pass the logits of every step must be bit-equal to those of the guarded run.

    Raises
    ------
    Rejected
        Where the guard rejects, or a timed pass computed something else.
    BadInput
        Where the device is being measured by another process.

    """
    rule = rule or StoppingRule()
    with measuring(decoder.backend if decoder.backend == "cpu" else decoder.device):
        cache = _seeded_cache(decoder, workload)
        _restart(decoder, cache)
        tokens = decoder.generate(workload.prompt, workload.tokens)
        ids = [*workload.prompt, *tokens]
        evidence = check(decoder, ids, cache)
        if not evidence.verdict.accepted:
            raise Rejected(list(evidence.verdict.reasons), evidence.to_json())
        timed = _Timed(decoder, workload, cache, tokens, evidence.candidate_logits)
        timed.one_pass()  # warm-up: its samples are not kept, its logits are checked
        peak = ProcessPeak()
        samples: list[float] = []
        start = time.monotonic()
        reason = None
        while reason is None:
            samples += timed.one_pass()
            reason = rule.ends(samples, time.monotonic() - start)
        memory = peak.read()
    return DecodeMeasurement(
        time=Measurement.accept(samples, "ms/token", evidence),
        workload=workload,
        tokens=tuple(tokens),
        stopped_by=reason,
        memory=memory,
        traffic=token_traffic(decoder.model, decoder.backend, workload.depth + len(ids)),
        bandwidth=cpu_read_bandwidth(),
        ran={
            **decoder.ran(),
            "model": decoder.model.name,
            "model_fingerprint": decoder.model.fingerprint,
            "numerics": decoder.numerics.name,
            **provenance(),
        },
    )


class _Timed:
    """One pass after the other over the guarded tokens, each checked after it was timed."""

    def __init__(
        self,
        decoder: Decoder,
        workload: Workload,
        cache: Cache | None,
        tokens: Sequence[int],
        logits: NDArray[np.float32],
    ) -> None:
        self._decoder, self._prompt, self._cache = decoder, workload.prompt, cache
        self._tokens, self._logits = tokens, logits

    def one_pass(self) -> list[float]:
        """Time each step of the decode, argmax included; milliseconds.

        A token is not decoded before its id is known, so the argmax is part of the time. The
        prompt is not: prefill is another workload.
        """
        _restart(self._decoder, self._cache)
        for token in self._prompt:
            got = self._decoder.step(token)
        rows = [got]
        times, step = [], self._decoder.step
        for token in self._tokens:
            start = time.perf_counter_ns()
            got = step(token)
            int(got.argmax())
            times.append((time.perf_counter_ns() - start) / 1e6)
            rows.append(got)
        self._compare(rows)
        return times

    def _compare(self, rows: Sequence[NDArray[np.float32]]) -> None:
        first = len(self._prompt) - 1
        for offset, (got, guarded) in enumerate(zip(rows, self._logits[first:], strict=True)):
            # Bits, not values: NaN differs from itself, and -0 equals 0.
            if got.tobytes() != guarded.tobytes():
                raise Rejected(
                    [
                        "the timed run computed something else than the guarded run: logits "
                        f"differ at position {first + offset}"
                    ]
                )


def _restart(decoder: Decoder, cache: Cache | None) -> None:
    decoder.reset()
    if cache is not None:
        decoder.fill_cache(*cache)


def _seeded_cache(decoder: Decoder, workload: Workload) -> Cache | None:
    """Keys and values of unit scale for the positions before the prompt, the same for a seed."""
    if not workload.depth:
        return None
    c = decoder.model.config
    rng = np.random.default_rng(workload.seed)
    shape = (c.layers, workload.depth, c.kv_heads, c.head_dim)
    keys, values = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    return keys, values
