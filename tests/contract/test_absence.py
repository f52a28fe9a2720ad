"""What was taken out of results/: rows and files of asv's, seals, asv's own list; real results."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.asv_results import edited, findings, listed_then

from harness.cli import main
from harness.contract.integrity import read_results
from harness.history.recovery import recover
from harness.meter.sidecar import SEAL

COMMITTED = Path(__file__).parents[2] / "results"
GPU, CPU = "nvidia-h200", "amd-epyc-2c"
SEALED, UNSEALED = "1a296a3c", "2d47aa20"
LISTED = json.loads((COMMITTED / "benchmarks.json").read_text())


@pytest.fixture
def results(tmp_path):
    """The committed results of one machine with a GPU: all of them sealed."""
    folder = tmp_path / "results"
    shutil.copytree(COMMITTED / GPU, folder / GPU)
    (folder / "benchmarks.json").write_text(json.dumps(listed_then(LISTED, asv_file(folder))))
    return folder


def asv_file(results, commit=SEALED):
    [path] = results.glob(f"*/{commit}-*.json")
    return path


def sidecar(results, words):
    [path] = results.glob(f"*/evidence/{SEALED}-*{words}.evidence")
    return path


def checked(results, capsys):
    """Exit status of ``contract check``, and the lines about files."""
    status = main(["contract", "check", "--results", str(results)])
    printed = capsys.readouterr().out.splitlines()
    return status, [line for line in printed if line.startswith("CHANGED ")]


def stripped(*keys):
    def edit(data):
        for key in keys:
            data.pop(key)

    return edit


@pytest.mark.parametrize("words", ["Qwen3MoeDecode-depth=512", "CudaFamilies-i24"])
def test_a_seal_taken_out_together_with_what_it_seals_is_named(results, words, capsys):
    path = sidecar(results, words)
    edited(path, stripped(SEAL, "figures"))
    assert dict(findings(results))[path] == "its seal was taken out"
    status, lines = checked(results, capsys)
    assert status == 1
    assert f"CHANGED {path}: its seal was taken out" in lines


def test_a_sidecar_without_any_trace_of_a_seal_is_told_by_those_beside_it(results):
    path = sidecar(results, "Qwen3MoeDecode-depth=512")
    edited(path, stripped(SEAL, "figures", "commit", "host"))
    found = dict(findings(results))
    assert found[path] == f"its seal was taken out: other sidecars of {SEALED} have theirs"
    assert path not in {each.path for each in read_results(results).sidecars}


def test_outside_git_an_old_sidecar_may_lie_beside_a_newer_one(results):
    """There all are of the commit ``unknown``, whichever version wrote them."""
    of_cpu = min((COMMITTED / CPU / "evidence").glob(f"{UNSEALED}-decode.*"))
    path = results / GPU / "evidence" / "unknown-decode.EmbeddedDecode-depth=0.evidence"
    shutil.copy(of_cpu, path)
    assert not [what for where, what in findings(results) if where == path]


def tracked_rows():
    rows = json.loads(next((COMMITTED / GPU).glob(f"{SEALED}-*.json")).read_text())["results"]
    return sorted(name for name, row in rows.items() if row[0] is not None)


@pytest.mark.parametrize("name", tracked_rows())
def test_a_row_taken_out_of_asvs_file_is_named_with_what_to_run(results, name):
    path = asv_file(results)
    edited(path, lambda data: data["results"].pop(name))
    [(where, what)] = findings(results)
    assert where == path
    owner, _, method = name.rpartition(".")
    assert f"lacks figures that sidecars vouch for: {owner} " in what
    assert f"({method.removeprefix('track_')})" in what
    assert "python -m harness.history" in what


def test_one_parameter_taken_out_of_a_row_is_named(results):
    def edit(data):
        columns, row = data["result_columns"], data["results"][name]
        params = row[columns.index("params")]
        at = params[0].index("512")
        for number, column in enumerate(columns[: len(row)]):
            if isinstance(row[number], list) and column != "params":
                del row[number][at]
        del params[0][at]

    name = "decode.Qwen3MoeDecode.track_ms_per_token"
    edited(asv_file(results), edit)
    [(_, what)] = findings(results)
    assert (
        "lacks figures that sidecars vouch for: decode.Qwen3MoeDecode 512 (ms_per_token);" in what
    )


def test_a_hole_of_a_rejected_run_may_go(results):
    """A rejected run has no figure that could be missed."""
    edited(
        asv_file(results), lambda data: data["results"].pop("peers.LlamaBench.track_ms_per_token")
    )
    assert findings(results) == []


def test_what_a_killed_asv_left_out_is_no_finding_any_more_once_it_is_put_in(results, capsys):
    rows = tracked_rows()
    edited(asv_file(results), lambda data: [data["results"].pop(name) for name in rows])
    status, [line] = checked(results, capsys)
    assert (status, str(asv_file(results)) in line) == (1, True)
    assert len(recover(results)) == len(rows)
    assert findings(results) == []


def test_what_is_tracked_no_more_is_not_put_in_and_stays_named(results):
    rows = [name for name in tracked_rows() if name.startswith("kernels.CudaFamilies.")]

    def without_embed(listed):
        for name in rows:
            listed[name]["params"][0].remove("'embed'")

    edited(results / "benchmarks.json", without_embed)
    edited(asv_file(results), lambda data: [data["results"].pop(name) for name in rows])
    assert len(recover(results)) == len(rows)
    [(where, what)] = findings(results)
    assert where == asv_file(results)
    assert "kernels.CudaFamilies embed " in what
    assert "what that does not put in, measure again" in what
    assert "CudaFamilies qkv" not in what


def test_a_file_of_asvs_taken_out_is_one_line(results, capsys):
    path = asv_file(results)
    path.unlink()
    status, [line] = checked(results, capsys)
    assert status == 1
    assert line.startswith(f"CHANGED {path.parent}/{SEALED}-*.json: is not there, and sidecars ")
    assert "decode.Qwen3MoeDecode 0; " in line
    assert "measure again" in line


def test_beside_unsealed_sidecars_a_benchmark_or_a_file_taken_out_is_named(tmp_path):
    folder = tmp_path / "results"
    (folder / CPU).mkdir(parents=True)
    shutil.copy(COMMITTED / "benchmarks.json", folder)
    shutil.copy(asv_file(COMMITTED, UNSEALED), folder / CPU)
    for each in (COMMITTED / CPU / "evidence").glob(f"{UNSEALED}-*"):
        (folder / CPU / "evidence").mkdir(exist_ok=True)
        shutil.copy(each, folder / CPU / "evidence")
    assert findings(folder) == []
    path = asv_file(folder, UNSEALED)

    def without_parity(data):
        for name in [name for name in data["results"] if name.startswith("parity.")]:
            del data["results"][name]

    edited(path, without_parity)
    [(where, what)] = findings(folder)
    assert where == path
    assert "parity.EmbeddedParity f32 (" in what
    path.unlink()
    [(where, what)] = findings(folder)
    assert where.name == f"{UNSEALED}-*.json"


def test_a_damaged_file_of_asvs_is_one_finding(results):
    path = asv_file(results)
    path.write_text("{")
    assert [where for where, _ in findings(results)] == [path]


def test_a_figure_that_is_tracked_no_more_is_not_asked_for(results):
    name = "decode.Qwen3MoeDecode.track_distance"
    edited(results / "benchmarks.json", lambda data: data.pop(name))
    edited(asv_file(results), lambda data: data["results"].pop(name))
    assert findings(results) == []


LISTS = {
    "not there": None,
    "half": b'{"a": ',
    "no object": b"[]",
    "no benchmark": json.dumps(LISTED | {"a.B.track_c": 5}).encode(),
    "no version": json.dumps(LISTED | {"a.B.track_c": {"params": []}}).encode(),
    "no parameters": json.dumps(LISTED | {"a.B.track_c": {"version": "1"}}).encode(),
    "parameters that are none": json.dumps(
        LISTED | {"a.B.track_c": {"version": "1", "params": [5]}}
    ).encode(),
    "a parameter that is no text": json.dumps(
        LISTED | {"a.B.track_c": {"version": "1", "params": [[5]]}}
    ).encode(),
    "endless parameters": json.dumps(
        LISTED | {"a.B.track_c": {"version": "1", "params": [["0"] * 1000] * 20}}
    ).encode(),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_damaged_list_of_asvs_is_named_and_hides_no_benchmark_taken_out(results, case):
    path = results / "benchmarks.json"
    path.unlink() if LISTS[case] is None else path.write_bytes(LISTS[case])
    assert [where for where, _ in findings(results)] == [path]

    def without_families(data):
        for name in [name for name in data["results"] if "CudaFamilies" in name]:
            del data["results"][name]

    edited(asv_file(results), without_families)
    assert {where for where, _ in findings(results)} == {path, asv_file(results)}
