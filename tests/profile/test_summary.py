"""Medians, gaps and sums of recordings whose figures are known."""

import json

import pytest

from harness.profile import Profile
from harness.profile.recording import Undisturbed
from harness.profile.table import energy_lines, memory_lines, profile_lines

from .conftest import LAYER, made

NAMES = ["embed", *LAYER, "logits", "argmax"]


def token(begin, took, gap):
    starts, ends = [], []
    for _ in NAMES:
        starts.append(begin)
        ends.append(begin + took)
        begin += took + gap
    return starts, ends


@pytest.fixture
def three():
    """Tokens whose launches take 1, 2 and 9 us, with gaps of 100, 200 and 300 ns."""
    rows = [token(0, 1000, 100), token(20_000, 2000, 200), token(50_000, 9000, 300)]
    return made(
        [starts for starts, _ in rows],
        [ends for _, ends in rows],
        NAMES,
        layers=1,
        undisturbed=Undisturbed(0.020, 0.03, 50, "converged"),
    )


def test_figures_are_medians_over_tokens(three):
    profile = Profile(three)
    assert [node.us for node in profile.nodes] == [2.0] * 9
    assert [node.gap_us for node in profile.nodes[1:]] == pytest.approx([0.2] * 8)
    # Token to token: 20.0 - 9.8 and 50.0 - 39.6 us.
    assert profile.nodes[0].gap_us == pytest.approx((10.2 + 10.4) / 2)
    path = profile.path
    assert path.kernels_us == pytest.approx(18)
    assert path.gaps_us == pytest.approx(1.6)
    assert path.host_us == pytest.approx(10.3)
    assert path.sum_us == pytest.approx(29.9)
    assert path.sum_off == pytest.approx(29.9 / 20 - 1)
    assert path.floor_us == pytest.approx(9)  # 9 launches of 1000 bytes at 1 GB/s
    assert path.distance == pytest.approx(20 / 9)
    assert path.left_us == pytest.approx(2)
    assert path.traced_us == pytest.approx(1)


def test_rows_are_sums_of_a_kernel(three):
    rows = {row.kind.name: row for row in Profile(three).rows}
    assert len(rows) == 9
    # 0.2 us lie ahead of each launch of 2 us: the token is longer for both.
    assert rows["qkv"].adds_us == pytest.approx(2.2)
    assert rows["qkv"].share == pytest.approx(0.11)
    assert rows["qkv"].bytes_per_second == pytest.approx(1000 / 2.2e-6)
    assert rows["qkv"].bandwidth_share == pytest.approx(1 / 2.2)
    assert sum(row.us for row in rows.values()) == pytest.approx(18)
    path = Profile(three).path
    assert sum(row.adds_us for row in rows.values()) == pytest.approx(path.sum_us)


def test_an_overlap_is_a_negative_gap():
    starts = [[0, 900, 1800, 2700, 3600, 4500, 5400, 6300, 7200]]
    ends = [[start + 1000 for start in starts[0]]]
    profile = Profile(made(starts, ends, NAMES, layers=1))
    assert [node.gap_us for node in profile.nodes] == pytest.approx([0, *([-0.1] * 8)])
    assert profile.path.sum_us == pytest.approx(8.2)  # as long as the token is


def test_kernels_gaps_and_host_are_the_whole_of_a_recorded_token(recorded):
    """Of the CPU's phases nothing is left out: token by token they sum to what was timed."""
    traced = recorded.traced
    phases = (traced.ends - traced.starts).sum(axis=1) / 1e6
    assert list(phases) == pytest.approx(list(traced.token_ms), rel=1e-3)
    assert Profile(recorded).path.gaps_us == 0
    assert Profile(recorded).path.host_us == 0


def test_json_and_table_agree(recorded):
    profile = Profile(recorded)
    data = json.loads(json.dumps(profile.to_json(), allow_nan=False))
    assert sum(row["us"] for row in data["kernels"]) == pytest.approx(data["path"]["kernels_us"])
    assert sum(row["bytes"] for row in data["kernels"]) == data["bytes_per_token"]
    assert sum(row["calls"] for row in data["kernels"]) == len(data["launches"])
    lines = profile_lines(profile)
    for row in data["kernels"]:
        [line] = [line for line in lines if line.split()[:1] == [row["name"]]]
        assert f"{row['us']:.1f}" in line.split()
    assert "verdict: ACCEPTED" in lines


def test_memory_is_listed_by_purpose_against_the_peak(recorded, tiny_model):
    by_purpose = recorded.memory["by_purpose"]
    weights = sum(size for what, size in by_purpose.items() if what.startswith("weights "))
    assert weights == tiny_model.weight_bytes
    text = "\n".join(memory_lines(recorded))
    assert f"{by_purpose['KV cache']:,}" in text
    assert recorded.memory["source"] in text


def test_energy_is_told_or_not(three):
    assert energy_lines(three) == []
    untold = made([[0] * 9], [[5] * 9], NAMES, 1, energy={"joules_per_token": None, "power": []})
    assert "no counter" in energy_lines(untold)[0]
    power = [[0.05 * i, 100.0 + i, 1980] for i in range(60)]
    told = made([[0] * 9], [[5] * 9], NAMES, 1, energy={"joules_per_token": 2, "power": power})
    lines = energy_lines(told)
    assert lines[0].startswith("2.0000 J/token")
    assert "100 to 159 W over 3.0 s, 60 readings" in lines[1]
