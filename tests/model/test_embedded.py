"""The shipped model: what its card says of it, measured again by the CPU decoder."""

import hashlib
import json

import numpy as np
import pytest

from harness.backends.cpu.decoder import CpuDecoder
from harness.model import open_model
from harness.model.embedded import heldout
from harness.model.embedded import path as embedded_path
from harness.model.embedded.ngram import KneserNey
from harness.numerics import NUMERICS
from harness.stages import Capture, Plan

FOLDER = embedded_path().parent
FACTS = json.loads((FOLDER / "embedded.json").read_text())


@pytest.fixture(scope="module")
def model():
    return open_model(embedded_path())


def test_the_card_is_of_this_file(model):
    card = (FOLDER / "MODEL_CARD.md").read_text()
    raw = embedded_path().read_bytes()
    assert hashlib.sha256(raw).hexdigest() == FACTS["file_sha256"]
    assert FACTS["file_sha256"] in card
    assert f"{len(raw)} bytes" in card
    assert len(raw) <= 24 << 20
    text = (FOLDER / "heldout.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == FACTS["shipped_heldout"]["sha256"]
    for word in (
        "licence",
        "PSF-2.0",
        "Held-out cross-entropy",
        "5-gram",
        "Experts",
        "Quantisation",
    ):
        assert word in card
    c = model.config
    assert (c.layers, c.experts, c.top_k) == (8, 16, 4)
    assert {t.format.name for t in model.tensors.values()} == {"F32", "Q4_K", "Q6_K"}


def test_it_is_well_below_a_5_gram_and_no_expert_is_dead():
    for text in ("heldout", "shipped_heldout"):
        facts = FACTS[text]
        assert facts["bits_per_byte"] < 0.85 * facts["bits_per_byte_five_gram"]
    assert min(min(layer) for layer in FACTS["expert_shares"]) > 0.25 / 16


def test_the_cpu_decoder_finds_the_cross_entropy_that_the_card_is_made_from(model):
    """Windows as ``network.stream_bits`` has them: half as far on, the newer half scored."""
    tokenizer = model.tokenizer
    c = model.config
    count, half = FACTS["shipped_heldout"]["prefix_tokens"], c.context_length // 2
    ids = [tokenizer.eos_token_id, *tokenizer.encode(heldout())][:count]  # <|endoftext|> first
    # One thread: on a busy machine two wait for each other at every product.
    decoder = CpuDecoder(model, NUMERICS["f32"], c.context_length, threads=1)
    used = np.zeros((c.layers, c.experts), int)
    scored = []
    lost = []
    for start in (0, half):
        decoder.reset()
        for index in range(start, min(start + c.context_length, count - 1)):
            capture = Capture(Plan(frozenset({"moe_router_indices"})))
            logits = decoder.step(ids[index], capture).astype(np.float64)
            if index < start + half and start:
                continue
            scored.append(index)
            bits = np.log2(np.exp(logits - logits.max()).sum())
            lost.append(bits - (logits[ids[index + 1]] - logits.max()) / np.log(2))
            for layer in range(c.layers):
                used[layer, capture["moe_router_indices", layer].astype(int)] += 1
    assert scored == list(range(count - 1))
    assert np.mean(lost) == pytest.approx(
        FACTS["shipped_heldout"]["prefix_bits_per_token"], rel=1e-4
    )
    assert used.min() > 0


def test_the_n_gram_is_a_distribution_and_learns():
    rng = np.random.default_rng(0)
    stream = np.cumsum(rng.integers(1, 3, 4000)) % 7  # each token is one of two
    gram = KneserNey(stream, 7)
    assert gram.sums(rng.integers(0, 7, (20, 4))) == pytest.approx(np.ones(20), abs=1e-12)
    fresh = np.cumsum(rng.integers(1, 3, 1000)) % 7
    assert gram.bits(fresh, 0) / 999 == pytest.approx(1, abs=0.05)


def test_code_comes_back_from_its_tokens(model):
    text = "def read(self, size=-1):\n    return [x ** 2 for x in range(10)]  # ünïcode\n"
    ids = model.tokenizer.encode(text)
    assert model.tokenizer.decode(ids) == text
    assert max(ids) < model.config.vocab
