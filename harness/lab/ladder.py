"""The drift ladder: what each rounding choice does to a free-running pass, and what it costs.

Every numerics of a backend is a rung. It is held against two float64 references, neither of which
rounds anything but the cache, which it keeps as the rung does: one whose activations stay as they
are, and one that rounds them to ``q8_k``. The first tells how far a rung is from what the file
says; the second is the question that was once asked, of a CPU path that rounds them: what would
this change have bought? Nothing is replayed, so what a near-tie moves is in it.
"""

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
    from harness.numerics import Numerics
    from harness.reference import Oracle

FLOOR = 0.99
_PLAN = Plan(frozenset({"moe_ffn_out", "moe_router_indices"}))

# The step of the chain of pull requests that proposed each change (docs/lab.md).
STEPS = {
    "f64": "float64 accumulators",
    "softmax_f64": "float64 router softmax",
    "weighted_sum_f64": "float64 weighted sum",
    "swiglu_f64": "float64 SwiGLU",
    "kahan": "compensated sums",
    "chunked": "contiguous chunks",
    "quad": "the CPU's four accumulators",
    "stable_top_k": "top-k stable against epsilon",
    "q8_k": "the CPU's activation format",
    "i24": "24-bit fixed-point activations",
}


@dataclass(frozen=True)
class Track:
    """A free-running pass: by layer ``moe_ffn_out`` ``[positions, hidden]`` and expert sets."""

    moe: tuple[NDArray[np.float64], ...]
    sets: tuple[tuple[frozenset[int], ...], ...]
    argmax: tuple[int, ...]


@dataclass(frozen=True)
class Drift:
    """A track against another; ``cosines`` is the worst position of each layer."""

    cosines: tuple[float, ...]
    median_rel_l2: float
    swapped: int
    sets: int
    argmax_changed: int
    positions: int

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        worst = int(np.argmin(self.cosines))
        return {
            "worst_cosine": self.cosines[worst],
            "worst_layer": worst,
            "layers_below_floor": sum(value < FLOOR for value in self.cosines),
            "median_rel_l2": finite_or_none(self.median_rel_l2),
            "experts_swapped": self.swapped,
            "expert_sets": self.sets,
            "argmax_changed": self.argmax_changed,
            "positions": self.positions,
            "cosine_by_layer": list(self.cosines),
        }


@dataclass(frozen=True)
class Rung:
    """One numerics: its drifts by reference, its verdict, and its time only if that accepts."""

    numerics: Numerics
    drifts: dict[str, Drift]
    reasons: tuple[str, ...]
    judged: tuple[str, ...]
    microseconds: dict[str, object] | None

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        n = self.numerics
        return {
            "numerics": n.name,
            "change": STEPS.get(n.name, "none: plain float32"),
            "activation": n.activation,
            "accumulator": n.accumulator,
            "softmax": n.softmax,
            "weighted_sum": n.weighted_sum,
            "swiglu": n.swiglu,
            "top_k_epsilon": n.top_k_epsilon,
            "cache": n.cache,
            "drift": {name: drift.to_json() for name, drift in self.drifts.items()},
            "judged": list(self.judged),
            "verdict": {"accepted": not self.reasons, "reasons": list(self.reasons)},
            "us_per_token": self.microseconds,
        }


def decoder_track(decoder: Decoder, ids: Sequence[int]) -> Track:
    """Decode ``ids`` with a decoder, free-running."""
    decoder.reset()
    captures = [Capture(_PLAN) for _ in ids]
    rows = [decoder.step(token, seen) for token, seen in zip(ids, captures, strict=True)]
    return _track(captures, np.stack(rows), decoder.model.config.layers)


def oracle_track(oracle: Oracle, ids: Sequence[int]) -> Track:
    """Decode ``ids`` with an oracle, free-running, nothing replayed."""
    oracle.reset()
    run = oracle.run(ids, _PLAN)
    return _track(run.captures, run.logits, oracle.config.layers)


def drift(got: Track, truth: Track) -> Drift:
    """Compare two tracks over the same tokens."""
    pairs = list(zip(got.moe, truth.moe, strict=True))
    sets = [
        (mine, theirs)
        for a, b in zip(got.sets, truth.sets, strict=True)
        for mine, theirs in zip(a, b, strict=True)
    ]
    return Drift(
        cosines=tuple(float(np.nan_to_num(cosine(a, b), nan=-1.0).min()) for a, b in pairs),
        median_rel_l2=float(np.median([rel_l2(a, b) for a, b in pairs])),
        swapped=sum(mine != theirs for mine, theirs in sets),
        sets=len(sets),
        argmax_changed=sum(a != b for a, b in zip(got.argmax, truth.argmax, strict=True)),
        positions=len(got.argmax),
    )


def _track(captures: Sequence[Capture], logits: NDArray[np.floating], layers: int) -> Track:
    return Track(
        moe=tuple(
            np.stack([seen["moe_ffn_out", layer] for seen in captures]).astype(np.float64)
            for layer in range(layers)
        ),
        sets=tuple(
            tuple(
                frozenset(int(expert) for expert in seen["moe_router_indices", layer])
                for seen in captures
            )
            for layer in range(layers)
        ),
        # A row with NaN has no argmax: it agrees with nothing.
        argmax=tuple(int(row.argmax()) if np.isfinite(row).all() else -1 for row in logits),
    )
