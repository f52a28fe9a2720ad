"""What asv must have stored, re-derived from what a sidecar recorded.

A sealed sidecar also holds what asv was given (``figures``); what is derived here must agree with
it. Sidecars of before there were seals have only this.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from harness.contract.quantities import NotRecorded, bandwidth_share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Content = Mapping[str, Any]

# A kernel family's share of a sidecar that tells of several (``harness.contract.integrity``).
FAMILY = "moe-harness/families/1 family"


def derived_figures(content: Content) -> dict[str, float]:
    """Figures by the names that the benchmarks track; empty for a kind that is not known here.

    Raises
    ------
    NotRecorded
        Where a sidecar of a known kind lacks what a figure is made of.

    """
    derive = _KINDS.get(str(content.get("schema")))
    try:
        return {} if derive is None else derive(content)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise NotRecorded(f"{type(error).__name__}: {error}") from None


def _decode(content: Content) -> dict[str, float]:
    median, memory = content["ms_per_token"]["median"], content["memory"]
    figures = {
        "ms_per_token": median,
        "tokens_per_second": 1000 / median,
        "peak_memory": memory["peak_bytes"],
        "memory_share": memory["peak_bytes"] / memory["weights_and_cache_bytes"],
        "roofline_fraction": bandwidth_share(content),
        **_parity(content["evidence"]),
    }
    if content["energy_joules_per_token"] is not None:
        figures["joules_per_token"] = content["energy_joules_per_token"]
    return figures


def _batch(content: Content) -> dict[str, float]:
    median, memory = content["ms_per_step"]["median"], content["memory"]
    moved, bandwidth = content["bytes_per_step"], content["read_bandwidth"]
    told = [_parity(each) for each in content["evidence"]["sequences"]]
    if not len(told) == content["batch"] == len(content["tokens"]):
        raise ValueError(f"evidence of {len(told)} sequences, not of {content['batch']}")
    figures = {
        "ms_per_step": median,
        "tokens_per_second": 1000 * content["batch"] / median,
        "peak_memory": memory["peak_bytes"],
        "memory_share": memory["peak_bytes"] / memory["weights_and_cache_bytes"],
        "distinct_experts": statistics.fmean(content["distinct_experts"]["by_layer"]),
        "bytes_per_step": moved,
        "roofline_fraction": moved / (median / 1000) / bandwidth,
        **{name: max(each[name] for each in told) for name in ("distance", "cosine_loss")},
        **{
            name: sum(each[name] for each in told)
            for name in ("experts_swapped", "argmaxes_changed")
        },
    }
    if content["energy_joules_per_token"] is not None:
        figures["joules_per_token"] = content["energy_joules_per_token"]
    return figures


def _parity(evidence: Content) -> dict[str, float]:
    decisive = "free_running" if "free" in evidence["judged"] else "teacher_forced"
    return {
        "distance": evidence["distance"],
        "cosine_loss": 1 - evidence[decisive]["worst_moe_ffn_out_cosine"],
        "experts_swapped": sum(len(layer["experts_differ"]) for layer in evidence["layers"]),
        "argmaxes_changed": len(evidence["argmax_differ"]),
    }


def _kernel(content: Content) -> dict[str, float]:
    if "us" not in content:  # a rejected run's sidecar has the same schema, and no figures
        return {}
    median, moved = content["us"]["median"], content["bytes"]
    per_second = moved / (median * 1e-6)
    return {
        "microseconds": median,
        "gigabytes_per_second": per_second / 1e9,
        "roofline_fraction": per_second / content["read_bandwidth"],
    }


def _family(content: Content) -> dict[str, float]:
    data = content["family"]
    figures = {"microseconds": data["us"]["median"]}
    if data["bytes_per_token"]:
        seconds = data["launches_per_token"] * data["us"]["median"] * 1e-6
        per_second = data["bytes_per_token"] / seconds
        figures["gigabytes_per_second"] = per_second / 1e9
        figures["roofline_fraction"] = per_second / content["read_bandwidth"]
    return figures


def _peer(content: Content) -> dict[str, float]:
    return {
        "ms_per_token": statistics.median(content["ms_per_token"]),
        "tokens_per_second": content["avg_ts"],
    }


def _agreement(content: Content) -> dict[str, float]:
    layers = content["layers"]
    return {
        "cosine_loss": 1 - min(layer["moe_ffn_out_cosine"] for layer in layers),
        "rel_l2": max(content["logits_rel_l2"], *(layer["moe_ffn_out_rel_l2"] for layer in layers)),
    }


_KINDS: Mapping[str, Callable[[Content], dict[str, float]]] = {
    "moe-harness/decode/1": _decode,
    "moe-harness/batch/1": _batch,
    "moe-harness/parity/1": _parity,
    "moe-harness/evidence/1": _kernel,
    FAMILY: _family,
    "moe-harness/peer/1": _peer,
    "moe-harness/agreement/1": _agreement,
}
