"""Quantities that a criterion can be about, each out of what one sidecar says.

Each is computed from what was recorded, not read from a figure that stands beside it: a share of
the bandwidth is bytes, time and bandwidth. Of a null (what is not finite has no other form in JSON)
comes NaN, which keeps no limit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Content = Mapping[str, Any]


class NotRecorded(Exception):  # noqa: N818 - it is the quantity that is not recorded
    """The sidecar does not hold what the quantity is made of."""


def layer_cosine(content: Content) -> float:
    """Worst cosine of ``moe_ffn_out`` over all layers and positions, in every pass judged.

    Raises
    ------
    NotRecorded
        Where a layer of the model is not there.

    """
    evidence = _of(content, "evidence", dict)
    keys = {"free": "moe_ffn_out_cosine", "forced": "forced_cosine"}
    judged = [key for name, key in keys.items() if name in _of(evidence, "judged", list)]
    if not judged:
        raise NotRecorded("a judged pass")
    return _least(*(_worst_layer(evidence, key) for key in judged))


def independent_cosine(content: Content) -> float:
    """Worst cosine between oracle and an implementation by others: every layer, and the logits."""
    return _least(_worst_layer(content, "moe_ffn_out_cosine"), _number(content, "logits_cosine"))


def router_sum_error(content: Content) -> float:
    """How far the router weights of a layer and position are from summing to 1, at most."""
    return _most(*(_number(seen, "worst_router_sum_error") for seen in _passes(content)))


def output_length_error(content: Content) -> float:
    """Values by which a layer's output misses the hidden size, or logits the vocabulary."""
    model = _of(_of(content, "evidence", dict), "model", dict)
    hidden, vocab = _number(model, "hidden"), _number(model, "vocab")
    lengths = [_of(seen, "lengths", dict) for seen in _passes(content)]
    return _most(
        *(
            abs(_number(each, "moe_ffn_out") - hidden) + abs(_number(each, "lm_head") - vocab)
            for each in lengths
        )
    )


def non_finite(content: Content) -> float:
    """Values of the required stages that are NaN or infinite."""
    return sum(_number(seen, "non_finite") for seen in _passes(content))


def bandwidth_share(content: Content) -> float:
    """Bytes that a token takes over the median time, as a share of the measured read bandwidth."""
    seconds = _number(_of(content, "ms_per_token", dict), "median") / 1000
    moved, bandwidth = _number(content, "bytes_per_token"), _number(content, "read_bandwidth")
    if not (seconds > 0 and bandwidth > 0):
        return float("nan")
    return moved / seconds / bandwidth


def memory_share(content: Content) -> float:
    """Peak of the GPU's memory that the decoder took, as a share of all of it."""
    conditions = _of(content, "conditions", dict)
    if conditions.get("memory_total_bytes") is None:  # NVML does not tell it everywhere
        raise NotRecorded("memory_total_bytes")
    total = _number(conditions, "memory_total_bytes")
    peak = _number(_of(content, "memory", dict), "peak_bytes")
    return peak / total if total > 0 else float("nan")


QUANTITIES: Mapping[str, Callable[[Content], float]] = {
    function.__name__: function
    for function in (
        layer_cosine,
        router_sum_error,
        output_length_error,
        non_finite,
        independent_cosine,
        bandwidth_share,
        memory_share,
    )
}


def _worst_layer(evidence: Content, key: str) -> float:
    layers = _of(evidence, "layers", list)
    wanted = _number(_of(evidence, "model", dict), "layers")
    numbers = [_number(layer, "layer") for layer in layers if isinstance(layer, dict)]
    if not numbers or numbers != list(range(int(wanted))):
        raise NotRecorded(f"{len(numbers)} layers of {wanted:g}")
    return _least(*(_number(layer, key) for layer in layers))


def _least(*values: float) -> float:
    """Smallest value; NaN where one is: ``min`` may drop it."""
    return float("nan") if any(map(math.isnan, values)) else min(values)


def _most(*values: float) -> float:
    """Largest value; NaN where one is."""
    return -_least(*(-value for value in values))


def _passes(content: Content) -> list[dict[str, Any]]:
    """Summaries of the passes that were made; at least one."""
    evidence = _of(content, "evidence", dict)
    names = ("free_running", "teacher_forced")
    found = [evidence[name] for name in names if isinstance(evidence.get(name), dict)]
    if not found:
        raise NotRecorded("no pass")
    return found


def _of(content: Content, key: str, kind: type) -> Any:  # noqa: ANN401 - JSON
    value = content.get(key)
    if not isinstance(value, kind):
        raise NotRecorded(key)
    return value


def _number(content: Content, key: str) -> float:
    if key not in content:
        raise NotRecorded(key)
    value = content[key]
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotRecorded(f"{key} that is a number")
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return float("nan")
