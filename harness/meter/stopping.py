"""When enough samples have been taken: nvbench's rule.

Source: NVIDIA/nvbench, ``detail/stdrel_criterion.cxx``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.meter.statistics import relative_deviation

if TYPE_CHECKING:
    from collections.abc import Sequence

CONVERGED, TIME_IS_UP = "converged", "time is up"


@dataclass(frozen=True)
class StoppingRule:
    """Stop once the noise is small, or the time is up; which of the two is recorded.

    Attributes
    ----------
    most_deviation
        Relative standard deviation to come under. Without it a noisy machine's figure is
        reported with the confidence of a quiet one's.
    least_seconds
        Of samples. A burst of a few equal samples, before the clocks settle, would end it early.
    least_samples
        Fewer have no meaningful deviation at all.
    time_out
        Seconds after which it ends all the same: a noisy machine never converges.

    """

    most_deviation: float = 0.005
    least_seconds: float = 0.5
    least_samples: int = 10
    time_out: float = 15.0

    def ends(self, samples_ms: Sequence[float], elapsed: float) -> str | None:
        """Say why to stop now, or None to go on.

        ``samples_ms`` are all samples so far, in milliseconds; ``elapsed`` are seconds of wall
        time since sampling began.
        """
        enough = (
            len(samples_ms) >= self.least_samples and sum(samples_ms) / 1000 >= self.least_seconds
        )
        if enough and relative_deviation(samples_ms) < self.most_deviation:
            return CONVERGED
        # At the time-out too a single sample would be no measurement.
        if elapsed >= self.time_out and len(samples_ms) >= self.least_samples:
            return TIME_IS_UP
        return None
