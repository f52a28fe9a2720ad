"""From evidence to a verdict: every quantity beside its limit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.evidence import Finding, PassEvidence, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from harness.numerics import Limits, Tolerance


# A row of the embedding is dequantised, no more: float32 rounds each value a few times.
_ENTERED = 1e-6


def judge(
    tolerance: Tolerance,
    free: PassEvidence | None,
    forced: PassEvidence | None,
    *,
    oracle_finite: bool,
    entered: NDArray[np.float64] | None = None,
    own: PassEvidence | None = None,
    handed_on: int | None = None,
) -> tuple[tuple[Finding, ...], Verdict]:
    """Judge the passes given; a pass that is None is not judged.

    Returns every finding (the worst of its kind, with the layer and position), and the verdict:
    rejected for each finding beyond its limit, and where there is nothing to judge. ``entered`` is
    the error of what entered the first layer, free-running, ``[positions]``: a teacher-forced pass
    does not show it, and it is judged where that pass alone is, too. ``own`` is the free-running
    pass again, each layer held against what it should have made of its own input; ``handed_on`` are
    values of such inputs that are not what the layer above gave.
    """
    findings: list[Finding] = []
    if entered is not None:
        findings.append(_worst("embedding rel_l2", entered, _ENTERED))
    if handed_on is not None:
        findings.append(Finding("values changed between two layers", handed_on, 0.0))
    for name, seen, limits in (
        ("free-running", free, tolerance.free),
        ("free-running, by layer,", own, tolerance.forced),
        ("teacher-forced", forced, tolerance.forced),
    ):
        if seen is not None and limits is not None:
            findings.extend(_numbers(name, seen, limits, tolerance))
            findings.extend(_choices(name, seen, tolerance))
    if not oracle_finite:
        findings.append(Finding("oracle's logits are not finite", math.inf, 0.0))
    if not findings:
        return (Finding("nothing was compared", math.inf, 0.0),), Verdict(("nothing was compared",))
    reasons = tuple(
        f"{f.what}: {f.value:.3g}, limit {f.limit:.3g}"
        for f in sorted(findings, key=lambda finding: -finding.distance)
        if f.distance > 1
    )
    return tuple(findings), Verdict(reasons)


def _numbers(
    name: str, seen: PassEvidence, limits: Limits, tolerance: Tolerance
) -> Iterator[Finding]:
    cached = sorted(seen.cached_rel_l2.items())
    for what, values, limit in (
        ("moe_ffn_out rel_l2", seen.moe_rel_l2, limits.rel_l2),
        ("post_attn_residual rel_l2", seen.attention_rel_l2, limits.rel_l2),
        ("post_ffn_residual rel_l2", seen.residual_rel_l2, limits.rel_l2),
        ("router weight difference", seen.router_weight, limits.router_weight),
        ("1 - moe_ffn_out cosine", 1 - seen.moe_cosine, 1 - tolerance.cosine_floor),
        ("final_norm rel_l2", seen.final_norm_rel_l2, limits.logits_rel_l2),
        ("logits rel_l2", seen.logits_rel_l2, limits.logits_rel_l2),
        ("moe_ffn_out row rel_l2", seen.moe_row, limits.row_rel_l2),
        ("post_attn_residual row rel_l2", seen.attention_row, limits.row_rel_l2),
        ("logits row rel_l2", np.array(seen.logits_row), limits.row_rel_l2),
        *((f"cached {what} rel_l2", errors, limits.rel_l2) for what, errors in cached),
    ):
        yield _worst(f"{name} {what}", values, limit)


def _worst(what: str, values: NDArray[np.float64], limit: float) -> Finding:
    """Find the worst of an array ``[layers, positions]``, ``[layers]``, ``[positions]`` or ``[]``.

    NaN counts as the worst there is: ``max`` alone may drop it.
    """
    ranked = np.where(np.isnan(values), np.inf, values)
    index = np.unravel_index(int(np.argmax(ranked)), ranked.shape)
    beyond = int((ranked.reshape(len(ranked), -1) > limit).any(1).sum()) if ranked.ndim else 0
    if ranked.ndim == 2:
        what += f", worst at layer {index[0]}, position {index[1]}"
        if beyond:
            what += f" ({beyond} of {len(ranked)} layers beyond)"
    elif ranked.ndim == 1:
        what += f", worst at {'layer' if 'row' in what else 'position'} {index[0]}"
    return Finding(what, float(ranked[index]), limit)


def _choices(name: str, seen: PassEvidence, tolerance: Tolerance) -> Iterator[Finding]:
    """Judge expert sets and argmaxes: faults one by one, ties by their number."""
    faults = [swap for swap in seen.swaps if not swap.is_tie]
    for swap in sorted(faults, key=lambda swap: -swap.margin)[:3]:
        yield Finding(
            f"{name} expert set at layer {swap.layer}, position {swap.position} takes "
            f"{list(swap.only_candidate)} for {list(swap.only_reference)} "
            f"({len(faults)} such): routing margin",
            swap.margin,
            swap.bound,
        )
    ties = len(seen.swaps) - len(faults)
    yield Finding(f"{name} routing ties", ties, _allowed(tolerance, seen.moe_cosine.size))
    wrong = [entry for entry in seen.argmax_margins if not entry[3] <= entry[4]]
    for position, took, best, margin, bound in sorted(wrong, key=lambda entry: -entry[3])[:3]:
        yield Finding(
            f"{name} argmax at position {position} is {took}, the oracle's is {best} "
            f"({len(wrong)} such): margin",
            margin,
            bound,
        )
    if seen.cached_values:
        yield Finding(
            f"{name} cached values replayed",
            seen.cached_replayed,
            _allowed(tolerance, seen.cached_values),
        )
    positions = len(seen.logits_rel_l2)
    yield Finding(f"{name} argmax ties", seen.argmax_ties, _allowed(tolerance, positions))


def _allowed(tolerance: Tolerance, places: int) -> int:
    """Decisions by rounding allowed among ``places``: a share, rounded up: one never condemns."""
    return math.ceil(tolerance.tie_share * places)
