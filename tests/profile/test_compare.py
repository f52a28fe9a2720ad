"""Two profiles side by side: what changed most comes first; another commit by its own command."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.profile import Profile
from harness.profile.commits import find_commit, profile_commit
from harness.profile.compare import ProfileComparison

from .conftest import LAYER, made

ROOT = Path(__file__).parents[2]
NAMES = ["embed", *LAYER, "logits", "argmax"]


def timed(**durations):
    """One token whose kernels take 1000 ns, but those named."""
    now, starts, ends = 0, [], []
    for name in NAMES:
        starts.append(now)
        now += durations.get(name, 1000)
        ends.append(now)
    return made([starts], [ends], NAMES, layers=1)


def test_what_changed_most_comes_first():
    before, after = timed(qkv=3000, down=5000), timed(qkv=1000, down=4500, route=1200)
    comparison = ProfileComparison("a", "b", Profile(before), Profile(after))
    assert [(c.name, c.us) for c in comparison.changes[:3]] == [
        ("qkv", pytest.approx(-2.0)),
        ("down", pytest.approx(-0.5)),
        ("route", pytest.approx(0.2)),
    ]
    lines = comparison.lines()
    first = next(line for line in lines if line.startswith("qkv"))
    assert "-66.7 %" in first
    assert "-2.0" in first
    data = comparison.to_json()
    assert data["not_alike"] == []
    assert data["before"]["name"] == "a"
    assert sum(change["us"] for change in data["changes"]) == pytest.approx(-2.3)


def test_a_kernel_that_only_one_has_is_new_or_gone():
    fused = [name for name in NAMES if name != "attend"]
    one = timed()
    starts = [[1000 * i for i in range(len(fused))]]
    two = made(starts, [[s + 1000 for s in starts[0]]], fused, layers=1)
    changes = ProfileComparison("a", "b", Profile(one), Profile(two)).changes
    assert (changes[0].name, changes[0].us, changes[0].after_calls) == ("attend", -1.0, 0)
    back = ProfileComparison("b", "a", Profile(two), Profile(one))
    assert any("new" in line and line.startswith("attend") for line in back.lines())


def test_what_is_not_alike_is_told_and_so_is_what_was_not_guarded():
    one = timed()
    two = replace(one, ran={**one.ran, "device": "another"}, positions=9)
    two = replace(two, verdict={"accepted": False, "reasons": ["layer 2"]})
    lines = ProfileComparison("a", "b", Profile(one), Profile(two)).lines()
    assert "NOT ALIKE: device GPU and another" in lines
    assert "NOT ALIKE: position 4 and 9" in lines
    assert lines[0].startswith("b: UNGUARDED")


def test_commits_are_found_or_not():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert len(find_commit("HEAD")) == 40
    for name in ("nonsense", "--output=x", "HEAD:README.md", "", "\0"):
        assert find_commit(name) is None


@pytest.mark.slow
def test_another_commit_is_profiled_by_its_own_command(tiny_path, monkeypatch):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    monkeypatch.setenv("MOE_HARNESS_BUSY", "1")
    head = find_commit("HEAD")
    arguments = [str(tiny_path), "--backend", "cpu", "--prompt=1,2", "--tokens", "4"]
    has = subprocess.run(
        ["git", "-C", str(ROOT), "cat-file", "-e", f"{head}:harness/cli_profile.py"], check=False
    )
    assert has.returncode == 0
    recording = profile_commit(head, arguments)
    assert recording.ran["commit"] == head
    assert recording.accepted
    first = subprocess.run(
        ["git", "-C", str(ROOT), "rev-list", "--max-parents=0", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    with pytest.raises(BadInput, match="name a commit that has the profile command"):
        profile_commit(first, arguments)
