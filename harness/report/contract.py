"""The seam to the contract: what the page shows of its criteria, and where it gets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Criterion:
    """One criterion, judged: ``met``, ``failed``, or ``open`` where there is no evidence yet."""

    name: str
    demand: str
    state: Literal["met", "failed", "open"]
    found: str


@dataclass(frozen=True)
class Contract:
    """A contract's name, the state it has by its criteria, and those."""

    name: str
    state: str
    criteria: tuple[Criterion, ...]


def judged_contracts(results: Path) -> list[Contract]:
    """Judge every contract beside ``results`` by the evidence in it; empty: no contract is there.

    There is no reader of contracts in this tree yet; the page says that no contract is there.
    """
    del results
    return []
