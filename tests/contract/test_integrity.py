"""Nothing in results/ can be changed unseen: asv's numbers, the sidecars', their names."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.contract.integrity import read_results
from harness.meter.sidecar import SEAL, digest

COMMITTED = Path(__file__).parents[2] / "results"
FIGURE_COLUMNS = ("result", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75")
COUNT_COLUMNS = ("stats_number", "stats_repeat")


def asv_file(results):
    [path] = (path for path in results.glob("*/*.json") if path.name != "machine.json")
    return path


def sidecars(results):
    return sorted(results.glob("*/evidence/*.evidence"))


def numbers(data, path=()):
    """Where every number of some JSON stands."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            yield from numbers(value, (*path, key))
    elif isinstance(data, int | float) and not isinstance(data, bool) and not math.isnan(data):
        yield path


def changed(data, path, change):
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = change(inner[path[-1]])
    return data


def other(value):
    """As little as shows: the last digit that asv keeps."""
    return value + 1 if isinstance(value, int) or not value else value * 1.0001


def findings(results):
    return [(each.path, each.what) for each in read_results(results).findings]


def test_what_was_measured_is_not_flagged(results):
    stored = read_results(results)
    assert not stored.findings
    assert stored.asv_files == 1
    assert [sidecar.sealed for sidecar in stored.sidecars] == [True, True]


def test_every_figure_of_asvs_file_is_held(results):
    path = asv_file(results)
    data = json.loads(path.read_text())
    columns = data["result_columns"]
    held = {columns.index(name) for name in (*FIGURE_COLUMNS, *COUNT_COLUMNS)}
    places = [place for place in numbers(data["results"]) if place[1] in held and len(place) == 3]
    sampled, plain, depths = 1, 3, 2
    assert len(places) == depths * (sampled * 7 + plain)
    for place in places:
        spoiled = changed(data, ("results", *place), other)
        path.write_text(json.dumps(spoiled))
        found = findings(results)
        assert [where for where, _ in found] == [path], place
        assert place[0].rpartition("track_")[2] in found[0][1]


def test_figures_that_were_taken_away_or_added_are_seen(results):
    path = asv_file(results)
    data = json.loads(path.read_text())
    name = "decode.EmbeddedDecode.track_peak_memory"
    for value in (None, float("nan")):
        path.write_text(json.dumps(changed(data, ("results", name, 0, 1), lambda _, v=value: v)))
        [(where, what)] = findings(results)
        assert where == path
        assert "peak_memory is none, measured was" in what
    invented = copy.deepcopy(data)
    invented["results"]["decode.EmbeddedDecode.track_joules_per_token"] = [
        [1.5, 2.5],
        [["0", "8"]],
    ]
    path.write_text(json.dumps(invented))
    assert ["for which the sidecar has nothing" in what for _, what in findings(results)] == [
        True,
        True,
    ]


def test_what_asv_notes_for_itself_may_change(results):
    path = asv_file(results)
    data = json.loads(path.read_text())
    for row in data["results"].values():
        row[3], row[4] = row[3] + 1000, 9.9  # started_at, duration
    data |= {"date": data["date"] + 1, "durations": {"<build>": 7.5}, "env_vars": {"A": "1"}}
    # asv adds what another run measured; NaN and null are no figures.
    absent = [[float("nan"), None], [["0", "512"]], "1" * 64, 1, 2.0]
    data["results"]["decode.Qwen3MoeDecode.track_ms_per_token"] = absent
    path.write_text(json.dumps(data))
    assert findings(results) == []


def test_figures_without_a_sidecar_are_flagged(results):
    path = asv_file(results)
    sidecars(results)[0].unlink()
    [(where, what)] = findings(results)
    assert where == path
    assert "no sidecar vouches for: decode.EmbeddedDecode 0 (ms_per_token, " in what


def test_the_machine_that_asv_names_is_the_one_that_measured(results):
    path = asv_file(results)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(changed(data, ("params", "os"), lambda _: "Plan 9")))
    [(where, what)] = findings(results)
    assert where == path
    assert "os is 'Plan 9', measured was on" in what


def test_a_file_of_another_commit_is_not_this_ones(results):
    path = asv_file(results)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"commit_hash": "f" * 40}))
    assert findings(results) == [(path, "commit_hash 'ffffffff' is not the one in its name")]


def test_every_number_of_a_sidecar_is_under_its_seal(results):
    for path in sidecars(results):
        data = json.loads(path.read_text())
        assert digest(data) == data[SEAL]
        places = list(numbers(data))
        assert len(places) > 100
        for place in places:
            assert digest(changed(data, place, other)) != data[SEAL], place


def test_a_changed_sidecar_is_named_and_vouches_for_nothing(results):
    path = sidecars(results)[1]
    data = json.loads(path.read_text())
    for place in [
        ("ms_per_token", "median"),
        ("ms_per_token", "samples", 3),
        ("read_bandwidth",),
        ("evidence", "layers", 2, "moe_ffn_out_cosine"),
        ("figures", "tokens_per_second"),
        ("workload", "depth"),
    ]:
        path.write_text(json.dumps(changed(data, place, other)))
        found = dict(findings(results))
        assert "does not fit its seal" in found[path]
        assert "no sidecar vouches for: decode.EmbeddedDecode 8" in found[asv_file(results)]
        assert [sidecar.path for sidecar in read_results(results).sidecars] != [path]


def test_a_seal_that_was_taken_out_is_missed(results):
    path = sidecars(results)[0]
    data = json.loads(path.read_text())
    del data[SEAL]
    path.write_text(json.dumps(data))
    assert dict(findings(results))[path] == "its seal was taken out"


def test_a_sidecar_in_another_layout_says_the_same(results):
    for path in sidecars(results):
        data = json.loads(path.read_text())
        turned = dict(reversed(data.items()))
        path.write_text(json.dumps(turned, indent=4))
    assert findings(results) == []


def test_figures_must_follow_from_what_was_recorded(results):
    """A seal made anew does not make a figure true that the recorded time does not give."""
    path = sidecars(results)[0]
    data = json.loads(path.read_text())
    del data[SEAL]
    data["tokens_per_second"] = data["figures"]["tokens_per_second"] = 1e9
    path.write_text(json.dumps(data | {SEAL: digest(data)}))
    assert "tokens_per_second follows from what it recorded as" in dict(findings(results))[path]


def test_a_sidecar_stays_where_it_was_written(results):
    first, second = sidecars(results)
    swapped = first.with_name(second.name)
    shutil.copy(first, swapped)
    assert "is named as another one" in dict(findings(results))[swapped]
    elsewhere = results / "another-machine" / "evidence" / first.name
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(first, elsewhere)
    assert "lies in the folder of another-machine" in dict(findings(results))[elsewhere]


DAMAGED = {
    "empty": b"",
    "half": b'{"a": 1,',
    "no object": b"[1]",
    "no text": b"\xff\xfe",
    "a key twice": b'{"a": 1, "a": 2}',
    "nested deeply": b"[" * 100_000,
    "an endless number": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(results, case):
    for path in (sidecars(results)[0], asv_file(results)):
        path.write_bytes(DAMAGED[case])
        assert path in dict(findings(results))


HOSTILE = {
    "rows that are none": {"results": {"decode.EmbeddedDecode.track_x": 5}},
    "another's benchmark": {"results": {"time_sort": [[1.0], []]}},
    "text for a number": {"results": {"a.B.track_x": [["1.5"], [], "v"]}},
    "too few values": {"results": {"a.B.track_x": [[1.5], [["0", "1"]], "v"]}},
    "parameters that are none": {"results": {"a.B.track_x": [[1.5], [5], "v"]}},
    "endless parameters": {
        "results": {"a.B.track_x": [None, [["0"] * 1000] * 20, "v"]},
    },
    "no results": {"results": []},
    "no columns": {"result_columns": None},
    "no commit": {"commit_hash": 5},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_asv_did_not_write_is_named(results, case):
    path = asv_file(results)
    path.write_text(json.dumps(json.loads(path.read_text()) | HOSTILE[case]))
    assert path in dict(findings(results))


def test_the_committed_results_are_as_they_were_measured():
    stored = read_results(COMMITTED)
    assert stored.asv_files > 0
    assert not stored.findings


@pytest.mark.parametrize("figure", ["track_ms_per_token", "track_tokens_per_second"])
def test_a_changed_figure_is_seen_beside_an_unsealed_sidecar_too(tmp_path, figure):
    """Of sidecars from before there were seals the figures are derived."""
    machine = "amd-epyc-2c"
    shutil.copytree(COMMITTED / machine, tmp_path / machine)
    shutil.copy(COMMITTED / "benchmarks.json", tmp_path)
    path = tmp_path / machine / "2d47aa20-virtualenv-py3.11.json"
    place = ("results", f"decode.EmbeddedDecode.{figure}", 0, 1)
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, other)))
    [(where, what)] = findings(tmp_path)
    assert where == path
    assert "EmbeddedDecode 512" in what


@pytest.mark.parametrize("place", range(24))
def test_any_number_changed_in_the_results_of_a_gpu_is_named(tmp_path, place):
    """Committed results: one number of asv's files or of the sidecars, drawn by a fixed seed."""
    results = shutil.copytree(COMMITTED, tmp_path / "results")
    assert not read_results(results).findings
    rng = np.random.default_rng(place)
    of_asv = bool(place % 2)
    kind = "*-*.json" if of_asv else "evidence/*.evidence"
    path = Path(rng.choice([str(each) for each in sorted(results.glob(f"nvidia-*/{kind}"))]))
    data = json.loads(path.read_text())
    # Of asv's rows the values; then come its own notes.
    looked_at = {name: row[0] for name, row in data["results"].items()} if of_asv else data
    places = list(numbers(looked_at))
    *inner, last = places[rng.integers(len(places))]
    holder = looked_at
    for key in inner:
        holder = holder[key]
    holder[last] = holder[last] * 1.01 + 1
    path.write_text(json.dumps(data))
    assert path in {finding.path for finding in read_results(results).findings}


def test_a_second_sidecar_of_a_run_is_named_and_vouches_for_nothing(tmp_path):
    """Unsealed, under another name, beside the sealed one: as a casual edit might leave it."""
    results = shutil.copytree(COMMITTED, tmp_path / "results")
    [sealed] = results.glob("nvidia-h200/evidence/1a296a3c-*Qwen3MoeDecode-depth=0.evidence")
    data = json.loads(sealed.read_text())
    del data[SEAL], data["figures"]
    data["ms_per_token"]["median"] /= 2
    second = sealed.with_name("1a296a3c-zzz.evidence")
    second.write_text(json.dumps(data))
    [path] = results.glob("nvidia-h200/1a296a3c-*.json")
    stored = json.loads(path.read_text())
    stored["results"]["decode.Qwen3MoeDecode.track_ms_per_token"][0][0] /= 2
    path.write_text(json.dumps(stored))
    found = {finding.path for finding in read_results(results).findings}
    assert {second, path} <= found


@pytest.mark.parametrize("column", [["result"], 3, None])
def test_columns_without_names_are_a_finding(tmp_path, column):
    results = shutil.copytree(COMMITTED, tmp_path / "results")
    [path] = results.glob("nvidia-h200/1a296a3c-*.json")
    data = json.loads(path.read_text())
    data["result_columns"][2] = column
    path.write_text(json.dumps(data))
    assert path in {finding.path for finding in read_results(results).findings}


def test_a_number_beyond_all_floats_and_a_text_are_findings(tmp_path):
    results = shutil.copytree(COMMITTED, tmp_path / "results")
    path = results / "amd-epyc-2c" / "8dfa664b-virtualenv-py3.11.json"
    data = json.loads(path.read_text())
    data["results"]["decode.EmbeddedDecode.track_ms_per_token"][0][0] = 10**400
    path.write_text(json.dumps(data))
    assert path in {finding.path for finding in read_results(results).findings}
