"""The laboratory's commands: ``ladder``, ``layer``, and what ``parity`` may be asked besides."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput

if TYPE_CHECKING:
    import argparse

    from harness.laboratory import Asked
    from harness.model import Model

_PROMPT = "multi_tok_code"  # the longest of the canonical ones, in any vocabulary of 786 ids


def ladder_arguments(sub: argparse.ArgumentParser) -> None:
    """Options of ``ladder``."""
    sub.add_argument("--backend", default="auto", help="auto, cpu or cuda")
    sub.add_argument("--device", type=int, default=0, metavar="N", help="which GPU")
    sub.add_argument("--prompt", default=_PROMPT, metavar="NAME|IDS|TEXT")
    sub.add_argument(
        "--tokens", type=int, default=32, metavar="N", help="decoded against the clock"
    )
    _picture(sub)


def layer_arguments(sub: argparse.ArgumentParser) -> None:
    """Options of ``layer``."""
    sub.add_argument("--layer", type=int, required=True, metavar="N")
    sub.add_argument("--device", type=int, default=0, metavar="N", help="which GPU")
    sub.add_argument("--prompt", default=_PROMPT, metavar="NAME|IDS|TEXT")


def parity_arguments(sub: argparse.ArgumentParser) -> None:
    """What ``parity`` may be asked besides."""
    sub.add_argument("--explain", action="store_true", help="test seven hypotheses of a divergence")
    sub.add_argument("--canonical", action="store_true", help="argmaxes of the canonical prompts")
    sub.add_argument(
        "--text",
        nargs="?",
        const="heldout",
        metavar="FILE",
        help="KL divergence and top-1 on a text (without FILE: the embedded model's held-out one)",
    )
    sub.add_argument("--positions", type=int, default=1024, metavar="N", help="of the text")
    _picture(sub)


def asked(arguments: argparse.Namespace) -> Asked:
    """What ``parity`` is asked besides."""
    from harness.laboratory import Asked  # noqa: PLC0415 - commands load what they need

    if arguments.positions < 1:
        raise BadInput(f"--positions {arguments.positions}, expected at least 1")
    return Asked(arguments.explain, arguments.canonical, arguments.text, arguments.positions)


def run_ladder(arguments: argparse.Namespace, model: Model) -> tuple[dict[str, Any], list[str]]:
    """Climb the ladder; the JSON and its lines."""
    from harness.files import write_atomically  # noqa: PLC0415
    from harness.lab.pictures import ladder_picture  # noqa: PLC0415
    from harness.lab.tables import ladder_lines  # noqa: PLC0415
    from harness.laboratory import ladder  # noqa: PLC0415
    from harness.model.prompts import parse_prompt  # noqa: PLC0415

    _check_device(arguments.device)
    ids = parse_prompt(arguments.prompt, model)
    if not 1 <= arguments.tokens <= model.config.context_length - len(ids):
        raise BadInput(
            f"--tokens {arguments.tokens}, expected 1 to {model.config.context_length - len(ids)}"
        )
    data = ladder(
        model,
        ids,
        backend=arguments.backend,
        device=arguments.device,
        tokens=arguments.tokens,
        progress=lambda line: print(line, file=sys.stderr),
    )
    if arguments.picture is not None:
        write_atomically(arguments.picture, ladder_picture(data))
    return data, ladder_lines(data)


def run_layer(arguments: argparse.Namespace, model: Model) -> tuple[dict[str, Any], list[str]]:
    """Look at one layer; the JSON and its lines."""
    from harness.lab.microscope import look_at  # noqa: PLC0415
    from harness.model.prompts import parse_prompt  # noqa: PLC0415
    from harness.numerics import find_numerics  # noqa: PLC0415
    from harness.suite import open_oracle  # noqa: PLC0415

    if not 0 <= arguments.layer < model.config.layers:
        raise BadInput(
            f"layer {arguments.layer} does not exist, expected 0 to {model.config.layers - 1}"
        )
    _check_device(arguments.device)
    ids = parse_prompt(arguments.prompt, model)
    oracle = open_oracle(model, find_numerics("f32"), len(ids), arguments.device)
    view = look_at(oracle, ids, arguments.layer)
    data = view.to_json()
    data["model"] = {"name": model.name, "fingerprint": model.fingerprint}
    return data, view.lines()


def _check_device(device: int) -> None:
    if device < 0:
        raise BadInput(f"--device {device}, expected a GPU's number, from 0 on")


def _picture(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--picture", type=Path, metavar="FILE", help="draw it there, as SVG")
