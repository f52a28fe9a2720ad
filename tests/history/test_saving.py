"""A killed ``asv run`` loses nothing: real asv, killed at random moments."""

import contextlib
import functools
import json
import math
import os
import random
import re
import signal
import subprocess
import time

import pytest
from helpers.asv_house import (
    MACHINE,
    ROOT,
    asv,
    asv_command,
    asv_environment,
    commit_times,
    new_house,
)

KILLS = int(os.environ.get("MOE_HARNESS_KILLS", "2"))
COUNT = 12
# Each benchmark writes a sidecar, then says in a journal that it is done.
BENCHMARKS = f"""
import sys, time
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from harness.meter.sidecar import write_sidecar
from harness.settings import settings

HOUSE = Path(__file__).parents[1]


def measure(number):
    time.sleep(0.3)
    data = {{"verdict": {{"accepted": True, "reasons": []}}, "filling": list(range(20000))}}
    where = HOUSE / "results", {MACHINE["machine"]!r}, "0" * 40
    write_sidecar(*where, f"toy.{{number}}", data, settings().environment)
    with (HOUSE / "journal").open("a") as journal:
        journal.write(f"{{number}}\\n")
    return number + 0.5


class Toy:
    params = [0, 1]

    def setup_cache(self):
        return 1
"""


@pytest.fixture
def house(tmp_path):
    house = new_house(tmp_path / "house")
    commits = commit_times(house, 2)
    benchmarks = house / "benchmarks"
    benchmarks.mkdir()
    methods = "".join(
        f"\n    def track_{number:02}(self, cache, param):\n        return measure({number})\n"
        for number in range(COUNT)
    )
    (benchmarks / "__init__.py").write_text("")
    (benchmarks / "toy.py").write_text(BENCHMARKS + methods)
    return house, commits[-1][0]


def run_arguments(commit, *more):
    return (
        *("run", "--machine", MACHINE["machine"], "--python=same", "--set-commit-hash", commit),
        *more,
    )


def stored(house):
    """Results by benchmark; every file that asv would read must be whole."""
    found = {}
    for path in (house / "results").rglob("*.json"):
        data = json.loads(path.read_text())
        assert data["version"]
        for name, row in data.get("results", {}).items():
            assert path.name not in ("machine.json", "benchmarks.json")
            found[int(re.fullmatch(r"toy\.Toy\.track_(\d+)", name)[1])] = row[0]
    return found


def killed_after(house, commit, seconds):
    """Start ``asv run``, kill it when the time is up; returns what it printed, and its status."""
    process = subprocess.Popen(
        asv_command(*run_arguments(commit)),
        cwd=house,
        env=asv_environment(house),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    journal = house / "journal"
    end = time.monotonic() + 120
    while not journal.exists():  # the moment is drawn from the time in which there is something
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(seconds)
    kill_all(process.pid)
    return process.communicate()[0], process.returncode


def kill_all(pid):
    """As when the machine goes down: also what asv put into process groups of its own."""
    answer = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)
    parents = [tuple(map(int, line.split())) for line in answer.stdout.splitlines()]
    family = [pid]
    for each in family:  # grows while it is walked
        family += [child for child, parent in parents if parent == each]
    for each in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_run_leaves_everything_that_was_finished(house, kill):
    house, commit = house
    moment = random.Random(kill).uniform(0, 6)  # noqa: S311 - no secret
    printed, status = killed_after(house, commit, moment)
    assert status == -signal.SIGKILL, f"it ended before {moment:.1f} s: slow the benchmarks down"
    found = stored(house)
    # asv prints a result after it has it; the line that it was cut off in does not count.
    shown = {int(number) for number in re.findall(r"toy\.Toy\.track_(\d+) +ok", printed)}
    # A benchmark is done when both of its parameters are; asv may not have got the last one yet.
    journal = [int(line) for line in (house / "journal").read_text().split()]
    done = {number for number in journal if journal.count(number) == 2}
    assert done - {max(done, default=None)} <= set(found)
    assert shown <= set(found)
    assert all(value == [number + 0.5] * 2 for number, value in found.items())
    for path in (house / "results" / MACHINE["machine"] / "evidence").glob("*.evidence"):
        assert json.loads(path.read_text())["filling"][-1] == 19999
    sidecars = {
        int(re.search(r"toy\.(\d+)\.evidence$", path.name)[1])
        for path in (house / "results" / MACHINE["machine"] / "evidence").glob("*.evidence")
    }
    assert set(journal) <= sidecars
    # What is left is measured by the next run, and nothing else.
    (house / "journal").unlink()
    ran = asv(house, *run_arguments(commit, "--skip-existing-successful"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert stored(house) == {number: [number + 0.5] * 2 for number in range(COUNT)}
    again = {int(line) for line in (house / "journal").read_text().split()}
    assert again == set(range(COUNT)) - set(found)


@pytest.mark.slow
def test_a_path_is_in_no_name_and_a_dry_run_writes_nothing(house):
    house, commit = house
    ran = asv(house, *run_arguments(commit, "--bench", "track_00", "--dry-run"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert stored(house) == {}
    ran = asv(house, *run_arguments(commit, "--bench", "track_00"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (result,) = (p for p in (house / "results" / MACHINE["machine"]).glob(f"{commit[:8]}*"))
    data = json.loads(result.read_text())
    assert re.fullmatch(r"existing-py3\.\d+", data["env_name"])
    assert re.fullmatch(r"3\.\d+", data["params"]["python"])
    # The sidecar beside it is of the same environment, and says so.
    (sidecar,) = (house / "results" / MACHINE["machine"] / "evidence").glob("*.evidence")
    assert sidecar.name == f"{'0' * 8}-{data['env_name']}-toy.0.evidence"
    assert json.loads(sidecar.read_text())["environment"] == data["env_name"]
    assert str(house) not in result.read_text()
    assert os.fspath(ROOT) not in result.read_text()
    assert list((house / "results").rglob("*.tmp-*")) == []


def test_writing_that_fails_leaves_the_last_file_and_nothing_beside_it(tmp_path):
    saving = pytest.importorskip("harness.history.saving")
    path = tmp_path / "kept.json"
    saving.write_json(str(path), {"kept": math.nan}, 2, compact=True)
    before = path.read_text()
    assert json.loads(before)["version"] == 2
    with pytest.raises(TypeError, match="not JSON serializable"):
        saving.write_json(str(path), {"first": list(range(9999)), "then": functools})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
