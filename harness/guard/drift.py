"""Free-running drift of a rounding activation format, and what it is owed to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.distance import cosine, finite_or_none, rel_l2
from harness.stages import Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.reference import Oracle

_PLAN = Plan(frozenset({"moe_ffn_out"}))

# The format explains a drift if it causes at least half of it on its own.
_EXPLAINED = 0.5


@dataclass(frozen=True)
class Drift:
    """Worst cosine of ``moe_ffn_out`` by layer, and the median relative error over all.

    ``candidate_*`` is the candidate against the plain oracle; ``format_*`` the oracle that
    rounds activations as the candidate does, and computes the rest in float64, against it.
    ``against`` names that plain oracle; its cache is kept as the candidate's is.
    """

    candidate_cosine: list[float]
    format_cosine: list[float]
    candidate_rel_l2: float
    format_rel_l2: float
    against: str

    @property
    def attribution(self) -> str:
        """``activation format`` where that alone drifts as far, else ``unexplained``."""
        explained = (
            np.isfinite(self.candidate_rel_l2)
            and self.format_rel_l2 >= _EXPLAINED * self.candidate_rel_l2
        )
        return "activation format" if explained else "unexplained"

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "against": self.against,
            "candidate_worst_cosine": min(self.candidate_cosine),
            "candidate_cosine_by_layer": self.candidate_cosine,
            "candidate_median_rel_l2": finite_or_none(self.candidate_rel_l2),
            "format_alone_worst_cosine": min(self.format_cosine),
            "format_alone_cosine_by_layer": self.format_cosine,
            "format_alone_median_rel_l2": finite_or_none(self.format_rel_l2),
            "attributed_to": self.attribution,
        }


def measure_drift(candidate: Decoder, rounding: Oracle, plain: Oracle, ids: Sequence[int]) -> Drift:
    """Run all three free over ``ids``; ``rounding`` has the candidate's activation format."""
    runs = [_stage(candidate, _decoded(candidate, ids))]
    for oracle in (rounding, plain):
        oracle.reset()
        runs.append(_stage(oracle, oracle.run(ids, _PLAN).captures))
    cosines: list[list[float]] = []
    medians: list[float] = []
    for run in runs[:2]:
        pairs = list(zip(run, runs[2], strict=True))
        cosines.append([_worst_cosine(got, truth) for got, truth in pairs])
        medians.append(float(np.median([rel_l2(got, truth) for got, truth in pairs])))
    return Drift(cosines[0], cosines[1], medians[0], medians[1], plain.name)


def _worst_cosine(got: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Of all positions; -1 where either side is not finite."""
    return float(np.nan_to_num(cosine(got, truth), nan=-1.0).min())


def _decoded(decoder: Decoder, ids: Sequence[int]) -> list[Capture]:
    decoder.reset()
    captures = [Capture(_PLAN) for _ in ids]
    for token, capture in zip(ids, captures, strict=True):
        decoder.step(token, capture)
    return captures


def _stage(decoder: Decoder | Oracle, captures: Sequence[Capture]) -> list[NDArray[np.float64]]:
    """``moe_ffn_out`` of every layer, float64 ``[positions, hidden]``."""
    return [
        np.stack([capture["moe_ffn_out", layer] for capture in captures]).astype(np.float64)
        for layer in range(decoder.model.config.layers)
    ]
