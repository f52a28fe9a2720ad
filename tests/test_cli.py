"""The commands as a user meets them: exit status, one line for bad input, the JSON promised."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from harness import __version__, doctor
from harness.cli import main
from harness.meter.gpu_driver import Driver
from harness.model.embedded import path as embedded_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def run_json(capsys, *arguments):
    status = run(*arguments, "--json", "-")
    return status, json.loads(capsys.readouterr().out)


def test_tensors_of_the_embedded_model_by_default(capsys):
    status, data = run_json(capsys, "tensors")
    assert status == 0
    assert data["schema"] == "moe-harness/tensors/1"
    assert data["bytes"] < embedded_path().stat().st_size
    assert {t["type"] for t in data["tensors"]} == {"F32", "Q4_K", "Q6_K"}


def test_tensors_of_one_layer(capsys):
    assert run("tensors", "--layer", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert all(line.startswith("blk.1.") for line in lines[:-1])


def test_synth_writes_what_tensors_reads(tmp_path, capsys):
    out = tmp_path / "tiny.gguf"
    status, data = run_json(capsys, "synth", "tiny", out)
    assert status == 0
    assert data["bytes"] == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    status, listed = run_json(capsys, "tensors", out)
    assert listed["fingerprint"] == data["fingerprint"]


def test_decode_prints_text_time_and_an_accepted_verdict(capsys):
    assert run("decode", "--prompt", "def read(self", "--tokens", 12) == 0
    out = capsys.readouterr().out
    assert out.startswith("def read(self")
    assert "ms/token" in out
    assert "verdict: ACCEPTED" in out


def test_decode_json(capsys):
    status, data = run_json(capsys, "decode", "--prompt", "1,2,3", "--tokens", 8)
    assert status == 0
    assert len(data["tokens"]) == 8
    assert data["verdict"] == {"accepted": True, "reasons": []}
    assert data["ms_per_token"]["median"] > 0
    assert data["tokens_per_second"] == pytest.approx(1000 / data["ms_per_token"]["median"])
    assert data["memory"]["peak_bytes"] > 0
    assert data["energy_joules_per_token"] is None
    assert data["bytes_per_token"] > 0
    assert data["ran"]["backend"] == "cpu"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--batch", 2, "--backend", "cpu"], "decodes one sequence, 2 were asked for"),
        (["--batch", 5000, "--backend", "cpu"], "vocabulary has 4096 tokens"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_in_a_line(capsys, asked, told):
    assert run("decode", "--prompt", "1,2,3", *asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize("size", ["0", "-1", "two"])
def test_a_batch_of_none_is_refused(capsys, size):
    with pytest.raises(SystemExit) as ended:
        run("decode", "--batch", size)
    assert ended.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_parity_table_and_json(capsys):
    assert run("parity", "--prompt", "1,2,3,4") == 0
    out = capsys.readouterr().out
    assert "verdict: ACCEPTED" in out
    status, data = run_json(capsys, "parity", "--prompt", "1,2,3,4", "--layers", "2..4")
    assert status == 0
    assert [line["layer"] for line in data["layers"]] == [2, 3]


def test_parity_against_another_activation_format_is_rejected_with_status_1(capsys):
    status, data = run_json(capsys, "parity", "--prompt", "1,2,3,4", "--against", "cpu:q8_k")
    assert status == 1
    assert not data["verdict"]["accepted"]
    assert data["verdict"]["reasons"]


def test_parity_finds_out_what_it_is_asked(tmp_path, capsys):
    picture = tmp_path / "parity.svg"
    more = ["--explain", "--canonical", "--text", "--positions", 24, "--picture", picture]
    rounded = ["--against", "cpu:q8_k", "--layers", "0..3"]
    status, data = run_json(capsys, "parity", "--prompt", "1,2,3,4", *rounded, *more)
    assert status == 1
    assert data["explanation"]["causes"] == ["activation format"]
    assert data["first_divergent_layer"] == 0
    assert [error["layer"] for error in data["layer_errors"]] == [0, 1, 2]
    assert all(error["born_rel_l2"] > 1e-3 for error in data["layer_errors"])
    assert all(line["routing_margin"] > 0 for line in data["layers"])
    assert data["canonical"]["reference"] == data["text"]["reference"] == "cpu:q8_k"
    assert data["text"]["positions"] == 24
    assert data["text"]["kl_nats"]["mean"] > 1e-6
    assert picture.read_text().startswith("<svg")
    assert run("parity", "--prompt", "1,2,3", "--explain", "--canonical") == 0
    out = capsys.readouterr().out
    assert "no layer diverges" in out
    assert "there is no divergence to explain" in out
    assert "2 of 2 next tokens agree: BENIGN" in out


def test_layer_answers_whether_it_is_special(capsys):
    status, data = run_json(capsys, "layer", "--layer", 2, "--prompt", "1,2,3")
    assert status == 0
    assert data["schema"] == "moe-harness/layer/1"
    assert sum(expert["tokens"] for expert in data["experts"]) == 4 * 3
    assert run("layer", "--layer", 2, "--prompt", "1,2,3") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("layer 2 is ")


def test_ladder_climbs_both_rungs_of_the_cpu(tmp_path, capsys):
    out = tmp_path / "ladder.json"
    short = ["--backend", "cpu", "--prompt", "1,2,3", "--tokens", 2]
    assert run("ladder", *short, "--json", out, "--picture", tmp_path / "ladder.svg") == 0
    assert [rung["numerics"] for rung in json.loads(out.read_text())["rungs"]] == ["f32", "q8_k"]
    assert "us/token" in capsys.readouterr().out


def test_dump_and_diff(tmp_path, capsys):
    dump = tmp_path / "dump"
    assert (
        run("parity", "--prompt", "1,2,3,4", "--dump", dump, "--stages", "moe_ffn_out,lm_head") == 0
    )
    assert (dump / "candidate" / "layer-0" / "moe_ffn_out.bin").is_file()
    assert (dump / "reference" / "lm_head.bin").is_file()
    capsys.readouterr()
    status, data = run_json(capsys, "diff", dump / "candidate", dump / "reference")
    assert status == 0
    assert data["accepted"]
    target = dump / "candidate" / "lm_head.bin"
    raw = bytearray(target.read_bytes())
    raw[12:16] = b"\x00\x00\xc0\x7f"  # NaN
    target.write_bytes(raw)
    assert run("diff", dump / "candidate", dump / "reference") == 1


BAD = {
    "no such model": ["decode", "nowhere.gguf"],
    "a folder": ["tensors", "."],
    "unknown backend": ["decode", "--backend", "abacus"],
    "no cuda here": ["decode", "--backend", "cuda"],
    "unknown numerics": ["decode", "--numerics", "f8"],
    "id outside the vocabulary": ["decode", "--prompt", "1,99999999"],
    "negative id": ["decode", "--prompt=-5"],
    "empty prompt": ["decode", "--prompt", ""],
    "unknown stage": ["parity", "--stages", "attn_nrom", "--dump", "x"],
    "empty stage": ["parity", "--stages", "lm_head,,", "--dump", "x"],
    "backward layers": ["parity", "--layers", "4..2"],
    "layers beyond the last": ["parity", "--layers", "0..999"],
    "layer beyond the last": ["tensors", "--layer", "999"],
    "unknown reference": ["parity", "--against", "gpu"],
    "unknown numerics of the reference": ["parity", "--against", "cpu:f8"],
    "reference of another backend": ["parity", "--backend", "cpu", "--against", "cuda:f32"],
    "no such text": ["parity", "--prompt", "1,2", "--text", "nowhere.txt"],
    "no positions": ["parity", "--prompt", "1,2", "--positions", "0"],
    "picture nowhere": ["parity", "--prompt", "1,2", "--picture", "/proc/nowhere/x.svg"],
    "nothing to climb with": ["ladder", "--tokens", "0"],
    "a layer that is not there": ["layer", "--layer", "8"],
    "unknown mode": ["parity", "--mode", "loose"],
    "depth beyond the context": ["decode", "--depth", "1000000"],
    "diff of nothing": ["diff", "nowhere", "nowhere"],
    "unknown preset": ["synth", "enormous", "x.gguf"],
    "unwritable synth": ["synth", "tiny", "/proc/nowhere/x.gguf"],
    "unwritable json": ["tensors", "--json", "/proc/nowhere/x.json"],
    "unwritable dump": ["parity", "--prompt", "1,2", "--dump", "/proc/nowhere"],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*BAD[case]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("moe-harness: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    assert "verdict" not in captured.out
    assert not list(tmp_path.iterdir())


def test_a_text_prompt_without_a_tokenizer_is_refused(tiny_path, capsys):
    assert run("decode", tiny_path, "--prompt", "hello") == 2
    assert "tokenizer" in capsys.readouterr().err


def test_doctor_and_version(capsys):
    assert run("doctor") == 0
    assert "torch" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0


def test_the_version_is_that_of_the_installed_package():
    assert __version__ == importlib.metadata.version("moe-harness")


NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n"


def plant_nvcc(folder, script):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nvcc").write_text(script)
    (folder / "nvcc").chmod(0o755)
    return folder / "nvcc"


def doctors_finding(capsys, name):
    status, data = run_json(capsys, "doctor")
    assert status == 0  # no part of a GPU's is needed
    [check] = [check for check in data["checks"] if check["name"] == name]
    return check


@pytest.fixture
def bare_path(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_doctor_finds_nvcc_in_the_wheels_but_on_path_first(
    capsys, monkeypatch, tmp_path, bare_path
):
    wheels = plant_nvcc(tmp_path / "site" / "nvidia" / "cu13" / "bin", NVCC)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert doctors_finding(capsys, "nvcc")["found"] == f"{wheels}, CUDA 13.0"
    on_path = plant_nvcc(bare_path, NVCC.replace("13.0", "12.8"))
    assert doctors_finding(capsys, "nvcc")["found"] == f"{on_path}, CUDA 12.8"


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\nexit 1\n", "#!/nowhere\n", "#!/bin/sh\necho hello\n"]
)
def test_doctor_does_not_count_an_nvcc_that_does_not_run(capsys, bare_path, script):
    nvcc = plant_nvcc(bare_path, script)
    check = doctors_finding(capsys, "nvcc")
    assert not check["here"]
    assert check["found"] == f"{nvcc}, does not run"
    assert "nvidia-cuda-nvcc==" in check["remedy"]


@pytest.mark.parametrize(
    ("cuda", "here", "found"),
    [
        ((13, 0), True, "driver 1.2.3 runs CUDA 13.0, the toolkit is 13.0"),
        ((13, 1), True, "driver 1.2.3 runs CUDA 13.1, the toolkit is 13.0"),
        ((12, 9), False, "driver 1.2.3 runs CUDA 12.9, older than the toolkit's 13.0"),
    ],
)
def test_doctor_holds_the_driver_against_the_toolkit(
    capsys, monkeypatch, bare_path, cuda, here, found
):
    plant_nvcc(bare_path, NVCC)
    monkeypatch.setattr(doctor, "installed_driver", lambda: Driver("1.2.3", cuda))
    check = doctors_finding(capsys, "driver match")
    assert (check["here"], check["found"]) == (here, found)
    assert here or check["remedy"] == "install a driver for CUDA 13.0 or newer"


def test_doctor_does_not_guess_what_it_cannot_compare(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "find_nvcc", lambda: None)
    monkeypatch.setattr(doctor, "installed_driver", lambda: Driver("1.2.3", (13, 0)))
    assert not doctors_finding(capsys, "nvcc")["here"]
    check = doctors_finding(capsys, "driver match")
    assert not check["here"]
    assert "no toolkit to compare" in check["found"]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    check = doctors_finding(capsys, "driver match")
    assert not check["here"]
    assert "nvidia-ml-py is not installed" in check["found"]


def test_machine_writes_asvs_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    status, data = run_json(capsys, "machine")
    assert status == 0
    written = json.loads((tmp_path / ".asv-machine.json").read_text())
    assert data["machine"] in written


def test_no_gpu_package_is_imported_on_the_way_in():
    # Torch itself imports pynvml where it is installed, so what torch brings does not count.
    code = (
        "import sys, torch; before = set(sys.modules);"
        "import harness.cli, harness.suite, harness.guard, harness.meter, harness.meter.gpu_watch;"
        "import harness.meter.gpu_energy, harness.meter.gpu_peak, harness.meter.nvml, kernels;"
        "new = set(sys.modules) - before;"
        "print([m for m in ('pycuda', 'pynvml', 'cuda') if m in new])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_place_for_the_oracle_that_there_is_not_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("MOE_HARNESS_ORACLE", "tpu")
    assert main(["parity", "--backend", "cpu", "--prompt", "1,2"]) == 2
    assert "MOE_HARNESS_ORACLE is 'tpu', expected cpu or cuda" in capsys.readouterr().err
