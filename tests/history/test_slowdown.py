"""The trial of 5 % (helpers/slowdown.py): what it plants, and what it reads of asv's tables."""

import json
import shutil
from dataclasses import replace

import pytest
from helpers.asv_house import ROOT, git
from helpers.slowdown import (
    DECODE,
    KERNEL,
    SPIN,
    changed,
    cycles_of,
    plant,
    slowed,
    watched_medians,
)

from kernels import compiler
from kernels.experts import FAMILY
from kernels.family import Heads, Variant

RESULTS = ROOT / "results"
TABLE = """
| Change   | Before [31204dac] <a~7>   | After [477cc256] <b>   | Ratio   | Benchmark (Parameter)  |
|----------|---------------------------|------------------------|---------|------------------------|
| +        | 1.41±0.056                | 1.48±0.11 | 1.05  | decode.X.track_ms_per_token(0)     |
| -        | 819M                      | 700M      | 0.85  | decode.X.track_peak_memory(0)      |
| -        | 1.41                      | 1.48      | ~0.95 | kernels.X.track_microseconds('down')  |
|          | 1.41                      | 1.41      | 1.00  | kernels.X.track_microseconds('up') |
| +        | 100                       | 110       | 1.10  | decode.X.track_tokens_per_second(0) |
| +        | 100                       | 110       | 1.10  | peers.X.track_ms_per_token(0)      |
"""


def sources():
    return {name: (ROOT / "kernels" / name).read_text() for name in ("common.cuh", "experts.cu")}


def test_only_what_is_watched_and_ours_counts_as_changed():
    assert changed(TABLE) == [
        ["decode.X.track_ms_per_token(0)", "1.05"],
        ["kernels.X.track_microseconds('down')", "0.95"],
    ]


@pytest.mark.parametrize("what", [KERNEL, DECODE])
def test_what_is_planted_spins_once_a_launch_and_changes_nothing_else(what):
    before, planted = sources(), slowed(sources(), what, 940)
    assert "".join(planted.values()).count("spin(940);") == 1
    for name, slow in planted.items():
        assert slow.replace(SPIN, "").replace("  spin(940);\n", "") == before[name]


@pytest.mark.parametrize("what", [KERNEL, DECODE])
def test_what_is_planted_compiles_and_the_compiler_leaves_it_in(what, tmp_path):
    folder = tmp_path / "kernels"
    shutil.copytree(ROOT / "kernels", folder)
    for name, text in slowed(sources(), what, 940).items():
        (folder / name).write_text(text)
    variant, heads = Variant(activation="i24"), Heads()
    slow = compiler.ptx(replace(FAMILY, folder=folder), variant, heads, "sm_90")
    assert b"%clock64" in slow
    assert b"%clock64" not in compiler.ptx(FAMILY, variant, heads, "sm_90")


def test_sources_that_changed_are_told_and_not_planted_beside_the_point():
    other = sources() | {"experts.cu": "", "common.cuh": ""}
    for what in (KERNEL, DECODE):
        with pytest.raises(ValueError, match=r"mend helpers/slowdown.py"):
            slowed(other, what, 1)


def test_the_planted_commits_are_children_of_the_last_and_come_out_the_same_again(tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    git(house, "init", "--quiet", "--initial-branch", "main")
    shutil.copytree(ROOT / "kernels", house / "kernels")
    evidence = house / "results" / "nvidia-h200" / "evidence"
    shutil.copytree(RESULTS / "nvidia-h200" / "evidence", evidence)
    git(house, "add", "--all")
    git(house, "commit", "--quiet", "--message", "all")
    head = git(house, "rev-parse", "HEAD")
    planted = plant(house, "nvidia-h200")
    assert plant(house, "nvidia-h200") == planted
    assert len({head, *planted.values()}) == 3
    cycles = cycles_of(evidence)
    for what, files in ((KERNEL, {"common.cuh", "experts.cu"}), (DECODE, {"common.cuh"})):
        assert git(house, "rev-parse", f"{planted[what]}^") == head
        named = git(house, "diff", "--name-only", head, planted[what]).split()
        assert set(named) == {f"kernels/{name}" for name in files}
        assert f"spin({cycles[what]});" in git(house, "diff", head, planted[what])
    assert git(house, "status", "--porcelain") == ""


def test_medians_of_a_committed_result():
    path = next((RESULTS / "nvidia-h200").glob("*.json"))
    commit = json.loads(path.read_text())["commit_hash"]
    medians = watched_medians(RESULTS / "nvidia-h200", commit)
    assert medians["decode.Qwen3MoeDecode.track_ms_per_token(0)"] > 0
    assert medians["kernels.CudaFamilies.track_microseconds(down, i24)"] > 0
    assert not any("tokens_per_second" in name for name in medians)
