"""Distances that only the guard needs, beside those of the stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.stages.distance import cosine, finite_or_none, rel_l2, require_same_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cosine", "finite_or_none", "rel_l2", "worst_row"]


def worst_row(
    candidate: NDArray[np.float64],
    reference: NDArray[np.float64],
    scale: NDArray[np.float64] | None = None,
) -> float:
    """Largest relative error of one row (one value over all positions).

    One wrong row of 2 048 moves the whole by 2 %; here it stands alone. The error is taken
    relative to the row's own length, or to the typical row's where that is larger: a row that
    happens to be near zero must not turn rounding into alarm.
    """
    require_same_shape(candidate, reference)
    if not np.isfinite(candidate).all():
        return float("inf")
    rows = np.linalg.norm(reference if scale is None else scale, axis=0)
    typical = float(np.sqrt(np.mean(rows**2)))
    errors = np.linalg.norm(candidate - reference, axis=0)
    if typical == 0:
        return 0.0 if not errors.any() else float("inf")
    return float(np.max(errors / np.maximum(rows, typical)))
