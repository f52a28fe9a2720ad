"""Distances between a candidate's values and a reference's. NaN never comes out small.

Every function takes float64 arrays ``[positions, values]`` and counts anything non-finite on the
candidate's side as infinitely far; shapes that differ, or an empty one, are a ``ValueError``. What
is not finite in the reference gives NaN, which is at no limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def finite_or_none(value: float | None) -> float | None:
    """Make a float that JSON can carry: None in place of NaN and infinities."""
    return None if value is None or not np.isfinite(value) else float(value)


def cosine(candidate: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each position, ``[positions]``; -1 where the candidate is not finite.

    Two zero vectors have cosine 1, a zero against a non-zero vector 0.
    """
    require_same_shape(candidate, reference)
    finite = np.asarray(np.isfinite(candidate).all(-1))
    safe = np.where(finite[:, None], candidate, 0.0)
    lengths = np.linalg.norm(safe, axis=-1) * np.linalg.norm(reference, axis=-1)
    dots = np.einsum("pv,pv->p", safe, reference)
    both_zero = ~safe.any(-1) & ~reference.any(-1)
    values = np.where(both_zero, 1.0, dots / np.where(lengths > 0, lengths, 1.0))
    return np.where(finite, values, -1.0)


def rel_l2(
    candidate: NDArray[np.float64],
    reference: NDArray[np.float64],
    scale: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """``|candidate - reference| / |scale|`` of each position, ``[positions]``.

    ``scale`` (``[positions, values]``) is the reference unless given. Infinite where the
    candidate is not finite, or where it differs from a reference of length zero.
    """
    require_same_shape(candidate, reference)
    finite = np.asarray(np.isfinite(candidate).all(-1))
    error = np.linalg.norm(np.where(finite[:, None], candidate - reference, 0.0), axis=-1)
    length = np.linalg.norm(reference if scale is None else scale, axis=-1)
    ratio = np.divide(error, length, out=np.full_like(error, np.inf), where=length > 0)
    ratio = np.where((length == 0) & (error == 0), 0.0, ratio)
    return np.where(finite, ratio, np.inf)


def require_same_shape(candidate: NDArray[np.float64], reference: NDArray[np.float64]) -> None:
    """Refuse what cannot be compared: shapes that differ, or nothing at all."""
    if candidate.shape != reference.shape or candidate.ndim != 2 or not candidate.size:
        raise ValueError(
            f"shapes {candidate.shape} and {reference.shape}: expected two equal, non-empty "
            "[positions, values]"
        )
