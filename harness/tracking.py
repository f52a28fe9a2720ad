"""What the asv benchmarks run: each result beside its evidence, and a hole where there is none.

asv stores a number, null (failed) or NaN (n/a) and nothing else. So each run of a benchmark
becomes an ``Outcome``, and everything that was seen goes into a sidecar (``meter.sidecar``), of
rejected runs too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.backends.cuda.gpu import find_gpu
from harness.batch_suite import BatchSession
from harness.errors import BadInput, HardwareAbsent, Rejected
from harness.family_suite import FamilySession
from harness.guard import Evidence
from harness.meter.batch import BatchEvidence
from harness.meter.commit import provenance, this_commit
from harness.meter.identity import host_details, machine_identity
from harness.meter.sidecar import write_sidecar
from harness.meter.stopping import StoppingRule
from harness.model import open_model
from harness.model.embedded import heldout
from harness.model.embedded import path as embedded_path
from harness.model.prompts import CANONICAL, distinct_prompts
from harness.model.synth import synthesise
from harness.peers import measure_llama_bench
from harness.settings import settings
from harness.suite import DecodeSession, guarded_kernel, parity
from kernels.family import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from harness.meter.batch import BatchMeasurement
    from harness.meter.decode import DecodeMeasurement
    from harness.meter.families import FamiliesMeasurement
    from harness.workbench import Declaration

    Figure: TypeAlias = float | dict[str, Any]

_TOKENS = 32
_GPU_TOKENS = 128  # as llama-bench decodes
_GPU_PROMPT = CANONICAL["canonical_3tok"]
_FAMILY_PROMPT = CANONICAL["multi_tok_short"]
_GPU_SECONDS = 6.0  # of noise at most, at each depth
_PRESET = "qwen3-30b-a3b"
_PARITY_POSITIONS = 64
_KEPT_SAMPLES = 200
_KEPT_FAMILY_SAMPLES = 50  # of each of many families in one sidecar
_KERNEL_SECONDS = 4.0  # of noise at most, for each of many kernels


@dataclass(frozen=True)
class Outcome:
    """Figures by name; or the reasons why the guard refused them; or what hardware is absent."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    absent: str | None = None

    def require(self) -> None:
        """For asv's ``setup``: make the benchmark n/a or failed where there are no figures.

        Raises
        ------
        NotImplementedError
            Where the hardware is absent: asv's word for n/a.
        Rejected
            Where the guard refused: asv's null, and an exit status that is not 0.

        """
        if self.absent is not None:
            raise NotImplementedError(self.absent)
        if self.reasons:
            raise Rejected(list(self.reasons))


def embedded_decode(benchmark: str, depths: Sequence[int]) -> dict[int, Outcome]:
    """Decode the embedded model on the CPU at each depth."""
    model = open_model(embedded_path())
    if model.tokenizer is None:
        raise AssertionError("the embedded model has a tokenizer")
    prompt = model.tokenizer.encode("def read(self")
    with DecodeSession(model, backend="cpu", plant=settings().plant) as session:
        return _decodes(benchmark, session, prompt, depths, _TOKENS, StoppingRule())


def qwen3moe_decode(benchmark: str, depths: Sequence[int]) -> dict[int, Outcome]:
    """Decode the 30B model on the GPU at each depth; n/a where there is none."""
    try:
        find_gpu(0)
    except HardwareAbsent as error:
        return dict.fromkeys(depths, Outcome(absent=str(error)))
    model = open_model(_qwen3moe_path())
    with DecodeSession(model, backend="cuda", plant=settings().plant) as session:
        rule = StoppingRule(time_out=_GPU_SECONDS)
        return _decodes(benchmark, session, _GPU_PROMPT, depths, _GPU_TOKENS, rule)


def qwen3moe_batch(benchmark: str, sizes: Sequence[int]) -> dict[int, Outcome]:
    """Decode several sequences at once on the 30B model, on the GPU; n/a where there is none."""
    try:
        find_gpu(0)
    except HardwareAbsent as error:
        return dict.fromkeys(sizes, Outcome(absent=str(error)))
    model = open_model(_qwen3moe_path())
    with BatchSession(model, backend="cuda", plant=settings().plant) as session:
        rule = StoppingRule(time_out=_GPU_SECONDS)
        prompts = distinct_prompts(_GPU_PROMPT, max(sizes, default=1), model.config.vocab)

        def one(size: int) -> Outcome:
            def run() -> tuple[dict[str, Figure], dict[str, Any]]:
                try:
                    measured = session.measure_batch(prompts[:size], tokens=_GPU_TOKENS, rule=rule)
                except HardwareAbsent:
                    raise
                except BadInput as error:
                    # A batch that does not fit into memory must not take the others with it.
                    raise Rejected([str(error)]) from None
                return _batch_figures(measured), _thinned(measured.to_json(), "ms_per_step")

            return _recorded(f"{benchmark} batch={size}", run)

        return {size: one(size) for size in sizes}


def _qwen3moe_path() -> Path:
    """Return the file that was named, or the synthetic one, which is written the first time."""
    named = settings().model
    if named is not None:
        return named
    path = settings().models / f"{_PRESET}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        synthesise(_PRESET, path)
    return path


def cpu_products(
    benchmark: str, families: Sequence[str], numerics: Sequence[str]
) -> dict[tuple[str, str], Outcome]:
    """Time the CPU decoder's products on the embedded model's weights."""
    model = open_model(embedded_path())

    def one(family: str, name: str) -> Outcome:
        def run() -> tuple[dict[str, Figure], dict[str, Any]]:
            measured = guarded_kernel(model, family, name, StoppingRule(time_out=_KERNEL_SECONDS))
            figures: dict[str, Figure] = {
                "microseconds": _samples(measured.time.samples),
                "gigabytes_per_second": measured.bytes_per_second / 1e9,
                "roofline_fraction": measured.bytes_per_second / measured.bandwidth,
            }
            return figures, _thinned(measured.to_json(), "us")

        return _recorded(f"{benchmark} {family} {name}", run)

    return {(family, name): one(family, name) for family in families for name in numerics}


def cuda_families(
    benchmark: str, families: Sequence[str], numerics: Sequence[str]
) -> dict[tuple[str, str], Outcome]:
    """Time each family of the CUDA decoder's kernels on the 30B model; n/a without a GPU."""
    pairs = [(family, name) for name in numerics for family in families]
    try:
        find_gpu(0)
    except HardwareAbsent as error:
        return dict.fromkeys(pairs, Outcome(absent=str(error)))
    with FamilySession(open_model(_qwen3moe_path()), plant=settings().plant) as session:
        by_numerics = {
            name: _families(f"{benchmark} {name}", session, families, numerics=name)
            for name in numerics
        }
    return {(family, name): _family(by_numerics[name], family) for family, name in pairs}


def cuda_attention(benchmark: str, depths: Sequence[int]) -> dict[int, Outcome]:
    """Time attention on the 30B model at each depth; n/a without a GPU."""
    try:
        find_gpu(0)
    except HardwareAbsent as error:
        return dict.fromkeys(depths, Outcome(absent=str(error)))
    with FamilySession(open_model(_qwen3moe_path()), plant=settings().plant) as session:
        return {
            depth: _family(
                _families(f"{benchmark} depth={depth}", session, ["attend"], depth=depth), "attend"
            )
            for depth in depths
        }


def _families(
    benchmark: str,
    session: FamilySession,
    families: Sequence[str],
    *,
    numerics: str | None = None,
    depth: int = 0,
) -> Outcome:
    """Time families; the outcome's figures are by family."""

    def run() -> tuple[dict[str, Figure], dict[str, Any]]:
        try:
            measured = session.measure_families(
                _FAMILY_PROMPT, families, numerics=numerics, depth=depth
            )
        except HardwareAbsent:
            raise
        except BadInput as error:
            # Numerics that do not compile, or a depth that does not fit, must not take the others
            # with them.
            raise Rejected([str(error)]) from None
        data = measured.to_json()
        for family in data["families"].values():
            _thinned(family, "us", _KEPT_FAMILY_SAMPLES)
        return {family: _family_figures(measured, family) for family in measured.families}, data

    return _recorded(benchmark, run)


def _family_figures(measured: FamiliesMeasurement, family: str) -> dict[str, Figure]:
    timed, moved = measured.families[family], measured.families[family].bytes_per_second
    share = measured.roofline_fraction(family)
    return {
        "microseconds": _samples(timed.time.samples),
        # asv's n/a: 0 would pull the mean over all parameters, which it draws, to 0.
        "gigabytes_per_second": math.nan if moved is None else moved / 1e9,
        "roofline_fraction": math.nan if share is None else share,
    }


def _family(outcome: Outcome, family: str) -> Outcome:
    """One family's share of what was measured together; n/a where a token launches none of it."""
    if outcome.figures and family not in outcome.figures:
        return Outcome(absent=f"in this numerics a token launches no {family}")
    figures = outcome.figures.get(family, {})
    return replace(outcome, figures=figures if isinstance(figures, dict) else {})


def embedded_parity(benchmark: str, numerics: Sequence[str]) -> dict[str, Outcome]:
    """Hold the CPU decoder against the oracle, on text that the embedded model never saw."""
    model = open_model(embedded_path())
    if model.tokenizer is None:
        raise AssertionError("the embedded model has a tokenizer")
    ids = model.tokenizer.encode(heldout()[:4096])[:_PARITY_POSITIONS]

    def one(name: str) -> Outcome:
        def run() -> tuple[dict[str, Figure], dict[str, Any]]:
            evidence = parity(model, ids, backend="cpu", numerics=name, plant=settings().plant)
            if not evidence.verdict.accepted:
                raise Rejected(list(evidence.verdict.reasons), evidence.to_json())
            seen = evidence.decisive
            figures: dict[str, Figure] = {
                "distance": evidence.distance,
                "cosine_loss": float(1 - seen.moe_cosine.min()),
                "experts_swapped": float(len(seen.swaps)),
                "argmaxes_changed": float(len(seen.argmax_margins)),
            }
            return figures, evidence.to_json()

        return _recorded(f"{benchmark} {name}", run)

    return {name: one(name) for name in numerics}


def oracle_agreement(benchmark: str) -> Outcome:
    """Hold the oracle against Hugging Face's implementation, on the same text."""
    from harness.peers import hugging_face  # noqa: PLC0415 - needs an extra

    model = open_model(embedded_path())
    if model.tokenizer is None:
        raise AssertionError("the embedded model has a tokenizer")
    ids = model.tokenizer.encode(heldout()[:4096])[:_PARITY_POSITIONS]

    def run() -> tuple[dict[str, Figure], dict[str, Any]]:
        seen = hugging_face.oracle_agreement(model, ids)
        figures: dict[str, Figure] = {
            "cosine_loss": float(1 - seen.moe_cosine.min()),
            "rel_l2": seen.worst_rel_l2,
        }
        return figures, seen.to_json()

    return _recorded(benchmark, run)


def own_kernels(benchmark: str, declarations: Iterable[Declaration]) -> dict[str, Outcome]:
    """Time each declared kernel on the GPU."""
    from harness.workbench import measure  # noqa: PLC0415 - the cuda backend, only where asked for

    def one(declaration: Declaration) -> Outcome:
        def run() -> tuple[dict[str, Figure], dict[str, Any]]:
            plant = settings().plant
            variant = Variant(plant=plant if plant in declaration.faults else None)
            rule = StoppingRule(time_out=_KERNEL_SECONDS)
            try:
                measured = measure(declaration, variant, rule=rule)
            except HardwareAbsent:
                raise
            except BadInput as error:
                # A kernel that does not compile must not take the others with it.
                raise Rejected([str(error)]) from None
            figures: dict[str, Figure] = {
                "microseconds": _samples(measured.time.samples),
                "gigabytes_per_second": measured.bytes_per_second / 1e9,
                "roofline_fraction": measured.bytes_per_second / measured.bandwidth,
            }
            return figures, _thinned(measured.to_json(), "us")

        return _recorded(f"{benchmark} {declaration.name}", run)

    return {declaration.name: one(declaration) for declaration in declarations}


def peers(benchmark: str, depths: Sequence[int]) -> dict[int, Outcome]:
    """Ask llama-bench for its own figures, on the file that ``decode.Qwen3MoeDecode`` decodes."""
    binary = settings().llama_bench
    if binary is None:
        absent = "MOE_HARNESS_LLAMA_BENCH names no llama-bench"
        return dict.fromkeys(depths, Outcome(absent=absent))
    try:
        uuid = find_gpu(0).uuid
    except HardwareAbsent as error:
        return dict.fromkeys(depths, Outcome(absent=str(error)))
    path = _qwen3moe_path()
    fingerprint = open_model(path).fingerprint
    return {
        depth: _peer(f"{benchmark} depth={depth}", binary, path, fingerprint, uuid, depth)
        for depth in depths
    }


def _peer(
    benchmark: str, binary: Path, path: Path, fingerprint: str, gpu: str, depth: int
) -> Outcome:
    def run() -> tuple[dict[str, Figure], dict[str, Any]]:
        try:
            measured = measure_llama_bench(binary, path, depth, gpu=gpu)
        except HardwareAbsent:
            raise
        except BadInput as error:
            # A depth that does not fit into memory must not take the others with it.
            raise Rejected([str(error)]) from None
        figures: dict[str, Figure] = {
            "ms_per_token": _samples(measured.ms_per_token),
            "tokens_per_second": measured.avg_ts,
        }
        return figures, {**measured.to_json(), "model_fingerprint": fingerprint, "gpu_uuid": gpu}

    return _recorded(benchmark, run)


def _decodes(
    benchmark: str,
    session: DecodeSession,
    prompt: Sequence[int],
    depths: Sequence[int],
    tokens: int,
    rule: StoppingRule,
) -> dict[int, Outcome]:
    """Decode at each depth, on weights that are loaded once."""

    def one(depth: int) -> Outcome:
        def run() -> tuple[dict[str, Figure], dict[str, Any]]:
            measured = session.measure(prompt, tokens=tokens, depth=depth, rule=rule)
            return _decode_figures(measured), _thinned(measured.to_json(), "ms_per_token")

        return _recorded(f"{benchmark} depth={depth}", run)

    return {depth: one(depth) for depth in depths}


def _decode_figures(measured: DecodeMeasurement) -> dict[str, Figure]:
    evidence = measured.time.evidence
    if not isinstance(evidence, Evidence):
        raise TypeError(f"a decode's evidence is the guard's, found {type(evidence).__name__}")
    seen = evidence.decisive
    figures: dict[str, Figure] = {
        "ms_per_token": _samples(measured.time.samples),
        "tokens_per_second": measured.tokens_per_second,
        "peak_memory": measured.memory.peak_bytes,
        "memory_share": measured.memory.peak_bytes / measured.memory_allowed,
        "roofline_fraction": measured.roofline_fraction,
        "distance": evidence.distance,
        "cosine_loss": float(1 - seen.moe_cosine.min()),
        "experts_swapped": float(len(seen.swaps)),
        "argmaxes_changed": float(len(seen.argmax_margins)),
    }
    if measured.energy is not None:
        figures["joules_per_token"] = measured.energy
    return figures


def _batch_figures(measured: BatchMeasurement) -> dict[str, Figure]:
    """The worst sequence's distance and cosine; expert sets and argmaxes of all together."""
    evidence = measured.time.evidence
    told = evidence.sequences if isinstance(evidence, BatchEvidence) else ()
    guards = [each for each in told if isinstance(each, Evidence)]
    if len(guards) != measured.size:  # a figure speaks for every sequence
        raise TypeError(f"{len(guards)} guards' evidence of {measured.size} sequences")
    seen = [each.decisive for each in guards]
    figures: dict[str, Figure] = {
        "ms_per_step": _samples(measured.time.samples),
        "tokens_per_second": measured.tokens_per_second,
        "peak_memory": measured.memory.peak_bytes,
        "memory_share": measured.memory.peak_bytes / measured.memory_allowed,
        "distinct_experts": measured.distinct_experts,
        "bytes_per_step": measured.traffic.total,
        "roofline_fraction": measured.roofline_fraction,
        "distance": max(each.distance for each in guards),
        "cosine_loss": max(float(1 - each.moe_cosine.min()) for each in seen),
        "experts_swapped": float(sum(len(each.swaps) for each in seen)),
        "argmaxes_changed": float(sum(len(each.argmax_margins) for each in seen)),
    }
    if measured.joules_per_token is not None:
        figures["joules_per_token"] = measured.joules_per_token
    return figures


def _recorded(
    benchmark: str, run: Callable[[], tuple[dict[str, Figure], dict[str, Any]]]
) -> Outcome:
    """Run, and write the sidecar whatever came of it."""
    try:
        figures, data = run()
        outcome = Outcome(figures)
    except Rejected as error:
        outcome = Outcome(reasons=tuple(error.reasons))
        seen = error.evidence or {}
        data = {
            "verdict": {"accepted": False, "reasons": error.reasons},
            "evidence": error.evidence,
            "ran": seen.get("ran"),
        }
    except HardwareAbsent as error:
        return Outcome(absent=str(error))
    told = data.get("ran")
    # What measured knows its own date; parity and what was rejected do not.
    data["ran"] = {**provenance(), **(told if isinstance(told, dict) else {})}
    commit = this_commit().hash
    data |= {"benchmark": benchmark, "commit": commit, "planted": settings().plant}
    data["figures"] = _all_as_stored(outcome.figures)
    machine = machine_identity()
    data |= {"machine": machine, "host": host_details()}
    write_sidecar(
        settings().results, machine["machine"], commit, benchmark, data, settings().environment
    )
    return outcome


def _all_as_stored(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Likewise of several, or of several families' figures; less what asv has as n/a."""
    return {
        name: _all_as_stored(figure)
        if isinstance(figure, dict) and "samples" not in figure
        else _as_stored(figure)
        for name, figure in figures.items()
        if not (isinstance(figure, float) and math.isnan(figure))
    }


def _as_stored(figure: Figure) -> Figure:
    """What asv will make of a figure, by asv's own arithmetic: a median with its interval."""
    if not isinstance(figure, dict):
        return figure
    from asv_runner.statistics import compute_stats  # noqa: PLC0415 - there where asv runs this

    median, stats = compute_stats(figure["samples"], figure["number"])
    return {"result": median, **stats}


def _samples(values: Sequence[float]) -> dict[str, Any]:
    """In the form of which asv makes a median with its interval."""
    return {"samples": list(values), "number": 1}


def _thinned(data: dict[str, Any], timing: str, most: int = _KEPT_SAMPLES) -> dict[str, Any]:
    """Keep at most ``most`` samples, evenly spaced in time: results/ stays small."""
    samples = data[timing]["samples"]
    stride = -(-len(samples) // most)
    data[timing] |= {
        "samples": [round(sample, 6) for sample in samples[::stride]],
        "samples_taken": len(samples),
        "samples_kept_every": stride,
    }
    return data
