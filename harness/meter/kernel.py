"""Measuring one kernel by itself: guarded, cold, and bit-equal afterwards to what was guarded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import Rejected
from harness.meter.commit import provenance
from harness.meter.instruments import HostInstruments
from harness.meter.lock import measuring
from harness.meter.measurement import Evidence, Measurement
from harness.meter.stopping import StoppingRule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray


class Kernel(Protocol):
    """A kernel with buffers to rotate over: ``copies`` of which the first ``distinct`` differ.

    Copy ``i`` holds what copy ``i % distinct`` holds. ``bytes`` are those that a launch reads.
    """

    name: str
    copies: int
    distinct: int
    bytes: int

    def launch(self, copy: int) -> None:
        """Run it on one copy, to the end."""

    def results(self, copy: int) -> Sequence[NDArray[np.float32]]:
        """Copy out what the last launch on that copy gave."""

    def ran(self) -> Mapping[str, object]:
        """Say what computes."""


@dataclass(frozen=True)
class KernelMeasurement:
    """Time per launch, microseconds, and the bytes that it moved."""

    time: Measurement
    bytes: int
    bandwidth: float
    stopped_by: str
    ran: dict[str, object]

    @property
    def bytes_per_second(self) -> float:
        """Of the median time."""
        return self.bytes / (self.time.median * 1e-6)

    def to_json(self) -> dict[str, Any]:
        """Return the sidecar's data."""
        return {
            "us": {
                "median": self.time.median,
                "p99": self.time.p99,
                "samples": list(self.time.samples),
                "stopped_by": self.stopped_by,
            },
            "bytes": self.bytes,
            "read_bandwidth": self.bandwidth,
            "roofline_fraction": self.bytes_per_second / self.bandwidth,
            "ran": self.ran,
            "evidence": self.time.evidence.to_json(),
        }


def measure_kernel(
    kernel: Kernel,
    check: Callable[[Kernel], Evidence],
    *,
    rule: StoppingRule | None = None,
) -> KernelMeasurement:
    """Launch on every copy, guard, time launch by launch, compare bits.

    ``check`` sees the results of the first ``distinct`` copies. After the timing every copy must
    hold the very bits of the one that it repeats.

    Raises
    ------
    Rejected
        Where the guard rejects, or a timed launch computed something else.

    """
    rule = rule or StoppingRule()
    with measuring("cpu"):
        for copy in range(kernel.copies):
            kernel.launch(copy)
        evidence = check(kernel)
        if not evidence.verdict.accepted:
            raise Rejected(list(evidence.verdict.reasons), evidence.to_json())
        guarded = [_bits(kernel, copy) for copy in range(kernel.distinct)]
        instruments = HostInstruments()
        samples_us: list[float] = []
        start, reason = time.monotonic(), None
        while reason is None:
            samples_us += instruments.undisturbed(lambda: _rotation(kernel))
            milliseconds = [sample / 1e3 for sample in samples_us]
            reason = rule.ends(milliseconds, time.monotonic() - start)
        for copy in range(kernel.copies):
            if _bits(kernel, copy) != guarded[copy % kernel.distinct]:
                raise Rejected(
                    [f"{kernel.name}: copy {copy} computed something else than was guarded"],
                    evidence.to_json(),
                )
        bandwidth = instruments.read_bandwidth()
    return KernelMeasurement(
        time=Measurement.accept(samples_us, "us", evidence),
        bytes=kernel.bytes,
        bandwidth=bandwidth,
        stopped_by=reason,
        ran={**kernel.ran(), "conditions": instruments.to_json(), **provenance()},
    )


def _rotation(kernel: Kernel) -> list[float]:
    """Launch on every copy in turn; microseconds of each."""
    samples = []
    for copy in range(kernel.copies):
        began = time.perf_counter_ns()
        kernel.launch(copy)
        samples.append((time.perf_counter_ns() - began) / 1e3)
    return samples


def _bits(kernel: Kernel, copy: int) -> bytes:
    return b"".join(result.tobytes() for result in kernel.results(copy))
