"""``moe-harness profile``: its options, and what they ask for."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput
from harness.files import write_atomically

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from harness.meter.decode import Workload
    from harness.model import Model
    from harness.profile import Profile, Recording
    from harness.profile.compare import ProfileComparison

_ACCEPTED, _REJECTED = 0, 1
_TOKENS = 32  # recorded unless told otherwise: medians of as many
# What asks for a run, and so cannot be asked of a recording.
_RUNS = (
    *("model", "backend", "numerics", "device", "prompt", "tokens", "depth"),
    *("energy", "ncu", "nvtx", "unguarded"),
)
# What only a profile of our own can give.
_OWN = ("out", "from", "compare", "energy", "vram")


@dataclass(frozen=True)
class Shared:
    """What the commands share: how a model and a prompt are named, and how results are told."""

    open_model: Callable[[Path | None], Model]
    prompt_of: Callable[[argparse.Namespace, Model], str]
    emit: Callable[[argparse.Namespace, dict[str, object], Sequence[str]], None]


def add_options(sub: argparse.ArgumentParser) -> None:
    """Add the options beyond those of every decoder."""
    sub.add_argument("--prompt", metavar="NAME|IDS|TEXT")
    sub.add_argument("--tokens", type=int, metavar="N", help=f"to record (default: {_TOKENS})")
    sub.add_argument("--depth", type=int, metavar="D", help="cached positions")
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="write recording, table, trace and pictures there"
    )
    sub.add_argument(
        "--from", type=Path, metavar="FILE", help="show a recording.json instead of running"
    )
    sub.add_argument("--layer", type=int, metavar="N", help="seen from near, or under ncu")
    sub.add_argument("--vram", action="store_true", help="what was allocated, by purpose")
    sub.add_argument("--energy", action="store_true", help="J/token and power over time")
    sub.add_argument(
        "--compare", metavar="NUMERICS|COMMIT|FILE", help="the same workload there, side by side"
    )
    sub.add_argument("--ncu", metavar="KERNEL", help="that kernel alone under Nsight Compute")
    sub.add_argument(
        "--nvtx", action="store_true", help="mark tokens for nsys or ncu and record nothing"
    )
    sub.add_argument(
        "--unguarded", action="store_true", help="profile even what the guard rejects, and say so"
    )


def profile(arguments: argparse.Namespace, shared: Shared) -> int:
    """Run the command; returns the exit status."""
    options = vars(arguments)
    source: Path | None = options["from"]
    _refuse_nonsense(options)
    if arguments.ncu is not None:
        return _ncu(arguments, shared)
    if arguments.nvtx:
        return _nvtx(arguments, shared)
    if source is not None:
        from harness.profile.recording import read_recording  # noqa: PLC0415

        recording = read_recording(source)
    else:
        recording = _record(arguments, shared)
    if arguments.compare is not None:
        return _compare(arguments, shared, recording)
    _show(arguments, shared, recording)
    return _ACCEPTED if recording.accepted else _REJECTED


def _refuse_nonsense(options: dict[str, Any]) -> None:
    """Refuse options that another one would silently make void."""

    def given(names: Sequence[str]) -> list[str]:
        defaults = {"backend": "auto", "device": 0}
        found = [name for name in names if options[name] not in (None, False, defaults.get(name))]
        return ["MODEL" if name == "model" else f"--{name}" for name in found]

    def exclude(one: str, names: Sequence[str], why: str) -> None:
        others = [name for name in given(names) if name != f"--{one}"]
        if given([one]) and others:
            raise BadInput(f"--{one} {why}; leave out {', '.join(others)}")

    exclude("from", _RUNS, "shows a recording that is already there")
    exclude("ncu", (*_OWN, "nvtx"), "shows what ncu says of one kernel")
    exclude("nvtx", (*_OWN, "layer"), "records nothing itself")
    exclude("compare", ("out", "layer", "vram", "energy"), "shows two profiles side by side")
    if given(["layer"]) and not given(["out", "ncu"]):
        raise BadInput("--layer chooses what a picture or ncu shows; add --out or --ncu")
    for name, least in (("tokens", 1), ("depth", 0)):
        if options[name] is not None and options[name] < least:
            raise BadInput(f"--{name} {options[name]}, expected at least {least}")


# -- a session ---------------------------------------------------------------------------------


def _record(arguments: argparse.Namespace, shared: Shared) -> Recording:
    model = shared.open_model(arguments.model)
    _check_layer(arguments.layer, model)
    return _session(arguments, model, _workload(arguments, shared, model), arguments.numerics)


def _session(
    arguments: argparse.Namespace, model: Model, workload: Workload, numerics: str | None
) -> Recording:
    from harness.profile.session import Wanted  # noqa: PLC0415 - commands load what they need
    from harness.suite import DecodeSession  # noqa: PLC0415

    wanted = Wanted(energy=arguments.energy, unguarded=arguments.unguarded)
    with DecodeSession(
        model, backend=arguments.backend, numerics=numerics, device=arguments.device
    ) as session:
        return session.profile(workload, wanted)


def _workload(arguments: argparse.Namespace, shared: Shared, model: Model) -> Workload:
    from harness.meter.decode import Workload  # noqa: PLC0415
    from harness.model.prompts import parse_prompt  # noqa: PLC0415

    prompt = parse_prompt(shared.prompt_of(arguments, model), model)
    return Workload(tuple(prompt), arguments.depth or 0, arguments.tokens or _TOKENS)


def _check_layer(layer: int | None, model: Model) -> None:
    if layer is not None and not 0 <= layer < model.config.layers:
        raise BadInput(f"layer {layer} does not exist, expected 0 to {model.config.layers - 1}")


def _show(arguments: argparse.Namespace, shared: Shared, recording: Recording) -> None:
    from harness.profile import Profile  # noqa: PLC0415
    from harness.profile.table import energy_lines, memory_lines, profile_lines  # noqa: PLC0415

    summary = Profile(recording)
    lines = profile_lines(summary)
    if arguments.vram:
        lines += ["", *memory_lines(recording)]
    energy = energy_lines(recording)
    lines += ["", *energy] if energy else []
    if arguments.out is not None:
        lines += ["", *_write(arguments.out, summary, arguments.layer, lines)]
    shared.emit(arguments, summary.to_json(), lines)


def _write(out: Path, summary: Profile, layer: int | None, table: Sequence[str]) -> list[str]:
    """Write everything into a folder; returns a line for each file."""
    from harness.profile.roofline import roofline  # noqa: PLC0415
    from harness.profile.timeline import power_chart, timeline  # noqa: PLC0415
    from harness.profile.trace import chrome_trace  # noqa: PLC0415

    files = {
        "table.txt": "\n".join(table) + "\n",
        "profile.json": json.dumps(summary.to_json(), indent=1, allow_nan=False) + "\n",
        "trace.json": json.dumps(chrome_trace(summary.recording), allow_nan=False) + "\n",
        "roofline.svg": roofline(summary),
        "timeline.svg": timeline(summary, layer),
        "power.svg": power_chart(summary),
    }
    summary.recording.write(out / "recording.json")
    for name, text in files.items():
        if text is not None:
            write_atomically(out / name, text)
    written = ["recording.json", *(name for name, text in files.items() if text is not None)]
    return [f"written: {out / name}" for name in written]


# -- side by side ------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace, shared: Shared, first: Recording) -> int:
    """Compare what was recorded first with numerics, a commit or a file."""
    from harness.profile import Profile  # noqa: PLC0415
    from harness.profile.compare import ProfileComparison  # noqa: PLC0415

    name = str(arguments.compare)
    second = _other(arguments, shared, first, name)
    commit = str(first.ran.get("commit", "unknown"))[:10]
    comparison: ProfileComparison = ProfileComparison(
        f"{first.ran['numerics']} at {commit}", name, Profile(first), Profile(second)
    )
    shared.emit(arguments, comparison.to_json(), comparison.lines())
    return _ACCEPTED if first.accepted and second.accepted else _REJECTED


def _other(arguments: argparse.Namespace, shared: Shared, first: Recording, name: str) -> Recording:
    from harness.meter.decode import Workload  # noqa: PLC0415
    from harness.numerics import numerics_of  # noqa: PLC0415
    from harness.profile.commits import find_commit, profile_commit  # noqa: PLC0415
    from harness.profile.recording import read_recording  # noqa: PLC0415

    known = numerics_of(str(first.ran["backend"]))
    if Path(name).is_file():
        return read_recording(Path(name))
    if vars(arguments)["from"] is not None:
        raise BadInput(f"--compare {name}: no file, and --from runs nothing; name a recording.json")
    if name in known:
        model = shared.open_model(arguments.model)
        told = first.workload
        workload = Workload(tuple(told["prompt"]), told["depth"], told["tokens"])
        return _session(arguments, model, workload, name)
    commit = find_commit(name)
    if commit is None:
        raise BadInput(
            f"--compare {name!r} is no numerics ({', '.join(known)}), no recording, and no commit "
            "of this checkout; name one of these"
        )
    print(f"profiling commit {commit[:10]}", file=sys.stderr)
    return profile_commit(commit, _arguments(arguments, shared, first))


def _arguments(arguments: argparse.Namespace, shared: Shared, first: Recording) -> list[str]:
    """Arguments that ask another process for the very same."""
    told = first.workload
    path = shared.open_model(arguments.model).path.resolve()
    return [
        str(path),
        *("--backend", str(first.ran["backend"]), "--device", str(arguments.device)),
        *(("--numerics", arguments.numerics) if arguments.numerics else ()),
        "--prompt=" + ",".join(map(str, told["prompt"])),
        *("--depth", str(told["depth"]), "--tokens", str(told["tokens"])),
        *(("--unguarded",) if arguments.unguarded else ()),
    ]


# -- for other profilers -----------------------------------------------------------------------


def _nvtx(arguments: argparse.Namespace, shared: Shared) -> int:
    from harness.suite import DecodeSession  # noqa: PLC0415

    model = shared.open_model(arguments.model)
    workload = _workload(arguments, shared, model)
    with DecodeSession(
        model,
        backend=arguments.backend,
        numerics=arguments.numerics,
        device=arguments.device,
    ) as session:
        run = session.mark(workload, unguarded=arguments.unguarded)
    verdict = run.evidence.verdict
    accepted = verdict.accepted is True and not run.differences
    reasons = [*verdict.reasons, *run.differences]
    shared.emit(
        arguments,
        {
            "schema": "moe-harness/profile-marks/1",
            "tokens": list(run.tokens),
            "verdict": {"accepted": accepted, "reasons": reasons},
        },
        [
            f"{len(run.tokens)} tokens marked",
            f"verdict: {'ACCEPTED' if accepted else 'REJECTED'}",
            *(f"UNGUARDED: {reason}" for reason in reasons),
        ],
    )
    return _ACCEPTED if accepted else _REJECTED


def _ncu(arguments: argparse.Namespace, shared: Shared) -> int:
    from harness.backends import chosen_backend  # noqa: PLC0415
    from harness.profile.kinds import kind_of  # noqa: PLC0415
    from harness.profile.ncu import metric_lines, metrics_json, run_ncu  # noqa: PLC0415

    kind = kind_of(arguments.ncu)
    if arguments.unguarded:
        raise BadInput("--ncu shows only what the guard accepts; leave out --unguarded")
    model = shared.open_model(arguments.model)
    _check_layer(arguments.layer, model)
    if chosen_backend(arguments.backend) != "cuda":
        raise BadInput("--ncu profiles kernels of a GPU, this is the cpu backend; leave it out")
    layer = arguments.layer
    if kind.per_layer:
        layer = model.config.layers // 2 if layer is None else layer
    elif layer is not None:
        raise BadInput(f"{kind.name} is of no layer; leave out --layer")
    workload = _workload(arguments, shared, model)
    command = [
        *(sys.executable, "-m", "harness", "profile", str(model.path.resolve())),
        *("--backend", "cuda", "--device", str(arguments.device), "--nvtx"),
        *(("--numerics", arguments.numerics) if arguments.numerics else ()),
        "--prompt=" + ",".join(map(str, workload.prompt)),
        *("--depth", str(workload.depth), "--tokens", str(arguments.tokens or 1)),
    ]
    metrics = run_ncu(kind.name, layer, command)
    shared.emit(
        arguments,
        metrics_json(kind.name, layer, metrics),
        metric_lines(kind.name, layer, metrics),
    )
    return _ACCEPTED
