"""What a sidecar vouches for: the figures of one benchmark, by the words that asv has for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from harness.contract.figures import FAMILY, derived_figures
from harness.contract.quantities import NotRecorded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.contract.evidence import Sidecar

STATISTICS = ("ci_99_a", "ci_99_b", "q_25", "q_75", "number", "repeat")


class Run(NamedTuple):
    """What figures are of: the words are the benchmark's name and the values of its parameters.

    ``environment`` is asv's, as the names of its files have it; empty where a sidecar tells none.
    """

    machine: str
    commit: str
    environment: str
    words: tuple[str, ...]


def find(sidecars: Mapping[Run, Sidecar], run: Run) -> Sidecar | None:
    """Return the sidecar of that run: of its environment, or else one that does not tell of any."""
    return sidecars.get(run) or sidecars.get(run._replace(environment=""))


def parts(sidecar: Sidecar) -> Iterator[tuple[Run, Sidecar]]:
    """What asv has a row of its own for: the sidecar, or each kernel family that it tells of.

    With the words that asv names it by: a family's name stands behind the benchmark's, unless it is
    the only one.
    """
    words, families = _words(sidecar.benchmark), sidecar.content.get("families")
    run = Run(sidecar.machine, sidecar.commit, sidecar.environment, words)
    if not isinstance(families, dict):
        yield run, sidecar
        return
    figures = sidecar.content.get("figures")
    for family, data in families.items():
        told = figures.get(family) if isinstance(figures, dict) else None
        content = {**sidecar.content, "schema": FAMILY, "family": data, "figures": told}
        name, *rest = words
        if len(families) > 1:
            run = run._replace(words=(name, family, *rest))
        yield run, replace(sidecar, content=content)


def vouched(sidecar: Sidecar) -> dict[str, dict[str, float]]:
    """Figures that a sidecar vouches for, with their statistics where they have any."""
    if not sidecar.sealed:
        try:
            derived = derived_figures(sidecar.content)
        except NotRecorded:
            return {}
        return {name: {"result": value} for name, value in derived.items()}
    figures = sidecar.content.get("figures")
    return {
        name: figure if isinstance(figure, dict) else {"result": figure}
        for name, figure in (figures if isinstance(figures, dict) else {}).items()
    }


def as_asv_rounds(value: float | None) -> float | None:
    """Round to five significant digits, as asv stores statistics (asv.util.truncate_float_list)."""
    return float(f"{value:.4e}") if isinstance(value, float) else value


def _words(benchmark: str) -> tuple[str, ...]:
    """``decode.X depth=0`` as ``("decode.X", "0")``: parameters by value alone, as asv has them."""
    name, *rest = benchmark.split()
    return name, *(word.rpartition("=")[2] for word in rest)
