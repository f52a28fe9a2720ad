"""The recipe of docs/own-kernel.md, followed: without a GPU as far as that goes, then on one."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.own import OwnKernels
from examples.silu_gate import silu_gate
from examples.silu_gate.silu_gate import FAMILY, ROWS, SILU_GATE, WIDTH
from harness.errors import BadInput, Rejected
from harness.guard.faults import Proof
from harness.meter.instruments import HostInstruments
from harness.meter.kernel import KernelMeasurement
from harness.meter.measurement import Measurement
from harness.meter.sidecar import write_sidecar
from harness.meter.stopping import CONVERGED, StoppingRule
from harness.staleness import newest_gpu_evidence
from harness.workbench import Limits, check, judge, measure, prove, rehearse
from harness.workbench.__main__ import _COMMANDS, _parser, declarations, main
from harness.workbench.bench import copies_needed
from harness.workbench.run import _require, timed
from kernels.compiler import CompileError, find_nvcc, ptx
from kernels.family import POINTER, Family, Heads, Variant, struct

ROOT = Path(__file__).parents[2]
MODULE = "examples.silu_gate.silu_gate"
DOCUMENT = ROOT / "docs" / "own-kernel.md"
QUICK = StoppingRule(most_deviation=10, least_seconds=0, time_out=1)


def drawn(seed=0):
    return SILU_GATE.drawn(np.random.default_rng(seed))


def in_float32(given):
    gate, up = given["gate"], given["up"]
    return given["weights"][:, None] * (gate / (1 + np.exp(-gate))) * up


def blocks():
    return re.findall(r"(?ms)^```(\S+)(?: (\S+))?\n(.*?)^```$", DOCUMENT.read_text())


# -- the document ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["examples/silu_gate/silu_gate.cu", "examples/silu_gate/silu_gate.py", "benchmarks/own.py"],
)
def test_the_document_is_the_files(name):
    text = (ROOT / name).read_text()
    parts = [code for _, of, code in blocks() if of == name]
    assert parts
    for part in parts:
        assert part in text
    whole = "".join(parts)
    assert [line for line in whole.splitlines() if line] == [
        line for line in text.splitlines() if line
    ]


def test_every_block_is_of_a_file_or_holds_commands_that_exist():
    assert all(bool(name) == (language != "sh") for language, name, _ in blocks())
    commands = [
        line for language, _, code in blocks() if language == "sh" for line in code.split("\n")
    ]
    own = [line.split()[3:] for line in commands if line.startswith("python -m harness.workbench")]
    assert {_parser().parse_args(arguments).command for arguments in own} == set(_COMMANDS)
    assert {arguments[1] for arguments in own} == {MODULE}
    asv = [line for line in commands if "asv run" in line]
    assert all(line.endswith(f"--bench own.{OwnKernels.__name__}") for line in asv)
    assert OwnKernels.params == ["silu_gate"]


# -- without a GPU ---------------------------------------------------------------------------


def test_nothing_of_a_gpu_is_imported():
    # torch may be a CUDA build, and then imports some of these itself.
    code = (
        "import sys, torch; before = set(sys.modules); "
        f"import harness.workbench, {MODULE}; print(sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for module in ("pycuda", "cuda", "pynvml"):
        assert f"'{module}'" not in ran.stdout


@pytest.mark.parametrize("plant", [None, *SILU_GATE.faults])
def test_it_compiles_clean_and_with_every_fault(plant):
    require_nvcc()
    compiled = ptx(FAMILY, Variant(plant=plant), Heads(), "sm_90")
    assert b".entry silu_gate(" in compiled
    assert len(re.findall(rb"ld\.global\S*\.v4\.f32", compiled)) == 2
    assert len(re.findall(rb"st\.global\S*\.v4\.f32", compiled)) == 1
    assert b".local" not in compiled
    if plant is not None:
        assert compiled != ptx(FAMILY, Variant(), Heads(), "sm_90")


def test_a_struct_of_another_size_does_not_compile(tmp_path):
    require_nvcc()
    short = replace(FAMILY, arguments={"silu_gate": struct(("gate", POINTER))})
    with pytest.raises(CompileError, match=r"differs from silu_gate\.py"):
        ptx(short, Variant(), Heads(), "sm_90", cache=tmp_path)


def test_the_launcher_is_rehearsed():
    (launch,) = rehearse(SILU_GATE)
    assert launch.kernel == "silu_gate"
    assert launch.block == (256, 1, 1)
    assert launch.grid == (ROWS * WIDTH // 4 // 256,)
    assert len(launch.arguments) == 40


def test_compile_names_what_it_compiled(capsys):
    require_nvcc()
    assert main(["compile", MODULE, "--json", "-"]) == 0
    answer = json.loads(capsys.readouterr().out)
    compiled = answer["kernels"]["silu_gate"]["compiled"]
    assert compiled["sm_90"] == ["clean", *SILU_GATE.faults]


def test_a_module_that_is_not_there_or_declares_nothing_is_bad_input(capsys):
    for module in ("no.such.module", "kernels.argmax"):
        assert main(["compile", module]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert declarations(MODULE) == [SILU_GATE]


def test_a_fault_that_is_not_there_is_bad_input(capsys):
    assert main(["check", MODULE, "--plant", "nothing"]) == 2
    assert "rounded_to_half" in capsys.readouterr().err


# -- bad declarations ------------------------------------------------------------------------


def wrong_shape(_given):
    return {"out": np.zeros((ROWS, WIDTH + 1))}


def wrong_name(_given):
    return {"gated": np.zeros((ROWS, WIDTH))}


def not_float64(given):
    return {"out": in_float32(given)}


def not_finite(_given):
    return {"out": np.full((ROWS, WIDTH), np.inf)}


def unknown_field(program, buffers, stream):
    program.kernel(FAMILY, "silu_gate").launch(
        {**buffers, "rows": ROWS, "columns": WIDTH}, grid=(1,), stream=stream
    )


def unknown_kernel(program, _buffers, _stream):
    program.kernel(FAMILY, "silu")


def no_output(program, buffers, stream):
    given = {name: buffers[name] for name in ("gate", "up", "weights")}
    program.kernel(FAMILY, "silu_gate").launch(given, grid=(1,), stream=stream)


def nothing(_program, _buffers, _stream):
    return


def unknown_buffer(program, buffers, stream):
    given = {"gate": buffers["gates"]}
    program.kernel(FAMILY, "silu_gate").launch(given, grid=(1,), stream=stream)


def too_much_shared(program, buffers, stream):
    program.kernel(FAMILY, "silu_gate").launch(buffers, grid=(1,), stream=stream, shared=1 << 20)


def empty(rng):
    return {**silu_gate.inputs(rng), "up": np.zeros(0)}


def named_as_the_output(rng):
    return {**silu_gate.inputs(rng), "out": np.zeros(1)}


BAD = {
    "no faults": ({"faults": ()}, "no faults"),
    "an unknown fault": ({"faults": ("no_such",)}, "no plant of its family"),
    "no source": ({"family": replace(FAMILY, name="silu")}, "does not exist"),
    "no outputs": ({"outputs": {}}, "no outputs"),
    "integers": ({"outputs": {"out": ((ROWS,), np.int32)}}, "floating-point"),
    "nothing in an output": ({"outputs": {"out": ((0, 3), np.float32)}}, "at least one value"),
    "a partial": ({"launch": print}, "no plain function"),
    "another shape": ({"reference": wrong_shape}, r"is \[512, 769\], its output \[512, 768\]"),
    "another name": ({"reference": wrong_name}, "gives gated, the outputs are out"),
    "float32": ({"reference": not_float64}, "is float32, expected float64"),
    "infinities": ({"reference": not_finite}, "not finite"),
    "an unknown field": ({"launch": unknown_field}, "columns"),
    "an unknown kernel": ({"launch": unknown_kernel}, "expected one of silu_gate's: silu_gate"),
    "an unknown buffer": ({"launch": unknown_buffer}, "gates"),
    "an output nobody writes": ({"launch": no_output}, "no launch is given out"),
    "no launch": ({"launch": nothing}, "launches nothing"),
    "shared memory": ({"launch": too_much_shared}, "shared memory"),
    "an empty input": ({"inputs": empty}, "input up is no array, or an empty one"),
    "no inputs": ({"inputs": lambda _rng: {}}, "no inputs"),
    "one name twice": ({"inputs": named_as_the_output}, "an input and an output"),
    "no bytes": ({"bytes_read": lambda _given: 0}, "bytes_read is 0"),
    "too many bytes": ({"bytes_read": lambda _given: 1 << 40}, "comes from a cache"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_declaration_is_refused_in_one_line(case):
    changes, message = BAD[case]
    with pytest.raises(BadInput, match=message) as refused:
        rehearse(replace(SILU_GATE, **changes))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("kernel silu_gate: ")


@pytest.mark.parametrize("limit", [0, 1, -1, float("nan"), float("inf")])
def test_a_limit_that_limits_nothing_is_refused(limit):
    with pytest.raises(BadInput, match="expected above 0 and below 1"):
        Limits(rel_l2=1e-6, row=limit)


def test_copies_go_over_twice_the_l2():
    given, read = drawn(), 4 * (2 * ROWS * WIDTH + ROWS)
    for l2 in (50 << 20, 60 << 20, read, 1):
        count = copies_needed(SILU_GATE, given, l2)
        assert count >= 2
        assert count * read > 2 * l2
    with pytest.raises(BadInput, match="give a launch more to do"):
        copies_needed(replace(SILU_GATE, bytes_read=lambda _given: 4096), given, 50 << 20)


# -- the guard, on the host ------------------------------------------------------------------


def judged(*results, declaration=SILU_GATE):
    truths = [declaration.truth(drawn(seed)) for seed in range(len(results))]
    return judge(declaration, results, truths, {})


def clean():
    return [{"out": in_float32(drawn(seed))} for seed in range(3)]


def test_float32_arithmetic_is_accepted():
    evidence = judged(*clean())
    assert evidence.verdict.accepted, evidence.verdict.reasons
    assert evidence.distance < 0.5
    assert evidence.copies == 3
    json.dumps(evidence.to_json(), allow_nan=False)


def scaled(out):
    return out * np.float32(1 + 1e-5)


def halved(out):
    return out.astype(np.float16).astype(np.float32)


def one_nan(out):
    out[-1, -1] = np.nan
    return out


def one_value(out):
    row, column = np.unravel_index(np.abs(out).argmax(), out.shape)
    out[row, column] *= np.float32(1 + 1e-4)
    return out


def row_swapped(out):
    out[[0, 1]] = out[[1, 0]]
    return out


WRONG = {
    "scaled by 1e-5": (scaled, "rel_l2"),
    "rounded to float16": (halved, "rel_l2"),
    "one value missing": (one_nan, "1, limit 0"),
    "never written": (lambda out: np.full_like(out, np.nan), "not finite"),
    "zeros": (np.zeros_like, "rel_l2: 1,"),
    "one value off by 1e-4": (one_value, "worst row"),
    "two rows swapped": (row_swapped, "rel_l2"),
    "an infinity": (lambda out: out / np.float32(0) * 0 + np.inf, "not finite"),
    "transposed": (lambda out: out.T, "another shape"),
    "float64": (lambda out: out.astype(np.float64), "another shape or type"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("copy", [0, 2])
def test_a_wrong_copy_is_rejected_whichever_it_is(case, copy):
    wrong, reason = WRONG[case]
    results = clean()
    with np.errstate(all="ignore"):
        results[copy]["out"] = wrong(results[copy]["out"])
    evidence = judged(*results)
    assert not evidence.verdict.accepted
    assert evidence.distance > 1
    assert any(reason in line for line in evidence.verdict.reasons), evidence.verdict.reasons
    json.dumps(evidence.to_json(), allow_nan=False)


def test_an_output_that_is_missing_is_rejected_and_an_empty_comparison_is_none():
    assert not judged({}).verdict.accepted
    with pytest.raises(ValueError, match="nothing to compare"):
        judge(SILU_GATE, [], [], {})


def test_every_output_is_looked_at():
    two = replace(
        SILU_GATE,
        outputs={"first": ((2,), np.float32), "second": ((2,), np.float32)},
    )
    truth = {"first": np.ones(2), "second": np.ones(2)}
    right, wrong = np.ones(2, np.float32), np.array([1, 1.1], np.float32)
    assert judge(two, [{"first": right, "second": right}], [truth], {}).verdict.accepted
    assert not judge(two, [{"first": right, "second": wrong}], [truth], {}).verdict.accepted
    assert not judge(two, [{"first": wrong, "second": right}], [truth], {}).verdict.accepted


# -- the timed region, with launches that are played -----------------------------------------


class Played:
    """Launches that compute the guarded outputs until ``honest`` rotations have run."""

    def __init__(self, outputs, honest=10**9):
        self.results, self.honest, self.rotations = outputs, honest, 0

    def milliseconds(self, rotations):
        self.rotations += rotations
        return [0.1] * rotations

    def outputs(self):
        if self.rotations <= self.honest:
            return self.results
        return [*self.results[:-1], {"out": np.nextafter(self.results[-1]["out"], np.inf)}]


def test_samples_end_by_the_rule():
    launches = Played(clean())
    samples, reason = timed(launches, clean(), judged(*clean()), HostInstruments(), QUICK)
    assert reason == CONVERGED
    assert len(samples) == launches.rotations - 1


def test_a_launch_that_computes_something_else_later_gives_no_number():
    launches = Played(clean(), honest=5)
    with pytest.raises(Rejected, match="copy 2 computed something else than was guarded"):
        timed(launches, clean(), judged(*clean()), HostInstruments(), QUICK)


def test_nothing_is_timed_on_rejected_evidence():
    launches, wrong = Played(clean()), judged({"out": np.zeros((ROWS, WIDTH), np.float32)})
    with pytest.raises(Rejected):
        timed(launches, clean(), wrong, HostInstruments(), QUICK)
    assert launches.rotations == 0


def test_a_guard_that_accepts_a_fault_or_rejects_a_clean_run_gives_no_number():
    fault = ("unweighted", 0.5, "out")
    with pytest.raises(Rejected, match="accepts fault unweighted"):
        _require(SILU_GATE, Proof(planted=[fault], survivors=["unweighted"], clean=[0.1]))
    with pytest.raises(Rejected, match="seed 0: too far"):
        _require(SILU_GATE, Proof(planted=[fault], clean=[2], false_rejections=["seed 0: too far"]))
    _require(SILU_GATE, Proof(planted=[fault], clean=[0.1]))


def test_a_kernel_of_ones_own_says_nothing_of_the_decoders_kernels(tmp_path):
    ran = {"backend": "cuda", "gpu": "NVIDIA H200", "date": "2026-01-01", "source_hash": "own"}
    time = Measurement.accept([1.0, 1.1], "us", judged(*clean()))
    measured = KernelMeasurement(time, 3_000_000, 4e12, CONVERGED, ran)
    write_sidecar(tmp_path, "machine", "commit", "own.OwnKernels silu_gate", measured.to_json())
    assert newest_gpu_evidence(tmp_path) == []


# -- on a GPU --------------------------------------------------------------------------------


# Right at first; from its two hundredth launch on, a little less so.
TIRING = """
#include "common.cuh"
struct DoubledArgs { const float* x; float* out; int count; int padding; };
static_assert(sizeof(DoubledArgs) == DOUBLED_ARGS_BYTES, "");
__device__ unsigned launches;
extern "C" __global__ void doubled(const DoubledArgs a) {
#ifdef PLANT_TRIPLED
  const float factor = 3.0f;
#else
  const float factor = launches < 200 ? 2.0f : 2.0000002f;
#endif
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < a.count; i += gridDim.x * kThreads) {
    a.out[i] = factor * a.x[i];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(&launches, 1);
}
"""
COUNT = 1 << 20


@pytest.fixture
def tiring(tmp_path):
    (tmp_path / "tiring.cu").write_text(TIRING)
    arguments = struct(("x", POINTER), ("out", POINTER), ("count", np.int32), ("padding", np.int32))
    family = Family("tiring", {"doubled": arguments}, plants=("tripled",), folder=tmp_path)

    def launch(program, buffers, stream):
        program.kernel(family, "doubled").launch(
            {**buffers, "count": COUNT}, grid=(64,), stream=stream
        )

    return replace(
        SILU_GATE,
        name="tiring",
        family=family,
        launch=launch,
        inputs=lambda rng: {"x": rng.standard_normal(COUNT, dtype=np.float32)},
        outputs={"out": ((COUNT,), np.float32)},
        reference=lambda given: {"out": 2 * given["x"].astype(np.float64)},
        faults=("tripled",),
    )


def test_the_tiring_kernel_compiles(tiring, tmp_path):
    require_nvcc()
    rehearse(tiring)
    for plant in (None, "tripled"):
        ptx(tiring.family, Variant(plant=plant), Heads(), "sm_90", cache=tmp_path)


@pytest.mark.gpu
def test_the_example_is_accepted():
    evidence = check(SILU_GATE)
    assert evidence.verdict.accepted, evidence.verdict.reasons
    assert evidence.ran["backend"] == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("fault", SILU_GATE.faults)
def test_every_fault_of_the_example_is_rejected(fault):
    assert not check(SILU_GATE, Variant(plant=fault)).verdict.accepted


@pytest.mark.gpu
def test_the_example_is_proven():
    proof = prove(SILU_GATE)
    assert proof.holds, proof.to_json()
    assert [name for name, *_ in proof.planted] == list(SILU_GATE.faults)


@pytest.mark.gpu
def test_the_example_is_measured_cold_on_what_was_guarded():
    measured = measure(SILU_GATE, rule=StoppingRule(time_out=3))
    assert measured.bytes == 4 * (2 * ROWS * WIDTH + ROWS)
    assert measured.ran["bytes_rotated"] > 2 * measured.ran["l2_bytes"]
    assert 0 < measured.bytes_per_second < measured.bandwidth
    answer = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert answer["evidence"]["proof"]["rejected"] == len(SILU_GATE.faults)


@pytest.mark.gpu
def test_a_planted_example_gives_no_number():
    with pytest.raises(Rejected, match="limit"):
        measure(SILU_GATE, Variant(plant="rounded_to_half"))


@pytest.mark.gpu
def test_a_guard_whose_limits_are_loose_gives_no_number():
    with pytest.raises(Rejected, match="accepts fault rounded_to_half"):
        measure(replace(SILU_GATE, limits=Limits(rel_l2=0.01, row=0.01)))


@pytest.mark.gpu
def test_a_kernel_that_computes_something_else_later_gives_no_number(tiring):
    assert prove(tiring).holds
    with pytest.raises(Rejected, match="computed something else than was guarded"):
        measure(tiring, rule=QUICK)


@pytest.mark.gpu
def test_check_prove_and_measure_by_command(capsys):
    assert main(["check", MODULE]) == 0
    assert main(["check", MODULE, "--plant", "last_row_missing"]) == 1
    assert main(["prove", MODULE]) == 0
    capsys.readouterr()
    assert main(["measure", MODULE]) == 0
    assert "verdict: ACCEPTED" in capsys.readouterr().out


def require_nvcc():
    try:
        find_nvcc()
    except CompileError as error:
        if sys.platform == "linux":
            raise
        pytest.skip(str(error))
