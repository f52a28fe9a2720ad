"""Values to places on the paper, and the round values that are written beside an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SAME = 1e-6  # of the larger value: what differs by less would be written alike
_SLACK = 1e-9  # of a step: rounding makes no tick more


@dataclass(frozen=True)
class Scale:
    """Places ``low`` at ``start`` and ``high`` at ``stop`` (pixels), what is between in between."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; above 0 on a logarithmic scale."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start + (at - low) / (high - low) * (self.stop - self.start)


def round_ticks(low: float, high: float) -> list[float]:
    """Three to seven round values, the first at most ``low`` and the last at least ``high``.

    Where the two are the same, from 0 on.
    """
    if high - low <= _SAME * max(abs(low), abs(high)):
        low, high = min(low, 0.0), max(high, 0.0)
    rough = (high - low) / 4 or 0.25
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step * magnitude for step in (1, 2, 2.5, 5, 10) if step * magnitude >= rough)
    first, last = math.floor(low / step + _SLACK), math.ceil(high / step - _SLACK)
    if first == last:  # both 0
        last += 4
    return [step * index for index in range(first, last + 1)]


def powers(low: float, high: float) -> range:
    """Powers of ten around a range of values above 0: one decade at least."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return range(first, max(last, first + 1) + 1)


def few(whole: range, most: int) -> range:
    """At most that many of them, evenly, the first among them."""
    return whole[:: max(1, -(-len(whole) // most))]
