"""Hugging Face's ``Qwen3MoeForCausalLM`` with a model's weights: an implementation by others.

It shares nothing with the oracle but the dequantised weights: modelling code of ``transformers``,
in float64, no kernel, no cache, all positions at once. Its norms, softmaxes and rotary angles are
float32 all the same; that is what differs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness import reference
from harness.errors import HardwareAbsent, Rejected
from harness.meter.commit import provenance
from harness.reference import Oracle
from harness.stages import Plan
from harness.stages.distance import cosine, finite_or_none, rel_l2
from kernels.compiler import python_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.model import Model

# Of logits and of every layer's experts. Float32 norms and softmaxes give 1e-6; a wrong rotary
# base, norm or weighting gives far more than this.
_REL_L2_LIMIT = 1e-4
_STAGE = "moe_ffn_out"


@dataclass(frozen=True)
class Agreement:
    """The oracle beside the twin on one prompt: ``[layers, positions]`` and ``[positions]``."""

    moe_cosine: NDArray[np.float64]
    moe_rel_l2: NDArray[np.float64]
    logits_cosine: NDArray[np.float64]
    logits_rel_l2: NDArray[np.float64]
    prompt_ids: tuple[int, ...]
    model: dict[str, object]

    @property
    def worst_rel_l2(self) -> float:
        """Of everything."""
        return float(np.max([self.moe_rel_l2.max(), self.logits_rel_l2.max()]))

    def to_json(self) -> dict[str, Any]:
        """Plain data for the sidecar."""
        import transformers  # noqa: PLC0415

        accepted = bool(self.worst_rel_l2 <= _REL_L2_LIMIT)
        reason = f"rel_l2 {self.worst_rel_l2:.3g}, limit {_REL_L2_LIMIT:g}"
        return {
            "schema": "moe-harness/agreement/1",
            "verdict": {"accepted": accepted, "reasons": [] if accepted else [reason]},
            "reference": f"transformers {transformers.__version__} Qwen3MoeForCausalLM, float64",
            "prompt_ids": list(self.prompt_ids),
            "layers": [
                {
                    "layer": layer,
                    "moe_ffn_out_cosine": finite_or_none(float(self.moe_cosine[layer].min())),
                    "moe_ffn_out_rel_l2": finite_or_none(float(self.moe_rel_l2[layer].max())),
                }
                for layer in range(len(self.moe_cosine))
            ],
            "logits_cosine": finite_or_none(float(self.logits_cosine.min())),
            "logits_rel_l2": finite_or_none(float(self.logits_rel_l2.max())),
            "ran": {
                "backend": "oracle",
                "device": "cpu",
                "source_hash": oracle_source_hash(),
                **provenance(),
            },
            "model": self.model,
        }


def require_transformers() -> None:
    """Raise HardwareAbsent where ``transformers`` is not installed: then there is no twin."""
    try:
        import transformers  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise HardwareAbsent(
            "transformers is not installed; pip install 'transformers<6'"
        ) from None


def oracle_agreement(model: Model, ids: Sequence[int]) -> Agreement:
    """Decode ``ids`` with the oracle, then with the twin, and compare every layer and position.

    Raises
    ------
    HardwareAbsent
        Without ``transformers``.
    Rejected
        Where they disagree: the evidence is what was seen.

    """
    require_transformers()
    oracle = Oracle(model, capacity=len(ids))
    run = oracle.run(ids, Plan(frozenset({_STAGE})))
    captures, ours = run.captures, run.logits
    outputs, theirs = _twin_run(twin(model), ids)
    layers = range(model.config.layers)
    pairs = [(np.stack([capture[_STAGE, n] for capture in captures]), outputs[n]) for n in layers]
    seen = Agreement(
        moe_cosine=np.stack([cosine(*pair) for pair in pairs]),
        moe_rel_l2=np.stack([rel_l2(*pair) for pair in pairs]),
        logits_cosine=cosine(ours, theirs),
        logits_rel_l2=rel_l2(ours, theirs),
        prompt_ids=tuple(ids),
        model={"name": model.name, "fingerprint": model.fingerprint, "layers": len(pairs)},
    )
    data = seen.to_json()
    if not data["verdict"]["accepted"]:
        raise Rejected(list(data["verdict"]["reasons"]), data)
    return seen


def twin(model: Model) -> Any:  # noqa: ANN401 - transformers' own class
    """Build a float64 ``Qwen3MoeForCausalLM`` with the model's weights; nothing is fetched."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: PLC0415 - an extra

    c = model.config
    config: dict[str, Any] = {
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "intermediate_size": c.expert_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "moe_intermediate_size": c.expert_width,
        "num_experts": c.experts,
        "num_experts_per_tok": c.top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": c.tied_output,
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }
    built: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config))
    built.to(torch.float64).load_state_dict(_state(model), strict=True)
    return built.eval()


def oracle_source_hash() -> str:
    """Hash of what this evidence speaks for: the oracle's code, and how the twin is built."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(reference.__file__).parent.glob("*.py")), Path(__file__)):
        code = python_code(path.read_text(encoding="utf-8"))
        digest.update(f"{path.name}\0{code}\0".encode())
    return digest.hexdigest()[:16]


_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
}


def _state(model: Model) -> dict[str, torch.Tensor]:
    def values(name: str) -> torch.Tensor:
        return torch.from_numpy(model[name].values()).to(torch.float64)

    state = {
        "model.embed_tokens.weight": values("token_embd.weight"),
        "model.norm.weight": values("output_norm.weight"),
        "lm_head.weight": values(model.output.name),
    }
    for layer in range(model.config.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        for short, long in _LAYER_NAMES.items():
            state[f"{theirs}.{long}.weight"] = values(f"{ours}.{short}.weight")
        gate, up = (values(f"{ours}.ffn_{part}_exps.weight") for part in ("gate", "up"))
        state[f"{theirs}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        state[f"{theirs}.mlp.experts.down_proj"] = values(f"{ours}.ffn_down_exps.weight")
    return state


def _twin_run(
    built: Any,  # noqa: ANN401 - transformers' own class
    ids: Sequence[int],
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Every layer's experts' output, ``[positions, hidden]``, and the logits."""
    outputs: list[NDArray[np.float64]] = []

    def keep(_module: object, _given: object, gave: Any) -> None:  # noqa: ANN401
        value = gave[0] if isinstance(gave, tuple) else gave  # a tuple in transformers 4
        outputs.append(value.detach().reshape(len(ids), -1).numpy())

    hooks = [layer.mlp.register_forward_hook(keep) for layer in built.model.layers]
    try:
        with torch.no_grad():
            logits = built(torch.tensor([list(ids)])).logits[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, logits
