"""Figures out of samples. An empty or non-finite sample is an error, never a small number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def percentile(samples: Sequence[float], share: float) -> float:
    """``share`` percent of the samples are at or below it (linear between neighbours)."""
    return float(np.percentile(_checked(samples), share))


def median(samples: Sequence[float]) -> float:
    """Return the 50th percentile."""
    return percentile(samples, 50)


def relative_deviation(samples: Sequence[float]) -> float:
    """Sample standard deviation over the mean; infinite for fewer than two samples."""
    values = _checked(samples)
    if len(values) < 2:
        return float("inf")
    return float(values.std(ddof=1) / values.mean())


def _checked(samples: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if not values.size:
        raise ValueError("no samples")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("a sample is not a finite time above zero")
    return values
