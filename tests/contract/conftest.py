"""Results as they come about: sidecars of a real CPU decode, a file written by asv's own code."""

import json
import shutil
import textwrap

import pytest
from asv.results import Results
from asv.runner import BenchmarkResult

from harness import tracking
from harness.meter.commit import this_commit
from harness.meter.identity import machine_identity
from harness.meter.stopping import StoppingRule
from harness.suite import DecodeSession

BENCHMARK, DEPTHS = "decode.EmbeddedDecode", [0, 8]
TRACKED = ("ms_per_token", "tokens_per_second", "peak_memory", "roofline_fraction")


@pytest.fixture(scope="session")
def taken(tmp_path_factory, small_model):
    """``results/`` of one commit on this machine: two depths, measured and guarded."""
    folder = tmp_path_factory.mktemp("taken") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_HARNESS_RESULTS", str(folder))
        # Where the tests run is most often a tree that is being worked on.
        patch.setattr("harness.meter.commit._git", as_if_committed)
        rule = StoppingRule(time_out=0.5)
        with DecodeSession(small_model, backend="cpu") as session:
            outcomes = tracking._decodes(BENCHMARK, session, [1, 2, 3], DEPTHS, 4, rule)
        assert not any(outcome.reasons for outcome in outcomes.values())
        write_asv_file(folder, {depth: outcome.figures for depth, outcome in outcomes.items()})
    return folder


@pytest.fixture
def results(taken, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(taken, tmp_path / "results")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_if_committed(*arguments):
    return COMMIT if arguments[0] == "rev-parse" else ""


def write_asv_file(folder, figures):
    """``figures``: by depth, by name. Written by asv's own code, as ``asv run`` does."""
    machine = machine_identity()
    stored = Results(
        {**machine, "python": "3.12"}, {}, this_commit().hash, 1795558429000, "3.12", "venv", {}
    )
    depths = sorted(figures)
    for name in TRACKED:
        given = [figures[depth][name] for depth in depths]
        sampled = [isinstance(figure, dict) for figure in given]
        stored.add_result(
            {
                "name": f"{BENCHMARK}.track_{name}",
                "version": "1" * 64,
                "params": [[repr(depth) for depth in depths]],
            },
            BenchmarkResult(
                given,
                [each["samples"] if told else None for each, told in zip(given, sampled)],  # noqa: B905
                [each["number"] if told else None for each, told in zip(given, sampled)],  # noqa: B905
                0,
                "",
                None,
            ),
            duration=1.5,
        )
    stored.save(str(folder))
    [path] = (folder / machine["machine"]).glob("*.json")
    (path.parent / "machine.json").write_text(json.dumps(machine))


@pytest.fixture
def contract(tmp_path):
    """A contract about the CPU decode; ``{}`` in a test's own text is put in place of criteria."""
    path = tmp_path / "small.yaml"

    def written(criteria=CRITERIA, **replaced):
        heading = {"schema": "moe-harness/contract/1", "name": "small", "version": "1.0.0"}
        lines = [f"{key}: {value}" for key, value in (heading | replaced).items()]
        path.write_text("\n".join([*lines, textwrap.dedent(criteria)]))
        return path

    return written


CRITERIA = """
subject: The small model on the CPU.
model: {layers: 6, hidden: 256, vocab: 517}
criteria:
  - id: AC-001
    title: cosines
    quantity: layer_cosine
    at_least: 0.99
    evidence: [decode.EmbeddedDecode depth=0, decode.EmbeddedDecode depth=8]
    source: here
    falsified_by: [parity]
  - id: AC-002
    title: router
    quantity: router_sum_error
    at_most: 1e-6
    evidence: [decode.EmbeddedDecode depth=0, decode.EmbeddedDecode depth=8]
    source: here
    falsified_by: [parity]
  - id: AC-003
    title: lengths
    quantity: output_length_error
    at_most: 0
    evidence: [decode.EmbeddedDecode depth=0]
    source: here
    falsified_by: [parity]
  - id: AC-004
    title: finite
    quantity: non_finite
    at_most: 0
    evidence: [decode.EmbeddedDecode depth=0]
    source: here
    falsified_by: [parity]
  - id: AC-006
    title: some speed
    quantity: bandwidth_share
    above: 0
    evidence: [decode.EmbeddedDecode depth=8]
    source: here
    falsified_by: [parity]
falsifiers:
  - {id: parity, run: moe-harness parity, refutes_when: exit status 1}
amendments:
  - {version: 1.0.0, date: 2026-11-24, what: first}
"""
