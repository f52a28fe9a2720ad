"""What float32 may do to a sum: the limits by which the laboratory judges a step.

A float32 sum of n terms rounds once at each addition, by at most ``UNIT`` times the partial sum.
Taken as independent of each other and of mean zero, these roundings add up to more than
``SURE * UNIT * sqrt(sum of squared partial sums)`` with a probability of at most
``2 exp(-SURE^2 / 2)`` = 3e-8 (Azuma and Hoeffding; for rounding: Higham and Mary 2019, "A new
approach to probabilistic rounding error analysis"). The partial sums are those of the terms in
turn, which is the longest chain that there is: lanes, chunks and trees round less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNIT = 2.0**-24  # float32 rounds by at most this, relative
SURE = 6.0
HALF = 2.0**13  # float16 rounds by this much more than float32

# exp, an addition, a division and a multiplication, each to within 2 units.
ELEMENTARY = 8.0


def sum_limit(terms: Floats) -> Floats:
    """How far a float32 sum over the last axis may be off; the terms are rounded products."""
    partial = np.cumsum(terms, axis=-1)
    squares = np.square(partial, out=partial).sum(-1) + np.square(terms).sum(-1)
    return np.asarray(SURE * UNIT * np.sqrt(squares))


def condition(terms: Floats) -> Floats:
    """Condition of a sum over the last axis: ``sum |terms| / |sum|``; infinite for a zero sum."""
    total = np.abs(terms.sum(-1))
    every = np.abs(terms).sum(-1)
    ratio: Floats = np.divide(every, total, out=np.full_like(every, np.inf), where=total > 0)
    return ratio
