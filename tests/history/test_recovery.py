"""A run that was killed: what sidecars hold and asv's file lacks is put there; real results."""

import json
import math
import shutil
from pathlib import Path

import pytest

from harness.contract.integrity import read_results
from harness.errors import BadInput
from harness.history.recovery import recover

RESULTS = Path(__file__).parents[2] / "results"
MACHINE = "nvidia-h200"
RECOVERED = ("decode.Qwen3MoeDecode.track_ms_per_token", "kernels.CudaFamilies.track_microseconds")


@pytest.fixture
def results(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    return tmp_path / "results"


def asv_file(results):
    """The first of that machine's that has the rows: real, and whole."""
    for path in sorted((results / MACHINE).glob("*-*.json")):
        if all(name in json.loads(path.read_text())["results"] for name in RECOVERED):
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
    without(path, RECOVERED[:1])
    commit = path.name[:8]
    (results / MACHINE / "evidence" / f"{commit}-decode.Qwen3MoeDecode-depth=512.evidence").unlink()
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
