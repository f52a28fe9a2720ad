"""``moe-harness COMMAND``: the commands, thin.

Exit status 0 accepted or done, 1 rejected, 2 bad input or absent hardware.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__, cli_lab
from harness.cli_profile import add_options
from harness.errors import BadInput, Rejected
from harness.meter.commit import provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.model import Model
    from harness.stages import Capture

_ACCEPTED, _REJECTED, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130
_CLEAN_RUNS = 20
_FAULT_POSITIONS = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. No traceback for what a user did."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except BadInput as error:
        print(f"moe-harness: {error}", file=sys.stderr)
        return _BAD_INPUT
    except Rejected as error:
        for reason in error.reasons:
            print(f"moe-harness: rejected: {reason}", file=sys.stderr)
        return _REJECTED
    except KeyboardInterrupt:
        print("moe-harness: interrupted; nothing half-written is left", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # `| head` closed our output: not an error, but nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _ACCEPTED


# -- commands --------------------------------------------------------------------------------


def _synth(arguments: argparse.Namespace) -> int:
    from harness.model.synth import synthesise  # noqa: PLC0415 - commands load what they need

    out = synthesise(arguments.preset, arguments.out, seed=arguments.seed, progress=_bytes_done)
    model = _open(out)
    size = out.stat().st_size
    _emit(
        arguments,
        {
            "schema": "moe-harness/synth/1",
            "preset": arguments.preset,
            "seed": arguments.seed,
            "path": str(out),
            "bytes": size,
            "fingerprint": model.fingerprint,
        },
        [f"{out}: {size:,} bytes, {model.fingerprint}"],
    )
    return _ACCEPTED


def _tensors(arguments: argparse.Namespace) -> int:
    model = _open(arguments.model)
    prefix = ""
    if arguments.layer is not None:
        if not 0 <= arguments.layer < model.config.layers:
            raise BadInput(
                f"layer {arguments.layer} does not exist, expected 0 to {model.config.layers - 1}"
            )
        prefix = f"blk.{arguments.layer}."
    tensors = [t for name, t in model.tensors.items() if name.startswith(prefix)]
    total = sum(tensor.nbytes for tensor in tensors)
    lines = [
        f"{t.name:<34} {t.format.name:<5} {' x '.join(map(str, t.shape)):>20} {t.nbytes:>16,}"
        for t in tensors
    ]
    lines.append(f"{len(tensors)} tensors {total:>69,}")
    _emit(
        arguments,
        {
            "schema": "moe-harness/tensors/1",
            "model": str(model.path),
            "fingerprint": model.fingerprint,
            "config": vars(model.config),
            "tensors": [
                {"name": t.name, "type": t.format.name, "shape": t.shape, "bytes": t.nbytes}
                for t in tensors
            ],
            "bytes": total,
        },
        lines,
    )
    return _ACCEPTED


def _decode(arguments: argparse.Namespace) -> int:
    from harness.model.prompts import parse_prompt  # noqa: PLC0415
    from harness.suite import guarded_decode  # noqa: PLC0415
    from harness.tables import decode_lines  # noqa: PLC0415

    model = _open(arguments.model)
    prompt = parse_prompt(_prompt(arguments, model), model)
    if arguments.batch > 1:
        return _decode_batch(arguments, model, prompt)
    data = guarded_decode(
        model,
        prompt,
        backend=arguments.backend,
        numerics=arguments.numerics,
        device=arguments.device,
        tokens=arguments.tokens,
        depth=arguments.depth,
    ).to_json()
    data["text"] = _text(model, [*prompt, *_ints(data["tokens"])])
    _emit(arguments, data, decode_lines(data))
    return _ACCEPTED


def _decode_batch(arguments: argparse.Namespace, model: Model, prompt: list[int]) -> int:
    """Decode ``--batch`` sequences at once: after this prompt, and others made from it."""
    from harness.batch_suite import BatchSession  # noqa: PLC0415
    from harness.model.prompts import distinct_prompts  # noqa: PLC0415
    from harness.tables import batch_lines  # noqa: PLC0415

    prompts = distinct_prompts(prompt, arguments.batch, model.config.vocab)
    with BatchSession(
        model,
        backend=arguments.backend,
        numerics=arguments.numerics,
        device=arguments.device,
    ) as session:
        measured = session.measure_batch(prompts, tokens=arguments.tokens, depth=arguments.depth)
    data = measured.to_json()
    texts = [
        _text(model, [*before, *behind])
        for before, behind in zip(prompts, measured.tokens, strict=True)
    ]
    data["texts"] = None if None in texts else texts
    _emit(arguments, data, batch_lines(data))
    return _ACCEPTED


def _parity(arguments: argparse.Namespace) -> int:
    from harness.files import write_atomically  # noqa: PLC0415
    from harness.guard import guard  # noqa: PLC0415
    from harness.lab.pictures import parity_picture  # noqa: PLC0415
    from harness.lab.tables import findings_lines  # noqa: PLC0415
    from harness.laboratory import investigate, windows_of  # noqa: PLC0415
    from harness.model.prompts import parse_prompt  # noqa: PLC0415
    from harness.stages import Plan  # noqa: PLC0415
    from harness.stages.plan import parse_layers  # noqa: PLC0415
    from harness.suite import activation_drift, open_pair  # noqa: PLC0415
    from harness.tables import parity_lines, verdict_lines  # noqa: PLC0415

    model = _open(arguments.model)
    last = model.config.layers
    start, stop = parse_layers(arguments.layers) if arguments.layers else (0, last)
    if stop > last:
        raise BadInput(
            f"layers {arguments.layers}: the model has {last}, expected at most 0..{last}"
        )
    plan = Plan.parse(arguments.stages, f"{start}..{stop}")
    if arguments.dump is not None and arguments.mode == "forced":
        raise BadInput("--dump writes the free-running pass, which --mode forced leaves out")
    prompt = parse_prompt(_prompt(arguments, model), model)
    asked = cli_lab.asked(arguments)
    windows = windows_of(model, asked)
    candidate, reference = open_pair(
        model,
        backend=arguments.backend,
        numerics=arguments.numerics,
        device=arguments.device,
        against=arguments.against,
        capacity=asked.capacity(len(prompt)),
    )

    def dump(got: list[Capture], truth: list[Capture]) -> None:
        from harness.stages.aprt import write_dump  # noqa: PLC0415

        write_dump(arguments.dump / "candidate", got, plan)
        write_dump(arguments.dump / "reference", truth, plan)

    keep = None if arguments.dump is None else dump
    evidence = guard(
        candidate,
        reference,
        prompt,
        mode=arguments.mode,
        plan=None if keep is None else plan,
        keep=keep,
    )
    data = evidence.to_json()
    data["ran"] = {**evidence.ran, **provenance()}
    data["layers"] = [line.to_json() for line in evidence.layers[start:stop]]
    if "free" not in evidence.judged and arguments.mode != "forced":
        data["drift"] = activation_drift(candidate, prompt).to_json()
    found = investigate(candidate, reference, prompt, evidence, asked, windows, arguments.device)
    data |= found.data
    data["layer_errors"] = [error.to_json() for error in found.errors[start:stop]]
    if arguments.picture is not None:
        write_atomically(arguments.picture, parity_picture(data))
    lines = parity_lines(evidence, data, range(start, stop))
    lines += [
        *findings_lines(data, found.errors, found.explanation),
        *verdict_lines(evidence.verdict.to_json()),
    ]
    _emit(arguments, data, lines)
    return _ACCEPTED if evidence.verdict.accepted else _REJECTED


def _diff(arguments: argparse.Namespace) -> int:
    from harness.stages.aprt import read_dump  # noqa: PLC0415
    from harness.stages.compare import compare  # noqa: PLC0415
    from harness.tables import diff_lines  # noqa: PLC0415

    result = compare(read_dump(arguments.first), read_dump(arguments.second))
    _emit(arguments, result.to_json(), diff_lines(result))
    return _ACCEPTED if result.accepted else _REJECTED


def _faults(arguments: argparse.Namespace) -> int:
    from harness.guard.faults import prove, seeded_prompts  # noqa: PLC0415
    from harness.suite import open_candidate, open_oracle  # noqa: PLC0415
    from harness.tables import fault_lines  # noqa: PLC0415

    model = _open(arguments.model)

    def candidate(given: Model, plant: str | None):  # type: ignore[no-untyped-def] # noqa: ANN202
        return open_candidate(
            given,
            backend=arguments.backend,
            numerics=arguments.numerics,
            device=arguments.device,
            capacity=_FAULT_POSITIONS,
            plant=plant,
        )

    clean = candidate(model, None)
    numerics, ran = clean.numerics, dict(clean.ran())
    clean.close()  # a large model is not held twice
    proof = prove(
        model,
        candidate,
        open_oracle(model, numerics, _FAULT_POSITIONS, arguments.device),
        seeded_prompts(model.config.vocab, _CLEAN_RUNS, _FAULT_POSITIONS),
        progress=lambda line: print(line, file=sys.stderr),
    )
    data = proof.to_json()
    ran |= provenance()
    data |= {"backend": ran["backend"], "numerics": numerics.name, "ran": ran}
    data["model"] = {"name": model.name, "fingerprint": model.fingerprint}
    _emit(arguments, data, fault_lines(proof))
    return _ACCEPTED if proof.holds else _REJECTED


def _contract(arguments: argparse.Namespace) -> int:
    from harness.contract import command  # noqa: PLC0415

    return command.run(arguments, _emit, _source_hashes)


def _source_hashes() -> dict[str, str]:
    from harness.sources import source_hashes  # noqa: PLC0415

    return source_hashes()


def _profile(arguments: argparse.Namespace) -> int:
    from harness.cli_profile import Shared, profile  # noqa: PLC0415

    return profile(arguments, Shared(_open, _prompt, _emit))


def _ladder(arguments: argparse.Namespace) -> int:
    data, lines = cli_lab.run_ladder(arguments, _open(arguments.model))
    _emit(arguments, data, lines)
    accepted = all(rung["verdict"]["accepted"] for rung in data["rungs"])
    return _ACCEPTED if accepted else _REJECTED


def _layer(arguments: argparse.Namespace) -> int:
    _emit(arguments, *cli_lab.run_layer(arguments, _open(arguments.model)))
    return _ACCEPTED


def _machine(arguments: argparse.Namespace) -> int:
    from harness.meter.identity import machine_identity, write_asv_machine  # noqa: PLC0415

    identity = machine_identity()
    path = write_asv_machine()
    if arguments.name:
        print(identity["machine"])
        return _ACCEPTED
    _emit(
        arguments,
        {"schema": "moe-harness/machine/1", **identity, "written": str(path)},
        [*(f"{key:<8} {value}" for key, value in identity.items()), f"written  {path}"],
    )
    return _ACCEPTED


def _doctor(arguments: argparse.Namespace) -> int:
    from harness.doctor import examine  # noqa: PLC0415

    checks = examine()
    _emit(
        arguments,
        {"schema": "moe-harness/doctor/1", "checks": [vars(check) for check in checks]},
        [
            f"{'here' if check.here else 'MISSING':<8} {check.name:<12} {check.found}"
            + ("" if check.here else f"; without it: {check.disables}; {check.remedy}")
            for check in checks
        ],
    )
    return _ACCEPTED if all(check.here for check in checks if check.needed) else _BAD_INPUT


def _report(arguments: argparse.Namespace) -> int:
    from harness.report.command import write_report  # noqa: PLC0415
    from harness.settings import settings  # noqa: PLC0415

    _emit(arguments, *write_report(arguments.results or settings().results, arguments.out))
    return _ACCEPTED


# -- what they share -------------------------------------------------------------------------


def _open(path: Path | None) -> Model:
    from harness.model import open_model  # noqa: PLC0415
    from harness.model.embedded import path as embedded_path  # noqa: PLC0415

    return open_model(embedded_path() if path is None else path)


def _prompt(arguments: argparse.Namespace, model: Model) -> str:
    if arguments.prompt is not None:
        return str(arguments.prompt)
    return "canonical_3tok" if _text(model, []) is None else "def read(self"


def _text(model: Model, ids: Sequence[int]) -> str | None:
    """Text of ids, or None: a tokenizer that is missing or of an unknown kind costs no result."""
    try:
        return None if model.tokenizer is None else model.tokenizer.decode(ids)
    except BadInput:
        return None


def _ints(value: object) -> list[int]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of ids, found {type(value).__name__}")
    return [int(item) for item in value]


def _bytes_done(done: int, total: int) -> None:
    if not sys.stderr.isatty():  # a log wants no moving line
        return
    end = "\n" if done == total else "\r"
    print(f"written {done / 1e9:.2f} of {total / 1e9:.2f} GB", file=sys.stderr, end=end)


def _emit(arguments: argparse.Namespace, data: dict[str, object], lines: Sequence[str]) -> None:
    """Print the lines, and the JSON where it was asked for (alone on standard output if there)."""
    if arguments.json == "-":
        print(json.dumps(data, indent=1, allow_nan=False))
        return
    for line in lines:
        print(line)
    if arguments.json is not None:
        from harness.files import write_atomically  # noqa: PLC0415

        write_atomically(Path(arguments.json), json.dumps(data, indent=1, allow_nan=False) + "\n")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-harness",
        description="Decode speed of quantised mixture-of-experts models, tied to its proof.",
    )
    parser.add_argument("--version", action="version", version=f"moe-harness {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], what: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.add_argument("--json", metavar="PATH", help="write JSON there (- for standard output)")
        sub.set_defaults(run=run)
        return sub

    def model_argument(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "model",
            nargs="?",
            type=Path,
            metavar="MODEL",
            help="a GGUF (default: the embedded one)",
        )

    def decoder_arguments(sub: argparse.ArgumentParser) -> None:
        model_argument(sub)
        sub.add_argument("--backend", default="auto", help="auto, cpu or cuda")
        sub.add_argument("--device", type=_count, default=0, metavar="N", help="which GPU")
        sub.add_argument("--numerics", metavar="NAME", help="how it rounds (the backend's default)")

    synth = command("synth", _synth, "write a synthetic GGUF")
    synth.add_argument("preset", metavar="PRESET", help="tiny, qwen3-30b-a3b, ...")
    synth.add_argument("out", type=Path, metavar="OUT")
    synth.add_argument("--seed", type=_count, default=0)

    tensors = command("tensors", _tensors, "list shapes, quant types and bytes")
    model_argument(tensors)
    tensors.add_argument("--layer", type=int, metavar="N")

    decode = command("decode", _decode, "guarded decode: ms/token, tok/s, memory, verdict")
    decoder_arguments(decode)
    decode.add_argument("--prompt", metavar="NAME|IDS|TEXT")
    decode.add_argument("--tokens", type=_positive, default=64, metavar="N")
    decode.add_argument("--depth", type=_count, default=0, metavar="D", help="cached positions")
    decode.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="sequences at once, on a GPU"
    )

    parity = command("parity", _parity, "the layer table: candidate against reference")
    decoder_arguments(parity)
    parity.add_argument("--against", default="oracle", help="oracle, or BACKEND:NUMERICS")
    parity.add_argument("--mode", default="both", help="free, forced or both")
    parity.add_argument("--prompt", metavar="NAME|IDS|TEXT")
    parity.add_argument("--dump", type=Path, metavar="DIR", help="write APRT files there")
    parity.add_argument("--stages", default="all", metavar="PLAN", help="stages to dump")
    parity.add_argument("--layers", metavar="A..B", help="layers to show and dump")
    cli_lab.parity_arguments(parity)

    ladder = command("ladder", _ladder, "which rounding choice costs what: drift and time")
    model_argument(ladder)
    cli_lab.ladder_arguments(ladder)

    layer = command("layer", _layer, "one layer under the microscope: is it special?")
    model_argument(layer)
    cli_lab.layer_arguments(layer)

    faults = command("faults", _faults, "plant every fault and count those rejected")
    decoder_arguments(faults)

    profile = command("profile", _profile, "where a token's time goes, kernel by kernel")
    decoder_arguments(profile)
    add_options(profile)
    _stored(command)
    return parser


def _stored(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands that need no model: about files, stored evidence and this machine."""
    from harness.contract.command import add_arguments  # noqa: PLC0415 - light

    diff = command("diff", _diff, "compare two dumps, stage by stage")
    diff.add_argument("first", type=Path, metavar="DIR")
    diff.add_argument("second", type=Path, metavar="DIR")

    report = command("report", _report, "write one self-contained HTML page from results/")
    report.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    report.add_argument("--results", type=Path, metavar="DIR", help="default: asv's results/")
    add_arguments(command("contract", _contract, "criteria judged from stored evidence"))

    machine = command("machine", _machine, "identify this machine to asv")
    machine.add_argument("--name", action="store_true", help="print its name alone, for asv")
    command("doctor", _doctor, "what is here, what is missing, and what that disables")
