"""Planted faults, and the proof that a tolerance rejects them.

A fault is planted in the candidate alone; the oracle keeps the true model. Faults of arithmetic
are planted by the backend in its own code (``plant``); faults of reading weights are planted in
the bytes that the candidate is given, which no backend can tell from a kernel that reads them so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.distance import finite_or_none
from harness.guard.run import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.guard.evidence import Evidence
    from harness.model import Model, Tensor
    from harness.reference import Oracle

# Bytes of a block that hold low nibbles, and those that hold scales (ggml-common.h).
_NIBBLES = {"Q4_K": slice(16, 144), "Q5_K": slice(48, 176), "Q6_K": slice(0, 128)}
_SCALES = {
    "Q8_0": slice(0, 2),
    "Q4_K": slice(0, 16),
    "Q5_K": slice(0, 16),
    "Q6_K": slice(192, 210),
}
_LAYER_TENSORS = (
    "ffn_down_exps",
    "ffn_up_exps",
    "ffn_gate_exps",
    "attn_output",
    "attn_q",
    "attn_v",
    "attn_k",
)


@dataclass(frozen=True)
class Fault:
    """A planted defect.

    ``plant`` is the name that backends know it by, None where ``blocks`` plants it in the bytes.
    ``why_not`` says why a model cannot have it, or None where it can.
    """

    name: str
    what: str
    plant: str | None = None
    blocks: Callable[[Model], dict[str, NDArray[np.uint8]]] | None = None
    why_not: Callable[[Model], str | None] = lambda _model: None


@dataclass
class Proof:
    """What planting every fault showed (the ``faults`` JSON of DESIGN.md)."""

    planted: list[tuple[str, float, str]] = field(default_factory=list)  # name, distance, reason
    survivors: list[str] = field(default_factory=list)
    invisible: list[tuple[str, float, float]] = field(default_factory=list)
    inapplicable: list[tuple[str, str]] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)  # distances
    false_rejections: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """No fault survived and no clean run was rejected; an empty proof proves nothing."""
        return bool(self.planted and self.clean) and not self.survivors + self.false_rejections

    def to_json(self) -> dict[str, object]:
        """Return the ``faults`` JSON of DESIGN.md."""
        return {
            "schema": "moe-harness/faults/1",
            "planted": len(self.planted),
            "rejected": len(self.planted) - len(self.survivors) - len(self.invisible),
            "survivors": self.survivors,
            "invisible": [
                [name, finite_or_none(distance), finite_or_none(clean)]
                for name, distance, clean in self.invisible
            ],
            "inapplicable": [list(item) for item in self.inapplicable],
            "clean_runs": len(self.clean),
            "false_rejections": len(self.false_rejections),
            "false_rejection_reasons": self.false_rejections,
            "worst_clean_distance": finite_or_none(max(self.clean, default=float("nan"))),
            "faults": [
                {"name": name, "distance": finite_or_none(distance), "reason": reason}
                for name, distance, reason in self.planted
            ],
        }


def prove(
    model: Model,
    candidate: Callable[[Model, str | None], Decoder],
    oracle: Oracle,
    prompts: Sequence[Sequence[int]],
    progress: Callable[[str], None] = lambda _line: None,
) -> Proof:
    """Run clean on every prompt, then plant every fault, on the first prompt.

    A fault is *rejected* if the guard's verdict says so; *invisible* if it is not and its
    distance is no larger than the worst clean run's; else it *survived*.

    ``candidate(model, plant)`` opens a decoder over that model's bytes with that fault planted.
    """
    proof = Proof()
    clean = candidate(model, None)
    for index, prompt in enumerate(prompts):
        evidence = guard(clean, oracle, prompt)
        proof.clean.append(evidence.distance)
        if not evidence.verdict.accepted:
            proof.false_rejections.append(f"prompt {index}: {evidence.verdict.reasons[0]}")
        progress(f"clean run {index + 1}/{len(prompts)}: {_outcome(evidence)}")
    clean.close()
    worst_clean = max(proof.clean)
    for fault in FAULTS:
        why = fault.why_not(model)
        if why is not None:
            proof.inapplicable.append((fault.name, why))
            progress(f"{fault.name}: inapplicable, {why}")
            continue
        given = model if fault.blocks is None else model.replacing(fault.blocks(model))
        decoder = candidate(given, fault.plant)
        evidence = guard(decoder, oracle, prompts[0])
        decoder.close()
        proof.planted.append((fault.name, evidence.distance, evidence.worst.what))
        if evidence.verdict.accepted:
            if evidence.distance <= worst_clean:
                proof.invisible.append((fault.name, evidence.distance, worst_clean))
            else:
                proof.survivors.append(fault.name)
        progress(f"{fault.name}: {_outcome(evidence)}")
    return proof


def seeded_prompts(vocab: int, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random ids: ``count`` of ``length`` tokens, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [[int(token) for token in rng.integers(0, vocab, length)] for _ in range(count)]


def _outcome(evidence: Evidence) -> str:
    word = "accepted" if evidence.verdict.accepted else "rejected"
    return f"{word}, distance {evidence.distance:.3g} ({evidence.worst.what})"


# -- faults in the bytes ---------------------------------------------------------------------


def _middle(model: Model) -> int:
    return model.config.layers // 2


def _with_nibbles(model: Model) -> Tensor | None:
    """Find a tensor of the middle layer that has nibbles."""
    return next((t for t in _middle_tensors(model) if t.format.name in _NIBBLES), None)


def _with_scales(model: Model) -> Tensor | None:
    """Find a tensor of the middle layer whose blocks do not all have the same scales."""
    for tensor in _middle_tensors(model):
        where = _SCALES.get(tensor.format.name)
        if where is not None:
            scales = tensor.blocks.reshape(-1, tensor.format.block_bytes)[:, where]
            if (scales != scales[0]).any():
                return tensor
    return None


def _middle_tensors(model: Model) -> list[Tensor]:
    return [model.layer(_middle(model), short) for short in _LAYER_TENSORS]


def _zeroed_row(model: Model) -> dict[str, NDArray[np.uint8]]:
    """Zero one row of the middle layer's attention output; a block of zero bytes is zeros."""
    tensor = model.layer(_middle(model), "attn_output")
    blocks = tensor.blocks.copy()
    blocks[tensor.shape[0] // 3] = 0
    return {tensor.name: blocks}


def _wrong_embedding(model: Model) -> dict[str, NDArray[np.uint8]]:
    """Read every token's row where the next token's lies."""
    tensor = model["token_embd.weight"]
    return {tensor.name: np.roll(tensor.blocks, -1, axis=0)}


def _wrong_nibbles(model: Model) -> dict[str, NDArray[np.uint8]]:
    """Read the high nibble plane where the low one belongs, and the other way round."""
    tensor = _with_nibbles(model)
    if tensor is None:
        raise KeyError(_no_nibbles(model))
    where = _NIBBLES[tensor.format.name]
    blocks = tensor.blocks.copy().reshape(-1, tensor.format.block_bytes)
    blocks[:, where] = (blocks[:, where] >> 4) | (blocks[:, where] << 4)
    return {tensor.name: blocks.reshape(tensor.blocks.shape)}


def _neighbours_scale(model: Model) -> dict[str, NDArray[np.uint8]]:
    """Read every block's scales out of the block behind it."""
    tensor = _with_scales(model)
    if tensor is None:
        raise KeyError(_no_scales(model))
    where = _SCALES[tensor.format.name]
    blocks = tensor.blocks.copy().reshape(-1, tensor.format.block_bytes)
    blocks[:, where] = np.roll(blocks[:, where], -1, axis=0)
    return {tensor.name: blocks.reshape(tensor.blocks.shape)}


# -- where a fault does not exist --------------------------------------------------------------


def _no_nibbles(model: Model) -> str | None:
    if _with_nibbles(model) is None:
        return f"no tensor of the middle layer is one of {', '.join(_NIBBLES)}"
    return None


def _no_scales(model: Model) -> str | None:
    if _with_scales(model) is None:
        return "no tensor of the middle layer has blocks of different scales"
    return None


def _top_1(model: Model) -> str | None:
    return "top-1: a single weight is always 1" if model.config.top_k == 1 else None


def _single_expert(model: Model) -> str | None:
    return "there is only one expert" if model.config.experts == 1 else None


def _takes_all(model: Model) -> str | None:
    if model.config.top_k == model.config.experts:
        return "top-k takes every expert"
    return None


FAULTS = (
    Fault("wrong_expert", "the next expert's weights", "wrong_expert", why_not=_single_expert),
    Fault("drop_top_expert", "the top expert is left out", "drop_top_expert"),
    Fault("drop_lowest_expert", "the lowest expert is left out", "drop_lowest_expert"),
    Fault("uniform_weights", "every weight is 1/k", "uniform_weights", why_not=_top_1),
    Fault("swap_two_weights", "two weights change places", "swap_two_weights", why_not=_top_1),
    Fault(
        "unnormalised_weights",
        "the k weights are not renormalised",
        "unnormalised_weights",
        why_not=_takes_all,
    ),
    Fault("silu_on_wrong_factor", "gate * silu(up)", "silu_on_wrong_factor"),
    Fault("wrong_embedding", "the next token's embedding", blocks=_wrong_embedding),
    Fault("zeroed_row", "one row of zeros", blocks=_zeroed_row),
    Fault(
        "wrong_nibble_plane",
        "nibble planes swapped",
        blocks=_wrong_nibbles,
        why_not=_no_nibbles,
    ),
    Fault(
        "neighbours_scale",
        "scales of the block behind",
        blocks=_neighbours_scale,
        why_not=_no_scales,
    ),
    Fault("stale_kv", "one cache position is not written", "stale_kv"),
    Fault("rope_q_off_by_one", "Q is rotated for the next position", "rope_q_off_by_one"),
    Fault("rope_interleaved", "pairs (2i, 2i+1) are rotated", "rope_interleaved"),
    Fault(
        "last_expert_at_tie",
        "the expert ranked last is taken at a near-tie",
        "last_expert_at_tie",
        why_not=_takes_all,
    ),
    Fault("no_qk_norm", "Q and K are not normed", "no_qk_norm"),
    Fault("nan", "one NaN", "nan"),
    Fault("cached_output", "the logits of the call before", "cached_output"),
)
