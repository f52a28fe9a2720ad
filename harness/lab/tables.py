"""What the laboratory prints: plain lines, out of its JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.lab.layers import first_divergent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.lab.explain import Explanation
    from harness.lab.layers import LayerError

_MOST_SWAPS = 12


def findings_lines(
    data: Mapping[str, Any], errors: list[LayerError], explanation: Explanation | None
) -> list[str]:
    """Lines of ``parity`` below its table: the first divergent layer, swaps, and what was asked."""
    lines = [_first(errors), *_swaps(data["swaps"])]
    if explanation is not None:
        lines += ["", *explanation.lines(), ""]
    elif "explanation" in data:
        lines.append("explain: accepted, there is no divergence to explain")
    if "canonical" in data:
        lines += _canonical(data["canonical"])
    if "text" in data:
        lines.append(_text(data["text"]))
    return lines


def ladder_lines(data: Mapping[str, Any]) -> list[str]:
    """Lines of the ``ladder`` command."""
    model = data["model"]
    lines = [
        f"{model['name']}, {model['layers']} layers, on {data['backend']}, "
        f"{len(data['prompt_ids'])} positions; {data['said']}",
        f"{'':<17} {'from float activations':^36} {'from q8_k activations':^36}",
        f"{'numerics':<17} "
        + 2 * f"{'worst cosine':>13} {'< 0.99':>6} {'swaps':>6} {'argmax':>6}   "
        + f"{'us/token':>9}  change",
    ]
    for rung in data["rungs"]:
        cells = ""
        for name in ("f32", "q8_k"):
            drift = rung["drift"][name]
            cells += (
                f"{drift['worst_cosine']:13.9f} {drift['layers_below_floor']:>6} "
                f"{drift['experts_swapped']:>6} {drift['argmax_changed']:>6}   "
            )
        time = rung["us_per_token"]
        shown = "rejected" if time is None else f"{time['median']:.1f}"
        lines.append(f"{rung['numerics']:<17} {cells}{shown:>9}  {rung['change']}")
        lines += [f"  rejected: {reason}" for reason in rung["verdict"]["reasons"]]
    some = data["rungs"][0]["drift"]["f32"]
    lines.append(
        f"swaps of {some['expert_sets']} expert sets, argmax changes of {some['positions']} "
        "positions"
    )
    return lines


def _first(errors: list[LayerError]) -> str:
    first = first_divergent(errors)
    if first is None:
        return "no layer diverges"
    forced = [reason for reason in first.reasons if reason.startswith("teacher-forced")]
    if first.born is None:
        where = "free-running alone does not tell whether it is born there"
    else:
        where = "born there" if forced else "inherited"
    count = sum(error.diverges for error in errors)
    return (
        f"first divergent layer: {first.layer}, {where}: {(forced or first.reasons)[0]}; "
        f"{count} of {len(errors)} layers diverge"
    )


def _swaps(swaps: list[dict[str, Any]]) -> list[str]:
    def ids(experts: list[int]) -> str:
        return ", ".join(map(str, experts)) or "no set of experts"

    def figure(value: float | None) -> str:
        return "infinite" if value is None else f"{value:.2e}"

    lines = [
        f"{swap['pass']} layer {swap['layer']}, position {swap['position']}: takes "
        f"{ids(swap['only_candidate'])} for {ids(swap['only_reference'])}, margin "
        f"{figure(swap['margin'])}, bound {figure(swap['bound'])}: {swap['ruling']}"
        for swap in swaps[:_MOST_SWAPS]
    ]
    if len(swaps) > _MOST_SWAPS:
        faults = sum(swap["ruling"] == "fault" for swap in swaps)
        lines.append(f"... of {len(swaps)} swaps, {faults} faults; all of them with --json")
    return lines


def _canonical(data: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{p['name']}: next token {p['candidate']}, reference {p['reference']}; argmax agrees at "
        f"{p['agree']} of {p['positions']} positions"
        for p in data["prompts"]
    ]
    lines += [f"{name}: ids beyond this vocabulary" for name in data["inapplicable"]]
    lines.append(
        f"canonical prompts against {data['reference']}: {data['agree']} of "
        f"{len(data['prompts'])} next tokens agree: {data['ruling']}"
    )
    return lines


def _text(data: Mapping[str, Any]) -> str:
    kl = {k: "infinite" if v is None else f"{v:.2e}" for k, v in data["kl_nats"].items()}
    return (
        f"text, {data['positions']} positions against {data['reference']}: KL {kl['mean']} nats "
        f"mean, {kl['median']} median, {kl['p99']} p99; top-1 agrees at "
        f"{100 * data['top_1_agreement']:.2f} %"
    )
