"""One commit measured in two of asv's environments: each has sidecars of its own; real decodes."""

import json
import shutil

import pytest
from helpers.asv_results import (
    BENCHMARK,
    COMMIT,
    DEPTHS,
    as_if_committed,
    edited,
    findings,
    measure,
)

from harness import tracking
from harness.history.recovery import recover
from harness.meter.sidecar import SEAL, digest, write_sidecar
from harness.suite import DecodeSession

OLDER, NEWER = "virtualenv-py3.11", "virtualenv-py3.12"
ROW = f"{BENCHMARK}.track_ms_per_token"


@pytest.fixture(scope="module")
def taken_twice(tmp_path_factory, small_model):
    """``results/`` of one commit on this machine, in two environments one after the other."""
    folder = tmp_path_factory.mktemp("taken-twice") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_HARNESS_RESULTS", str(folder))
        patch.setattr("harness.meter.commit._git", as_if_committed)
        with DecodeSession(small_model, backend="cpu") as session:
            for environment in (OLDER, NEWER):
                patch.setenv("ASV_ENV_NAME", environment)
                measure(folder, session, environment)
    return folder


@pytest.fixture
def results(taken_twice, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(taken_twice, tmp_path / "results")


def asv_file(results, environment):
    [path] = results.glob(f"*/*-{environment}.json")
    return path


def sidecars(results, environment=""):
    return sorted(results.glob(f"*/evidence/*-{environment}*.evidence"))


def untold(path):
    """Make of a sidecar one of before: sealed, and of no environment that it would tell."""
    data = json.loads(path.read_text())
    del data[SEAL], data["environment"]
    target = path.with_name(f"{COMMIT[:8]}-decode.EmbeddedDecode-{path.name.rpartition('-')[2]}")
    target.write_text(json.dumps(data | {SEAL: digest(data)}))
    path.unlink()


def test_both_are_as_they_were_measured(results):
    assert len(sidecars(results)) == 4
    assert {json.loads(path.read_text())["environment"] for path in sidecars(results)} == {
        OLDER,
        NEWER,
    }
    assert findings(results) == []


@pytest.mark.parametrize(("environment", "other"), [(OLDER, NEWER), (NEWER, OLDER)])
def test_each_is_held_against_its_own(results, environment, other):
    path, another = asv_file(results, environment), asv_file(results, other)
    rows = json.loads(another.read_text())["results"]
    edited(path, lambda data: data["results"].update({ROW: rows[ROW]}))
    assert {where for where, _ in findings(results)} == {path}


def test_a_file_taken_out_is_named_by_its_environment(results):
    path = asv_file(results, OLDER)
    path.unlink()
    [(where, what)] = findings(results)
    assert where == path
    assert "is not there, and sidecars vouch for its figures" in what


def test_a_file_that_was_renamed_to_another_environment_is_vouched_for_by_none(results):
    path = asv_file(results, OLDER)
    renamed = path.rename(path.with_name(path.name.replace("3.11", "3.13")))
    assert {where for where, _ in findings(results)} == {path, renamed}


def test_a_sidecar_from_before_that_was_told_vouches_for_the_file_of_its_commit(results):
    for path in sidecars(results, NEWER):
        path.unlink()
    asv_file(results, NEWER).unlink()
    for path in sidecars(results, OLDER):
        untold(path)
    assert len(sidecars(results)) == len(DEPTHS)
    assert findings(results) == []


def test_a_sidecar_that_tells_no_environment_gives_way_to_one_that_does(results):
    """As when a commit is measured again: the older sidecar keeps its name beside the newer."""
    for path in sidecars(results, OLDER):
        untold(path)
    asv_file(results, OLDER).unlink()
    assert findings(results) == []


def test_what_was_killed_is_put_into_the_file_of_its_environment(results):
    def values(environment):
        return json.loads(asv_file(results, environment).read_text())["results"][ROW][0]

    before = values(OLDER), values(NEWER)
    edited(asv_file(results, OLDER), lambda data: data["results"].pop(ROW))
    assert len(recover(results)) == 1
    assert (values(OLDER), values(NEWER)) == before
    assert findings(results) == []


def test_a_sidecar_that_tells_no_environment_is_put_into_none_of_two_files(results):
    for path in sidecars(results, OLDER):
        untold(path)
    for path in sidecars(results, NEWER):
        path.unlink()
    for environment in (OLDER, NEWER):
        edited(asv_file(results, environment), lambda data: data["results"].pop(ROW))
    assert recover(results) == []


def test_a_long_environment_is_shortened_as_asv_shortens_it(tmp_path):
    from asv.results import get_filename  # noqa: PLC0415

    environment = "virtualenv-py3.12-" + "-".join(f"package{number}" for number in range(20))
    path = write_sidecar(tmp_path, "m", COMMIT, "decode.X depth=0", {}, environment)
    told = json.loads(path.read_text())["environment"]
    assert get_filename("m", COMMIT, environment) == f"m/{COMMIT[:8]}-{told}.json"
    assert path.name == f"{COMMIT[:8]}-{told}-decode.X-depth=0.evidence"


def test_every_sidecar_says_when_and_on_which_tree(tmp_path, monkeypatch):
    """Parity tells neither by itself; what tells its own date keeps it."""
    monkeypatch.setenv("MOE_HARNESS_RESULTS", str(tmp_path))
    monkeypatch.setattr("harness.meter.commit._git", as_if_committed)
    tracking._recorded("parity.X f32", lambda: ({}, {"ran": {"backend": "cpu"}}))
    tracking._recorded("decode.X", lambda: ({}, {"ran": {"date": "2026-01-01T00:00:00+00:00"}}))
    decode, parity = (json.loads(path.read_text())["ran"] for path in sidecars(tmp_path))
    assert (parity["commit"], parity["dirty"], parity["backend"]) == (COMMIT, False, "cpu")
    assert parity["date"] > decode["date"] == "2026-01-01T00:00:00+00:00"
