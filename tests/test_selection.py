"""A part of the suite's parameters, by environment variables."""

import pytest

from benchmarks.selection import BATCHES, DEPTHS, batches, depths, numerics, require
from harness.numerics import CUDA_NUMERICS
from harness.tracking import Outcome


def test_all_without_a_word(monkeypatch):
    monkeypatch.delenv("MOE_HARNESS_DEPTHS", raising=False)
    monkeypatch.delenv("MOE_HARNESS_BATCHES", raising=False)
    monkeypatch.delenv("MOE_HARNESS_NUMERICS", raising=False)
    assert depths(DEPTHS) == DEPTHS
    assert batches(BATCHES) == BATCHES
    assert numerics(CUDA_NUMERICS) == list(CUDA_NUMERICS)


def test_those_named_in_the_classs_order(monkeypatch):
    monkeypatch.setenv("MOE_HARNESS_DEPTHS", "4096, 0")
    monkeypatch.setenv("MOE_HARNESS_NUMERICS", "q8_k")
    monkeypatch.setenv("MOE_HARNESS_BATCHES", "8,2")
    assert batches(BATCHES) == [2, 8]
    assert depths(DEPTHS) == [0, 4096]
    assert depths([4096, 32768]) == [4096]
    assert numerics(CUDA_NUMERICS) == ["q8_k"]


@pytest.mark.parametrize("named", ["1", "0,", "zero"])
def test_an_unknown_one_is_named_with_what_there_is(monkeypatch, named):
    monkeypatch.setenv("MOE_HARNESS_DEPTHS", named)
    with pytest.raises(SystemExit, match=r"MOE_HARNESS_DEPTHS names .*expected some of 0, 512"):
        depths(DEPTHS)


def test_what_was_left_out_is_not_available_and_the_rest_is_as_it_says():
    outcomes = {0: Outcome({"a": 1.0}), (0, "f32"): Outcome(absent="no GPU")}
    require(outcomes, 0)
    with pytest.raises(NotImplementedError, match="left out"):
        require(outcomes, 512)
    with pytest.raises(NotImplementedError, match="no GPU"):
        require(outcomes, 0, "f32")
