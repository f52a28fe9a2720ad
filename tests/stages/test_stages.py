"""Plans and stage files."""

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.errors import BadInput
from harness.reference import Oracle
from harness.stages import PER_LAYER, REQUIRED, WHOLE_MODEL, Capture, Plan
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


def test_every_stage_that_the_model_has_is_captured_and_is_the_oracles(tmp_path, small_model):
    plan, ids = Plan.parse("all"), [3, 1, 4]
    decoder = open_decoder(small_model, backend="cpu", capacity=3)
    captures = [Capture(plan) for _ in ids]
    for token, capture in zip(ids, captures, strict=True):
        decoder.step(token, capture)
    dumps = []
    for name, shown in (
        ("candidate", captures),
        ("oracle", Oracle(small_model, capacity=3).run(ids, plan).captures),
    ):
        write_dump(tmp_path / name, shown, plan)
        dumps.append(read_dump(tmp_path / name))
    layers = range(small_model.config.layers)
    wanted = {(stage, layer) for stage in PER_LAYER for layer in layers} | {
        (stage, None) for stage in WHOLE_MODEL
    }
    # This architecture has no bias: absent, not zero.
    wanted -= {("qkv_bias", layer) for layer in layers}
    assert set(dumps[0]) == set(dumps[1]) == wanted
    result = compare(*dumps)
    assert result.accepted, result.reasons


def test_diff_sees_a_wrong_value_an_absent_stage_and_another_expert(dump):
    good = read_dump(dump)
    for key, change in (
        (("ffn_silu", 2), lambda values: values * 1.001),
        (("lm_head", None), lambda values: values[:-1]),
        (("moe_router_indices", 1), lambda values: (values + 1) % 16),
        (
            ("final_norm", None),
            lambda values: np.where(np.arange(values.size) == 5, np.nan, values),
        ),
    ):
        for pair in (
            (good, good | {key: change(good[key])}),
            (good | {key: change(good[key])}, good),
        ):
            reasons = compare(*pair).reasons
            assert len(reasons) == 1
            assert key[0] in reasons[0]
        without = {other: values for other, values in good.items() if other != key}
        assert "absent in the second" in compare(good, without).reasons[0]
    assert compare({}, {}).reasons == ["nothing was compared: the dumps share no stage"]


def test_experts_in_another_order_are_the_same_set(dump, small_model):
    good = read_dump(dump)
    key = ("moe_router_indices", 0)
    turned = good[key].reshape(-1, small_model.config.top_k)[:, ::-1].reshape(-1)
    assert not np.array_equal(turned, good[key])
    assert compare(good, good | {key: turned}).accepted


def test_a_position_that_is_off_is_not_lost_in_the_whole(dump):
    good, key = read_dump(dump), ("moe_ffn_out", 1)
    rows = good[key].reshape(3, -1).copy()
    rows[1] *= -1
    rows[2] *= 1000  # a row so long that the whole's cosine hides the one before
    long = good | {key: np.concatenate([good[key].reshape(3, -1)[:2], rows[2:]]).reshape(-1)}
    result = compare(good | {key: rows.reshape(-1)}, long)
    [reason] = result.reasons
    assert "at position 1" in reason
    [claim] = [each for each in result.verdicts if each.claim == "per_layer_cosine"]
    assert not claim.holds
    assert "worst -1.000000000 at layer 1, position 1" in claim.summary


def test_diff_asks_the_same_claims(dump):
    good = read_dump(dump)
    result = compare(good, good)
    assert result.positions == 3
    assert [(each.claim, each.checked) for each in result.verdicts] == [
        ("per_layer_cosine", 6),
        ("expert_sets_equal", 6),
        ("argmax_agreement", 3),
    ]
    key = ("lm_head", None)
    nudged = good[key].copy()
    first = nudged[: nudged.size // 3]
    best, next_best = np.argsort(first)[[-1, -2]]
    first[next_best] = np.nextafter(first[best], np.float32(np.inf))
    result = compare(good | {key: nudged}, good, rel_l2_limit=1.0, cosine_floor=0.5)
    assert result.reasons == [f"argmax at position 0: {next_best} against {best}"]
    assert not result.accepted


def test_dumps_that_do_not_tell_their_positions_are_compared_whole(dump):
    good = {key: values for key, values in read_dump(dump).items() if key[0] != "moe_router"}
    result = compare(good, good)
    assert result.accepted
    assert (result.positions, result.verdicts) == (None, ())
    key = ("moe_router_indices", 0)
    turned = good[key][::-1].copy()
    [reason] = compare(good | {key: turned}, good).reasons
    assert "ids differ, first at 0" in reason


def test_layers_that_tell_different_positions_are_bad_input(dump):
    good, key = read_dump(dump), ("moe_router", 2)
    fewer = good | {key: good[key][: good[key].size // 3 * 2]}
    with pytest.raises(BadInput, match="2 positions in one layer and 3 in another"):
        compare(fewer, fewer)


def test_a_rerun_of_a_dump_is_byte_identical_and_replaces_the_former(tmp_path, small_model):
    plan = Plan.parse("moe_router,lm_head")
    files = []
    for _ in range(2):
        decoder = open_decoder(small_model, backend="cpu", capacity=1)
        capture = Capture(plan)
        decoder.step(7, capture)
        write_dump(tmp_path / "d", [capture], plan)
        files.append({path: path.read_bytes() for path in sorted(tmp_path.rglob("*.bin"))})
    assert files[0] == files[1]
    assert len(files[0]) == small_model.config.layers + 1


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="other things than a dump"):
        write_dump(tmp_path, [])
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_damaged_dump_is_bad_input(dump):
    target = dump / "lm_head.bin"
    raw = target.read_bytes()
    for bad in (b"", raw[:7], raw[:-1], b"XXXX" + raw[4:], raw[:4] + b"\xff" * 8 + raw[12:]):
        target.write_bytes(bad)
        with pytest.raises(BadInput):
            read_dump(dump)
