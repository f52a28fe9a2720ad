"""Seven hypotheses about a divergence, each put to a test that can falsify it.

They are those that were gone through, one pull request after the other, when a mixture-of-experts
forward pass came out otherwise on a GPU than on a CPU. A test reads local residuals
(``harness.lab.steps``): a precision hypothesis is CONFIRMED if its step is off by more than
float32 allows and by no more than float16 would explain; beyond that no precision explains it, and
the step is named among what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.distance import finite_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.guard.routing import Swap
    from harness.lab.steps import Choice, Reading, Residual
    from harness.model import Model

FALSIFIED, CONFIRMED, INCONCLUSIVE = "FALSIFIED", "CONFIRMED", "INCONCLUSIVE"

PRODUCTS = ("qkv_matmul", "attn_out", "ffn_gate", "ffn_up", "ffn_out", "lm_head")
_SWIGLU = ("ffn_silu", "ffn_swigl")
_EXPERTS = ("ffn_gate", "ffn_up", "ffn_out")


@dataclass(frozen=True)
class Finding:
    """What became of a hypothesis: ``measured`` beside the ``threshold`` it was judged by."""

    name: str
    status: str
    measured: float | None
    threshold: float | None
    words: str

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "hypothesis": self.name,
            "status": self.status,
            "measured": finite_or_none(self.measured),
            "threshold": finite_or_none(self.threshold),
            "words": self.words,
        }


@dataclass(frozen=True)
class Side:
    """What was found of one decoder: its steps, its choices of experts, other weights' readings."""

    name: str
    residuals: tuple[Residual, ...]
    choices: tuple[Choice, ...]
    readings: tuple[Reading, ...]

    def read(self, residual: Residual) -> bool:
        """Whether other weights explain that product."""
        return any(
            (r.residual.tensor, r.residual.expert) == (residual.tensor, residual.expert)
            for r in self.readings
        )

    def steps(self, *names: str) -> list[Residual]:
        """Residuals of those steps."""
        return [residual for residual in self.residuals if residual.step in names]


@dataclass(frozen=True)
class Case:
    """A divergence: both sides at the same places, and the expert sets of whole passes."""

    model: Model
    layers: tuple[int, ...]
    candidate: Side
    reference: Side
    swaps: tuple[Swap, ...]
    sets: int

    @property
    def sides(self) -> tuple[Side, Side]:
        """The candidate first: it is the one that is asked about."""
        return self.candidate, self.reference


def put_to_test(case: Case) -> list[Finding]:
    """Try every hypothesis, in the order in which they were once gone through."""
    return [test(name, case) for name, test in HYPOTHESES.items()]


def left_over(case: Case) -> list[str]:
    """Steps that are off and that no hypothesis is about, or that no precision explains."""
    left = []
    for side in case.sides:
        worst: dict[tuple[str, int | None], Residual] = {}
        for residual in side.residuals:
            covered = residual.half and residual.step in (
                *PRODUCTS,
                *_SWIGLU,
                "moe_router",
                "moe_ffn_out",
            )
            if residual.sound or covered or side.read(residual):
                continue
            key = residual.step, residual.layer
            if key not in worst or residual.error > worst[key].error:
                worst[key] = residual
        left += [
            f"{side.name}: {r.step} ({r.place}) is off by {r.error:.2e}, float32 allows "
            f"{r.limit:.1e}; " + ("" if r.half else "not even float16 explains it")
            for r in worst.values()
        ]
    return [line.removesuffix("; ") for line in left]


# -- the tests -------------------------------------------------------------------------------------


def _quant_types(name: str, case: Case) -> Finding:
    readings = [r for side in case.sides for r in side.readings if r.kind == "quant type"]
    if readings:
        first = readings[0]
        return Finding(
            name,
            CONFIRMED,
            first.error,
            first.limit,
            f"{first.residual.tensor} ({first.residual.place}) {first.words}: so read it fits to "
            f"{first.error:.1e}, by the file's type to {first.residual.error:.1e}",
        )
    unread = [
        residual
        for side in case.sides
        for residual in side.steps(*PRODUCTS)
        if not residual.sound and not residual.half and not side.read(residual)
    ]
    if unread:
        worst = max(unread, key=lambda residual: residual.error)
        return Finding(
            name,
            INCONCLUSIVE,
            worst.error,
            worst.limit,
            f"{worst.tensor} ({worst.place}) fits neither the file's type nor another one tried",
        )
    return _all_sound(name, case, PRODUCTS, f"{_types(case)}; every product fits its own tensor")


def _routing(name: str, case: Case) -> Finding:
    choices = [(side, choice) for side in case.sides for choice in side.choices]
    wrong = [(side, choice) for side, choice in choices if not choice.is_tie]
    if wrong:
        side, worst = max(wrong, key=lambda item: item[1].margin)
        return Finding(
            name,
            CONFIRMED,
            worst.margin,
            worst.bound,
            f"{side.name} takes {list(worst.took)} for {list(worst.dropped)} (layer {worst.layer}, "
            f"position {worst.position}), against its own logits",
        )
    others = [r for side in case.sides for r in side.readings if r.kind == "expert"]
    if others:
        first = others[0]
        return Finding(
            name,
            CONFIRMED,
            first.error,
            first.limit,
            f"{first.residual.step} ({first.residual.place}) {first.words}: with that one's "
            f"weights it fits to {first.error:.1e}",
        )
    if not case.swaps:
        return Finding(name, FALSIFIED, 0.0, 0.0, f"all {case.sets} expert sets are equal")
    worst_swap = max(case.swaps, key=lambda swap: swap.margin)
    ties = sum(swap.is_tie for swap in case.swaps)
    return Finding(
        name,
        FALSIFIED,
        worst_swap.margin,
        worst_swap.bound,
        f"{len(case.swaps)} of {case.sets} expert sets differ ({ties} ties), the widest margin at "
        f"layer {worst_swap.layer}, position {worst_swap.position}; but each side takes the best "
        "by its own logits: a consequence, no cause",
    )


def _precision(*steps: str) -> Callable[[str, Case], Finding]:
    """Test for steps whose precision is in question."""

    def test(name: str, case: Case) -> Finding:
        off = [
            (side, residual)
            for side in case.sides
            for residual in side.steps(*steps)
            if not residual.sound
        ]
        if not off:
            return _all_sound(name, case, steps, "float32 explains it")
        inside = [(side, residual) for side, residual in off if residual.half]
        side, worst = max(inside or off, key=lambda item: item[1].error)
        where = f"{side.name}: {worst.step} ({worst.place})"
        if inside:
            words = f"{where} is off by more than float32 allows, by no more than float16 would be"
            return Finding(name, CONFIRMED, worst.error, worst.limit, words)
        words = f"{where} is off by more than even float16 would be: not a matter of precision"
        return Finding(name, FALSIFIED, worst.error, worst.limit, words)

    return test


def _reduction(name: str, case: Case) -> Finding:
    off = [
        (side, residual)
        for side in case.sides
        for residual in side.steps(*PRODUCTS)
        if not residual.sound and not side.read(residual)
    ]
    inside = [(side, residual) for side, residual in off if residual.half]
    if inside:
        side, worst = max(inside, key=lambda item: _apart(item[1])[0])
        measured, threshold = _apart(worst)
        return Finding(
            name,
            CONFIRMED,
            measured,
            threshold,
            f"{side.name}: {worst.step}, {worst.tensor} ({worst.place}), has the right weights and "
            "sums them worse than any order of float32",
        )
    if off:
        side, worst = max(off, key=lambda item: item[1].error)
        measured, threshold = _apart(worst)
        return Finding(
            name,
            FALSIFIED,
            measured,
            threshold,
            f"{side.name}: {worst.step}, {worst.tensor} ({worst.place}), is off by more than even "
            "float16 sums would be: not a matter of order",
        )
    return _all_sound(name, case, PRODUCTS, "every sum is within what any order of float32 allows")


def _activation(name: str, case: Case) -> Finding:
    known, differ = 0, []
    for mine, theirs in _pairs(case):
        formats = [_formats(residual) for residual in (mine, theirs)]
        if all(formats):
            known += 1
            if not formats[0] & formats[1]:
                differ.append((mine, theirs))
    if differ:
        mine, theirs = max(differ, key=lambda pair: _other(*pair))
        return Finding(
            name,
            CONFIRMED,
            _other(mine, theirs),
            mine.limit,
            f"{len(differ)} of {known} products: {case.candidate.name} multiplies "
            f"{_words(mine)}, {case.reference.name} {_words(theirs)}; in the other's format "
            f"{mine.step} ({mine.place}) is off by {_other(mine, theirs):.1e}, in its own by "
            f"{min(mine.error, mine.rounded if mine.rounded is not None else np.inf):.1e}",
        )
    if not known:
        words = "no product of both sides fits either format"
        return Finding(name, INCONCLUSIVE, None, None, words)
    return _all_sound(name, case, PRODUCTS, f"both sides use one format in {known} products")


HYPOTHESES: dict[str, Callable[[str, Case], Finding]] = {
    "quant types differ": _quant_types,
    "routing diverges": _routing,
    "softmax precision": _precision("moe_router"),
    "weighted-sum precision": _precision("moe_ffn_out"),
    "SwiGLU precision": _precision(*_SWIGLU),
    "reduction order": _reduction,
    "activation format": _activation,
}


# -- what they share -------------------------------------------------------------------------------


def _all_sound(name: str, case: Case, steps: Sequence[str], words: str) -> Finding:
    """FALSIFIED, with the step that comes nearest to its limit; INCONCLUSIVE without any."""
    seen = [r for side in case.sides for r in side.steps(*steps) if r.sound]
    if not case.candidate.steps(*steps):
        return Finding(name, INCONCLUSIVE, None, None, f"no {' or '.join(steps)} could be judged")
    if not seen:
        return Finding(name, INCONCLUSIVE, None, None, "no step of it is sound")
    nearest = max(seen, key=lambda residual: _share(*_apart(residual)))
    measured, threshold = _apart(nearest)
    words = f"{words}; nearest to its limit: {nearest.step} ({nearest.place})"
    return Finding(name, FALSIFIED, measured, threshold, words)


def _share(value: float, limit: float) -> float:
    return value / limit if limit > 0 else 0.0


def _apart(residual: Residual) -> tuple[float, float]:
    """Error and limit in the format that fits better."""
    own = residual.error, residual.limit
    if residual.rounded is None or residual.rounded_limit is None:
        return own
    other = residual.rounded, residual.rounded_limit
    return min(own, other, key=lambda pair: pair[0])


def _pairs(case: Case) -> list[tuple[Residual, Residual]]:
    """The same product on both sides; of experts only those that both have chosen."""

    def key(r: Residual) -> tuple[object, ...]:
        return r.step, r.layer, r.position, r.tensor, r.expert

    theirs = {key(r): r for r in case.reference.steps(*PRODUCTS)}
    mine = case.candidate.steps(*PRODUCTS)
    return [(r, theirs[key(r)]) for r in mine if key(r) in theirs and r.rounded is not None]


def _formats(residual: Residual) -> set[str]:
    found = {"f32"} if residual.exact else set()
    return found | ({"q8_k"} if residual.rounds else set())


def _other(mine: Residual, theirs: Residual) -> float:
    """The candidate's error in the format of the reference."""
    return mine.error if theirs.exact else mine.rounded or 0.0


def _words(residual: Residual) -> str:
    return "activations as they are" if residual.exact else "activations rounded to q8_k"


def _types(case: Case) -> str:
    """Tensor types of the layers in question, beside how common they are among all layers."""
    c = case.model.config
    prefix = [f"blk.{layer}." for layer in range(c.layers)]
    types = [
        tuple(
            (tensor.name.removeprefix(start), tensor.format.name, tensor.shape)
            for name, tensor in case.model.tensors.items()
            if name.startswith(start)
        )
        for start in prefix
    ]
    alike = [types.count(types[layer]) for layer in case.layers]
    return "; ".join(
        f"layer {layer} has the types and shapes of {count - 1} others"
        for layer, count in zip(case.layers, alike, strict=True)
    )
