"""What the commands print: plain tables, a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.guard import Evidence
    from harness.guard.faults import Proof
    from harness.stages.compare import Comparison


def decode_lines(data: Mapping[str, Any]) -> list[str]:
    """Lines of the ``decode`` command, out of its JSON."""
    time, memory, ran = data["ms_per_token"], data["memory"], data["ran"]
    # On a GPU memory is what the decoder takes; on a CPU a whole process's, and weights are a map.
    share = f", {memory['share']:.3f} of weights and cache" if ran["backend"] == "cuda" else ""
    lines = [str(data["text"]), ""] if data["text"] is not None else []
    lines += [
        f"{time['median']:.3f} ms/token median, {time['p99']:.3f} p99, "
        f"{len(time['samples'])} samples",
        f"{data['tokens_per_second']:.1f} tok/s",
        f"{memory['peak_bytes'] / 1e6:.1f} MB peak ({memory['source']}){share}",
        f"{data['bytes_per_token'] / 1e6:.2f} MB/token moved",
    ]
    if data["roofline_fraction"] is not None:
        lines.append(f"{100 * data['roofline_fraction']:.1f} % of this machine's read bandwidth")
    if data["energy_joules_per_token"] is not None:
        lines.append(f"{data['energy_joules_per_token']:.3f} J/token")
    lines.append(f"ran on {ran['backend']}, {ran['device']}, {ran['numerics']}")
    return [*lines, *verdict_lines(data["verdict"])]


def batch_lines(data: Mapping[str, Any]) -> list[str]:
    """Lines of ``decode --batch``, out of its JSON."""
    time, memory, ran = data["ms_per_step"], data["memory"], data["ran"]
    size, experts = data["batch"], data["distinct_experts"]["mean"]
    lines = [line for text in data["texts"] or () for line in (text, "")]
    lines += [
        f"{time['median']:.3f} ms/step median, {time['p99']:.3f} p99, "
        f"{len(time['samples'])} samples; a step decodes a token of each of {size} sequences",
        f"{data['tokens_per_second']:.1f} tok/s, all sequences together",
        f"{memory['peak_bytes'] / 1e6:.1f} MB peak ({memory['source']}), "
        f"{memory['share']:.3f} of weights and caches",
        f"{data['bytes_per_step'] / 1e6:.2f} MB/step needed, with {experts:.1f} experts of a layer",
        f"{100 * data['roofline_fraction']:.1f} % of this machine's read bandwidth",
    ]
    if data["energy_joules_per_token"] is not None:
        lines.append(f"{data['energy_joules_per_token']:.3f} J/token")
    lines.append(f"ran on {ran['backend']}, {ran['device']}, {ran['numerics']}")
    return [*lines, *verdict_lines(data["verdict"])]


def parity_lines(evidence: Evidence, data: Mapping[str, Any], shown: Iterable[int]) -> list[str]:
    """Lines of the ``parity`` command: all layers shown, whether they pass or not.

    ``born`` is the teacher-forced error, ``inherited`` what the free-running one has above it.
    """
    lines = [
        f"{evidence.backend}:{evidence.numerics} against {evidence.reference}, "
        f"{len(evidence.prompt_ids)} positions, judged {' and '.join(evidence.judged)}",
        f"{'layer':>5} {'free cosine':>12} {'free rel_l2':>11} {'forced cosine':>13} "
        f"{'born':>9} {'inherited':>9} {'router cosine':>13} {'margin':>9}  experts",
    ]
    layers = evidence.layers
    inherited = {error["layer"]: error["inherited_rel_l2"] for error in data["layer_errors"]}
    for index in shown:
        line = layers[index]
        experts = "equal"
        if line.experts_differ:
            worst = max(line.experts_differ, key=lambda swap: swap.margin)
            experts = f"{len(line.experts_differ)} differ, margin {worst.margin:.2e} " + (
                "(tie)" if worst.is_tie else "(FAULT)"
            )
        lines.append(
            f"{line.layer:>5} {_figure(line.moe_ffn_out_cosine, '12.9f')} "
            f"{_figure(line.moe_ffn_out_rel_l2, '11.2e')} {_figure(line.forced_cosine, '13.9f')} "
            f"{_figure(line.forced_rel_l2, '9.2e')} {_figure(inherited[index], '9.2e')} "
            f"{line.router_cosine:13.9f} {line.routing_margin:9.2e}  {experts}"
        )
    argmax = data["argmax"]
    lines.append(
        f"argmax: {argmax['agree']} of {argmax['positions']} agree, {argmax['ties']} ties, "
        f"{argmax['faults']} faults; worst logits cosine {data['logits_cosine']}"
    )
    if "drift" in data:
        drift = data["drift"]
        lines.append(
            f"free-running drift from the plain oracle: worst cosine "
            f"{drift['candidate_worst_cosine']:.6f}, of the format alone "
            f"{drift['format_alone_worst_cosine']:.6f}; attributed to: {drift['attributed_to']}"
        )
    lines.append(f"worst: {evidence.worst.what} ({evidence.distance:.3g} of its limit)")
    return lines


def fault_lines(proof: Proof) -> list[str]:
    """Lines of the ``faults`` command."""
    data = proof.to_json()
    lines = [f"{name:<22} {distance:>12.4g}  {why}" for name, distance, why in proof.planted]
    lines += [f"{name:<22} inapplicable  {why}" for name, why in proof.inapplicable]
    lines += [f"FALSE REJECTION {reason}" for reason in proof.false_rejections]
    lines += [f"SURVIVED {name}" for name in proof.survivors]
    lines += [
        f"invisible {name}: distance {distance:.4g}, worst clean run {clean:.4g}"
        for name, distance, clean in proof.invisible
    ]
    lines.append(
        f"{data['planted']} planted, {data['rejected']} rejected, {len(proof.survivors)} "
        f"survived, {len(proof.invisible)} invisible, {len(proof.inapplicable)} inapplicable"
    )
    lines.append(
        f"{data['clean_runs']} clean runs, {data['false_rejections']} false rejections, worst "
        f"distance {max(proof.clean):.3g}"
    )
    return lines


def diff_lines(result: Comparison) -> list[str]:
    """Lines of the ``diff`` command: a stage a line, the claims, then the verdict."""
    return [
        *(difference.line() for difference in result.differences),
        *(verdict.lines()[0] for verdict in result.verdicts),
        *verdict_lines(result.to_json()),
    ]


def _figure(value: float | None, form: str) -> str:
    width = int(form.split(".", maxsplit=1)[0])
    return "-".rjust(width) if value is None else format(value, form)


def verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """Accepted, or rejected and why."""
    if verdict["accepted"]:
        return ["verdict: ACCEPTED"]
    return ["verdict: REJECTED", *(f"  {reason}" for reason in verdict["reasons"])]
