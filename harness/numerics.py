"""How a decoder rounds, and the tolerance that this deserves.

A tolerance belongs to a numerics (DESIGN.md, invariant 4); ``tests/guard`` proves that each
rejects every planted fault that its shapes can show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        Limits of the free-running pass; None: its drift is reported, not judged, and each of its
        layers is judged on its own input, by the limits of the forced pass.
    tie_epsilon
        Relative error of a hidden state that this rounding may cause: two logits are a tie if
        they differ by at most ``tie_epsilon * |x| * |w_i - w_j|`` (Cauchy-Schwarz).
    cache_epsilon
        Likewise of a head's key or value, in a float16 cache: the oracle keeps what the candidate
        keeps if something within ``cache_epsilon * |head|`` of its own rounds to it. 0: it never
        does.
    tie_share
        Largest share of layer-positions, of argmaxes and of cached values that may be the
        candidate's to decide (at least one may).
    cosine_floor
        The contract's floor, below which nothing is ever accepted.

    """

    forced: Limits
    free: Limits | None
    tie_epsilon: float
    tie_share: float
    cosine_floor: float = 0.99
    cache_epsilon: float = 0.0


@dataclass(frozen=True)
class Numerics:
    """A named way of rounding.

    Attributes
    ----------
    activation
        ``f32`` (activations stay float32), ``q8_k`` (before a product with a K-quant tensor they
        are rounded to int8, scale max|x|/127 for each 256) or ``i24`` (likewise to 24-bit fixed
        point, scale max|x|/8.3e6 for each 256: as fine as float32's own rounding of the sums).
    accumulator
        The order and width of a dot product's sums: ``f32`` (lanes in turn, then a warp's tree),
        ``f64``, ``kahan`` (compensated), ``chunked`` (contiguous), ``quad`` (four of eight lanes).
    cache
        What keys and values are kept in: ``f32`` or ``f16``.
    softmax, weighted_sum, swiglu
        ``f32`` or ``f64``: the router's softmax, the sum over experts, silu(gate) * up.
    top_k_epsilon
        0: exact top-k; above: experts within it of the last place are ranked by index.

    """

    name: str
    activation: str
    accumulator: str
    tolerance: Tolerance
    cache: str = "f32"
    softmax: str = "f32"
    weighted_sum: str = "f32"
    swiglu: str = "f32"
    top_k_epsilon: float = 0.0

    @property
    def oracle_activation(self) -> str:
        """What the oracle rounds activations to, to be held against; ``f32`` is not at all."""
        return "q8_k" if self.activation == "q8_k" else "f32"


_F32 = Tolerance(
    forced=Limits(rel_l2=2e-5, row_rel_l2=1e-4, router_weight=2e-5, logits_rel_l2=2e-5),
    free=Limits(rel_l2=2e-4, row_rel_l2=1e-3, router_weight=2e-4, logits_rel_l2=2e-4),
    tie_epsilon=2e-5,
    tie_share=0.01,
)
_Q8_K = Tolerance(
    forced=Limits(rel_l2=3e-2, row_rel_l2=1e-1, router_weight=1e-2, logits_rel_l2=3e-2),
    free=None,
    tie_epsilon=3e-3,
    tie_share=0.1,
)

# With a float16 cache, values that differ by one float32 rounding may be kept one float16 step
# (2^-10) apart: the oracle keeps float16 too, and replays what is near the middle of two steps
# (tests/guard/test_replay.py). What is left is float32's own rounding.
_F32_F16_CACHE = replace(_F32, cache_epsilon=_F32.tie_epsilon)

_CPU = (
    Numerics("f32", activation="f32", accumulator="quad", tolerance=_F32),
    Numerics("q8_k", activation="q8_k", accumulator="quad", tolerance=_Q8_K),
)


_PLAIN = Numerics("f32", "f32", accumulator="f32", tolerance=_F32_F16_CACHE, cache="f16")


_CUDA = (
    replace(_PLAIN, name="i24", activation="i24"),
    _PLAIN,
    *(replace(_PLAIN, name=name, accumulator=name) for name in ("f64", "kahan", "chunked", "quad")),
    replace(_PLAIN, name="softmax_f64", softmax="f64"),
    replace(_PLAIN, name="weighted_sum_f64", weighted_sum="f64"),
    replace(_PLAIN, name="swiglu_f64", swiglu="f64"),
    replace(_PLAIN, name="stable_top_k", top_k_epsilon=1e-5),
    replace(_PLAIN, name="q8_k", activation="q8_k", tolerance=_Q8_K),
)
NUMERICS = {numerics.name: numerics for numerics in _CPU}
CUDA_NUMERICS = {numerics.name: numerics for numerics in _CUDA}
_BY_BACKEND = {"cpu": NUMERICS, "cuda": CUDA_NUMERICS}


def numerics_of(backend: str) -> tuple[str, ...]:
    """Names of a backend's numerics, its default first."""
    return tuple(_BY_BACKEND.get(backend, ()))


def find_numerics(name: str | None, backend: str = "cpu") -> Numerics:
    """Look a backend's numerics up by name; without a name its first, which is its default.

    Raises
    ------
    BadInput
        For an unknown name; lists what exists.

    """
    known = _BY_BACKEND[backend]
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise BadInput(
            f"numerics {name!r} is unknown to the {backend} backend, expected one of "
            f"{', '.join(known)}"
        )
    return known[name]


def all_numerics(backend: str) -> tuple[Numerics, ...]:
    """Every numerics of a backend, its default first."""
    return tuple(_BY_BACKEND[backend].values())
