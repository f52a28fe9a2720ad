"""What the asv benchmarks run: each result beside its evidence, and a hole where there is none.

asv stores a number, null (failed) or NaN (n/a) and nothing else. So each run of a benchmark
becomes an ``Outcome``, and everything that was seen goes into a sidecar (``meter.sidecar``), of
rejected runs too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.errors import HardwareAbsent, Rejected
from harness.meter.commit import this_commit
from harness.meter.identity import machine_identity
from harness.meter.sidecar import write_sidecar
from harness.meter.stopping import StoppingRule
from harness.model import open_model
from harness.model.embedded import heldout
from harness.model.embedded import path as embedded_path
from harness.settings import settings
from harness.suite import guarded_decode, guarded_kernel, parity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.model import Model

    Figure: TypeAlias = float | dict[str, Any]

_TOKENS = 32
_PARITY_POSITIONS = 64
_KEPT_SAMPLES = 200
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
    return {depth: _decode(f"{benchmark} depth={depth}", model, "cpu", depth) for depth in depths}


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


def _decode(benchmark: str, model: Model, backend: str, depth: int) -> Outcome:
    prompt = [0] if model.tokenizer is None else model.tokenizer.encode("def read(self")

    def run() -> tuple[dict[str, Figure], dict[str, Any]]:
        measured = guarded_decode(
            model,
            prompt,
            backend=backend,
            tokens=_TOKENS,
            depth=depth,
            plant=settings().plant,
        )
        figures: dict[str, Figure] = {
            "ms_per_token": _samples(measured.time.samples),
            "tokens_per_second": measured.tokens_per_second,
            "peak_memory": measured.memory.peak_bytes,
            "roofline_fraction": measured.roofline_fraction,
        }
        return figures, _thinned(measured.to_json(), "ms_per_token")

    return _recorded(benchmark, run)


def _recorded(
    benchmark: str, run: Callable[[], tuple[dict[str, Figure], dict[str, Any]]]
) -> Outcome:
    """Run, and write the sidecar whatever came of it."""
    try:
        figures, data = run()
        outcome = Outcome(figures)
    except Rejected as error:
        outcome = Outcome(reasons=tuple(error.reasons))
        data = {
            "verdict": {"accepted": False, "reasons": error.reasons},
            "evidence": error.evidence,
        }
    except HardwareAbsent as error:
        return Outcome(absent=str(error))
    data |= {"benchmark": benchmark, "planted": settings().plant}
    machine = machine_identity()
    data["machine"] = machine
    write_sidecar(settings().results, machine["machine"], this_commit().hash, benchmark, data)
    return outcome


def _samples(values: Sequence[float]) -> dict[str, Any]:
    """In the form of which asv makes a median with its interval."""
    return {"samples": list(values), "number": 1}


def _thinned(data: dict[str, Any], timing: str) -> dict[str, Any]:
    """Keep at most ``_KEPT_SAMPLES`` samples, evenly spaced in time: results/ stays small."""
    samples = data[timing]["samples"]
    stride = -(-len(samples) // _KEPT_SAMPLES)
    data[timing] |= {
        "samples": [round(sample, 6) for sample in samples[::stride]],
        "samples_taken": len(samples),
        "samples_kept_every": stride,
    }
    return data
