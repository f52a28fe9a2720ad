"""What a token is made of: its kernels, in words that hold on a GPU and on the CPU alike.

On the CPU the phases between two stages bear the names of the kernels that compute those stages
on a GPU, so that one table describes both.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTENTION, EXPERTS, ENDS = "attention", "experts", "ends"
_TILED = "_tiled"  # the same kernel on matrices that were cut into tiles


@dataclass(frozen=True)
class Kind:
    """A kernel of a token.

    Attributes
    ----------
    name
        As it is launched, without the form of its matrices.
    part
        Of the model: ``attention``, ``experts``, or ``ends`` (what is not of a layer).
    stages
        That it computes, in order.
    of_some
        Whether layers may lack it.

    """

    name: str
    part: str
    stages: tuple[str, ...]
    of_some: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether every layer launches it."""
        return self.part != ENDS


KINDS = {
    kind.name: kind
    for kind in (
        Kind("embed", ENDS, ("embedding",)),
        Kind("qkv", ATTENTION, ("attn_norm", "qkv_matmul")),
        # Earlier commits', whose recordings are still read: attend does its work now.
        Kind("append", ATTENTION, ()),
        Kind(
            "attend",
            ATTENTION,
            ("q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "attention"),
        ),
        Kind("attention_output", ATTENTION, ("attn_out", "post_attn_residual")),
        # On a GPU it leaves logits, and the next two choose by them, in little time. Where
        # attention_output announces the logits there is none, and gate_up computes its stages.
        Kind("route", EXPERTS, ("ffn_norm", "moe_router", "moe_router_indices"), of_some=True),
        Kind("gate_up", EXPERTS, ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")),
        Kind("down", EXPERTS, ("ffn_out", "moe_ffn_out", "post_ffn_residual")),
        Kind("logits", ENDS, ("final_norm", "lm_head")),
        Kind("argmax", ENDS, ()),
    )
}


def kind_of(name: str) -> Kind:
    """Kind of a kernel by the name that it was launched under.

    Raises
    ------
    BadInput
        For a name that is no token's kernel; lists those that are.

    """
    kind = KINDS.get(name.removesuffix(_TILED))
    if kind is None:
        raise BadInput(
            f"kernel {name!r} is none of a token's, expected one of {', '.join(KINDS)} (or with "
            f"{_TILED}); add it to harness/profile/kinds.py if it is new"
        )
    return kind


def layers_of(names: Sequence[str], layers: int) -> list[int | None]:
    """Layer of each launch of a token, None for what is not of a layer.

    Layers launch the same kernels in the same order, so the i-th launch of a kernel that every
    layer launches c times belongs to layer i // c. One that layers may lack belongs to that of the
    launch before.

    Raises
    ------
    BadInput
        Where the launches are not those of ``layers`` layers, one after the other.

    """
    kinds = [kind_of(name) for name in names]
    totals = Counter(kind.name for kind in kinds if kind.per_layer)
    if not totals:
        raise BadInput("a token of which no launch is a layer's; the recording is of no model")
    for name, total in totals.items():
        if layers < 1 or (total > layers if KINDS[name].of_some else total % layers):
            raise BadInput(
                f"{total} launches of {name} in a token, expected as many of each of {layers} "
                "layers; the recording is of another model, or launches were lost"
            )
    seen: Counter[str] = Counter()
    found: list[int | None] = []
    last = 0
    for kind in kinds:
        if not kind.per_layer:
            found.append(None)
            continue
        each = totals[kind.name] // layers
        layer = last if kind.of_some else seen[kind.name] // each
        seen[kind.name] += 1
        if layer < last:
            raise BadInput(
                f"{kind.name} of layer {layer} behind a launch of layer {last}; launches were "
                "lost or recorded out of order: record again"
            )
        last = layer
        found.append(layer)
    return found
