"""A machine is its GPU, or its processor where it has none: not its RAM, its name or a path."""

import json
import os
from pathlib import Path

import pytest

from harness.meter import identity
from harness.meter.identity import host_details, machine_identity, write_asv_machine

RESULTS = Path(__file__).parents[2] / "results"


def on_a_host(monkeypatch, *, gpus, cpu="Some CPU", cores=16, ram=64 * 2**30, name="host"):
    monkeypatch.setattr(identity, "gpu_models", lambda: gpus)
    monkeypatch.setattr(identity, "cpu_model", lambda: cpu)
    monkeypatch.setattr(identity.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(identity, "_ram_bytes", lambda: ram)
    monkeypatch.setattr(identity.platform, "node", lambda: name)
    return machine_identity(), host_details()


def test_hosts_with_the_same_gpu_are_one_machine(monkeypatch):
    one, its_host = on_a_host(monkeypatch, gpus=["NVIDIA H200"])
    other, other_host = on_a_host(
        monkeypatch, gpus=["NVIDIA H200"] * 8, cpu="Other", cores=128, ram=2**40, name="elsewhere"
    )
    assert one == other
    assert one["machine"] == "nvidia-h200"
    assert one["gpu"] == "NVIDIA H200"
    assert its_host != other_host
    assert other_host["num_cpu"] == 128
    assert other_host["ram_gib"] == 1024
    assert len(other_host["gpus"]) == 8


def test_hosts_with_other_gpus_are_other_machines(monkeypatch):
    kinds = [["NVIDIA H200"], ["NVIDIA H100 80GB HBM3"], ["NVIDIA H200", "NVIDIA L4"], []]
    names = [on_a_host(monkeypatch, gpus=gpus)[0]["machine"] for gpus in kinds]
    assert len(set(names)) == len(kinds)
    assert names[1] == "nvidia-h100-80gb-hbm3"


def test_without_a_gpu_the_processor_tells_them_apart_and_ram_does_not(monkeypatch):
    one, _ = on_a_host(monkeypatch, gpus=[], cpu="AMD EPYC(TM)", cores=2)
    more_ram, _ = on_a_host(monkeypatch, gpus=[], cpu="AMD EPYC(TM)", cores=2, ram=2**41)
    more_cores, _ = on_a_host(monkeypatch, gpus=[], cpu="AMD EPYC(TM)", cores=4)
    assert one == more_ram
    assert one["machine"] == "amd-epyc-2c"
    assert one["gpu"] == ""
    assert more_cores["machine"] == "amd-epyc-4c"


def test_nothing_of_the_host_alone_is_in_the_identity(tmp_path):
    path = tmp_path / "asv.json"
    write_asv_machine(path)
    text = json.dumps(machine_identity())
    assert json.loads(path.read_text())[machine_identity()["machine"]] == machine_identity()
    assert os.uname().nodename not in text
    assert str(Path.cwd()) not in text
    assert "ram" not in machine_identity()


def test_committed_machines_are_told_apart_by_nothing_else():
    known = set(machine_identity())
    for path in RESULTS.glob("*/machine.json"):
        machine = json.loads(path.read_text())
        assert set(machine) - {"version"} == known, path
        assert machine["machine"] == path.parent.name
        for result in path.parent.glob("*-*.json"):
            params = json.loads(result.read_text())["params"]
            assert set(params) == known | {"python"}, result
            assert "/" not in params["python"]


@pytest.mark.gpu
def test_this_machine_is_named_by_its_gpu():
    found = machine_identity()
    assert found["gpu"]
    assert found["machine"].startswith("nvidia-")
    assert found["cpu"] == ""
