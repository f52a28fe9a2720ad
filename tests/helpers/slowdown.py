"""The trial of asv's eyes: does it see 5 %, and does it see nothing where nothing is?

Commits whose GPU code is the same byte for byte are compared one with the next; and the last of
them with two that are slowed down on purpose, each by 5 % as computed from measured times: one
kernel (``down``, of the time of one launch), and the whole decode (every launch, by the same time
each). On a GPU host, from a checkout whose results/ has evidence of that GPU:

    PYTHONPATH=tests python -m helpers.slowdown HOUSE MACHINE [COMMITS]

clones the checkout into HOUSE, measures its last COMMITS (11) commits and both planted ones by
``asv run``, and prints the trial's JSON. What is measured already is not measured again.
"""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from helpers.asv_house import ROOT, git, our_conf

FACTOR = 1.03
SHARE = 0.05
SAME_CODE = ("kernels", "harness/backends/cuda")
KERNEL, DECODE = "down", "the whole decode"
BENCHMARKS = "decode.Qwen3MoeDecode|kernels.CudaFamilies"

SPIN = """
// Planted: time that no one asked for.
__device__ inline void spin(int cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}
"""
_TAKEN_OVER = '  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");\n'
_STAGED = "  float* outputs = reinterpret_cast<float*>(memory + "


def slowed(sources, what, cycles):
    """The sources by name that differ, where every launch of ``what`` spins for ``cycles``."""
    common, experts = sources["common.cuh"], sources["experts.cu"]
    head, guard, rest = common.partition("__device__ inline void take_over() {\n")
    if what == KERNEL:
        if experts.count(_STAGED) != 1:
            raise ValueError("down stages its input in another way now; mend helpers/slowdown.py")
        return {
            "common.cuh": head + SPIN + guard + rest,
            "experts.cu": experts.replace(_STAGED, f"  spin({cycles});\n{_STAGED}"),
        }
    if rest.count(_TAKEN_OVER) != 1:
        raise ValueError("kernels take over in another way now; mend helpers/slowdown.py")
    slow = rest.replace(_TAKEN_OVER, f"{_TAKEN_OVER}  spin({cycles});\n")
    return {"common.cuh": head + SPIN + guard + slow}


def cycles_of(folder):
    """Clock cycles of 5 % of a ``down``, and of 5 % of a token for each of its launches.

    Out of the newest sidecars in ``folder``.
    """
    decode = _newest(folder, "decode.Qwen3MoeDecode-depth=0")
    families = _newest(folder, "kernels.CudaFamilies-i24")
    per_us = decode["conditions"]["max_sm_clock_mhz"]
    launches = decode["ran"]["graph_nodes"]
    return {
        KERNEL: round(SHARE * families["families"][KERNEL]["us"]["median"] * per_us),
        DECODE: round(SHARE * 1000 * decode["ms_per_token"]["median"] / launches * per_us),
    }


def plant(house, machine):
    """Commit both slow-downs, each on top of what is checked out; their hashes.

    Of the same parent, cycles and dates they come out the same again.
    """
    head, date = git(house, "log", "-1", "--format=%H %cI").split()
    cycles = cycles_of(house / "results" / machine / "evidence")
    kernels = house / "kernels"
    sources = {name: (kernels / name).read_text() for name in ("common.cuh", "experts.cu")}
    planted = {}
    for what in (KERNEL, DECODE):
        for name, text in slowed(sources, what, cycles[what]).items():
            (kernels / name).write_text(text)
        message = f"Planted: {what} slower by {SHARE:.0%}, {cycles[what]} cycles a launch"
        git(house, "commit", "--quiet", "--message", message, "--", "kernels", date=date)
        planted[what] = git(house, "rev-parse", "HEAD")
        git(house, "checkout", "--quiet", "--detach", head)
    return planted


def judge(house, machine, planted, equal):
    """Ask ``asv compare`` about every pair."""
    for commit in equal:
        difference = ["diff", "--quiet", equal[-1], commit, "--", *SAME_CODE]
        subprocess.run(["git", "-C", str(house), *difference], check=True)
    folder = house / "results" / machine
    pairs = [_compared(house, machine, *pair) for pair in pairwise(equal)]
    found = {what: _compared(house, machine, equal[-1], commit) for what, commit in planted.items()}
    return {
        "schema": "moe-harness/slowdown/1",
        "factor": FACTOR,
        "planted_share": SHARE,
        "planted_cycles": cycles_of(folder / "evidence"),
        "equal_pairs": len(pairs),
        "equal_pairs_with_a_finding": sum(bool(pair["changed"]) for pair in pairs),
        "pairs": pairs,
        "planted": found,
        "medians": {
            commit: watched_medians(folder, commit) for commit in [*equal, *planted.values()]
        },
    }


def watched_medians(folder, commit):
    """Every accepted figure of a commit that asv watches, by benchmark and parameters."""
    medians = {}
    for path in sorted(folder.glob(f"{commit[:8]}-*.json")):
        stored = json.loads(path.read_text())
        columns = stored["result_columns"]
        for name, row in stored["results"].items():
            if not is_watched(name):
                continue
            cells = dict(zip(columns, row, strict=False))
            for at, value in zip(_product(cells["params"]), cells["result"] or (), strict=False):
                if isinstance(value, float):
                    medians[f"{name}({', '.join(at)})"] = value
    return medians


def is_watched(name):
    """Whether a rise of that benchmark is a regression (asv.conf.json): times, and ours."""
    conf = our_conf()["regressions_first_commits"]
    excluded = any(re.match(pattern, name) for pattern, since in conf.items() if since is None)
    return not excluded and bool(re.search(r"\.track_(ms_per_token|microseconds)$", name))


def changed(table):
    """The watched rows of an ``asv compare`` table that it marks as changed: ``[name, ratio]``."""
    rows = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[0] in ("+", "-"):
            name = re.sub(r" \[.*?\]$", "", cells[4])
            if is_watched(name.partition("(")[0].strip()):
                rows.append([name, cells[3].strip("~")])
    return rows


def _compared(house, machine, before, after):
    command = [sys.executable, "-m", "asv", "compare", "--factor", str(FACTOR)]
    command += ["--machine", machine, before, after]
    done = subprocess.run(command, cwd=house, capture_output=True, text=True, check=True)
    return {"before": before, "after": after, "changed": changed(done.stdout)}


def _product(params):
    """Names of a benchmark's cells, in asv's order."""
    places = [()]
    for values in params:
        places = [(*place, value.strip("'")) for place in places for value in values]
    return places


def _newest(folder, benchmark):
    found = [json.loads(path.read_text()) for path in folder.glob(f"*-{benchmark}.evidence")]
    if not found:
        raise SystemExit(f"{folder} has no evidence of {benchmark}: measure this commit first")
    return max(found, key=lambda data: data["ran"]["date"])


def _main(house, machine, count="11"):
    house = Path(house).resolve()
    if not house.exists():
        git(ROOT, "clone", "--quiet", str(ROOT), str(house))
    equal = git(house, "rev-list", "--first-parent", "--reverse", "-n", count, "HEAD").split()
    planted = plant(house, machine)
    (house / "commits").write_text("\n".join([*equal, *planted.values(), ""]))
    command = [sys.executable, "-m", "asv", "run", "--machine", machine, "HASHFILE:commits"]
    command += ["--skip-existing-successful", "--bench", BENCHMARKS]
    environment = {**os.environ, "MOE_HARNESS_DEPTHS": "0", "MOE_HARNESS_NUMERICS": "i24"}
    subprocess.run(command, cwd=house, env=environment, stdout=sys.stderr, check=False)
    print(json.dumps(judge(house, machine, planted, equal), indent=1))


if __name__ == "__main__":
    _main(*sys.argv[1:])
