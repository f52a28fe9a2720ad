"""How a decoder rounds, and the tolerance that this deserves.

A tolerance belongs to a numerics (DESIGN.md, invariant 4); ``tests/guard`` proves that each
rejects every planted fault that its shapes can show.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import BadInput


@dataclass(frozen=True)
class Limits:
    """How far one pass may be from the oracle, at its worst layer and position.

    Attributes
    ----------
    rel_l2
        ``|candidate - oracle| / |oracle|`` of a stage's vector at one position.
    row_rel_l2
        The same for one row of a stage over all positions (``distance.worst_row``).
    router_weight
        Absolute difference of one router weight.
    logits_rel_l2
        As ``rel_l2``, of the logits.

    """

    rel_l2: float
    row_rel_l2: float
    router_weight: float
    logits_rel_l2: float


@dataclass(frozen=True)
class Tolerance:
    """Limits on the distance between a candidate and the oracle.

    Attributes
    ----------
    forced
        Limits of the teacher-forced pass.
    free
        Limits of the free-running pass; None: its drift is reported, not judged.
    tie_epsilon
        Relative error of a hidden state that this rounding may cause: two logits are a tie if
        they differ by at most ``tie_epsilon * |x| * |w_i - w_j|`` (Cauchy-Schwarz).
    tie_share
        Largest share of layer-positions, and of argmaxes, that may be ties (at least one may).
    cosine_floor
        The contract's floor, below which nothing is ever accepted.

    """

    forced: Limits
    free: Limits | None
    tie_epsilon: float
    tie_share: float
    cosine_floor: float = 0.99


@dataclass(frozen=True)
class Numerics:
    """A named way of rounding.

    ``activation`` is ``f32`` (activations stay float32) or ``q8_k`` (before a product with a
    K-quant tensor they are rounded to int8, scale max|x|/127 for each 256); ``accumulator`` is
    the order and width of a dot product's sums.
    """

    name: str
    activation: str
    accumulator: str
    tolerance: Tolerance


_NUMERICS = (
    Numerics(
        "f32",
        activation="f32",
        accumulator="quad",
        tolerance=Tolerance(
            forced=Limits(rel_l2=2e-5, row_rel_l2=1e-4, router_weight=2e-5, logits_rel_l2=2e-5),
            free=Limits(rel_l2=2e-4, row_rel_l2=1e-3, router_weight=2e-4, logits_rel_l2=2e-4),
            tie_epsilon=2e-5,
            tie_share=0.01,
        ),
    ),
    Numerics(
        "q8_k",
        activation="q8_k",
        accumulator="quad",
        tolerance=Tolerance(
            forced=Limits(rel_l2=3e-2, row_rel_l2=1e-1, router_weight=1e-2, logits_rel_l2=3e-2),
            free=None,
            tie_epsilon=3e-3,
            tie_share=0.1,
        ),
    ),
)
NUMERICS = {numerics.name: numerics for numerics in _NUMERICS}


def find_numerics(name: str) -> Numerics:
    """Look a numerics up by name; an unknown one is bad input that lists what exists."""
    if name not in NUMERICS:
        raise BadInput(f"numerics {name!r} is unknown, expected one of {', '.join(NUMERICS)}")
    return NUMERICS[name]
