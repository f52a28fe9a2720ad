"""What the trial of 5 % rules (helpers/slowdown.py), pair of commits by pair, by ``asv compare``.

That nothing was found says something only where all was compared: a pair counts if each figure
that is expected stands on both sides, in one environment of asv's, and in asv's table.
"""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from helpers.asv_house import our_conf

FACTOR = 1.03
SHARE = 0.05
# A planted share that comes out below may rightly be missed, one above is found by any eyes.
REALISED = (0.04, 0.07)
KERNEL, DECODE = "down", "the whole decode"
SHOULD_RISE = {
    KERNEL: "kernels.CudaFamilies.track_microseconds('down', 'i24')",
    DECODE: "decode.Qwen3MoeDecode.track_ms_per_token(0)",
}
_FAMILY = re.compile(r"kernels\.CudaFamilies\.track_microseconds\('\w+', 'i24'\)")

HOLDS, FAILS = "holds", "does not hold"
NOT_MEASURED, NOT_VALID = "not measured", "not valid"


class Measured(NamedTuple):
    """All that was measured: by commit, the figures that asv watches; and those expected."""

    house: object
    machine: str
    environment: str | None
    medians: dict
    wanted: list


def judge(house, machine, equal, planted, cycles):
    """Ask ``asv compare`` about every pair; the trial as plain data.

    ``equal``: commits that differ in nothing, oldest first; ``planted``: by what is slowed down,
    the commit that does it to the last of them.
    """
    measured = read_measured(house, machine, equal, [*equal, *planted.values()])
    pairs = [compared(measured, *pair) for pair in pairwise(equal)]
    plants = {
        what: _plant(measured, what, compared(measured, equal[-1], commit))
        for what, commit in planted.items()
    }
    ruling = rule(pairs, plants)
    return {
        "schema": "moe-harness/slowdown/3",
        "ruling": ruling,
        "holds": ruling == HOLDS,
        "factor": FACTOR,
        "planted_share": SHARE,
        "realised_share": {what: plant["realised_share"] for what, plant in plants.items()},
        "valid_between": REALISED,
        "planted_cycles": cycles,
        "environment": measured.environment,
        "expected": measured.wanted,
        "equal_pairs": len(pairs),
        "equal_pairs_measured": sum(pair["measured"] for pair in pairs),
        "equal_pairs_with_a_finding": sum(bool(pair["changed"]) for pair in pairs),
        "pairs": pairs,
        "planted": plants,
        "medians": measured.medians,
    }


def rule(pairs, plants):
    """The trial in two words: it holds only if it was one, and the planted 5 % came out as such."""
    if not pairs or not all(each["measured"] for each in [*pairs, *plants.values()]):
        return NOT_MEASURED
    if not all(plant["valid"] for plant in plants.values()):
        return NOT_VALID
    clean = not any(pair["changed"] for pair in pairs)
    return HOLDS if clean and all(plant["found"] for plant in plants.values()) else FAILS


def compared(measured, before, after):
    """One pair: whether it was compared in full, what is missing, what changed."""
    missing = [
        f"{commit[:8]}: {name}"
        for commit in (before, after)
        for name in measured.wanted
        if name not in measured.medians[commit]
    ]
    changed = []
    if not missing:
        table = asv_table(measured, before, after)
        marks = {name: mark for mark, name, _ in table}
        missing = [
            f"asv compare: {name}"
            for name in measured.wanted
            if marks.get(name) not in ("", "+", "-")
        ]
        changed = [row for row in table if row[0] in ("+", "-")]
    return {
        "before": before,
        "after": after,
        "measured": not missing,
        "missing": missing,
        "changed": changed,
    }


def _plant(measured, what, pair):
    """What ``asv compare`` saw of one plant, and how large that came out."""
    should = SHOULD_RISE[what]
    before, after = (measured.medians[pair[side]].get(should) for side in ("before", "after"))
    realised = after / before - 1 if before and after else None
    changed = pair.pop("changed")
    return {
        **pair,
        "expected": ["+", should],
        "found": any(row[:2] == ["+", should] for row in changed),
        "realised_share": realised,
        "valid": realised is not None and REALISED[0] <= realised <= REALISED[1],
        "beside": [row for row in changed if row[:2] != ["+", should]],
    }


# -- what asv keeps, and what it prints ------------------------------------------------------------


def read_measured(house, machine, equal, commits):
    """What asv stored of ``commits``, in the environment that it has most of them in."""
    folder = house / "results" / machine
    cells = {commit: watched_cells(folder, commit) for commit in commits}
    names = Counter(name for by_name in cells.values() for name in by_name)
    environment = names.most_common(1)[0][0] if names else None
    here = {commit: by_name.get(environment, {}) for commit, by_name in cells.items()}
    medians = {
        commit: {name: value for name, value in found.items() if _is_figure(value)}
        for commit, found in here.items()
    }
    wanted = expected([here[commit] for commit in reversed(equal)])
    return Measured(house, machine, environment, medians, wanted)


def expected(cells):
    """What every pair has to compare: both that should rise, and each family of the newest commit.

    ``cells``: of each commit, the newest first. A family that has no figure there is expected, too.
    """
    families = (list(filter(_FAMILY.fullmatch, each)) for each in cells)
    return sorted({*SHOULD_RISE.values(), *next(filter(None, families), ())})


def watched_cells(folder, commit):
    """Every cell of a commit that asv watches: by environment, then as ``asv compare`` names it.

    None or NaN where there is no accepted figure.
    """
    found = {}
    for path in sorted(folder.glob(f"{commit[:8]}-*.json")):
        stored = json.loads(path.read_text())
        cells = found.setdefault(stored["env_name"], {})
        for name, row in stored["results"].items():
            if is_watched(name):
                told = dict(zip(stored["result_columns"], row, strict=False))
                places = _product(told["params"])
                values = told["result"] or [None] * len(places)
                labels = (f"{name}({', '.join(place)})" for place in places)
                cells |= zip(labels, values, strict=False)
    return found


def is_watched(name):
    """Whether a rise of that benchmark is a regression (asv.conf.json): times, and ours."""
    conf = our_conf()["regressions_first_commits"]
    excluded = any(re.match(pattern, name) for pattern, since in conf.items() if since is None)
    return not excluded and bool(re.search(r"\.track_(ms_per_token|microseconds)$", name))


def asv_table(measured, before, after):
    """``[mark, name, ratio]`` of every watched row of ``asv compare``; none where it fails."""
    command = [sys.executable, "-m", "asv", "compare", "--factor", str(FACTOR)]
    command += ["--machine", measured.machine, before, after]
    done = subprocess.run(command, cwd=measured.house, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return []
    return watched_rows(done.stdout, f"{measured.machine}/{measured.environment}")


def watched_rows(table, environment):
    """The watched rows of an ``asv compare`` table: ``[mark, name, ratio]``, mark "" for alike.

    Where it names environments, those of ``environment`` (``machine/name``) alone.
    """
    rows = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().removeprefix("|").split("|")]
        if len(cells) != 6:  # the last is behind the closing bar
            continue
        mark, _, _, ratio, named, _ = cells
        name, _, place = named.partition(" [")
        if is_watched(name.partition("(")[0]) and place.removesuffix("]") in ("", environment):
            rows.append([mark, name, ratio.strip("~")])
    return rows


def _is_figure(value):
    return isinstance(value, int | float) and math.isfinite(value)


def _product(params):
    """Names of a benchmark's cells, in asv's order."""
    places = [()]
    for values in params:
        places = [(*place, value) for place in places for value in values]
    return places
