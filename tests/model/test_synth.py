import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.errors import BadInput
from harness.guard import guard
from harness.guard.faults import seeded_prompts
from harness.model import open_model
from harness.model.synth import PRESETS, more_bits, synthesise, write_model
from harness.reference import Oracle
from harness.stages import Plan

SMALL_PRESETS = ("tiny", "odd-all-experts", "odd-top1")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("preset", SMALL_PRESETS)
def test_what_is_written_opens_as_it_was_meant(preset, tmp_path):
    model = open_model(synthesise(preset, tmp_path / "m.gguf"))
    wanted = PRESETS[preset].config
    assert model.config == replace(
        wanted,  # GGUF keeps these two in float32
        rms_eps=float(np.float32(wanted.rms_eps)),
        rope_base=float(np.float32(wanted.rope_base)),
    )
    for name, shape, fmt, size in PRESETS[preset].spans():
        tensor = model[name]
        assert (tensor.shape, tensor.format, tensor.nbytes) == (shape, fmt, size)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    synthesise("tiny", a, seed=7)
    synthesise("tiny", b, seed=7)
    synthesise("tiny", c, seed=8)
    assert digest(a) == digest(b) != digest(c)


def test_the_30b_has_the_real_size_and_mix():
    shape = PRESETS["qwen3-30b-a3b"]
    assert shape.weight_bytes == pytest.approx(18.55e9, rel=1e-3)
    formats = {name: fmt.name for name, _, fmt, _ in shape.spans()}
    assert formats["output.weight"] == "Q6_K"
    assert formats["blk.3.attn_q.weight"] == "Q4_K"
    for short in ("attn_v", "ffn_down_exps"):
        six = [n for n in range(48) if formats[f"blk.{n}.{short}.weight"] == "Q6_K"]
        assert len(six) == 24
        assert six[:8] == [0, 1, 2, 3, 4, 5, 8, 11]
    assert formats["blk.3.ffn_gate_inp.weight"] == formats["blk.3.attn_norm.weight"] == "F32"
    assert not more_bits(6, 48)


def test_it_says_that_it_has_no_tokenizer_or_llama_cpp_would_not_load_it(tiny_path):
    model = open_model(tiny_path)
    assert model.metadata["tokenizer.ggml.model"] == "no_vocab"
    assert model.tokenizer is None


def test_no_two_experts_are_equal_and_all_are_used(tiny_path):
    model = open_model(tiny_path)
    c = model.config
    run = Oracle(model, capacity=64).run(
        seeded_prompts(c.vocab, 1, 64)[0], Plan.parse("moe_router_indices")
    )
    for layer in range(c.layers):
        used = {int(i) for seen in run.captures for i in seen["moe_router_indices", layer]}
        assert len(used) == c.experts
    for short in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        experts = {bytes(raw) for raw in model.layer(1, short).blocks}
        assert len(experts) == c.experts


@pytest.mark.parametrize("preset", SMALL_PRESETS)
def test_it_is_stable_enough_for_the_guard(preset, tmp_path):
    model = open_model(synthesise(preset, tmp_path / "m.gguf"))
    ids = seeded_prompts(model.config.vocab, 1, 8)[0]
    candidate = open_decoder(model, backend="cpu", capacity=8)
    evidence = guard(candidate, Oracle(model, capacity=8), ids)
    assert evidence.verdict.accepted, evidence.verdict.reasons


def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(BadInput, match="cannot be written"):
        synthesise("tiny", tmp_path / "nowhere" / "m.gguf")
    with pytest.raises(BadInput, match="unknown, expected one of tiny"):
        synthesise("huge", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1_000_000_000))
    with pytest.raises(BadInput, match=r"18.55 GB are needed, 1.00 GB are free"):
        synthesise("qwen3-30b-a3b", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    """The limit on file size stands in for the full disk: the kernel refuses a write half-way."""
    out = tmp_path / "m.gguf"
    out.write_text("old")
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from harness.cli import main; sys.exit(main(['synth', 'tiny', sys.argv[1]]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2, answer.stderr
    assert "cannot be written" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert out.read_text() == "old"


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_model(PRESETS["tiny"], tmp_path / "m.gguf", progress=interrupt)
    assert not list(tmp_path.iterdir())
