"""Results as they come about: sidecars of a real CPU decode, a file written by asv's own code."""

import shutil
import textwrap

import pytest
from helpers.asv_results import as_if_committed, measure

from harness.suite import DecodeSession


@pytest.fixture(scope="session")
def taken(tmp_path_factory, small_model):
    """``results/`` of one commit on this machine: two depths, measured and guarded."""
    folder = tmp_path_factory.mktemp("taken") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_HARNESS_RESULTS", str(folder))
        # Where the tests run is most often a tree that is being worked on.
        patch.setattr("harness.meter.commit._git", as_if_committed)
        with DecodeSession(small_model, backend="cpu") as session:
            measure(folder, session)
    return folder


@pytest.fixture
def results(taken, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(taken, tmp_path / "results")


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
