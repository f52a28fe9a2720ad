"""Recording on a real GPU: CUPTI names every kernel of a graph replay; ncu and NVTX beside it."""

import shutil
import subprocess
import sys

import pytest

from harness.cli import main
from harness.errors import BadInput
from harness.meter.decode import Workload
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.profile import Profile
from harness.profile.ncu import METRICS, run_ncu
from harness.profile.recording import read_recording
from harness.profile.session import Wanted
from harness.profile.trace import chrome_trace
from harness.suite import DecodeSession

from .conftest import LAYER, RULE
from .test_trace import nesting_errors

pytestmark = pytest.mark.gpu

WORKLOAD = Workload(prompt=(1, 2, 3), depth=0, tokens=16)


def record(numerics=None, *, energy=False):
    model = open_model(embedded_path())
    with DecodeSession(model, backend="cuda", numerics=numerics) as session:
        return session.profile(WORKLOAD, Wanted(energy=energy), rule=RULE)


@pytest.fixture(scope="module")
def on_gpu():
    return record(energy=True)


def test_every_kernel_of_every_replay_is_recorded(on_gpu, tmp_path):
    names = [name.removesuffix("_tiled") for name in on_gpu.traced.names]
    assert names == ["embed", *(LAYER * on_gpu.layers), "logits", "argmax"]
    assert len(names) == on_gpu.ran["graph_nodes"]
    assert on_gpu.traced.starts.shape == (WORKLOAD.tokens, len(names))
    on_gpu.write(tmp_path / "r.json")
    assert read_recording(tmp_path / "r.json").to_json() == on_gpu.to_json()


def test_kernels_gaps_and_host_sum_to_the_token_as_it_was_traced(on_gpu):
    path = Profile(on_gpu).path
    assert path.kernels_us > 0
    # A token here is a few hundred us: an event's resolution and one late replay show in it.
    assert path.sum_us == pytest.approx(path.traced_us, rel=0.15)
    assert path.undisturbed_us > path.floor_us


def test_the_trace_nests(on_gpu):
    assert not nesting_errors(chrome_trace(on_gpu)["traceEvents"])


def test_memory_and_energy(on_gpu):
    purposes = on_gpu.memory["by_purpose"]
    assert {"KV cache", "scratch", "weights Q4_K"} <= set(purposes)
    assert on_gpu.memory["peak_bytes"] >= sum(purposes.values())
    if on_gpu.energy["joules_per_token"] is not None:
        assert on_gpu.energy["joules_per_token"] > 0
    assert len(on_gpu.energy["power"]) > 10


def test_a_second_session_in_the_same_process_records_too(on_gpu):
    other = record("f32")
    assert len(other.traced.names) == len(on_gpu.traced.names)
    assert other.ran["numerics"] == "f32"


def test_tokens_are_marked():
    assert main(["profile", "--backend", "cuda", "--nvtx", "--tokens", "2"]) == 0


@pytest.fixture
def ncu():
    found = shutil.which("ncu")
    if found is None:
        pytest.skip("ncu is not installed")
    return found


def test_ncu_profiles_one_launch(ncu):  # noqa: ARG001 - it must be there
    command = [sys.executable, "-m", "harness", "profile", str(embedded_path())]
    command += ["--backend", "cuda", "--nvtx", "--tokens", "1"]
    try:
        metrics = run_ncu("gate_up", 1, command)
    except BadInput as refused:
        if "ERR_NVGPUCTRPERM" in str(refused):
            pytest.skip(str(refused))
        raise
    assert [metric.name for metric in metrics] == list(METRICS)
    assert metrics[0].value > 0


def test_under_ncu_nothing_is_recorded_and_the_line_says_why(ncu):
    command = [ncu, "--profile-from-start", "off", sys.executable, "-m", "harness", "profile"]
    done = subprocess.run(
        [*command, "--backend", "cuda", "--tokens", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CUPTI is taken: this process runs under" in done.stderr + done.stdout
