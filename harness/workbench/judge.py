"""The guard of a kernel of one's own: every output of every copy against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.guard.distance import finite_or_none, rel_l2, worst_row
from harness.guard.evidence import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from harness.workbench.declaration import Arrays, Declaration


@dataclass(frozen=True)
class LaunchEvidence:
    """What the guard saw of one kernel over all its copies.

    ``proof`` is the ``faults`` JSON of the same kernel, None where nothing was planted.
    """

    kernel: str
    copies: int
    findings: tuple[Finding, ...]
    verdict: Verdict
    ran: Mapping[str, object]
    proof: Mapping[str, object] | None = None

    @property
    def worst(self) -> Finding:
        """The finding that is farthest out."""
        return max(self.findings, key=lambda finding: finding.distance)

    @property
    def distance(self) -> float:
        """The worst finding's distance: above 1 the run is rejected."""
        return self.worst.distance

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the sidecar."""
        return {
            "schema": "moe-harness/own-kernel-guard/1",
            "verdict": self.verdict.to_json(),
            "kernel": self.kernel,
            "reference": "float64, of the declaration",
            "copies": self.copies,
            "findings": [
                {
                    "what": finding.what,
                    "value": finite_or_none(finding.value),
                    "limit": finding.limit,
                }
                for finding in self.findings
            ],
            "distance": finite_or_none(self.distance),
            "proof": None if self.proof is None else dict(self.proof),
            "ran": dict(self.ran),
        }


def judge(
    declaration: Declaration,
    results: Sequence[Arrays],
    truths: Sequence[Arrays],
    ran: Mapping[str, object],
) -> LaunchEvidence:
    """Hold each copy's outputs against its reference: shape, finiteness, whole, worst row.

    Raises
    ------
    ValueError
        Where the numbers of results and references differ, or there are none: no comparison.

    """
    if not results or len(results) != len(truths):
        raise ValueError(f"{len(results)} results of {len(truths)} references: nothing to compare")
    findings = tuple(
        finding
        for output in declaration.outputs
        for finding in _output(
            declaration,
            output,
            [result.get(output) for result in results],
            [truth[output] for truth in truths],
        )
    )
    reasons = tuple(
        f"{f.what}: {f.value:.3g}, limit {f.limit:.3g}" for f in findings if f.distance > 1
    )
    return LaunchEvidence(declaration.name, len(results), findings, Verdict(reasons), ran)


def _output(
    declaration: Declaration,
    output: str,
    results: Sequence[NDArray[Any] | None],
    truths: Sequence[NDArray[np.float64]],
) -> list[Finding]:
    shape, dtype = declaration.outputs[output]
    whole, row, misshapen, missing = 0.0, 0.0, 0, 0
    for result, truth in zip(results, truths, strict=True):
        if result is None or result.shape != tuple(shape) or result.dtype != np.dtype(dtype):
            misshapen += 1
            continue
        missing += int(result.size - np.isfinite(result).sum())
        got, expected = result.astype(np.float64).reshape(1, -1), truth.reshape(1, -1)
        whole = max(whole, float(rel_l2(got, expected)[0]))
        row = max(row, worst_row(got, expected))
    return [
        Finding(f"{output}: copies of another shape or type", misshapen, 0),
        Finding(f"{output}: values that are not finite", missing, 0),
        Finding(f"{output}: worst copy's rel_l2", whole, declaration.limits.rel_l2),
        Finding(f"{output}: worst row's rel_l2", row, declaration.limits.row),
    ]
