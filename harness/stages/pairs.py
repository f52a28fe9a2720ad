"""One stage of two dumps, position by position: what ``diff`` and the falsifiers both stand on.

A stage file does not say where a position ends. ``moe_router`` does: the weights of a position sum
to 1, so that all of a file together sum to the number of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import BadInput
from harness.stages.distance import cosine, rel_l2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from harness.stages.aprt import Dump

# Weights in float32, of an implementation that may have renormalised them in float16.
_SUM_SLACK = 5e-3
# A row of these is as long as there are positions before it: they have no equal rows.
_RAGGED = ("attn_scores", "attn_softmax")


@dataclass(frozen=True)
class Distances:
    """Of one stage: ``[positions]`` each (one entry for the whole file of a ragged stage).

    ``reason`` says why there are none: values that are not finite, or do not come out even.
    """

    reason: str
    cosines: NDArray[np.float64]
    rel_l2s: NDArray[np.float64]
    max_abs: float


@dataclass(frozen=True)
class ExpertSets:
    """Which positions' expert sets differ: ``(position, only first, only second)``."""

    reason: str
    positions: int
    differ: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]


def positions_told(dump: Dump) -> int | None:
    """How many positions a dump holds, as its router weights tell; None where they do not.

    Raises
    ------
    BadInput
        Where two layers tell different numbers.

    """
    told: dict[int, int] = {}
    for (stage, layer), weights in dump.items():
        if stage == "moe_router" and layer is not None:
            count = _positions(weights)
            if count is None:
                return None
            told[layer] = count
    if len(set(told.values())) > 1:
        raise BadInput(
            f"moe_router tells {min(told.values())} positions in one layer and "
            f"{max(told.values())} in another; expected one prompt's stages in a dump"
        )
    return next(iter(told.values()), None)


def why_incomparable(
    first: NDArray[np.float32] | None, second: NDArray[np.float32] | None
) -> str | None:
    """Say why two files cannot be compared at all; None where they can."""
    if first is None or second is None:
        return f"absent in the {'first' if first is None else 'second'}"
    if first.shape != second.shape or not first.size:
        return f"{first.size} values against {second.size}"
    return None


def distances(
    stage: str, first: NDArray[np.float32], second: NDArray[np.float32], positions: int
) -> Distances:
    """Compare the values of two files of equal size; ``second`` is the reference."""
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.all():
        at = int(np.argmin(finite))
        return _none(f"not finite at {at}: {first[at]} against {second[at]}")
    if stage in _RAGGED:
        positions = 1
    if first.size % positions:
        return _none(f"{first.size} values are no {positions} positions")
    a, b = (values.astype(np.float64).reshape(positions, -1) for values in (first, second))
    return Distances("", cosine(a, b), rel_l2(a, b), float(np.abs(a - b).max()))


def expert_sets(
    first: NDArray[np.float32], second: NDArray[np.float32], positions: int
) -> ExpertSets:
    """Compare expert ids of two files of equal size as sets, position by position."""
    if first.size % positions:
        return ExpertSets(f"{first.size} ids are no {positions} positions", positions, ())
    a, b = (ids.reshape(positions, -1) for ids in (first, second))
    for which, rows in (("first", a), ("second", b)):
        for position, row in enumerate(rows):
            if not _is_set(row):
                told = f"the {which}'s ids at position {position} are no {row.size} experts: {row}"
                return ExpertSets(" ".join(told.split()), positions, ())
    return ExpertSets("", positions, tuple(_differing(a, b)))


def _differing(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    for position, rows in enumerate(zip(first, second, strict=True)):
        a, b = ({int(expert) for expert in row} for row in rows)
        if a != b:
            yield position, tuple(sorted(a - b)), tuple(sorted(b - a))


def _is_set(ids: NDArray[np.float32]) -> bool:
    whole = np.isfinite(ids) & (ids >= 0) & (ids == np.floor(ids))
    return bool(whole.all()) and len(np.unique(ids)) == ids.size


def _positions(weights: NDArray[np.float32]) -> int | None:
    if not weights.size or not np.isfinite(weights).all():
        return None
    count = round(float(weights.sum(dtype=np.float64)))
    if count < 1 or weights.size % count:
        return None
    sums = weights.astype(np.float64).reshape(count, -1).sum(axis=1)
    return count if bool((np.abs(sums - 1) <= _SUM_SLACK).all()) else None


def _none(reason: str) -> Distances:
    empty = np.empty(0)
    return Distances(reason, empty, empty, float("nan"))
