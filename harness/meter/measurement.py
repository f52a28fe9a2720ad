"""A number and its evidence: neither exists without the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import Rejected
from harness.meter import statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

_ACCEPTED = object()


class Verdict(Protocol):
    """What the meter needs to know of a guard's verdict."""

    @property
    def accepted(self) -> bool:
        """Whether a number may be built on it."""

    @property
    def reasons(self) -> Sequence[str]:
        """Why not."""


class Evidence(Protocol):
    """What the meter needs to know of a guard's evidence."""

    @property
    def verdict(self) -> Verdict:
        """Accepted or rejected."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the sidecar."""


@dataclass(frozen=True)
class Measurement:
    """Samples with a unit and accepted evidence. ``accept`` is the only way to build one."""

    samples: tuple[float, ...]
    unit: str
    evidence: Evidence
    _token: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._token is not _ACCEPTED:
            raise TypeError("a Measurement is built by Measurement.accept alone")

    @classmethod
    def accept(cls, samples: Sequence[float], unit: str, evidence: Evidence) -> Measurement:
        """Build a measurement on accepted evidence.

        Raises
        ------
        Rejected
            Where the evidence is not accepted: the number does not exist.
        ValueError
            Without samples, or where one is no finite time.

        """
        if evidence.verdict.accepted is not True:
            raise Rejected(
                list(evidence.verdict.reasons) or ["rejected without a reason"], evidence.to_json()
            )
        statistics.median(samples)  # refuses what is no sample
        return cls(tuple(float(sample) for sample in samples), unit, evidence, _ACCEPTED)

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def p99(self) -> float:
        """The sample that 99 % are at or below."""
        return statistics.percentile(self.samples, 99)
