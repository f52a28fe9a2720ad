"""Status out of evidence: sidecars of a real decode, and altered copies of them, sealed anew."""

import json

import pytest

from harness import tracking
from harness.cli import main
from harness.contract.integrity import read_results
from harness.contract.schema import read_contract
from harness.contract.status import judge
from harness.errors import Rejected
from harness.meter.sidecar import SEAL, digest, sidecar_name
from harness.peers import hugging_face
from harness.sources import source_hashes
from harness.suite import DecodeSession

SOURCES = source_hashes()


def sidecars(results):
    return sorted(results.glob("*/evidence/*.evidence"))


def resealed(path, change, name=None):
    """What a run would have written that had seen something else."""
    data = json.loads(path.read_text())
    del data[SEAL]
    change(data)
    target = path.with_name(name or path.name)
    target.write_text(json.dumps(data | {SEAL: digest(data)}))
    return target


def everywhere(change):
    def apply(results):
        for path in sidecars(results):
            resealed(path, change)

    return apply


def statuses(path, results, sources=SOURCES):
    report = judge(read_contract(path), read_results(results), sources)
    return {each.criterion.ident: each.status.value for each in report.judged}


def test_a_real_decode_meets_what_it_meets(contract, results, capsys):
    path = contract()
    assert set(statuses(path, results).values()) == {"met"}
    assert main(["contract", "check", str(path), "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "AC-001 met          cosines (layer_cosine at least 0.99)" in printed
    assert "5 criteria: 5 met" in printed


def test_a_limit_that_is_not_kept_is_not_met(contract, results, capsys):
    path = contract()
    path.write_text(path.read_text().replace("above: 0\n", "above: 1e9\n"))
    found = statuses(path, results)
    assert found.pop("AC-006") == "not met"
    assert set(found.values()) == {"met"}
    status = main(["contract", "check", str(path), "--results", str(results), "--json", "-"])
    data = json.loads(capsys.readouterr().out)
    assert status == 1
    assert data["schema"] == "moe-harness/contract-check/1"
    assert data["holds"] is False
    [speed] = [each for each in data["criteria"] if each["id"] == "AC-006"]
    assert speed["above"] == 1e9
    [subject] = speed["subjects"]
    assert subject["status"] == "not met"
    measured = json.loads(sidecars(results)[1].read_text())
    assert subject["value"] == pytest.approx(measured["roofline_fraction"])
    assert subject["evidence"] == [str(sidecars(results)[1])]


def layer(index, key, value):
    def change(data):
        data["evidence"]["layers"][index][key] = value

    return change


def summary(key, value):
    def change(data):
        data["evidence"]["teacher_forced"][key] = value

    return change


def forgotten(data):
    del data["evidence"]["free_running"]["worst_router_sum_error"]


def lost_layer(data):
    data["evidence"]["layers"].pop()


def lengths(data):
    data["evidence"]["free_running"]["lengths"]["lm_head"] -= 1


# What the evidence says instead: the criterion that it decides, and its status.
SEEN = {
    "one layer below the floor": (layer(3, "forced_cosine", 0.98), "AC-001", "not met"),
    "the free-running pass too": (layer(0, "moe_ffn_out_cosine", 0.98), "AC-001", "not met"),
    "a cosine that is no number": (layer(5, "forced_cosine", None), "AC-001", "not met"),
    "a layer that is not there": (lost_layer, "AC-001", "no evidence"),
    "weights that do not sum to 1": (
        summary("worst_router_sum_error", 2e-6),
        "AC-002",
        "not met",
    ),
    "a sum that is no number": (summary("worst_router_sum_error", None), "AC-002", "not met"),
    "a quantity of later versions": (forgotten, "AC-002", "no evidence"),
    "logits that are too short": (lengths, "AC-003", "not met"),
    "one value that is not finite": (summary("non_finite", 1), "AC-004", "not met"),
}


@pytest.mark.parametrize("case", SEEN)
def test_what_was_seen_decides(case, contract, results):
    change, ident, wanted = SEEN[case]
    everywhere(change)(results)
    found = statuses(contract(), results)
    assert found.pop(ident) == wanted
    assert set(found.values()) == {"met"}


def replaced(**fields):
    return lambda data: data.update(fields)


def ran(**fields):
    return lambda data: data["ran"].update(fields)


def no_seal(results):
    """As they were before there were seals."""
    for path in sidecars(results):
        data = json.loads(path.read_text())
        del data[SEAL], data["figures"], data["commit"]
        path.write_text(json.dumps(data))


def one_depth(results):
    sidecars(results)[1].unlink()


UNFIT = {
    "another model": (
        everywhere(lambda data: data["evidence"]["model"].update(layers=48)),
        "of a model of another shape",
    ),
    "a planted fault": (everywhere(replaced(planted="drop_expert")), "with a fault planted"),
    "an uncommitted tree": (everywhere(ran(dirty=True)), "uncommitted changes"),
    "no seal": (no_seal, "unsealed, from before sidecars had seals"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_no_evidence_is_said_to_be_none(case, contract, results, capsys):
    spoil, why = UNFIT[case]
    spoil(results)
    path = contract()
    assert set(statuses(path, results).values()) == {"no evidence"}
    assert main(["contract", "check", str(path), "--results", str(results)]) == 1
    assert why in capsys.readouterr().out


def test_a_benchmark_that_was_not_run_is_no_evidence(contract, results):
    one_depth(results)
    found = statuses(contract(), results)
    assert (found["AC-001"], found["AC-003"], found["AC-006"]) == (
        "no evidence",
        "met",
        "no evidence",
    )


def test_evidence_of_other_sources_is_stale(contract, results, capsys):
    everywhere(ran(source_hash="sha256:old"))(results)
    path = contract()
    assert set(statuses(path, results).values()) == {"stale"}
    assert main(["contract", "check", str(path), "--results", str(results)]) == 1
    assert "was taken on sources sha256:old, these are" in capsys.readouterr().out


def test_the_newest_run_of_each_subject_counts(contract, results):
    def older(data):
        layer(3, "forced_cosine", 0.5)(data)
        data["ran"]["date"], data["commit"] = "2020-01-01T00:00:00+00:00", "f" * 40

    def other_machine(data):
        older(data)
        data["ran"]["device"] = "Another CPU"

    first = sidecars(results)[0]
    benchmark = json.loads(first.read_text())["benchmark"]
    name = sidecar_name("f" * 40, benchmark)
    planted = resealed(first, older, name)
    assert statuses(contract(), results)["AC-001"] == "met"
    # Of another subject it is the newest, and a criterion has to be met by all.
    planted.unlink()
    resealed(first, other_machine, name)
    assert statuses(contract(), results)["AC-001"] == "not met"


def test_a_run_that_the_guard_rejected_is_evidence_against(contract, results, capsys):
    def rejected(data):
        data["verdict"] = {"accepted": False, "reasons": ["router weight difference: 1, limit 2"]}
        data["figures"] = {}

    everywhere(rejected)(results)
    path = contract()
    assert set(statuses(path, results).values()) == {"not met"}
    main(["contract", "check", str(path), "--results", str(results)])
    printed = capsys.readouterr().out
    assert "was rejected by the guard: router weight difference" in printed
    # asv's file still holds the figures that are not vouched for any more.
    assert "for which the sidecar has nothing" in printed


def test_a_rejection_of_the_suite_is_sealed_and_dated(tmp_path, monkeypatch, small_model, contract):
    monkeypatch.setattr("harness.meter.commit._git", lambda *_: "")
    monkeypatch.setenv("MOE_HARNESS_RESULTS", str(tmp_path / "results"))
    with DecodeSession(small_model, backend="cpu", plant="swap_two_weights") as session:
        outcomes = tracking._decodes("decode.EmbeddedDecode", session, [1, 2], [0], 2, None)
    assert outcomes[0].reasons
    [sidecar] = read_results(tmp_path / "results").sidecars
    assert sidecar.sealed
    assert not sidecar.accepted
    assert sidecar.date
    assert sidecar.ran["source_hash"] == SOURCES["cpu"]
    assert sidecar.subject == sidecar.ran["device"]
    assert statuses(contract(), tmp_path / "results")["AC-003"] == "not met"


def test_a_changed_number_makes_the_check_fail_and_is_named(contract, results, capsys):
    path = sidecars(results)[0]
    data = json.loads(path.read_text())
    data["ms_per_token"]["samples"][1] *= 1.001
    path.write_text(json.dumps(data))
    assert main(["contract", "check", str(contract()), "--results", str(results)]) == 1
    assert f"CHANGED {path}: " in capsys.readouterr().out


AGREEMENT = """
subject: the oracle
model: {layers: 6, hidden: 256, vocab: 517}
criteria:
  - id: AC-005
    title: another's code
    quantity: independent_cosine
    above: 0.99
    evidence: [parity.OracleAgreement]
    source: here
    falsified_by: [it]
falsifiers:
  - {id: it, run: pytest, refutes_when: it fails}
amendments:
  - {version: 1.0.0, date: 2026-11-24, what: first}
"""


def test_the_oracle_beside_anothers_code(contract, tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_HARNESS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(tracking, "_PARITY_POSITIONS", 4)
    monkeypatch.setattr("harness.meter.commit._git", lambda *_: "")
    outcome = tracking.oracle_agreement("parity.OracleAgreement")
    assert 0 < outcome.figures["rel_l2"] < 1e-5
    path = contract(AGREEMENT)
    assert statuses(path, tmp_path / "results") == {"AC-005": "met"}
    other = SOURCES | {"oracle": "another"}
    assert statuses(path, tmp_path / "results", other) == {"AC-005": "stale"}

    def refuse(*_):
        raise Rejected(["they disagree"])

    monkeypatch.setattr(hugging_face, "oracle_agreement", refuse)
    assert tracking.oracle_agreement("parity.OracleAgreement").reasons == ("they disagree",)
    assert statuses(path, tmp_path / "results") == {"AC-005": "not met"}


def test_the_projects_own_contract_is_judged_from_the_committed_results(capsys):
    status = main(["contract", "check", "--json", "-"])
    data = json.loads(capsys.readouterr().out)
    assert data["findings"] == []
    assert (status == 0) == all(each["status"] == "met" for each in data["criteria"])
    assert len(data["criteria"]) == 8
