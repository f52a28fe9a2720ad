"""``python -m harness.workbench compile|check|prove|measure MODULE``: every kernel declared there.

Exit status 0 accepted or done, 1 rejected, 2 bad input or absent hardware.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput, Rejected
from harness.files import write_atomically
from harness.workbench.declaration import Declaration
from harness.workbench.rehearsal import compile_all, rehearse
from harness.workbench.run import check, measure, prove
from kernels.compiler import ARCHITECTURES, CompileError
from kernels.family import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Answer = tuple[bool, dict[str, Any], list[str]]  # accepted, JSON, lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command on every declaration of a module; the exit status."""
    arguments = _parser().parse_args(argv)
    run: Callable[[Declaration, argparse.Namespace], Answer] = _COMMANDS[arguments.command]
    try:
        answers = {each.name: run(each, arguments) for each in declarations(arguments.module)}
        _emit(answers, arguments.json)
    except (BadInput, CompileError) as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 2
    except Rejected as error:
        for reason in error.reasons:
            print(f"workbench: rejected: {reason}", file=sys.stderr)
        return 1
    return 0 if all(accepted for accepted, *_ in answers.values()) else 1


def declarations(module: str) -> list[Declaration]:
    """Every declaration among a module's names, such as ``examples.silu_gate.silu_gate``.

    Raises
    ------
    BadInput
        Where the module cannot be found or declares nothing.

    """
    try:
        names = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise BadInput(
            f"module {module}: {error}; write it as in an import, from the folder it is in"
        ) from None
    found = [value for value in names.values() if isinstance(value, Declaration)]
    if not found:
        raise BadInput(f"module {module} declares no kernel; expected a Declaration in it")
    return found


# -- commands --------------------------------------------------------------------------------


def _compile(declaration: Declaration, _arguments: argparse.Namespace) -> Answer:
    launches = rehearse(declaration)
    compiled = {arch: compile_all(declaration, arch) for arch in ARCHITECTURES}
    lines = [f"{launch.kernel}: grid {launch.grid}, block {launch.block}" for launch in launches]
    lines += [f"{arch}: {', '.join(names)}" for arch, names in compiled.items()]
    return True, {"compiled": compiled}, lines


def _check(declaration: Declaration, arguments: argparse.Namespace) -> Answer:
    evidence = check(declaration, _variant(declaration, arguments), arguments.device)
    verdict = "ACCEPTED" if evidence.verdict.accepted else "REJECTED"
    lines = [f"{f.what}: {f.value:.3g}, limit {f.limit:.3g}" for f in evidence.findings]
    lines.append(f"verdict: {verdict} over {evidence.copies} copies")
    return evidence.verdict.accepted, evidence.to_json(), lines


def _prove(declaration: Declaration, arguments: argparse.Namespace) -> Answer:
    proof = prove(declaration, device=arguments.device, progress=_progress)
    lines = [
        f"{len(proof.planted)} planted, {len(proof.planted) - len(proof.survivors)} rejected; "
        f"{len(proof.clean)} clean runs, {len(proof.false_rejections)} false rejections, worst "
        f"distance {max(proof.clean):.3g}"
    ]
    return proof.holds, proof.to_json(), lines


def _measure(declaration: Declaration, arguments: argparse.Namespace) -> Answer:
    measured = measure(declaration, _variant(declaration, arguments), arguments.device)
    rate = measured.bytes_per_second
    lines = [
        f"{measured.time.median:.3f} us median, {measured.time.p99:.3f} p99, "
        f"{len(measured.time.samples)} samples, {measured.stopped_by}",
        f"{measured.bytes / 1e6:.3f} MB read, {rate / 1e9:.1f} GB/s, "
        f"{100 * rate / measured.bandwidth:.1f} % of this GPU's read bandwidth",
        f"ran on {measured.ran['device']}, {measured.ran['copies']} copies",
        "verdict: ACCEPTED",
    ]
    return True, measured.to_json(), lines


_COMMANDS = {"compile": _compile, "check": _check, "prove": _prove, "measure": _measure}


def _variant(declaration: Declaration, arguments: argparse.Namespace) -> Variant:
    plant = arguments.plant
    if plant is not None and plant not in declaration.faults:
        raise declaration.bad(f"fault {plant!r}, expected one of {', '.join(declaration.faults)}")
    return replace(Variant(), plant=plant)


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _emit(answers: dict[str, Answer], path: Path | None) -> None:
    data = {"schema": "moe-harness/workbench/1", "kernels": {n: a[1] for n, a in answers.items()}}
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if path is not None and str(path) == "-":
        print(text, end="")
        return
    for name, (_, _, lines) in answers.items():
        print("\n".join(f"{name}: {line}" for line in lines))
    if path is not None:
        write_atomically(path, text)


def _parser() -> argparse.ArgumentParser:

    parser = argparse.ArgumentParser(prog="python -m harness.workbench", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("module", help="such as examples.silu_gate.silu_gate")
    parser.add_argument("--device", type=int, default=0, help="which GPU")
    parser.add_argument("--plant", help="a fault to plant, to see it rejected (check, measure)")
    parser.add_argument("--json", type=Path, help="where to write it; - is standard output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
