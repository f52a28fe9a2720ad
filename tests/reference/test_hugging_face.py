"""The oracle against an implementation that shares nothing with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from harness.model import FORMATS, Config, Model, Tensor
from harness.model.config import tensor_shapes
from harness.reference import Oracle

SHAPES = {
    "grouped": Config("qwen3moe", 3, 64, 4, 2, 32, 8, 3, 48, 131, 1e-6, 1e6, 256, False),
    "wide-heads-tied": Config("qwen3moe", 2, 48, 3, 1, 40, 5, 5, 36, 97, 1e-5, 1e4, 256, True),
    "top-1": Config("qwen3moe", 4, 80, 5, 5, 16, 7, 1, 24, 64, 1e-6, 1e7, 256, False),
}


def random_model(config, seed=0):
    """A model of F32 tensors in memory: no file is needed to compare arithmetic."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape) * (shape[-1] ** -0.5)
        if "norm" in name:
            values = 1 + 0.2 * rng.standard_normal(shape)
        raw = np.ascontiguousarray(values.astype(np.float32)).view(np.uint8)
        tensors[name] = Tensor(name, FORMATS["F32"], shape, raw)
    return Model(Path("random"), config, tensors, {})


def hugging_face(model, dtype=torch.float64):
    c = model.config
    twin = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=c.vocab,
            hidden_size=c.hidden,
            intermediate_size=c.expert_width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            head_dim=c.head_dim,
            rms_norm_eps=c.rms_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            moe_intermediate_size=c.expert_width,
            num_experts=c.experts,
            num_experts_per_tok=c.top_k,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            tie_word_embeddings=c.tied_output,
            attn_implementation="eager",
            experts_implementation="eager",
        )
    ).to(dtype)
    names = {
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

    def values(name):
        return torch.from_numpy(model[name].values()).to(dtype)

    state = {
        "model.embed_tokens.weight": values("token_embd.weight"),
        "model.norm.weight": values("output_norm.weight"),
        "lm_head.weight": values(model.output.name),
    }
    for layer in range(c.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        for short, long in names.items():
            state[f"{theirs}.{long}.weight"] = values(f"{ours}.{short}.weight")
        gate, up = (values(f"{ours}.ffn_{part}_exps.weight") for part in ("gate", "up"))
        state[f"{theirs}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        state[f"{theirs}.mlp.experts.down_proj"] = values(f"{ours}.ffn_down_exps.weight")
    twin.load_state_dict(state, strict=True)
    return twin.eval()


def relative(model, ids, twin_of=None):
    oracle = Oracle(model, capacity=len(ids))
    ours = oracle.run(ids).logits
    theirs = twin_logits(twin_of or model, ids)
    return np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)


def twin_logits(model, ids):
    with torch.no_grad():
        return hugging_face(model)(torch.tensor([ids])).logits[0].numpy()


def lifted_logits(model, ids):
    """Hugging Face's logits with its norms, softmaxes and rotary left in float64.

    They say float32 outright; with that name read as float64 the same code casts nothing.
    """
    twin = hugging_face(model)
    rotary = twin.model.rotary_emb
    half = torch.arange(0, model.config.head_dim, 2, dtype=torch.float64)
    rotary.inv_freq = 1.0 / model.config.rope_base ** (half / model.config.head_dim)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return twin(torch.tensor([ids])).logits[0].numpy()


def prompt(config, seed):
    return [int(i) for i in np.random.default_rng(seed).integers(0, config.vocab, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_as_it_comes(shape):
    ids = prompt(SHAPES[shape], 1)
    assert relative(random_model(SHAPES[shape]), ids).max() < 5e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_to_float64_where_nothing_is_cast_to_float32(shape):
    model = random_model(SHAPES[shape])
    ids = prompt(model.config, 2)
    oracle = Oracle(model, capacity=len(ids))
    ours = oracle.run(ids).logits
    theirs = lifted_logits(model, ids)
    assert theirs.dtype == np.float64
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-9


def test_a_wrong_rope_base_is_seen():
    model = random_model(SHAPES["grouped"])
    other = model.with_config(rope_base=model.config.rope_base * 1.01)
    assert relative(other, prompt(model.config, 3), twin_of=model).max() > 5e-6
