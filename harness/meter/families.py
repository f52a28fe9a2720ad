"""Measuring kernel families by themselves: on a guarded decode, in the place of its last token."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import Rejected
from harness.meter.decode import restart, seeded_cache, what_ran
from harness.meter.lock import measuring
from harness.meter.measurement import Measurement
from harness.meter.stopping import StoppingRule
from harness.meter.traffic import family_traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.decoder import Decoder, FamilyClock, FamilyTimed
    from harness.meter.decode import Cache, DecodeEvidence, Workload
    from harness.meter.instruments import Instruments

_REPEATS = 10  # between two looks at the device
# There are many families. The step before each sample keeps the clocks up, so that few samples need
# no half second to settle.
_DEFAULT_RULE = StoppingRule(least_seconds=0.02, time_out=0.3)


@dataclass(frozen=True)
class FamilyTime:
    """Time of a family's launches, microseconds each.

    ``launches`` and ``bytes`` are those of one token: all layers together. ``read_before`` are
    bytes of other weights, by family, that were read last before each sample.
    """

    time: Measurement
    launches: int
    bytes: int
    read_before: dict[str, int]
    stopped_by: str

    @property
    def bytes_per_second(self) -> float | None:
        """Of the median time; None of a family that reads nothing that counts."""
        return self.bytes / (self.launches * self.time.median * 1e-6) if self.bytes else None


@dataclass(frozen=True)
class FamiliesMeasurement:
    """Times of kernel families on one guarded decode, and what says what they were taken on."""

    families: Mapping[str, FamilyTime]
    workload: Workload
    evidence: DecodeEvidence
    bandwidth: float
    conditions: dict[str, Any]
    ran: dict[str, object]

    def roofline_fraction(self, family: str) -> float | None:
        """Bytes that a family moves per second, as a share of the measured read bandwidth."""
        moved = self.families[family].bytes_per_second
        return None if moved is None else moved / self.bandwidth

    def to_json(self) -> dict[str, Any]:
        """Return the sidecar's data."""
        evidence = self.evidence.to_json()
        return {
            "schema": "moe-harness/families/1",
            "workload": vars(self.workload),
            "depth_source": "seeded cache" if self.workload.depth else "none",
            "families": {
                name: {
                    "us": {
                        "median": family.time.median,
                        "p99": family.time.p99,
                        "samples": list(family.time.samples),
                        "stopped_by": family.stopped_by,
                    },
                    "launches_per_token": family.launches,
                    "bytes_per_token": family.bytes,
                    "bytes_per_second": family.bytes_per_second,
                    "roofline_fraction": self.roofline_fraction(name),
                    "bytes_read_before": family.read_before,
                }
                for name, family in self.families.items()
            },
            "conditions": self.conditions,
            "read_bandwidth": self.bandwidth,
            "ran": self.ran,
            "verdict": evidence["verdict"],
            "evidence": evidence,
        }


def measure_families(
    decoder: FamilyTimed,
    workload: Workload,
    families: Sequence[str],
    check: Callable[[Decoder, Sequence[int], Cache | None], DecodeEvidence],
    *,
    instruments: Instruments,
    rule: StoppingRule | None = None,
) -> FamiliesMeasurement:
    """Guard the prompt, time families in the place of its last token, decode it once more.

    No tokens are decoded behind the prompt: ``workload.tokens`` is 0. A sample is the time of all
    of a family's launches in one token, over their number. ``rule`` holds for each family. A family
    that a token does not launch in this numerics is left out.

    Raises
    ------
    Rejected
        Where the guard rejects; where the step that is repeated before each sample, or the prompt
        decoded before and after all of them, has other logits than were guarded; where a family's
        last launches leave other bits than its first ones.
    BadInput
        Where the device is being measured by another process, or disturbed throughout.
    KeyError
        For a family that there is not.
    ValueError
        For a workload that decodes tokens.

    """
    if workload.tokens:
        raise ValueError(f"{workload.tokens} tokens to decode, expected 0: the prompt is the place")
    rule = rule or _DEFAULT_RULE
    with measuring(decoder.device_id):
        cache = seeded_cache(decoder, workload)
        evidence = check(decoder, workload.prompt, cache)
        if not evidence.verdict.accepted:
            raise Rejected(list(evidence.verdict.reasons), evidence.to_json())
        restart(decoder, cache)
        del cache
        _repeat_guarded(decoder, workload, evidence)
        with closing(decoder.family_clock(workload.prompt[-1])) as clock:
            if clock.logits().tobytes() != evidence.candidate_logits[-1].tobytes():
                raise Rejected(
                    ["the step that is repeated before a family has other logits than guarded"],
                    evidence.to_json(),
                )
            launches, read_before = dict(clock.launches), dict(clock.read_before)
            timed = {
                name: _timed(clock, name, evidence, instruments, rule)
                for name in families
                if launches.get(name) != 0
            }
        _repeat_guarded(decoder, workload, evidence)
        bandwidth = instruments.read_bandwidth()
    launched = [name for name, count in launches.items() if count]
    traffic = family_traffic(decoder.model, workload.depth + len(workload.prompt), launched)
    return FamiliesMeasurement(
        families={
            name: FamilyTime(
                Measurement.accept([1e3 * ms / launches[name] for ms in samples], "us", evidence),
                launches[name],
                traffic.terms[name],
                {read_before[name]: traffic.terms[read_before[name]]},
                stopped_by,
            )
            for name, (samples, stopped_by) in timed.items()
        },
        workload=workload,
        evidence=evidence,
        bandwidth=bandwidth,
        conditions=instruments.to_json(),
        ran=what_ran(decoder),
    )


def _timed(
    clock: FamilyClock,
    family: str,
    evidence: DecodeEvidence,
    instruments: Instruments,
    rule: StoppingRule,
) -> tuple[list[float], str]:
    """Milliseconds of each replay, and why sampling ended."""
    clock.milliseconds(family, 1)  # warm-up
    first = clock.left()
    samples: list[float] = []
    start, reason = time.monotonic(), None
    while reason is None:
        samples += instruments.undisturbed(lambda: clock.milliseconds(family, _REPEATS))
        reason = rule.ends(samples, time.monotonic() - start)
    if clock.left() != first:
        raise Rejected(
            [f"{family}: its last launches left other bits than its first ones"],
            evidence.to_json(),
        )
    return samples, reason


def _repeat_guarded(decoder: Decoder, workload: Workload, evidence: DecodeEvidence) -> None:
    """Decode the guarded prompt again; every row of logits must be the guarded one, bit by bit."""
    decoder.rewind(workload.depth)
    for index, token in enumerate(workload.prompt):
        if decoder.step(token).tobytes() != evidence.candidate_logits[index].tobytes():
            raise Rejected(
                [
                    "the decoder whose kernels are timed computed something else than the guarded "
                    f"run: logits differ at position {workload.depth + index}"
                ],
                evidence.to_json(),
            )
