"""results/ of a decode that is run here, with a file of asv's written by asv's own code."""

import json

from asv.results import Results
from asv.runner import BenchmarkResult

from harness import tracking
from harness.contract.integrity import read_results
from harness.meter.commit import this_commit
from harness.meter.identity import machine_identity
from harness.meter.stopping import StoppingRule

BENCHMARK, DEPTHS = "decode.EmbeddedDecode", [0, 8]
TRACKED = ("ms_per_token", "tokens_per_second", "peak_memory", "roofline_fraction")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_if_committed(*arguments):
    return COMMIT if arguments[0] == "rev-parse" else ""


def measure(folder, session, environment="venv"):
    """Decode at each depth, guarded, into sidecars; and what asv would store of it."""
    rule = StoppingRule(time_out=0.5)
    outcomes = tracking._decodes(BENCHMARK, session, [1, 2, 3], DEPTHS, 4, rule)
    assert not any(outcome.reasons for outcome in outcomes.values())
    figures = {depth: outcome.figures for depth, outcome in outcomes.items()}
    write_asv_file(folder, figures, environment)


def write_asv_file(folder, figures, environment="venv"):
    """``figures``: by depth, by name. Written by asv's own code, as ``asv run`` does."""
    machine = machine_identity()
    write_asv_list(folder)
    stored = Results(
        {**machine, "python": "3.12"},
        {},
        this_commit().hash,
        1795558429000,
        "3.12",
        environment,
        {},
    )
    depths = sorted(figures)
    for name in TRACKED:
        given = [figures[depth][name] for depth in depths]
        sampled = [figure if isinstance(figure, dict) else None for figure in given]
        stored.add_result(
            {
                "name": f"{BENCHMARK}.track_{name}",
                "version": "1" * 64,
                "params": [[repr(depth) for depth in depths]],
            },
            BenchmarkResult(
                given,
                [each and each["samples"] for each in sampled],
                [each and each["number"] for each in sampled],
                0,
                "",
                None,
            ),
            duration=1.5,
        )
    stored.save(str(folder))
    (folder / machine["machine"] / "machine.json").write_text(json.dumps(machine))


def write_asv_list(folder):
    """What asv found in ``benchmarks/``, of which this reads no more."""
    told = {"version": "1" * 64, "params": [[repr(depth) for depth in DEPTHS]]}
    listed = {f"{BENCHMARK}.track_{name}": told for name in TRACKED}
    (folder / "benchmarks.json").write_text(json.dumps({**listed, "version": 2}))


def listed_then(listed, path):
    """Asv's list with the parameters that one of its files was measured for: some come and go."""
    data = json.loads(path.read_text())
    at = data["result_columns"].index("params")
    params = {name: row[at] for name, row in data["results"].items() if len(row) > at}
    return {
        name: {**each, "params": params[name]} if name in params else each
        for name, each in listed.items()
    }


def edited(path, edit):
    """Change a file of JSON in place."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def findings(results):
    """What is wrong with stored results: ``(path, words)`` of each."""
    return [(each.path, each.what) for each in read_results(results).findings]
