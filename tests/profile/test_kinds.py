"""What a token's kernels are called, which stages they compute, which layer they belong to."""

from collections import Counter

import pytest

from harness.errors import BadInput
from harness.profile.kinds import KINDS, kind_of, layers_of
from harness.stages.names import STAGES, WHOLE_MODEL
from kernels import FAMILIES

from .conftest import LAYER


def test_every_kernel_that_a_token_may_launch_has_a_kind():
    # Of load time, of the bandwidth, and one matrix alone.
    no_tokens = {"pack", "fold", "read_all", "matvec"}
    declared = {kernel for family in FAMILIES for kernel in family.arguments}
    earlier = {"append"}
    assert declared - no_tokens == set(KINDS) - earlier


def test_every_stage_is_computed_by_one_kernel():
    stages = Counter(stage for kind in KINDS.values() for stage in kind.stages)
    assert set(stages) == set(STAGES) - {"qkv_bias"}  # which this architecture does not have
    assert set(stages.values()) == {1}
    for stage in WHOLE_MODEL:
        assert [kind.name for kind in KINDS.values() if stage in kind.stages] == ["logits"]


def test_layers_are_counted():
    names = ["embed", *(LAYER * 3), "logits_tiled", "argmax"]
    expected = [None, *([0] * len(LAYER)), *([1] * len(LAYER)), *([2] * len(LAYER)), None, None]
    assert layers_of(names, 3) == expected
    twice = ["embed", "qkv", "qkv_tiled", "qkv", "qkv", "logits"]
    assert layers_of(twice, 2) == [None, 0, 0, 1, 1, None]
    assert layers_of(["qkv", "down"], 1) == [0, 0]
    # A layer whose router is announced has no route.
    mixed = ["qkv", "attention_output", "gate_up", "qkv", "attention_output", "route", "gate_up"]
    assert layers_of(mixed, 2) == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("names", "layers", "said"),
    [
        (["embed", *LAYER, *LAYER[:-1]], 2, "1 launches of down"),
        (["qkv"] * 4, 3, "4 launches of qkv"),
        (["qkv", "route", "route"], 1, "2 launches of route"),
        (["qkv", "qkv", "down", "down"], 2, "down of layer 0 behind a launch of layer 1"),
        (["embed", "argmax"], 2, "no launch is a layer's"),
        (["qkv"], 0, "1 launches"),
        (["warp_speed"], 1, "expected one of embed, qkv"),
    ],
)
def test_what_is_no_token_is_refused(names, layers, said):
    with pytest.raises(BadInput, match=said):
        layers_of(names, layers)


def test_a_tiled_kernel_is_the_same_kernel():
    assert kind_of("down_tiled") is kind_of("down") is KINDS["down"]
