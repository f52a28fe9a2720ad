"""Plans and stage files."""

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.errors import BadInput
from harness.stages import REQUIRED, Capture, Plan
from harness.stages.aprt import read_dump, write_dump
from harness.stages.compare import compare


def test_plans():
    everything = Plan.parse("all")
    assert set(REQUIRED) <= set(everything.stages)
    assert len(everything.stages) == 23
    assert Plan.parse("moe_ffn_out,lm_head").stages == {"moe_ffn_out", "lm_head"}
    for bad in ("attn_nrom", "", "lm_head,,", "all,nothing"):
        with pytest.raises(BadInput):
            Plan.parse(bad)


def test_a_stage_that_was_not_captured_is_absent():
    capture = Capture(Plan.parse("lm_head"))
    with pytest.raises(KeyError):
        capture["lm_head", None]


@pytest.fixture
def dump(tmp_path, small_model):
    decoder = open_decoder(small_model, backend="cpu", capacity=3)
    plan = Plan.parse("all")
    captures = [Capture(plan) for _ in range(3)]
    for token, capture in enumerate(captures):
        decoder.step(token, capture)
    write_dump(tmp_path / "a", captures, plan)
    return tmp_path / "a"


def test_a_dump_reads_back_and_equals_itself(dump):
    stages = read_dump(dump)
    result = compare(stages, read_dump(dump))
    assert result.accepted
    assert all(np.asarray(values).size for values in stages.values())


def test_a_damaged_dump_is_bad_input(dump):
    target = dump / "lm_head.bin"
    raw = target.read_bytes()
    for bad in (b"", raw[:7], raw[:-1], b"XXXX" + raw[4:], raw[:4] + b"\xff" * 8 + raw[12:]):
        target.write_bytes(bad)
        with pytest.raises(BadInput):
            read_dump(dump)
