"""Argmaxes and KL divergence: figures that are known, and texts that cannot be had."""

import math
import subprocess
import sys

import numpy as np
import pytest
from helpers.asv_house import ROOT

from harness.backends import open_decoder
from harness.errors import BadInput
from harness.lab.text import (
    BENIGN,
    NOT_BENIGN,
    CanonicalArgmaxes,
    PromptArgmax,
    canonical_argmaxes,
    divergence,
    read_text,
    text_statistics,
    text_windows,
)
from harness.model import open_model
from harness.model.embedded import heldout
from harness.model.embedded import path as embedded_path
from harness.reference import Oracle


@pytest.fixture(scope="module")
def embedded():
    return open_model(embedded_path())


def test_divergence_of_distributions_that_can_be_worked_out():
    quarter = np.log([[0.25, 0.75]])
    half = np.log([[0.5, 0.5]])
    assert divergence(half, quarter) == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)])
    assert divergence(quarter + 7, quarter) == pytest.approx([0], abs=1e-15)  # logits may shift
    assert divergence(np.array([[np.nan, 0.0]]), quarter).tolist() == [np.inf]


def test_a_window_ends_where_the_next_begins_and_none_is_empty(embedded):
    windows = text_windows(embedded, heldout(), 600)
    assert [len(ids) for ids in windows] == [256, 256, 88]
    everything = embedded.tokenizer.encode(heldout()[:20000])
    assert [token for ids in windows for token in ids] == everything[:600]


def test_the_statistics_tell_formats_apart(embedded):
    windows = [ids[:40] for ids in text_windows(embedded, heldout(), 40)]
    oracle = Oracle(embedded, capacity=40)
    kl = {}
    for numerics in ("f32", "q8_k"):
        candidate = open_decoder(embedded, backend="cpu", numerics=numerics, capacity=40)
        seen = text_statistics(candidate, oracle, windows)
        assert seen.to_json()["positions"] == 40
        kl[numerics] = seen.kl.mean()
    assert kl["f32"] < 1e-9
    assert kl["q8_k"] > 1e-5


def test_the_script_of_the_docs_prints_what_stands_below_it():
    before, _, rest = (ROOT / "docs" / "lab.md").read_text().partition("```python\n")
    script, _, rest = rest.partition("```\n")
    told = rest.partition("```\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    figures = [float(figure) for figure in told.split()]
    assert len(figures) == 3
    # A value half-way between two float16 may fall otherwise, where another library sums.
    assert [float(figure) for figure in done.stdout.split()] == pytest.approx(figures, rel=0.1)
    assert "`cuda:f64` | 1.27e-06 |" in before
    assert figures[0] == 1.27e-06


def test_a_text_that_cannot_be_had_is_bad_input(embedded, small_model, tmp_path):
    with pytest.raises(BadInput, match="no tokenizer"):
        text_windows(small_model, "text", 4)
    with pytest.raises(BadInput, match="has 1 tokens, expected 4"):
        text_windows(embedded, "a", 4)
    with pytest.raises(BadInput, match="cannot be read"):
        read_text(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match="no UTF-8 at byte 3"):
        read_text(tmp_path / "latin")


def test_canonical_prompts_that_the_vocabulary_has_not_are_inapplicable(embedded, small_model):
    candidate = open_decoder(embedded, backend="cpu", capacity=8)
    seen = canonical_argmaxes(candidate, Oracle(embedded, capacity=8))
    assert seen.inapplicable == ("canonical_3tok", "multi_tok_short")
    assert [(p.name, p.same) for p in seen.prompts] == [
        ("single_tok_785", True),
        ("multi_tok_code", True),
    ]
    assert seen.ruling == BENIGN
    candidate = open_decoder(small_model, backend="cpu", capacity=8)
    none = canonical_argmaxes(candidate, Oracle(small_model, capacity=8))
    assert not none.prompts
    assert none.ruling == NOT_BENIGN  # nothing was compared


def test_another_next_token_is_not_benign():
    same, other = PromptArgmax("a", 1, 1, 2, 2), PromptArgmax("b", 1, 3, 1, 2)
    assert CanonicalArgmaxes((same,), ()).ruling == BENIGN
    assert CanonicalArgmaxes((same, other), ()).ruling == NOT_BENIGN
    assert CanonicalArgmaxes((PromptArgmax("nan", -1, 3, 0, 1),), ()).ruling == NOT_BENIGN
