"""The trial of 5 % (helpers/slowdown.py): what it plants, what it reads of asv, its ruling."""

import json
import shutil
from dataclasses import replace

import pytest
from asv.results import Results
from asv.runner import BenchmarkResult
from helpers import slowdown
from helpers.asv_house import MACHINE, ROOT, commit_times, git, new_house
from helpers.slowdown import SPIN, cycles_of, equal_commits, open_house, plant, slowed
from helpers.slowdown_ruling import (
    DECODE,
    FAILS,
    HOLDS,
    KERNEL,
    NOT_MEASURED,
    NOT_VALID,
    SHOULD_RISE,
    judge,
    read_measured,
    watched_rows,
)

from harness.errors import BadInput
from harness.meter.sidecar import SEAL, digest
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
| x        | 1.41                      | 1.41      | 1.00  | kernels.X.track_microseconds('qkv') |
| + | 1.41    | 1.47      | 1.04  | kernels.X.track_microseconds('route') [toy/here] |
| + | 1.41    | 1.47      | 1.04  | kernels.X.track_microseconds('route') [toy/there] |
| +        | 100                       | 110       | 1.10  | decode.X.track_tokens_per_second(0) |
| +        | 100                       | 110       | 1.10  | peers.X.track_ms_per_token(0)      |
"""


def sources():
    return {name: (ROOT / "kernels" / name).read_text() for name in ("common.cuh", "experts.cu")}


def test_only_what_is_watched_and_ours_is_read_of_a_table():
    assert watched_rows(TABLE, "toy/here") == [
        ["+", "decode.X.track_ms_per_token(0)", "1.05"],
        ["-", "kernels.X.track_microseconds('down')", "0.95"],
        ["", "kernels.X.track_microseconds('up')", "1.00"],
        ["x", "kernels.X.track_microseconds('qkv')", "1.00"],
        ["+", "kernels.X.track_microseconds('route')", "1.04"],
    ]


@pytest.mark.parametrize("what", [KERNEL, DECODE])
def test_what_is_planted_spins_once_a_launch_and_changes_nothing_else(what):
    before, planted = sources(), slowed(sources(), what, 940)
    assert "".join(planted.values()).count("spin(940);") == 1
    for name, slow in planted.items():
        bare = slow.replace(SPIN, "").replace("  spin(940);\n", "")
        assert bare.replace("only_wait()", "take_over()") == before[name]


def test_a_launch_that_takes_over_twice_spins_once():
    planted = slowed(sources(), DECODE, 940)["experts.cu"]
    for kernel in ("gate_up_tiled", "down_tiled"):
        body = planted[planted.index(f" {kernel}(") :]
        body = body[: body.index("\n}\n")]
        assert body.count("only_wait()") == 1
        assert body.count("take_over()") == 0  # but in stage_fixed
        assert body.count("stage_fixed<") == 1


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


def test_a_kernel_is_slowed_where_it_has_waited_and_before_it_multiplies():
    experts = slowed(sources(), KERNEL, 940)["experts.cu"]
    down = experts[experts.index(" down_tiled(") :]
    assert down.index("stage_fixed<") < down.index("spin(940);") < down.index("stream.run(")


def test_a_kernel_that_runs_over_its_tiles_twice_is_not_slowed_in_part():
    given = sources()
    head, found, down = given["experts.cu"].partition(" down_tiled(")
    twice = head + found + down.replace("  stream.run(", "  stream.run();\n  stream.run(", 1)
    with pytest.raises(ValueError, match=r"mend helpers/slowdown.py"):
        slowed(given | {"experts.cu": twice}, KERNEL, 1)


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
    git(house, "add", "--all")
    git(house, "commit", "--quiet", "--message", "all")
    head, cycles = git(house, "rev-parse", "HEAD"), {KERNEL: 910, DECODE: 620}
    (_, parent) = equal = equal_commits(house, "2")
    planted = plant(house, cycles, parent)
    assert (equal_commits(house, "2"), plant(house, cycles, parent)) == (equal, planted)
    assert git(house, "rev-parse", "HEAD") == head
    assert len({*equal, *planted.values()}) == 4
    for what in (KERNEL, DECODE):
        assert git(house, "rev-parse", f"{planted[what]}^") == parent
        assert git(house, "branch", "--points-at", planted[what]), "asv's clone would lack it"
        named = git(house, "diff", "--name-only", parent, planted[what]).split()
        assert set(named) == {"kernels/common.cuh", "kernels/experts.cu"}
        assert f"spin({cycles[what]});" in git(house, "diff", parent, planted[what])
    assert git(house, "status", "--porcelain") == ""


# -- how many cycles -------------------------------------------------------------------------------


@pytest.fixture
def evidence(tmp_path):
    """Of one committed run, in a folder of its own."""
    folder = tmp_path / "nvidia-h200" / "evidence"
    folder.mkdir(parents=True)
    for name in (
        "1a296a3c-decode.Qwen3MoeDecode-depth=0.evidence",
        "1a296a3c-kernels.CudaFamilies-i24.evidence",
        "5e879ff7-existing-py3.12-decode.Qwen3MoeDecode-depth=0.evidence",
    ):
        shutil.copy(RESULTS / "nvidia-h200" / "evidence" / name, folder)
    return folder


def resealed(path, change):
    content = json.loads(path.read_text())
    change(content)
    content.pop(SEAL)
    path.write_text(json.dumps(content | {SEAL: digest(content)}))


def test_cycles_are_5_percent_of_the_newest_times_by_the_clock(evidence):
    # 5 % of 9.21 us and of 2139.6 us in 339 launches, at 1980 MHz.
    assert cycles_of(evidence) == {KERNEL: 912, DECODE: 625}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["verdict"].update(accepted=False),
        lambda content: content["ran"].update(dirty=True),
        lambda content: content.update(planted="nan"),
    ],
)
def test_a_sidecar_that_counts_for_nothing_moves_no_cycles(evidence, change):
    (newer,) = evidence.glob("5e879ff7-*")
    before = cycles_of(evidence)

    def slow(content):
        content["ms_per_token"]["median"] *= 2
        change(content)

    resealed(newer, slow)
    assert cycles_of(evidence)[DECODE] == pytest.approx(before[DECODE], abs=1)


def test_no_sidecar_that_counts_is_one_line(evidence):
    for path in evidence.glob("*decode*"):
        resealed(path, lambda content: content["verdict"].update(accepted=False))
    (newer,) = evidence.glob("5e879ff7-*")
    newer.write_text(newer.read_text().replace("H200", "H100"))
    with pytest.raises(BadInput, match=r"rejected by the guard; .*does not fit its seal.*anew$"):
        cycles_of(evidence)
    for path in evidence.glob("*"):
        path.unlink()
    with pytest.raises(BadInput, match=r"has no evidence of decode.*: run make bench"):
        cycles_of(evidence)


# -- the house -------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A checkout of one commit."""
    root = tmp_path / "root"
    (root / "kernels").mkdir(parents=True)
    git(root, "init", "--quiet", "--initial-branch", "main")
    (root / "kernels" / "a.cu").write_text("a kernel")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "one")
    return root


def test_a_house_is_a_clone_at_the_same_commit_and_untouched(root, tmp_path):
    house = tmp_path / "house"
    for _ in range(2):
        open_house(house, root)
        assert git(house, "rev-parse", "HEAD") == git(root, "rev-parse", "HEAD")
    (house / "kernels" / "a.cu").write_text("half planted")
    with pytest.raises(BadInput, match="uncommitted changes in kernels"):
        open_house(house, root)
    commit_times(root, 1)
    with pytest.raises(BadInput, match=r"stands at \w{8}, .* at \w{8}: remove"):
        open_house(house, root)


def test_a_folder_in_the_checkout_is_no_house(root):
    (root / "house").mkdir()
    with pytest.raises(BadInput, match="no git checkout"):
        open_house(root / "house", root)


def test_equal_commits_change_nothing_and_any_clone_has_them(root, tmp_path):
    head, *others = equal = equal_commits(root, "3")
    assert head == git(root, "rev-parse", "HEAD")
    assert len({*equal}) == 3
    for commit in others:
        assert git(root, "rev-parse", f"{commit}^{{tree}}") == git(root, "rev-parse", "HEAD^{tree}")
    shallow = ("clone", "--quiet", "--depth", "9", "--no-single-branch")
    git(tmp_path, *shallow, f"file://{root}", "clone")
    assert git(tmp_path / "clone", "cat-file", "-t", equal[-1]) == "commit"
    for count in ("1", "many", "-3"):
        with pytest.raises(BadInput, match="expected 2 or more"):
            equal_commits(root, count)


# -- the ruling ------------------------------------------------------------------------------------

FAMILIES = ("down", "qkv")
SLOW = 1.05


class Trial:
    """A house of two equal commits and both planted ones; what asv stored of them."""

    def __init__(self, folder):
        self.house = new_house(folder, benchmark_dir="nowhere")
        (first, _), (last, _), (kernel, _), (decode, _) = commit_times(folder, 4)
        self.equal, self.planted = [first, last], {KERNEL: kernel, DECODE: decode}
        self.results = folder / "results"
        machine = self.results / "toy"
        machine.mkdir(parents=True)
        (machine / "machine.json").write_text(json.dumps(MACHINE | {"version": 1}))
        (self.results / "benchmarks.json").write_text('{"version": 2}')
        self.store(first)
        self.store(last)
        self.store(kernel, down=9.0 * SLOW)
        self.store(decode, decode=2.0 * SLOW)

    def store(self, commit, environment="venv", version="1", **figures):
        """By asv's own code; a figure of None is one that failed."""
        told = {"decode": 2.0, "down": 9.0, "qkv": 4.0} | figures
        stored = Results({**MACHINE}, {}, commit, 1795558429000, "3.12", environment, {})
        rows = {
            "decode.Qwen3MoeDecode.track_ms_per_token": ([["0"]], [told["decode"]]),
            "kernels.CudaFamilies.track_microseconds": (
                [[repr(family) for family in FAMILIES], ["'i24'", "'f64'"]],
                [each for family in FAMILIES for each in (told[family], float("nan"))],
            ),
        }
        for name, (params, values) in rows.items():
            nothing = [None] * len(values)
            stored.add_result(
                {"name": name, "version": version, "params": params},
                BenchmarkResult(values, nothing, nothing, 0, "", None),
            )
        stored.save(str(self.results))

    def judged(self):
        data = judge(self.house, "toy", self.equal, self.planted, {KERNEL: 912, DECODE: 625})
        json.dumps(data, allow_nan=False)
        assert data["holds"] == (data["ruling"] == HOLDS)
        return data


@pytest.fixture
def trial(tmp_path):
    return Trial(tmp_path / "house")


def test_a_trial_holds_where_both_plants_are_found_and_nothing_else(trial):
    data = trial.judged()
    assert data["ruling"] == HOLDS
    assert (data["equal_pairs"], data["equal_pairs_measured"]) == (1, 1)
    assert data["equal_pairs_with_a_finding"] == 0
    assert data["realised_share"] == pytest.approx({KERNEL: 0.05, DECODE: 0.05})
    assert data["expected"] == [
        SHOULD_RISE[DECODE],
        SHOULD_RISE[KERNEL],
        "kernels.CudaFamilies.track_microseconds('qkv', 'i24')",
    ]


def test_what_rises_beside_the_plant_is_no_find_and_a_fall_is_none(trial):
    kernel, decode = trial.planted.values()
    trial.store(kernel, down=9.0 * SLOW, qkv=4.0 * 1.2)
    trial.store(decode, decode=2.0 / SLOW)
    data = trial.judged()
    seen = data["planted"]
    assert seen[KERNEL]["found"]
    assert [row[:2] for row in seen[KERNEL]["beside"]] == [
        ["+", "kernels.CudaFamilies.track_microseconds('qkv', 'i24')"]
    ]
    assert not seen[DECODE]["found"]
    assert [row[:2] for row in seen[DECODE]["beside"]] == [["-", SHOULD_RISE[DECODE]]]
    assert data["ruling"] == NOT_VALID


def test_a_finding_between_equal_commits_and_a_plant_not_found_do_not_hold(trial, monkeypatch):
    trial.store(trial.equal[0], qkv=4.0 * 1.2)
    data = trial.judged()
    assert (data["ruling"], data["equal_pairs_with_a_finding"]) == (FAILS, 1)
    trial.store(trial.equal[0])
    monkeypatch.setattr("helpers.slowdown_ruling.FACTOR", 1.06)
    data = trial.judged()
    assert (data["ruling"], data["equal_pairs_with_a_finding"]) == (FAILS, 0)
    assert not any(plant["found"] for plant in data["planted"].values())


@pytest.mark.parametrize("share", [1.03, 1.08])
def test_a_plant_that_comes_out_as_something_else_is_no_trial(trial, share):
    trial.store(trial.planted[DECODE], decode=2.0 * share)
    data = trial.judged()
    assert data["ruling"] == NOT_VALID
    assert data["realised_share"][DECODE] == pytest.approx(share - 1)
    assert [plant["valid"] for plant in data["planted"].values()] == [True, False]


@pytest.mark.parametrize("left_out", ["decode", "down", "qkv"])
def test_a_figure_that_is_not_there_is_not_measured_and_not_clean(trial, left_out):
    trial.store(trial.equal[-1], **{left_out: None})
    data = trial.judged()
    (pair,) = data["pairs"]
    assert data["ruling"] == NOT_MEASURED
    assert (pair["measured"], data["equal_pairs_measured"]) == (False, 0)
    (missing,) = pair["missing"]
    assert missing.startswith(f"{trial.equal[-1][:8]}: ")
    assert left_out in missing.lower()


def test_a_commit_of_another_environment_or_version_is_not_measured(trial):
    first = trial.equal[0]
    trial.store(first, version="2")
    (pair,) = trial.judged()["pairs"]
    assert all(missing.startswith("asv compare: ") for missing in pair["missing"])
    assert len(pair["missing"]) == 3
    for path in trial.results.glob(f"toy/{first[:8]}-*"):
        path.unlink()
    trial.store(first, environment="existing")
    data = trial.judged()
    assert data["environment"] == "venv"
    assert len(data["pairs"][0]["missing"]) == 3
    trial.store(first)
    assert trial.judged()["ruling"] == HOLDS


def test_a_trial_that_does_not_hold_is_written_all_the_same(trial, tmp_path, monkeypatch):
    for name, answer in (
        ("open_house", None),
        ("equal_commits", trial.equal),
        ("plant", trial.planted),
        ("measure", None),
        ("cycles_of", {}),
    ):
        monkeypatch.setattr(slowdown, name, lambda *_, answer=answer: answer)
    out = tmp_path / "new" / "slowdown.json"
    assert slowdown.run(trial.house, "toy", out) == 0
    trial.store(trial.equal[0], qkv=None)
    assert slowdown.run(trial.house, "toy", out) == 1
    assert json.loads(out.read_text())["ruling"] == NOT_MEASURED


def test_medians_of_committed_results():
    commits = [
        json.loads(path.read_text())["commit_hash"]
        for path in (RESULTS / "nvidia-h200").glob("*-virtualenv-py3.12.json")
    ]
    measured = read_measured(ROOT, "nvidia-h200", commits, commits)
    assert len(commits) == 11
    assert len(measured.wanted) == 1 + 10
    for medians in measured.medians.values():
        assert all(medians[name] > 0 for name in measured.wanted)
        assert not any("tokens_per_second" in name for name in medians)
