"""A small project of its own for asv: a git repository, quick benchmarks, this project's plugin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MACHINE = {"machine": "toy", "os": "Linux", "arch": "x86_64", "cpu": "toy", "num_cpu": "1"}


def our_conf():
    """What asv.conf.json says, without its comments."""
    lines = (ROOT / "asv.conf.json").read_text().splitlines()
    return json.loads("\n".join(line for line in lines if not line.strip().startswith("//")))


def git(folder, *arguments, check=True, date=None):
    identity = {
        f"GIT_{who}_{what}": "tests@example.invalid" if what == "EMAIL" else "tests"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    if date is not None:
        identity |= {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    answer = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=check,
        env={**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull},
    )
    return answer.stdout.strip()


def this_commit():
    """The checkout's commit; skips where the tests do not run from a checkout."""
    head = git(ROOT, "rev-parse", "HEAD", check=False)
    if not head:
        pytest.skip("asv needs a git checkout")
    return head


def commit_times(folder, count):
    """Empty commits, a minute apart; returns (hash, JavaScript time) of each."""
    made = []
    for number in range(count):
        seconds = 1_700_000_000 + 60 * number
        message = f"commit {number}"
        git(folder, "commit", "--quiet", "--allow-empty", "-m", message, date=f"{seconds} +0000")
        made.append((git(folder, "rev-parse", "HEAD"), seconds * 1000))
    return made


def new_house(folder, **settings):
    """Lay out a project in ``folder``: our asv.conf.json but for ``settings``, and a machine."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    (folder / "harness").symlink_to(ROOT / "harness")  # asv looks for the plugin beside its conf
    (folder / "asv.conf.json").write_text(json.dumps(our_conf() | settings))
    machines = {"version": 1, MACHINE["machine"]: MACHINE}
    (folder / ".asv-machine.json").write_text(json.dumps(machines))
    return folder


def asv_command(*arguments):
    return [sys.executable, "-m", "asv", *arguments]


def asv_environment(folder, **variables):
    environment = {**os.environ, "HOME": str(folder), **variables}
    environment.pop("PYTHONPATH", None)
    return environment


def asv(folder, *arguments, **variables):
    return subprocess.run(
        asv_command(*arguments),
        cwd=folder,
        env=asv_environment(folder, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
