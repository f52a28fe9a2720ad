"""A script that prints what llama-bench prints, and everything that can be wrong with it."""

import fcntl
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import FrozenInstanceError

import pytest

from harness.errors import BadInput, HardwareAbsent
from harness.meter.measurement import Measurement
from harness.peers import measure_llama_bench

GPU = "GPU-6f1ad2b8-0000-4d2e-9d4f-3c1b1d1e0a55"

# In the order and layout of json_printer in llama.cpp's tools/llama-bench/llama-bench.cpp.
PRINTED = """\
[
  {
    "build_commit": "0c1e57098",
    "build_number": 0,
    "cpu_info": "INTEL(R) XEON(R) PLATINUM 8558",
    "gpu_info": "NVIDIA H200",
    "backends": "CUDA",
    "model_filename": "MODEL",
    "model_type": "qwen3moe 30B.A3B Q4_K - Medium",
    "model_size": 18549915648,
    "model_n_params": 30532122624,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 16,
    "cpu_mask": "0x0",
    "cpu_strict": false,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": 99,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": false,
    "flash_attn": 1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "auto",
    "lazy_mode": "auto",
    "embeddings": false,
    "no_op_offload": 0,
    "no_host": false,
    "repack": true,
    "fit_target": 0,
    "fit_min_ctx": 0,
    "n_prompt": 0,
    "n_gen": 128,
    "n_depth": 512,
    "test_time": "2026-11-24T20:40:08Z",
    "avg_ts": 305.899337,
    "stddev_ts": 5.113087,
    "samples_ns": [ 426666667, 412903226, 416000000 ],
    "samples_ts": [ 300, 310, 307.692 ]
  }
]
"""
SCRIPT = """\
#!{python}
import fcntl, json, os, signal, sys, time
if sys.argv[1:] == ["--version"]:
    print("version: 0.5.0-dev (build 0, commit 0c1e57098)")
    print("built with GNU 12.2.0 for Linux x86_64")
    sys.exit()
with open({told!r}, "w") as told:
    json.dump([sys.argv[1:], dict(os.environ)], told)
{first}
sys.stdout.write({printed!r})
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def bench(tmp_path, model):
    """Write a llama-bench that prints ``printed`` after doing ``first``."""

    def write(printed=PRINTED, first=""):
        path = tmp_path / "llama-bench"
        path.write_text(
            SCRIPT.format(
                python=sys.executable,
                told=str(tmp_path / "told.json"),
                first=first,
                printed=printed.replace("MODEL", str(model)),
            )
        )
        path.chmod(0o755)
        return path

    return write


def measure(binary, model, **options):
    return measure_llama_bench(binary, model, 512, **{"gpu": GPU, "repetitions": 3, **options})


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_its_own_figures_are_told(bench, model):
    binary = bench()
    peer = measure(binary, model)
    assert peer.samples_ts == (300, 310, 307.692)
    assert (peer.avg_ts, peer.stddev_ts) == (305.899337, 5.113087)
    assert peer.ms_per_token == pytest.approx((1 / 0.3, 1 / 0.31, 3.25), rel=1e-6)
    assert (peer.n_depth, peer.n_gen, peer.gpu_info) == (512, 128, "NVIDIA H200")
    assert (peer.build_commit, peer.build_number) == ("0c1e57098", 0)
    assert peer.version == "0.5.0-dev (build 0, commit 0c1e57098)"
    assert peer.flags["flash_attn"] == 1
    assert peer.flags["type_k"] == "f16"
    assert shlex.join(peer.command) == (
        f"{binary} -m {model} -p 0 -n 128 -d 512 -ngl 99 -fa 1 -r 3 -o json"
    )


def test_a_peers_figure_is_no_measurement_and_says_so(bench, model):
    peer = measure(bench(), model)
    assert not isinstance(peer, Measurement)
    with pytest.raises(FrozenInstanceError):
        peer.avg_ts = 1e6
    data = json.loads(json.dumps(peer.to_json(), allow_nan=False))
    assert data["guard"] == "none: a peer's own figure"
    assert data["samples_ts"] == [300, 310, 307.692]
    assert data["ms_per_token"][2] == 3.25
    assert data["command"].endswith("-o json")
    assert not data.keys() & {"verdict", "evidence"}


def test_it_runs_with_what_is_asked_for_on_the_one_gpu(bench, model, tmp_path, monkeypatch):
    monkeypatch.setenv("GGML_CUDA_DISABLE_GRAPHS", "1")
    monkeypatch.setenv("A_PASSWORD", "secret")
    peer = measure(bench(), model, environment={"GGML_CUDA_GRAPH_OPT": "1"})
    arguments, environment = json.loads((tmp_path / "told.json").read_text())
    assert arguments == list(peer.command[1:])
    recorded = {
        "CUDA_VISIBLE_DEVICES": GPU,
        "GGML_CUDA_DISABLE_GRAPHS": "1",
        "GGML_CUDA_GRAPH_OPT": "1",
    }
    assert recorded.items() <= environment.items()
    assert recorded.items() <= peer.environment.items()
    assert "secret" not in json.dumps(peer.to_json())


def test_the_gpu_is_locked_meanwhile(bench, model, tmp_path):
    lock = str(tmp_path / f"moe-harness-{GPU}.lock")
    first = f"fcntl.flock(open({lock!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with pytest.raises(BadInput, match="BlockingIOError"):
        measure(bench(first=first), model)


@pytest.mark.parametrize("flash_attn", ["1", "true"])
def test_older_builds_are_understood(bench, model, flash_attn):
    binary = bench(PRINTED.replace('"flash_attn": 1', f'"flash_attn": {flash_attn}'))
    unknown = 'sys.exit("error: invalid parameter for argument: --version")\n'
    binary.write_text(binary.read_text().replace('print("version', unknown + '    print("version'))
    peer = measure(binary, model)
    assert peer.version is None
    assert peer.avg_ts == 305.899337


CHANGED = {
    "no depth": ('    "n_depth": 512,\n', "", "JSON without n_depth"),
    "no samples": ('    "samples_ns"', '    "samples"', "JSON without samples_ns"),
    "number as text": ('"n_gen": 128', '"n_gen": "128"', "n_gen '128', expected int"),
    "bool as number": ('"n_gen": 128', '"n_gen": true', "n_gen True, expected int"),
    "bare inf": ('"avg_ts": 305.899337', '"avg_ts": inf', "at '\"avg_ts\": inf,', expected JSON"),
    "bare nan": ("307.692 ]", "nan ]", "expected JSON"),
    "NaN": ("307.692 ]", "NaN ]", "NaN in its JSON, expected finite"),
    "overflow": ("307.692 ]", "1e999 ]", "inf in samples_ts, expected finite numbers above 0"),
    "zero": ("[ 300,", "[ 0,", "0 in samples_ts, expected finite numbers above 0"),
    "negative": ("[ 426666667", "[ -426666667", "-426666667 in samples_ns"),
    "no time": ("[ 426666667", "[ 0", "0 in samples_ns"),
    "null": ("[ 300,", "[ null,", "None in samples_ts"),
    "no average": ("305.899337", "0", "0 in avg_ts"),
    "deviation": ("5.113087", "-1", "stddev_ts -1, expected a finite deviation"),
    "too few": ("[ 300, 310, ", "[ 310, ", "2 samples_ts, expected 3"),
    "none at all": ("[ 300, 310, 307.692 ]", "[  ]", "0 samples_ts, expected 3"),
    "contradiction": ("[ 300,", "[ 600,", "600 tok/s in samples_ts for 426666667 ns"),
    "average of others": ("305.899337", "405.899337", "avg_ts 405.899337, expected the mean"),
    "other tokens": ('"n_gen": 128', '"n_gen": 64', "n_gen 64, expected 128 as asked"),
    "with prompt": ('"n_prompt": 0', '"n_prompt": 512', "n_prompt 512, expected 0 as asked"),
    "other depth": ('"n_depth": 512', '"n_depth": 0', "n_depth 0, expected 512 as asked"),
    "other model": ("MODEL", "/m/7B.gguf", "model_filename '/m/7B.gguf', expected"),
    "fewer layers": ('"n_gpu_layers": 99', '"n_gpu_layers": 12', "n_gpu_layers 12, expected 99"),
    "cache on the host": (
        '"no_kv_offload": false',
        '"no_kv_offload": true',
        "no_kv_offload True, expected False",
    ),
    "no flash attention": ('"flash_attn": 1', '"flash_attn": -1', "flash_attn -1, expected 1"),
    "CPU build": ('"CUDA"', '"CPU"', "backends 'CPU', expected 'CUDA' alone"),
    "other backend": ('"CUDA"', '"Vulkan"', "backends 'Vulkan'"),
    "two backends": ('"CUDA"', '"CUDA,RPC"', "backends 'CUDA,RPC'"),
    "two GPUs": ("NVIDIA H200", "NVIDIA H200, NVIDIA H200", "several GPUs"),
    "cut short": ("  }\n]\n", "", "expected JSON, as -o json prints it"),
    "something before": ("[\n  {", "ggml: 1 device\n[\n  {", "at 'ggml: 1 device', expected JSON"),
    "two tests": ("  }\n]", "  }, {}\n]", "JSON of 2 tests, expected a list of one test"),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
def test_an_answer_to_another_question_is_refused(bench, model, change):
    before, after, message = change
    assert before in PRINTED
    with pytest.raises(BadInput) as error:
        measure(bench(PRINTED.replace(before, after, 1)), model)
    text = one_line(error)
    assert message in text
    assert text.startswith("llama-bench ")
    assert "expected" in text
    assert not isinstance(error.value, HardwareAbsent)


@pytest.mark.parametrize("printed", ["", "[\n\n]\n", "{}", '[ "test" ]', "| model | size |\n"])
def test_what_is_no_list_of_one_test_is_refused(bench, model, printed):
    with pytest.raises(BadInput, match=r"llama-bench printed .*, expected"):
        measure(bench(printed), model)


def test_a_cuda_build_that_saw_no_gpu_is_absent_hardware(bench, model):
    with pytest.raises(HardwareAbsent, match="saw no GPU and decoded on the CPU"):
        measure(bench(PRINTED.replace("NVIDIA H200", "")), model)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (
            'print("main: error: failed to load model", file=sys.stderr); sys.exit(1)',
            "exit status 1, expected 0; it said: main: error: failed to load model; run it",
        ),
        ("sys.exit(3)", "exit status 3, expected 0; it said: nothing"),
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            r"killed by signal 11 \(Segmentation fault\), expected 0",
        ),
        ("time.sleep(60)", "took over 1 s, expected less; run it by hand: .* -o json"),
    ],
    ids=["error", "silent", "signal", "time-out"],
)
def test_a_run_that_does_not_end_well_is_refused(bench, model, first, message):
    with pytest.raises(BadInput, match=message) as error:
        measure(bench(first=first), model, time_out=1 if "sleep" in first else 60)
    assert one_line(error).startswith(str(bench()))


@pytest.mark.parametrize("interrupted", [False, True], ids=["time-out", "Ctrl-C"])
def test_nothing_stays_on_the_gpu(bench, model, tmp_path, monkeypatch, interrupted):
    """What a starting script started is killed with it: a lock tells when it is gone."""
    held = tmp_path / "held"
    first = f"""
if os.fork() == 0:
    handle = os.open({str(held)!r}, os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, b"here")
time.sleep(60)
"""

    def wait_for(condition):
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.01)

    def told():
        return held.exists() and held.read_bytes() == b"here"

    def stopped(process, **_):
        if "--version" in process.args:
            return "", ""
        wait_for(told)
        if interrupted:
            raise KeyboardInterrupt
        raise subprocess.TimeoutExpired(process.args, 1)

    monkeypatch.setattr(subprocess.Popen, "communicate", stopped)
    with pytest.raises(KeyboardInterrupt if interrupted else BadInput):
        measure(bench(first=first), model)

    def free():
        with held.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    wait_for(free)


def test_a_binary_that_cannot_be_run_is_refused(bench, model, tmp_path):
    with pytest.raises(BadInput, match=r"nowhere: cannot be run \(No such file .*MOE_HARNESS_LLA"):
        measure(tmp_path / "nowhere", model)
    binary = bench()
    binary.write_bytes(b"\x7fELF no program")
    with pytest.raises(BadInput, match=r"cannot be run \(Exec format error\)"):
        measure(binary, model)
    with pytest.raises(BadInput, match=r"cannot be run \(Permission denied\)"):
        measure(tmp_path, model)


def test_a_question_that_cannot_be_asked_is_refused(bench, model, tmp_path):
    binary = bench()
    with pytest.raises(BadInput, match="no such file; name a GGUF file"):
        measure(binary, tmp_path / "nowhere.gguf")
    comma = model.rename(tmp_path / "a,b.gguf")
    with pytest.raises(BadInput, match="takes a comma"):
        measure(binary, comma)
    for options in ({"n_gen": 0}, {"repetitions": 0}):
        with pytest.raises(BadInput, match="expected a depth from 0, and at least 1"):
            measure(binary, comma, **options)
    with pytest.raises(BadInput, match="depth -1"):
        measure_llama_bench(binary, comma, -1, gpu=GPU)
    assert not (tmp_path / "told.json").exists()
