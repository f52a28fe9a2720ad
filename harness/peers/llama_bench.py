"""llama.cpp's own figure for a file, from its ``llama-bench``.

Fields keep the names that llama-bench gives them (``tools/llama-bench/llama-bench.cpp``). Each
repetition fills the cache with ``n_depth`` random tokens, untimed, then feeds ``n_gen`` more one
by one on the host clock: no sampling, no tokenisation, no model load.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from harness.errors import BadInput, HardwareAbsent
from harness.meter.lock import measuring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_GPU_LAYERS = 99  # more than any model here has: every layer and the output matrix
_RECORDED_VARIABLES = ("CUDA_", "GGML_")  # what changes how llama.cpp runs; the rest may be private
_ROUNDING = 1e-4  # samples_ts is printed with six digits
_LAST_WORDS = 200  # characters of stderr in an error's one line

_FLAGS: Mapping[str, tuple[type, ...]] = {
    "n_batch": (int,),
    "n_ubatch": (int,),
    "n_threads": (int,),
    "type_k": (str,),
    "type_v": (str,),
    "n_gpu_layers": (int,),
    "split_mode": (str,),
    "no_kv_offload": (bool,),
    "flash_attn": (int, bool),  # bool until it learnt "auto"
}
_FIELDS: Mapping[str, tuple[type, ...]] = {
    "build_commit": (str,),
    "build_number": (int,),
    "gpu_info": (str,),
    "backends": (str,),
    "model_filename": (str,),
    "model_type": (str,),
    "model_size": (int,),
    **_FLAGS,
    "n_prompt": (int,),
    "n_gen": (int,),
    "n_depth": (int,),
    "test_time": (str,),
    "avg_ts": (float, int),
    "stddev_ts": (float, int),
    "samples_ns": (list,),
    "samples_ts": (list,),
}


@dataclass(frozen=True)
class PeerMeasurement:
    """What llama-bench said of itself and of one test. Not guarded, so no ``Measurement``.

    Attributes
    ----------
    version
        What ``--version`` says; None from a build that does not know the option.
    build_commit, build_number
        Of llama.cpp, as built in: ``unknown`` and 0 where it was built outside a git checkout.
    gpu_info
        Name of the one GPU that it saw.
    model_size
        Bytes of the tensors.
    flags
        Settings that llama-bench reports to have run with.
    n_depth
        Positions already in the cache.
    n_gen
        Tokens timed in each repetition.
    test_time
        UTC, RFC 3339.
    avg_ts, stddev_ts
        Tokens per second over the repetitions: mean and sample deviation.
    samples_ns
        Nanoseconds of each repetition.
    samples_ts
        Tokens per second of each repetition.
    command
        Arguments that it was run with.
    environment
        Its variables that begin with ``CUDA_`` or ``GGML_``.

    """

    version: str | None
    build_commit: str
    build_number: int
    gpu_info: str
    model_filename: str
    model_type: str
    model_size: int
    flags: Mapping[str, int | str | bool]
    n_depth: int
    n_gen: int
    test_time: str
    avg_ts: float
    stddev_ts: float
    samples_ns: tuple[int, ...]
    samples_ts: tuple[float, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def ms_per_token(self) -> tuple[float, ...]:
        """Milliseconds per token of each repetition."""
        return tuple(sample / 1e6 / self.n_gen for sample in self.samples_ns)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the sidecar."""
        return {
            "schema": "moe-harness/peer/1",
            "peer": "llama.cpp llama-bench",
            "guard": "none: a peer's own figure",
            **asdict(self),
            "ms_per_token": self.ms_per_token,
            "command": shlex.join(self.command),
        }


def measure_llama_bench(
    binary: Path,
    model: Path,
    n_depth: int,
    *,
    gpu: str,
    n_gen: int = 128,
    repetitions: int = 5,
    environment: Mapping[str, str] | None = None,
    time_out: float = 900.0,
) -> PeerMeasurement:
    """Run llama-bench on one GPU, alone on it, and believe its answer only if it fits the question.

    Parameters
    ----------
    binary
        llama-bench, built with CUDA, or a script that starts it.
    model
        GGUF file.
    n_depth
        Positions in the cache before the first timed token.
    gpu
        UUID of the one GPU that it may see, as NVML gives it; its lock is held meanwhile.
    n_gen
        Tokens to time in each repetition.
    repetitions
        Five, llama-bench's own default, unless given.
    environment
        Variables to set for it, such as ``GGML_CUDA_GRAPH_OPT=1``.
    time_out
        Seconds for everything: loading, filling the cache, timing.

    Raises
    ------
    HardwareAbsent
        Where llama-bench saw no GPU.
    BadInput
        Where it cannot be run, fails, takes too long, or answers another question.

    """
    asked = _Question(model, n_depth, n_gen, repetitions)
    command = (str(binary), *asked.arguments())
    variables = {**os.environ, **(environment or {}), "CUDA_VISIBLE_DEVICES": gpu}
    with measuring(gpu):
        version = _version(binary, variables)
        printed = _output(command, variables, time_out)
    record = asked.answer(printed)
    return PeerMeasurement(
        version=version,
        build_commit=record["build_commit"],
        build_number=record["build_number"],
        gpu_info=record["gpu_info"],
        model_filename=record["model_filename"],
        model_type=record["model_type"],
        model_size=record["model_size"],
        flags={name: record[name] for name in _FLAGS},
        n_depth=record["n_depth"],
        n_gen=record["n_gen"],
        test_time=record["test_time"],
        avg_ts=float(record["avg_ts"]),
        stddev_ts=float(record["stddev_ts"]),
        samples_ns=tuple(record["samples_ns"]),
        samples_ts=tuple(float(sample) for sample in record["samples_ts"]),
        command=command,
        environment={
            name: value
            for name, value in sorted(variables.items())
            if name.startswith(_RECORDED_VARIABLES)
        },
    )


@dataclass(frozen=True)
class _Question:
    """What is asked of llama-bench; tells an answer to it from an answer to something else."""

    model: Path
    n_depth: int
    n_gen: int
    repetitions: int

    def __post_init__(self) -> None:
        if self.n_depth < 0 or self.n_gen < 1 or self.repetitions < 1:
            raise BadInput(
                f"depth {self.n_depth}, {self.n_gen} tokens, {self.repetitions} repetitions; "
                "expected a depth from 0, and at least 1 of each other"
            )
        if not self.model.is_file():
            raise BadInput(f"{self.model}: no such file; name a GGUF file")
        if "," in str(self.model):
            raise BadInput(
                f"{self.model}: llama-bench takes a comma for the end of a file name; rename it"
            )

    def arguments(self) -> tuple[str, ...]:
        """Return llama-bench's command line after its name."""
        options = {
            "-m": self.model,
            "-p": 0,
            "-n": self.n_gen,
            "-d": self.n_depth,
            "-ngl": _GPU_LAYERS,
            "-fa": 1,
            "-r": self.repetitions,
            "-o": "json",
        }
        return tuple(str(word) for option in options.items() for word in option)

    def answer(self, printed: str) -> dict[str, Any]:
        """Return the record of the one test that was asked for.

        Raises
        ------
        HardwareAbsent
            Where no GPU was seen.
        BadInput
            Where anything is not as it was asked or contradicts itself.

        """
        record = _only_test(printed)
        _check_fields(record)
        _check_gpu(record["backends"], record["gpu_info"])
        self._check_asked(record)
        self._check_samples(record)
        return record

    def _check_asked(self, record: Mapping[str, Any]) -> None:
        expected = {
            "model_filename": str(self.model),
            "n_prompt": 0,
            "n_gen": self.n_gen,
            "n_depth": self.n_depth,
            "n_gpu_layers": _GPU_LAYERS,
            "no_kv_offload": False,
            "flash_attn": 1,
        }
        for name, value in expected.items():
            if record[name] != value:
                raise BadInput(
                    f"llama-bench reports {name} {record[name]!r}, expected {value!r} as asked; "
                    "if a script starts it, let that pass every argument on"
                )

    def _check_samples(self, record: Mapping[str, Any]) -> None:
        samples_ns, samples_ts = record["samples_ns"], record["samples_ts"]
        for name, samples in (("samples_ns", samples_ns), ("samples_ts", samples_ts)):
            if len(samples) != self.repetitions:
                _refuse(f"{len(samples)} {name}", f"{self.repetitions}, one a repetition")
            _check_positive(name, samples)
        _check_positive("avg_ts", [record["avg_ts"]])
        if not 0 <= record["stddev_ts"] < math.inf:
            _refuse(f"stddev_ts {record['stddev_ts']}", "a finite deviation from 0")
        for nanoseconds, rate in zip(samples_ns, samples_ts, strict=True):
            if not _agree(rate, self.n_gen * 1e9 / nanoseconds):
                _refuse(
                    f"{rate} tok/s in samples_ts for {nanoseconds} ns in samples_ns",
                    f"{self.n_gen} tokens in that time",
                )
        mean = math.fsum(samples_ts) / len(samples_ts)
        if not _agree(record["avg_ts"], mean):
            _refuse(f"avg_ts {record['avg_ts']}", f"the mean of samples_ts, {mean:.6g}")


def _only_test(printed: str) -> dict[str, Any]:
    try:
        tests = json.loads(printed, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = [*error.doc.splitlines(), ""][error.lineno - 1].strip()
        _refuse(f"{error} at {line[:_LAST_WORDS]!r}", "JSON, as -o json prints it")
    if not isinstance(tests, list) or len(tests) != 1 or not isinstance(tests[0], dict):
        found = f"{len(tests)} tests" if isinstance(tests, list) else type(tests).__name__
        _refuse(f"JSON of {found}", "a list of one test")
    record: dict[str, Any] = tests[0]
    return record


def _refuse_constant(name: str) -> NoReturn:
    _refuse(f"{name} in its JSON", "finite numbers")


def _check_fields(record: Mapping[str, Any]) -> None:
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        _refuse(f"JSON without {', '.join(missing)}", f"the fields {', '.join(_FIELDS)}")
    for name, kinds in _FIELDS.items():
        if type(record[name]) not in kinds:  # exactly: to isinstance a bool is an int
            expected = " or ".join(kind.__name__ for kind in kinds)
            _refuse(f"{name} {record[name]!r}", expected)


def _check_gpu(backends: str, gpu_info: str) -> None:
    if backends != "CUDA":
        raise BadInput(
            f"llama-bench reports backends {backends!r}, expected 'CUDA' alone; "
            "build it with -DGGML_CUDA=ON"
        )
    if not gpu_info:  # a CUDA build without a GPU decodes on the CPU, and still says CUDA
        raise HardwareAbsent(
            "llama-bench saw no GPU and decoded on the CPU, expected one GPU; compare its UUID "
            "with nvidia-smi -L"
        )
    if "," in gpu_info:
        raise BadInput(
            f"llama-bench ran on several GPUs ({gpu_info}), expected one; if a script starts it, "
            "let that keep CUDA_VISIBLE_DEVICES"
        )


def _check_positive(name: str, values: Sequence[Any]) -> None:
    for value in values:
        if type(value) not in (int, float) or not 0 < value < math.inf:
            _refuse(f"{value!r} in {name}", "finite numbers above 0")


def _agree(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_ROUNDING)


def _refuse(found: str, expected: str) -> NoReturn:
    raise BadInput(
        f"llama-bench printed {found}, expected {expected}; use that of a current llama.cpp"
    )


def _version(binary: Path, variables: Mapping[str, str]) -> str | None:
    """Return what ``--version`` says; None where the option is not known."""
    ran = _run((str(binary), "--version"), variables, time_out=60.0)
    said = re.search(r"^version: (.+)$", ran.stdout + ran.stderr, re.MULTILINE)
    return said[1].strip() if said and ran.returncode == 0 else None


def _output(command: Sequence[str], variables: Mapping[str, str], time_out: float) -> str:
    """Return standard output of a run that ended well."""
    ran = _run(command, variables, time_out)
    if ran.returncode == 0:
        return ran.stdout
    how = f"ended with exit status {ran.returncode}"
    if ran.returncode < 0:
        name = signal.strsignal(-ran.returncode) or "unknown"
        how = f"was killed by signal {-ran.returncode} ({name})"
    raise BadInput(
        f"{command[0]}: {how}, expected 0; it said: {_last_words(ran.stderr)}; "
        f"run it by hand: {shlex.join(command)}"
    )


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["nothing"])[-1][:_LAST_WORDS]


def _run(
    command: Sequence[str], variables: Mapping[str, str], time_out: float
) -> subprocess.CompletedProcess[str]:
    try:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # its process group is what _run may kill
        )
    except OSError as error:
        raise BadInput(
            f"{command[0]}: cannot be run ({error.strerror}), expected llama-bench; point "
            "MOE_HARNESS_LLAMA_BENCH to an executable one"
        ) from None
    with process:
        try:
            stdout, stderr = process.communicate(timeout=time_out)
        except BaseException as error:
            # A script that started llama-bench must not leave it on the GPU, on Ctrl-C neither.
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BadInput(
                    f"{command[0]}: took over {time_out:g} s, expected less; run it by hand: "
                    f"{shlex.join(command)}"
                ) from None
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
