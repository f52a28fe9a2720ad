"""Real asv: a rejected guard fails its benchmark, keeps its reasons, and the site publishes."""

import json

import pytest
from helpers.asv_house import ROOT, asv, our_conf, this_commit

from harness.contract.integrity import read_results
from harness.guard.faults import FAULTS
from harness.meter.identity import machine_identity, write_asv_machine

PLANT = "swap_two_weights"


@pytest.mark.slow
def test_a_planted_fault_leaves_a_hole_with_its_reasons(tmp_path):
    assert PLANT in {fault.plant for fault in FAULTS}
    head = this_commit()
    conf = our_conf() | {
        "repo": str(ROOT),
        "benchmark_dir": str(ROOT / "benchmarks"),
        "branches": [head],
        "plugins": [],
    }
    (tmp_path / "asv.conf.json").write_text(json.dumps(conf))
    write_asv_machine(tmp_path / ".asv-machine.json")
    machine = machine_identity()["machine"]
    results = tmp_path / "results"
    ran = asv(
        tmp_path,
        "run",
        "--machine",
        machine,
        "--python=same",
        "--set-commit-hash",
        head,
        "--bench",
        "EmbeddedDecode",
        MOE_HARNESS_PLANT=PLANT,
        MOE_HARNESS_RESULTS=str(results),
    )
    assert ran.returncode not in (0, 1), ran.stdout + ran.stderr
    stored = [
        json.loads(path.read_text())
        for path in (results / machine).glob("*.json")
        if path.name != "machine.json"
    ]
    assert len(stored) == 1
    for name, result in stored[0]["results"].items():
        assert name.startswith("decode.EmbeddedDecode.track_")
        assert result[0] in (None, [None, None])
    sidecars = sorted((results / machine / "evidence").iterdir())
    assert len(sidecars) == 2
    for path in sidecars:
        assert path.suffix == ".evidence"
        data = json.loads(path.read_text())
        assert data["planted"] == PLANT
        assert not data["verdict"]["accepted"]
        assert data["verdict"]["reasons"]
        assert data["evidence"]["layers"]
    stored_as_measured = read_results(results)
    assert [sidecar.sealed for sidecar in stored_as_measured.sidecars] == [True, True]
    assert not stored_as_measured.findings
    published = asv(tmp_path, "publish")
    assert published.returncode == 0, published.stdout + published.stderr
    assert (tmp_path / ".asv" / "html" / "index.html").is_file()
