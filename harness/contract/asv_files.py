"""asv's own files under results/: what it tracks (``benchmarks.json``), and rows of figures."""

from __future__ import annotations

import ast
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.contract.evidence import Damaged, read_json

if TYPE_CHECKING:
    from pathlib import Path

FILE = "benchmarks.json"
MOST_COMBINATIONS = 10_000
_METHOD = "track_"
_COMMIT_DIGITS = 8  # of the hash, in the names of result files


@dataclass(frozen=True)
class Tracked:
    """One ``track_*``: its whole name, its version, and ``params`` as asv has them, by ``repr``."""

    name: str
    version: str
    params: list[list[str]]

    @property
    def figure(self) -> str:
        """What it tracks: ``ms_per_token``."""
        return self.name.rpartition(".")[2].removeprefix(_METHOD)

    @property
    def words(self) -> list[tuple[str, ...]]:
        """The benchmark with each combination of its parameters: ``("decode.X", "0")``."""
        owner = self.name.rpartition(".")[0]
        return [(owner, *map(plain, each)) for each in itertools.product(*self.params)]


def read_tracked(path: Path) -> list[Tracked]:
    """Read asv's list; what is timed or tracked by others than this project's classes is left out.

    Raises
    ------
    Damaged
        Where it is not as asv writes it; the message does not name the file.

    """
    return [
        _tracked(name, each)
        for name, each in read_json(path).items()
        if name != "version" and name.rpartition(".")[2].startswith(_METHOD)
    ]


def _tracked(name: str, data: object) -> Tracked:
    told: dict[str, Any] = data if isinstance(data, dict) else {}
    version, params = told.get("version"), told.get("params")
    if (
        not isinstance(version, str)
        or not isinstance(params, list)
        or not all(isinstance(each, list) for each in params)
        or not all(isinstance(value, str) for each in params for value in each)
    ):
        raise Damaged(f"{name}: no benchmark of asv's (a version, lists of parameters)")
    if math.prod(map(len, params)) > MOST_COMBINATIONS:
        raise Damaged(f"{name}: more than {MOST_COMBINATIONS} combinations of parameters")
    return Tracked(name, version, params)


def result_paths(results: Path) -> list[Path]:
    """All result files under ``results/``: ``<machine>/<commit>-<environment>.json``."""
    return [path for path in sorted(results.glob("*/*.json")) if path.name != "machine.json"]


def result_rows(path: Path, data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rows by benchmark, and what their columns are, of a result file that was read.

    Raises
    ------
    Damaged
        Where it is none, or of another commit than its name says.

    """
    commit = str(data.get("commit_hash", ""))[:_COMMIT_DIGITS]
    if len(commit) < _COMMIT_DIGITS or not path.name.startswith(f"{commit}-"):
        raise Damaged(f"commit_hash {commit!r} is not the one in its name")
    rows, columns = data.get("results"), data.get("result_columns")
    if (
        not isinstance(rows, dict)
        or not isinstance(columns, list)
        or not all(isinstance(column, str) for column in columns)
        or "result" not in columns
    ):
        raise Damaged("no result file of asv (no results by columns)")
    return rows, columns


def plain(value: object) -> str:
    """Read a parameter, of which asv stores the ``repr``."""
    try:
        return str(ast.literal_eval(str(value)))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return str(value)
