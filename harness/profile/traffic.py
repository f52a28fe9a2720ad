"""Bytes that each kernel of a token must move, counted from the model and the experts routed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.meter.traffic import token_traffic
from harness.profile.kinds import KINDS

if TYPE_CHECKING:
    from harness.model import Model

# Matrices and norms of a layer that a kernel reads as a whole.
_WHOLE = {
    "qkv": ("attn_norm", "attn_q", "attn_k", "attn_v"),
    "append": ("attn_q_norm", "attn_k_norm"),
    "attention_output": ("attn_output",),
    # gate_up norms too: it reads the same weights again, out of a cache
    "route": ("ffn_norm", "ffn_gate_inp"),
}
# Of these, top_k experts' share.
_ROUTED = {"gate_up": ("ffn_gate_exps", "ffn_up_exps"), "down": ("ffn_down_exps",)}


def kernel_traffic(model: Model, backend: str, positions: int) -> dict[tuple[str, int | None], int]:
    """Count a token that attends to ``positions`` positions (itself included).

    By kernel and layer; None for kernels that are not of a layer. The sum is that of
    ``harness.meter.traffic.token_traffic``; activations are not counted here either.
    """
    c, terms = model.config, token_traffic(model, backend, positions).terms
    # Of one layer: a position's keys and values.
    cached = terms["kv_cache"] // positions // c.layers
    moved: dict[tuple[str, int | None], int] = {
        ("embed", None): terms["embedding"],
        ("logits", None): model["output_norm.weight"].nbytes + terms["output"],
        ("argmax", None): 0,  # logits are activations
    }
    for layer in range(c.layers):
        for kind in KINDS.values():
            if not kind.per_layer:
                continue
            total = sum(model.layer(layer, short).nbytes for short in _WHOLE.get(kind.name, ()))
            total += sum(
                model.layer(layer, short).nbytes * c.top_k // c.experts
                for short in _ROUTED.get(kind.name, ())
            )
            if kind.name == "append":  # this position is written
                total += cached
            elif kind.name == "attend":  # those before it are read
                total += cached * (positions - 1)
            moved[kind.name, layer] = total
    return moved
