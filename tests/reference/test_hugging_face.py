"""The oracle against an implementation that shares nothing with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import Rejected
from harness.model import FORMATS, Config, Model, Tensor
from harness.model.config import tensor_shapes
from harness.peers.hugging_face import oracle_agreement, twin
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


def relative(model, ids, twin_of=None):
    oracle = Oracle(model, capacity=len(ids))
    ours = oracle.run(ids).logits
    theirs = twin_logits(twin_of or model, ids)
    return np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)


def twin_logits(model, ids):
    with torch.no_grad():
        return twin(model)(torch.tensor([ids])).logits[0].numpy()


def lifted_logits(model, ids):
    """Hugging Face's logits with its norms, softmaxes and rotary left in float64.

    They say float32 outright; with that name read as float64 the same code casts nothing.
    """
    lifted = twin(model)
    rotary = lifted.model.rotary_emb
    half = torch.arange(0, model.config.head_dim, 2, dtype=torch.float64)
    rotary.inv_freq = 1.0 / model.config.rope_base ** (half / model.config.head_dim)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return lifted(torch.tensor([ids])).logits[0].numpy()


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
    other = replace(model, config=replace(model.config, rope_base=model.config.rope_base * 1.01))
    assert relative(other, prompt(model.config, 3), twin_of=model).max() > 5e-6


def test_agreement_is_seen_layer_by_layer():
    model = random_model(SHAPES["grouped"])
    seen = oracle_agreement(model, prompt(model.config, 4))
    assert seen.moe_cosine.shape == (model.config.layers, 24)
    assert 0 < seen.worst_rel_l2 < 5e-6
    data = seen.to_json()
    assert data["verdict"] == {"accepted": True, "reasons": []}
    assert [line["layer"] for line in data["layers"]] == [0, 1, 2]
    assert min(line["moe_ffn_out_cosine"] for line in data["layers"]) > 0.999999


def test_an_oracle_that_disagrees_is_rejected(monkeypatch):
    model = random_model(SHAPES["grouped"])
    run = Oracle.run

    def wrong(self, *others, **named):
        right = run(self, *others, **named)
        return replace(right, logits=right.logits * 1.001)

    monkeypatch.setattr(Oracle, "run", wrong)
    with pytest.raises(Rejected, match="rel_l2"):
        oracle_agreement(model, prompt(model.config, 4))
