"""The guard of a product kernel by itself: its rows against float64, before and after timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.guard.distance import finite_or_none, rel_l2, worst_row
from harness.guard.evidence import Finding, Verdict
from harness.reference.product import product

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from harness.model import QuantFormat
    from harness.numerics import Numerics


@dataclass(frozen=True)
class Product:
    """One weight matrix and the vector it is multiplied with.

    ``blocks`` is uint8 ``[rows, bytes]`` of ``format``; ``x`` is float32 ``[columns]``.
    """

    blocks: NDArray[np.uint8]
    format: QuantFormat
    x: NDArray[np.float32]


@dataclass(frozen=True)
class ProductEvidence:
    """What the guard saw of one kernel over all the products that it was given."""

    kernel: str
    numerics: str
    products: int
    findings: tuple[Finding, ...]
    verdict: Verdict
    ran: Mapping[str, object]

    @property
    def distance(self) -> float:
        """The worst finding's distance: above 1 the run is rejected."""
        return max(finding.distance for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the sidecar."""
        return {
            "schema": "moe-harness/kernel-guard/1",
            "verdict": self.verdict.to_json(),
            "kernel": self.kernel,
            "numerics": self.numerics,
            "reference": "float64, dequantise-then-multiply",
            "products": self.products,
            "findings": [
                {
                    "what": finding.what,
                    "value": finite_or_none(finding.value),
                    "limit": finding.limit,
                }
                for finding in self.findings
            ],
            "ran": dict(self.ran),
        }


def guard_products(
    kernel: str,
    numerics: Numerics,
    got: Sequence[NDArray[np.float32]],
    products: Sequence[Product],
    ran: Mapping[str, object],
) -> ProductEvidence:
    """Hold each result, float32 ``[rows]``, against its product; the numerics' limits apply.

    Raises
    ------
    ValueError
        Where the numbers of results and products differ, or there are none: not a comparison.

    """
    if not products or len(got) != len(products):
        raise ValueError(f"{len(got)} results of {len(products)} products: nothing to compare")
    limits = numerics.tolerance.forced
    whole, row = 0.0, 0.0
    for result, each in zip(got, products, strict=True):
        truth = product(each.blocks, each.format, each.x, numerics.activation)[None]
        whole = max(whole, float(rel_l2(result.astype(np.float64)[None], truth)[0]))
        row = max(row, worst_row(result.astype(np.float64)[None], truth))
    findings = (
        Finding("worst product's rel_l2", whole, limits.rel_l2),
        Finding("worst row's rel_l2", row, limits.row_rel_l2),
    )
    reasons = tuple(
        f"{f.what}: {f.value:.3g}, limit {f.limit:.3g}" for f in findings if f.distance > 1
    )
    return ProductEvidence(kernel, numerics.name, len(products), findings, Verdict(reasons), ran)
