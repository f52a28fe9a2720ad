"""What was measured, as sidecars tell, and asv's files do not have: taken out, or never put in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.asv_files import FILE, Tracked, read_tracked
from harness.contract.evidence import Damaged, Finding
from harness.contract.vouching import Run, vouched

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from harness.contract.evidence import Sidecar

_SHOWN = 3
_FILE_IS_GONE = "restore it, or measure again (asv run)"
_ROWS_ARE_GONE = (
    "restore the file; what a killed asv left out: python -m harness.history, and what that does "
    "not put in, measure again (asv run)"
)


@dataclass(frozen=True)
class AsvFile:
    """One of asv's files: whose it is, and what it has a figure or a hole for, by words.

    ``figures`` is None for a damaged one: nothing can be told of that.
    """

    path: Path
    machine: str
    commit: str
    environment: str
    figures: Mapping[tuple[str, ...], frozenset[str]] | None

    def of(self, run: Run) -> bool:
        """Whether the figures of that run belong in here."""
        same = (self.machine, self.commit) == (run.machine, run.commit)
        return same and run.environment in ("", self.environment)


def absent_figures(
    results: Path, sidecars: Mapping[Run, Sidecar], files: Sequence[AsvFile]
) -> list[Finding]:
    """Find what sound sidecars vouch for and none of asv's files has; one finding for a file."""
    measured = {run: told for run, each in sidecars.items() if (told := vouched(each))}
    sealed = [run for run in measured if sidecars[run].sealed]
    findings, tracked = _tracked(results, bool(sealed))
    gone: dict[Path, list[str]] = defaultdict(list)
    lacking: dict[Path, list[str]] = defaultdict(list)
    for run, told in measured.items():
        homes = [file for file in files if file.of(run)]
        if not homes:
            name = f"{run.commit}-{run.environment or '*'}.json"
            gone[results / run.machine / name].append(" ".join(run.words))
            continue
        expected = tracked.get(run.words, frozenset()) if sidecars[run].sealed else frozenset()
        missing = _missing(run, frozenset(told), expected, homes)
        if missing:
            lacking[homes[0].path].append(f"{' '.join(run.words)} ({', '.join(missing)})")
    for path, words in gone.items():
        what = f"is not there, and sidecars vouch for its figures: {_some(words)}; {_FILE_IS_GONE}"
        findings.append(Finding(path, what))
    for path, words in lacking.items():
        what = f"lacks figures that sidecars vouch for: {_some(words)}; {_ROWS_ARE_GONE}"
        findings.append(Finding(path, what))
    return findings


def _missing(
    run: Run, told: frozenset[str], expected: frozenset[str], homes: Iterable[AsvFile]
) -> list[str]:
    """Figures of one run that are in none of the files that they belong in.

    Asked for are those that asv tracks now (``expected``); where not one is there, all. A figure
    that was never tracked has no row, and what was tracked once is not known.
    """
    seen: set[str] = set()
    for file in homes:
        if file.figures is None:
            return []
        seen |= file.figures.get(run.words, frozenset())
    return sorted(told & expected - seen if seen else told)


def _tracked(
    results: Path, needed: bool
) -> tuple[list[Finding], Mapping[tuple[str, ...], frozenset[str]]]:
    """Read which figures asv tracks, by words; a finding where that cannot be told."""
    path = results / FILE
    try:
        return [], _by_words(read_tracked(path))
    except Damaged as error:
        what = f"{error}; restore it (asv run --bench just-discover)"
        return [Finding(path, what)] if needed or path.exists() else [], {}


def _by_words(tracked: Iterable[Tracked]) -> Mapping[tuple[str, ...], frozenset[str]]:
    found: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for each in tracked:
        for words in each.words:
            found[words].add(each.figure)
    return {words: frozenset(figures) for words, figures in found.items()}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more
