"""A run that was killed: what sidecars hold and asv's file lacks is put there; real results."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.asv_results import listed_then

from harness.contract.integrity import read_results
from harness.errors import BadInput
from harness.history.recovery import recover
from harness.meter.sidecar import SEAL, digest

RESULTS = Path(__file__).parents[2] / "results"
MACHINE = "nvidia-h200"
RECOVERED = ("decode.Qwen3MoeDecode.track_ms_per_token", "kernels.CudaFamilies.track_microseconds")


@pytest.fixture
def results(tmp_path):
    results = shutil.copytree(RESULTS, tmp_path / "results")
    listed = json.loads((results / "benchmarks.json").read_text())
    then = listed_then(listed, asv_file(results))
    (results / "benchmarks.json").write_text(json.dumps(then))
    return results


def asv_file(results):
    """The first of that machine's that has the rows, of the suite as it is: real, and whole."""
    suite = json.loads((results / "benchmarks.json").read_text())
    for path in sorted((results / MACHINE).glob("*-*.json")):
        data = json.loads(path.read_text())
        rows, version = data["results"], data["result_columns"].index("version")
        if all(
            name in rows
            and rows[name][version] == suite[name]["version"]
            and None not in rows[name][0]
            and not any(map(math.isnan, rows[name][0]))  # left out of that run
            for name in RECOVERED
        ):
            return path
    raise AssertionError(f"no result of {MACHINE} with {RECOVERED}")


def without(path, names):
    data = json.loads(path.read_text())
    rows = {name: data["results"].pop(name) for name in names}
    path.write_text(json.dumps(data))
    return rows


def test_rows_that_asv_had_not_written_are_those_that_it_would_have(results):
    path = asv_file(results)
    before = json.loads(path.read_text())
    rows = without(path, RECOVERED)
    assert [line.rpartition(" ")[2] for line in recover(results)] == list(RECOVERED)
    after = json.loads(path.read_text())
    columns = before["result_columns"]
    told = [columns.index(name) for name in columns if name not in ("started_at", "duration")]
    for name, row in rows.items():
        found = after["results"][name]
        assert len(row) == len(found)
        for column in told:
            if column < len(row):
                # As text: NaN, asv's n/a, differs from itself.
                assert json.dumps(row[column]) == json.dumps(found[column]), (name, column)
    kept = {name: row for name, row in after["results"].items() if name not in RECOVERED}
    others = {name: row for name, row in before["results"].items() if name not in RECOVERED}
    assert json.dumps(kept, sort_keys=True) == json.dumps(others, sort_keys=True)
    assert not read_results(results).findings
    assert recover(results) == []


def test_what_is_not_applicable_is_asvs_nan(results):
    name = "kernels.CudaFamilies.track_gigabytes_per_second"
    path = asv_file(results)
    without(path, [name])
    recover(results)
    values = json.loads(path.read_text())["results"][name][0]
    assert any(math.isnan(value) for value in values)  # argmax reads nothing that counts
    assert any(value > 1000 for value in values)


def test_half_of_a_benchmark_is_not_made_a_whole_one(results):
    path = asv_file(results)
    [name] = RECOVERED[:1]
    row = without(path, [name])[name]
    [sidecar] = (results / MACHINE / "evidence").glob(f"{path.name[:8]}-*Decode-depth=512.evidence")
    sidecar.unlink()
    assert [line.rpartition(" ")[2] for line in recover(results)] == [name]
    found = json.loads(path.read_text())["results"][name]
    # As a run restricted to the other parameters has it.
    at = [index for index, each in enumerate(row[1][0]) if each.strip("'") != "512"]
    assert len(at) == len(row[0]) - 1
    assert found[:2] == [[row[0][index] for index in at], [[row[1][0][index] for index in at]]]


def test_a_part_of_a_grid_is_none(results):
    path = asv_file(results)
    name = "kernels.CudaFamilies.track_microseconds"
    without(path, [name])
    sidecars = (results / MACHINE / "evidence").glob(f"{path.name[:8]}-*CudaFamilies-f64.evidence")
    [sidecar] = sidecars
    sidecar.unlink()
    assert recover(results) == []


def test_a_changed_sidecar_is_one_line_and_nothing_is_written(results):
    path = asv_file(results)
    without(path, RECOVERED[:1])
    before = path.read_bytes()
    [sidecar] = (results / MACHINE / "evidence").glob(f"{path.name[:8]}-*Decode-depth=512.evidence")
    sidecar.write_text(sidecar.read_text().replace('"accepted": true', '"accepted": false', 1))
    with pytest.raises(BadInput, match="does not fit its seal"):
        recover(results)
    assert path.read_bytes() == before


def resealed(path, change):
    """What a run would have written that had seen something else."""
    data = json.loads(path.read_text())
    del data[SEAL]
    change(data)
    path.write_text(json.dumps(data | {SEAL: digest(data)}))


def sidecars_of(results, benchmark):
    commit = asv_file(RESULTS).name[:8]
    return sorted((results / MACHINE / "evidence").glob(f"{commit}-*{benchmark}-*.evidence"))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["ran"].update(dirty=True),
        lambda data: data.update(planted="drop_expert"),
        lambda data: data["verdict"].update(accepted=False),
    ],
    ids=["a tree with uncommitted changes", "a planted fault", "a rejected run"],
)
def test_what_counts_for_nothing_is_not_put_in(results, change):
    without(asv_file(results), RECOVERED[:1])
    for path in sidecars_of(results, "decode.Qwen3MoeDecode"):
        resealed(path, change)
    assert recover(results) == []


def test_a_sidecar_of_before_parity_had_a_date_is_put_in_without(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    path = min((tmp_path / "results" / "amd-epyc-2c").glob("31204dac-*.json"))
    before = without(path, ["parity.EmbeddedParity.track_distance"])
    assert len(recover(tmp_path / "results")) == 1
    after = json.loads(path.read_text())["results"]
    for name, row in before.items():
        assert after[name] == row[:3]  # less when it was started, and how long that took


DATES = ["yesterday", "2026-13-41", "0001-01-01T00:00:00", "9" * 5000]


@pytest.mark.parametrize("date", DATES, ids=["a word", "no day", "before all time", "long"])
def test_a_date_that_is_none_is_one_line_and_nothing_is_written(results, date):
    # The rows of another benchmark are whole, and would be filled in.
    without(asv_file(results), RECOVERED)
    before = asv_file_bytes(results)
    [*_, path] = sidecars_of(results, "kernels.CudaFamilies")
    resealed(path, lambda data: data["ran"].update(date=date))
    with pytest.raises(BadInput) as refused:
        recover(results)
    assert str(refused.value).startswith(f"{path}: {date[:40]!r} is no date (ISO 8601)")
    assert asv_file_bytes(results) == before


def asv_file_bytes(results):
    return {path: path.read_bytes() for path in (results / MACHINE).glob("*-*.json")}


LISTED = {"version": "1", "params": [["'a'"]]}
HOSTILE_LISTS = {
    "not there": None,
    "half": "{",
    "no object": "[1]",
    "nested deeply": "[" * 100_000,
    "a number for a benchmark": {"a.B.track_c": 5},
    "no parameters": {"a.B.track_c": {"version": "1"}},
    "parameters that are none": {"a.B.track_c": LISTED | {"params": 5}},
    "a parameter that is none": {"a.B.track_c": LISTED | {"params": [5]}},
    "a value that is none": {"a.B.track_c": LISTED | {"params": [[{}]]}},
    "no version": {"a.B.track_c": {"params": []}},
    "endless parameters": {"a.B.track_c": LISTED | {"params": [["0"] * 1000] * 20}},
}


@pytest.mark.parametrize("case", HOSTILE_LISTS)
def test_a_list_that_asv_did_not_write_is_one_line(results, case):
    path, given = results / "benchmarks.json", HOSTILE_LISTS[case]
    path.unlink() if given is None else path.write_text(
        given if isinstance(given, str) else json.dumps(given)
    )
    with pytest.raises(BadInput) as refused:
        recover(results)
    assert str(refused.value).startswith(f"{path}: ")


HOSTILE_FILES = {
    "no columns": {"result_columns": []},
    "a column that is none": {"result_columns": ["result", ["params"]]},
    "no rows": {"results": 5},
    "another commit": {"commit_hash": "f" * 40},
}


@pytest.mark.parametrize("case", HOSTILE_FILES)
def test_a_result_file_that_asv_did_not_write_is_one_line(results, case):
    path = asv_file(results)
    path.write_text(json.dumps(json.loads(path.read_text()) | HOSTILE_FILES[case]))
    with pytest.raises(BadInput) as refused:
        recover(results)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize("figure", [{}, {"result": None}, "fast", [1]])
def test_a_figure_that_is_no_number_is_one_line(results, figure):
    without(asv_file(results), RECOVERED[:1])
    [path, *_] = sidecars_of(results, "decode.Qwen3MoeDecode")
    resealed(path, lambda data: data["figures"].update(ms_per_token=figure))
    with pytest.raises(BadInput, match="which is no number"):
        recover(results)


def test_the_command_says_it_in_one_line_with_exit_status_2(results):
    path = results / "benchmarks.json"
    path.write_text('{"a.B.track_c": {}}')
    ran = subprocess.run(
        [sys.executable, "-m", "harness.history", str(results)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    [line] = ran.stderr.splitlines()
    assert line.startswith(f"moe-harness: {path}: a.B.track_c: no benchmark of asv's")
