"""Nsight Compute: how it is started, what is read of it, and its refusals in one line.

ncu itself is a script here; tests/profile/test_gpu.py asks the real one.
"""

import json
import sys
from itertools import pairwise

import pytest

from harness.errors import BadInput, HardwareAbsent, Rejected
from harness.profile.ncu import METRICS, metric_lines, read_metrics, run_ncu

HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def row(kernel, metric, unit, value):
    return (
        f'"0","41","python3","127.0.0.1","{kernel}","1","7","(256, 1, 1)","(396, 1, 1)","0","9.0",'
        f'"Command line profiler metrics","{metric}","{unit}","{value}"'
    )


CSV = "\n".join(
    [
        "==PROF== Connected to process 41",
        "==WARNING== a warning, with a comma",
        HEADER,
        row("gate_up_tiled(GateUpArgs)", "gpu__time_duration.sum", "ns", "12,345"),
        row("gate_up_tiled", "dram__throughput.avg.pct_of_peak_sustained_elapsed", "%", "61.25"),
        row("gate_up_tiled", "launch__waves_per_multiprocessor", "", "n/a"),
        row("down", "gpu__time_duration.sum", "ns", "1"),
        row("gate_up_tiled", "some__other.metric", "%", "5"),
    ]
)


def test_metrics_are_read_in_our_words_and_order():
    metrics = read_metrics(CSV, "gate_up")
    assert [(m.what, m.value, m.unit) for m in metrics] == [
        ("time", 12345, "ns"),
        ("DRAM share of peak", 61.25, "%"),
    ]
    lines = metric_lines("gate_up", 24, metrics)
    assert lines[0].startswith("gate_up, layer 24")
    assert any("12,345.00 ns" in line for line in lines)


@pytest.mark.parametrize("text", ["", HEADER, CSV.replace("gate_up", "other"), "==PROF== nothing"])
def test_no_profile_of_the_kernel_is_an_error(text):
    with pytest.raises(BadInput, match="profiled no launch of gate_up"):
        read_metrics(text, "gate_up")


def plant_ncu(folder, monkeypatch, body):
    """An ncu that notes its arguments, then does what ``body`` says; $LOG is its log file."""
    script = folder / "ncu"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        f"json.dump(sys.argv[1:], open({str(folder / 'called.json')!r}, 'w'))\n"
        "log = sys.argv[sys.argv.index('--log-file') + 1]\n" + body
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder / "called.json"


def test_one_launch_of_one_kernel_is_asked_for(tmp_path, monkeypatch):
    called = plant_ncu(tmp_path, monkeypatch, f"open(log, 'w').write({CSV!r})\n")
    metrics = run_ncu("gate_up", 24, ["python", "-m", "harness"])
    assert metrics[0].value == 12345
    arguments = json.loads(called.read_text())
    assert arguments[-3:] == ["python", "-m", "harness"]
    option = dict(pairwise(arguments))
    assert option["--kernel-name"] == "regex:^gate_up(_tiled)?$"
    assert option["--launch-skip"] == "24"
    assert option["--launch-count"] == "1"
    assert option["--profile-from-start"] == "off"
    assert option["--metrics"].split(",") == list(METRICS)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "open(log,'w').write('==ERROR== ERR_NVGPUCTRPERM - The user does not have permission')",
            "ERR_NVGPUCTRPERM",
        ),
        ("open(log,'w').write('==ERROR== Failed to find metric x')", "Failed to find metric x"),
        ("print('moe-harness: no CUDA driver answers', file=sys.stderr); sys.exit(2)", "no CUDA"),
        ("pass", "profiled no launch"),
        ("open(log,'wb').write(bytes(range(256)))", "profiled no launch"),
    ],
)
def test_refusals_are_one_line(tmp_path, monkeypatch, body, said):
    plant_ncu(tmp_path, monkeypatch, body + "\n")
    with pytest.raises(BadInput, match=said) as refused:
        run_ncu("gate_up", 0, ["x"])
    assert "\n" not in str(refused.value)


def test_a_rejection_inside_is_a_rejection(tmp_path, monkeypatch):
    body = "print('moe-harness: rejected: layer 3 is off', file=sys.stderr); sys.exit(1)\n"
    plant_ncu(tmp_path, monkeypatch, body)
    with pytest.raises(Rejected, match="layer 3 is off"):
        run_ncu("gate_up", 0, ["x"])


def test_without_ncu_the_hardware_is_absent(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HardwareAbsent, match="Nsight Compute"):
        run_ncu("gate_up", 0, ["x"])
    with pytest.raises(BadInput, match="expected one of embed"):
        run_ncu("rm -rf", 0, ["x"])
