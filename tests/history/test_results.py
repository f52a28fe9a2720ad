"""Several machines' results in one results/, and which changes asv calls regressions."""

import json
import shutil

import pytest
from helpers.asv_house import (
    MACHINE,
    ROOT,
    asv,
    commit_times,
    git,
    new_house,
    our_conf,
    this_commit,
)

RESULTS = ROOT / "results"


@pytest.fixture
def one_result():
    """A committed result file of a whole run, as plain data."""
    path = min(RESULTS.glob("*/*-virtualenv-*.json"))
    return json.loads(path.read_text())


def place(folder, result, commit, time, machine=None):
    """Write a result as asv would, for a commit and a machine."""
    machine = machine or MACHINE
    params = {**machine, "python": "3.11"}
    result = result | {"commit_hash": commit, "date": time, "params": params, "version": 2}
    place = folder / "results" / machine["machine"]
    (place / "evidence").mkdir(parents=True, exist_ok=True)
    (place / f"{commit[:8]}-virtualenv-py3.11.json").write_text(json.dumps(result))
    (place / "evidence" / f"{commit[:8]}-x.evidence").write_text(json.dumps({"of": commit}))
    (place / "machine.json").write_text(json.dumps({**machine, "version": 1}, indent=4))


def with_figures(result, **series):
    """Replace the figures of decode.EmbeddedDecode, the same at every depth."""
    results = dict(result["results"])
    for metric, value in series.items():
        name = f"decode.EmbeddedDecode.track_{metric}"
        first, params, version, *_ = results[name]
        results[name] = [[value] * len(first), params, version, 0, 1.0]
    return result | {"results": results}


def test_benchmarks_json_is_that_of_the_benchmarks(tmp_path):
    # It is shared by all machines: if each run changed it, two runs would conflict.
    house = new_house(tmp_path / "house", repo=str(ROOT), branches=[this_commit()])
    shutil.copytree(ROOT / "benchmarks", house / "benchmarks")
    ran = asv(
        house, "run", "--machine", MACHINE["machine"], "--python=same", "--bench", "just-discover"
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((house / "results" / "benchmarks.json").read_text())
    assert found == json.loads((RESULTS / "benchmarks.json").read_text()), (
        "benchmarks/ has changed: asv run --python=same --bench just-discover, and commit "
        "results/benchmarks.json"
    )


def test_results_of_several_machines_merge(tmp_path, one_result):
    origin = new_house(tmp_path / "origin")
    (origin / "results").mkdir()
    shutil.copy(RESULTS / "benchmarks.json", origin / "results")
    git(origin, "add", "results")
    commits = commit_times(origin, 3)
    gpu = {**MACHINE, "machine": "nvidia-h200", "gpu": "NVIDIA H200", "cpu": "", "num_cpu": ""}
    # Two hosts of one kind, one of another, each in a clone of its own.
    hosts = [(MACHINE, commits[0]), (gpu, commits[1]), (gpu, commits[2])]
    for number, (machine, (commit, time)) in enumerate(hosts):
        clone = tmp_path / f"clone-{number}"
        git(tmp_path, "clone", "--quiet", str(origin), str(clone))
        place(clone, one_result, commit, time, machine)
        shutil.copy(RESULTS / "benchmarks.json", clone / "results")
        git(clone, "add", "results")
        git(clone, "commit", "--quiet", "-m", f"results of host {number}")
        git(clone, "push", "--quiet", "origin", f"HEAD:refs/heads/host-{number}")
    for number in range(len(hosts)):
        git(origin, "merge", "--quiet", "--no-edit", f"host-{number}")
    results = origin / "results"
    assert len(list(results.glob("*/*-virtualenv-*.json"))) == len(hosts)
    assert len(list(results.glob("*/evidence/*.evidence"))) == len(hosts)
    published = asv(origin, "publish")
    assert published.returncode == 0, published.stdout + published.stderr
    index = json.loads((origin / ".asv" / "html" / "index.json").read_text())
    # Two series: one a machine, whatever the host.
    assert sorted(p["machine"] for p in index["graph_param_list"]) == ["nvidia-h200", "toy"]


def published_regressions(folder, one_result, figures):
    """Publish commits with those figures; the benchmarks in which asv sees a regression."""
    house = new_house(folder / "house")
    commits = commit_times(house, len(figures))
    for (commit, time), each in zip(commits, figures, strict=True):
        place(house, with_figures(one_result, **each), commit, time)
    shutil.copy(RESULTS / "benchmarks.json", house / "results")
    published = asv(house, "publish")
    assert published.returncode == 0, published.stdout + published.stderr
    found = json.loads((house / ".asv" / "html" / "regressions.json").read_text())
    return {entry[0].split("(")[0].rpartition("track_")[2] for entry in found["regressions"]}


def steps(before, after):
    """A step after half of the commits, on noise of half a percent."""
    return [
        (before if number < 12 else after) * (1 + 0.005 * (number % 3 - 1)) for number in range(24)
    ]


@pytest.mark.slow
def test_a_slower_decode_is_a_regression_and_a_change_of_tokens_per_second_is_none(
    tmp_path, one_result
):
    slower, rates = steps(1.0, 1.2), steps(1000, 830)
    figures = [
        {"ms_per_token": ms, "tokens_per_second": rate}
        for ms, rate in zip(slower, rates, strict=True)
    ]
    assert published_regressions(tmp_path, one_result, figures) == {"ms_per_token"}


@pytest.mark.slow
def test_a_faster_decode_is_no_regression(tmp_path, one_result):
    faster, rates, shares = steps(1.2, 1.0), steps(830, 1000), steps(0.1, 0.12)
    figures = [
        {"ms_per_token": ms, "tokens_per_second": rate, "roofline_fraction": share}
        for ms, rate, share in zip(faster, rates, shares, strict=True)
    ]
    assert published_regressions(tmp_path, one_result, figures) == set()


@pytest.mark.slow
def test_a_step_below_the_threshold_is_none_and_above_it_is_one(tmp_path, one_result):
    threshold = max(our_conf()["regressions_thresholds"].values())
    below = [{"ms_per_token": ms} for ms in steps(1.0, 1 + threshold / 2)]
    assert published_regressions(tmp_path / "below", one_result, below) == set()
    above = [{"ms_per_token": ms} for ms in steps(1.0, 1 + 2 * threshold)]
    assert published_regressions(tmp_path / "above", one_result, above) == {"ms_per_token"}
