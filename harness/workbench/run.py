"""On the GPU: check a declared kernel, prove its guard, measure it."""

from __future__ import annotations

import hashlib
import inspect
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from harness.backends.cuda.bandwidth import gpu_read_bandwidth
from harness.backends.cuda.gpu import find_gpu, open_gpu
from harness.errors import BadInput, Rejected
from harness.guard.faults import Proof
from harness.meter.commit import provenance
from harness.meter.instruments import GpuInstruments, Instruments
from harness.meter.kernel import KernelMeasurement
from harness.meter.lock import measuring
from harness.meter.measurement import Measurement
from harness.meter.nvml import Gpu as WatchedGpu
from harness.meter.stopping import StoppingRule
from harness.workbench.bench import Copies, Launches, copies_needed
from harness.workbench.judge import LaunchEvidence, judge
from harness.workbench.rehearsal import rehearse
from kernels.compiler import python_code, source_hash
from kernels.family import Heads, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.backends.cuda.gpu import Gpu
    from harness.workbench.declaration import Arrays, Declaration

_CHECKED_COPIES = 4  # where nothing is timed, and no cache has to be displaced
_CLEAN_RUNS = 5
_ROTATIONS = 20  # between two looks at clocks and processes


def check(
    declaration: Declaration, variant: Variant | None = None, device: int = 0, seed: int = 0
) -> LaunchEvidence:
    """Run on a few copies and hold all of them against the reference.

    Raises
    ------
    HardwareAbsent
        Without a GPU.
    BadInput
        For a declaration that does not fit itself, a source that does not compile, a kernel that
        fails.

    """
    rehearse(declaration)
    gpu = _opened(device)
    with closing(Copies(declaration, _CHECKED_COPIES, seed)) as copies:
        return _checked(declaration, gpu, variant or Variant(), copies)


def prove(
    declaration: Declaration,
    variant: Variant | None = None,
    device: int = 0,
    progress: Callable[[str], None] = lambda _line: None,
) -> Proof:
    """Run clean on several drawings, then plant every fault: all of those must be rejected.

    Raises
    ------
    HardwareAbsent, BadInput
        As ``check``.

    """
    rehearse(declaration)
    gpu, clean = _opened(device), replace(variant or Variant(), plant=None)
    proof = Proof()
    for seed in range(_CLEAN_RUNS):
        with closing(Copies(declaration, _CHECKED_COPIES, seed)) as copies:
            evidence = _checked(declaration, gpu, clean, copies)
        proof.clean.append(evidence.distance)
        if not evidence.verdict.accepted:
            proof.false_rejections.append(f"seed {seed}: {evidence.verdict.reasons[0]}")
        progress(f"clean run {seed + 1}/{_CLEAN_RUNS}: {_outcome(evidence)}")
    with closing(Copies(declaration, _CHECKED_COPIES, _CLEAN_RUNS)) as copies:
        for fault in declaration.faults:
            evidence = _checked(declaration, gpu, replace(clean, plant=fault), copies)
            proof.planted.append((fault, evidence.distance, evidence.worst.what))
            if evidence.verdict.accepted:
                proof.survivors.append(fault)
            progress(f"{fault}: {_outcome(evidence)}")
    return proof


def measure(
    declaration: Declaration,
    variant: Variant | None = None,
    device: int = 0,
    rule: StoppingRule | None = None,
) -> KernelMeasurement:
    """Prove the guard, guard every copy, time cold launches, compare bits.

    A sample is the GPU's time for one launch on each of the copies, by events, over their number;
    it includes what lies between two launches of a graph, about a microsecond.

    Raises
    ------
    Rejected
        Where a fault survives, the guard rejects, or a timed launch computed something else.
    HardwareAbsent, BadInput
        As ``check``; where another process measures on this GPU; or disturbs it throughout.

    """
    rehearse(declaration)
    variant, gpu = variant or Variant(), _opened(device)
    given = declaration.drawn(np.random.default_rng(0))
    count = copies_needed(declaration, given, gpu.l2_bytes)
    with WatchedGpu.open(gpu.uuid) as watched, measuring(gpu.uuid):
        proof = prove(declaration, variant, device)
        _require(declaration, proof)
        instruments = GpuInstruments(watched, lambda: gpu_read_bandwidth(gpu))
        with (
            closing(Copies(declaration, count, seed=0)) as copies,
            closing(_launches(declaration, gpu, variant, copies)) as launches,
        ):
            guarded = launches.run()
            evidence = replace(
                judge(declaration, guarded, copies.truths, _ran(declaration, gpu, variant, copies)),
                proof=proof.to_json(),
            )
            rotations, stopped_by = timed(
                launches, guarded, evidence, instruments, rule or StoppingRule()
            )
            read = copies.bytes_read // count
        bandwidth = instruments.read_bandwidth()
    return KernelMeasurement(
        time=Measurement.accept([1e3 * each / count for each in rotations], "us", evidence),
        bytes=read,
        bandwidth=bandwidth,
        stopped_by=stopped_by,
        ran={**evidence.ran, "conditions": instruments.to_json(), **provenance()},
    )


# -- the timed region ------------------------------------------------------------------------


class Replayed(Protocol):
    """What ``timed`` needs to know of ``bench.Launches``."""

    def milliseconds(self, rotations: int) -> list[float]:
        """Time passes over all copies."""

    def outputs(self) -> Sequence[Arrays]:
        """What the last launches left."""


def timed(
    launches: Replayed,
    guarded: Sequence[Arrays],
    evidence: LaunchEvidence,
    instruments: Instruments,
    rule: StoppingRule,
) -> tuple[list[float], str]:
    """Milliseconds of each rotation, and why sampling ended.

    Nothing is timed on rejected evidence; afterwards every copy must hold the very bits that were
    guarded.

    Raises
    ------
    Rejected
        Where one of the two is not so.

    """
    if not evidence.verdict.accepted:
        raise Rejected(list(evidence.verdict.reasons), evidence.to_json())
    launches.milliseconds(1)  # warm-up
    samples: list[float] = []
    start, reason = time.monotonic(), None
    while reason is None:
        samples += instruments.undisturbed(lambda: launches.milliseconds(_ROTATIONS))
        reason = rule.ends(samples, time.monotonic() - start)
    for copy, (now, before) in enumerate(zip(launches.outputs(), guarded, strict=True)):
        changed = [name for name in before if now[name].tobytes() != before[name].tobytes()]
        if changed:
            raise Rejected(
                [
                    f"{evidence.kernel}: copy {copy} computed something else than was guarded, in "
                    f"{', '.join(changed)}"
                ],
                evidence.to_json(),
            )
    return samples, reason


def _require(declaration: Declaration, proof: Proof) -> None:
    """Refuse to time behind a guard without teeth, or with too many of them."""
    reasons = [f"{declaration.name}: the guard accepts fault {name}" for name in proof.survivors]
    reasons += [f"{declaration.name}: clean, {reason}" for reason in proof.false_rejections]
    if reasons:
        raise Rejected(reasons, proof.to_json())


# -- running ---------------------------------------------------------------------------------


def _opened(device: int) -> Gpu:
    find_gpu(device)  # says what is missing; opening takes it to be there
    return open_gpu(device)


def _launches(declaration: Declaration, gpu: Gpu, variant: Variant, copies: Copies) -> Launches:
    return Launches(gpu.program(variant, Heads()), declaration, copies)


def _checked(
    declaration: Declaration, gpu: Gpu, variant: Variant, copies: Copies
) -> LaunchEvidence:
    with closing(_launches(declaration, gpu, variant, copies)) as launches:
        results = launches.run()
    return judge(declaration, results, copies.truths, _ran(declaration, gpu, variant, copies))


def _ran(declaration: Declaration, gpu: Gpu, variant: Variant, copies: Copies) -> dict[str, object]:
    """Say what computes, on what."""
    launcher = inspect.getsourcefile(declaration.launch)
    if launcher is None:
        raise BadInput(f"kernel {declaration.name}: its launcher has no source file")
    code = python_code(Path(launcher).read_text(encoding="utf-8"))
    return {
        "backend": "cuda",
        "device": gpu.name,
        **gpu.to_json(),
        "kernel": declaration.name,
        "variant": {choice: getattr(variant, choice) for choice in declaration.family.choices},
        "plant": variant.plant,
        "source_hash": source_hash([declaration.family]),
        "launcher_hash": hashlib.sha256(code.encode()).hexdigest()[:16],
        "copies": copies.count,
        "bytes_rotated": copies.bytes_read,
    }


def _outcome(evidence: LaunchEvidence) -> str:
    word = "accepted" if evidence.verdict.accepted else "rejected"
    return f"{word}, distance {evidence.distance:.3g} ({evidence.worst.what})"
