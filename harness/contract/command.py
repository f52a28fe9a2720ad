"""``moe-harness contract``: ``check`` judges from stored evidence, ``validate`` reads the file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from harness.contract.status import Judged, Report

    Emit = Callable[[argparse.Namespace, dict[str, object], Sequence[str]], None]
    Sources = Callable[[], Mapping[str, str]]

_CHECKOUT = Path(__file__).parents[2]
_FILE = Path("contracts") / "qwen3-moe-decode-gpu-v1.yaml"
_DONE, _NOT_MET, _BAD_INPUT = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("action", nargs="?", default="check", help="check (default) or validate")
    parser.add_argument(
        "contract", nargs="?", type=Path, metavar="FILE", help=f"a contract (default: {_FILE})"
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="stored evidence (default: asv's results)"
    )


def run(arguments: argparse.Namespace, emit: Emit, sources: Sources) -> int:
    """Run it; the exit status is 1 while a criterion is not met, 2 for a file that is none.

    ``sources`` tells the hashes of what computes now, by backend.
    """
    path = arguments.contract or _default()
    if arguments.action == "validate":
        return _validate(arguments, path, emit)
    if arguments.action != "check":
        raise BadInput(f"contract {arguments.action!r}, expected check or validate")
    return _check(arguments, path, emit, sources)


def _validate(arguments: argparse.Namespace, path: Path, emit: Emit) -> int:
    from harness.contract.schema import described, problems_of, read_contract  # noqa: PLC0415

    problems = problems_of(path)
    lines = [f"moe-harness: {' '.join(described(path, each).split())}" for each in problems]
    data: dict[str, object] = {
        "schema": "moe-harness/contract-validate/1",
        "contract": str(path),
        "valid": not problems,
        "problems": [vars(each) for each in problems],
    }
    if problems:
        if arguments.json is not None:
            emit(arguments, data, [])
        print("\n".join(lines), file=sys.stderr)
        return _BAD_INPUT
    contract = read_contract(path)
    counts = f"{len(contract.criteria)} criteria, {len(contract.falsifiers)} falsifiers"
    emit(arguments, data, [f"{path}: {contract.name} {contract.version}, {counts}"])
    return _DONE


def _check(arguments: argparse.Namespace, path: Path, emit: Emit, sources: Sources) -> int:
    from harness.contract.integrity import read_results  # noqa: PLC0415
    from harness.contract.schema import read_contract  # noqa: PLC0415
    from harness.contract.status import judge  # noqa: PLC0415
    from harness.settings import settings  # noqa: PLC0415

    contract = read_contract(path)
    results = arguments.results or settings().results
    if not results.is_dir():
        raise BadInput(f"{results} is no folder; expected asv's results, or --results DIR")
    report = judge(contract, read_results(results), sources())
    emit(arguments, report.to_json(), _lines(report))
    return _DONE if report.holds else _NOT_MET


def _lines(report: Report) -> list[str]:
    lines = [f"{report.contract.name} {report.contract.version}"]
    for judged in report.judged:
        lines += _criterion_lines(judged)
    lines += [f"CHANGED {each.path}: {each.what}" for each in report.findings]
    states = [judged.status.value for judged in report.judged]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines.append(
        f"{report.sealed} sealed sidecars, {report.unsealed} unsealed, {report.asv_files} files of "
        f"asv, {len(report.findings)} changed"
    )
    lines.append(f"{len(states)} criteria: {counted}")
    return lines


def _criterion_lines(judged: Judged) -> list[str]:
    criterion = judged.criterion
    words = criterion.comparison.replace("_", " ")
    asked = f"{criterion.quantity} {words} {criterion.limit:g}"
    return [
        f"{criterion.ident} {judged.status.value:<12} {criterion.title} ({asked})",
        *(f"    {each.subject}: {each.status.value}: {each.why}" for each in judged.judgements),
    ]


def _default() -> Path:
    """The project's own contract, where this runs from a checkout; else that of the folder."""
    here = _CHECKOUT / _FILE
    return here if here.is_file() else _FILE
