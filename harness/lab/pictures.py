"""Pictures of the laboratory's results, out of their JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.lab.svg import Panel, Series, document

if TYPE_CHECKING:
    from collections.abc import Mapping


_ROUNDING = 2.0**-53  # a cosine of exactly 1 is drawn there: a log axis has no zero


def parity_picture(data: Mapping[str, Any]) -> str:
    """Draw cosine by layer, error born against inherited, and routing margins."""
    layers = data["layers"]
    errors = {error["layer"]: error for error in data["layer_errors"]}

    def series(name: str, key: str) -> Series:
        return Series(name, [(line["layer"], line[key]) for line in layers])

    def error(name: str, key: str) -> Series:
        return Series(name, [(line["layer"], errors[line["layer"]][key]) for line in layers])

    who = f"{data['backend']}:{data['numerics']} against {data['reference']}"
    swaps = [(swap["layer"], swap["margin"]) for swap in data["swaps"] if swap["layer"] in errors]
    return document(
        [
            Panel(
                "cosine of moe_ffn_out, worst position",
                "layer",
                [series("free-running", "moe_ffn_out_cosine"), series("forced", "forced_cosine")],
                limit=("floor 0.99", 0.99),
            ),
            Panel(
                "relative error of moe_ffn_out",
                "layer",
                [error("born", "born_rel_l2"), error("inherited", "inherited_rel_l2")],
                log=True,
            ),
            Panel(
                "routing margin, logits",
                "layer",
                [
                    series("smallest of the layer", "routing_margin"),
                    Series("of swapped sets", swaps, joined=False),
                ],
                log=True,
            ),
        ],
        f"Parity by layer: {who}",
    )


def ladder_picture(data: Mapping[str, Any]) -> str:
    """Draw each rung's distance from both references, and its time."""
    rungs = data["rungs"]
    names = [rung["numerics"] for rung in rungs]

    def drift(name: str) -> Series:
        return Series(
            f"from {name}",
            [
                (at, max(_ROUNDING, 1 - rung["drift"][name]["worst_cosine"]))
                for at, rung in enumerate(rungs)
            ],
            joined=False,
        )

    times = [
        (at, None if rung["us_per_token"] is None else rung["us_per_token"]["median"])
        for at, rung in enumerate(rungs)
    ]
    return document(
        [
            Panel(
                "1 - worst cosine",
                "",
                [drift("f32"), drift("q8_k")],
                log=True,
                limit=("floor 0.99", 0.01),
                height=250,
                x_labels=names,
            ),
            Panel(
                "us per token, plain kernels",
                "",
                [Series("median", times, joined=False)],
                height=250,
                x_labels=names,
            ),
        ],
        f"Drift ladder of {data['model']['name']} on {data['backend']}",
    )
