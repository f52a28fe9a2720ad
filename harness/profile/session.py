"""A profiling session: guard, time undisturbed, record."""

from __future__ import annotations

import statistics
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.meter.decode import guarded_run, sample, what_ran
from harness.meter.lock import measuring
from harness.meter.statistics import percentile
from harness.meter.stopping import StoppingRule
from harness.meter.traffic import launch_traffic
from harness.profile.kinds import kind_of, layers_of
from harness.profile.power import PowerWatch
from harness.profile.recording import Recording, Undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.decoder import Decoder
    from harness.meter.decode import Check, GuardedRun, Workload
    from harness.meter.gpu_state import GpuState
    from harness.meter.instruments import Instruments
    from harness.meter.memory import PeakMemory
    from harness.profile.tracers import Tracer


@dataclass(frozen=True)
class Wanted:
    """What a session is asked for beyond the kernels.

    Attributes
    ----------
    energy
        Joules a token, over a window of seconds.
    unguarded
        Go on where the guard rejects, and say so everywhere.

    """

    energy: bool = False
    unguarded: bool = False


def profile_decode(
    decoder: Decoder,
    workload: Workload,
    check: Check,
    tracer: Tracer,
    *,
    instruments: Instruments,
    wanted: Wanted,
    rule: StoppingRule | None = None,
    state: Callable[[], GpuState] | None = None,
) -> Recording:
    """Guard and time as ``decode`` does, then record one more pass of the same tokens.

    ``state`` reads a GPU's power; without it there is no power over time.

    Raises
    ------
    Rejected
        Where the guard rejects, or a pass computed something else (unless ``unguarded``).
    BadInput
        Where nothing can be recorded.

    """
    with measuring(decoder.device_id):
        run = guarded_run(decoder, workload, check, unguarded=wanted.unguarded)
        samples, stopped_by = sample(run, instruments, rule or StoppingRule())
        memory = instruments.memory()
        energy = _energy(run, instruments, state) if wanted.energy else None
        bandwidth = instruments.read_bandwidth()
        traced = tracer.record(run)
    config = decoder.model.config
    middle = workload.depth + len(workload.prompt) + (workload.tokens + 1) // 2
    layers = layers_of(traced.names, config.layers)
    kinds = [kind_of(name).name for name in traced.names]
    launched = set(zip(kinds, layers, strict=True))
    moved = launch_traffic(decoder.model, decoder.backend, middle, launched)
    ran = what_ran(decoder)
    return Recording(
        traced,
        Undisturbed(statistics.median(samples), percentile(samples, 99), len(samples), stopped_by),
        layers=config.layers,
        bytes=tuple(moved[kind, layer] for kind, layer in zip(kinds, layers, strict=True)),
        positions=middle,
        read_bandwidth=bandwidth,
        verdict=_verdict(run),
        memory=_memory(decoder, memory, ran),
        energy=energy,
        workload={**vars(workload), "prompt": list(workload.prompt)},
        ran=ran,
        conditions=instruments.to_json(),
    )


def _verdict(run: GuardedRun) -> dict[str, Any]:
    verdict = run.evidence.verdict
    return {
        "accepted": verdict.accepted is True and not run.differences,
        "reasons": [*verdict.reasons, *run.differences],
    }


def _energy(
    run: GuardedRun, instruments: Instruments, state: Callable[[], GpuState] | None
) -> dict[str, Any]:
    watch = None if state is None else PowerWatch(state)
    with watch or nullcontext():
        joules = instruments.joules_per_sample(run.one_pass)
    return {
        "joules_per_token": joules,
        "power": [] if watch is None else [list(reading) for reading in watch.readings],
    }


def _memory(decoder: Decoder, peak: PeakMemory, ran: Mapping[str, object]) -> dict[str, Any]:
    """Tell what was allocated by purpose: as the decoder counted, or as model and cache say."""
    told = ran.get("memory_by_purpose")
    if isinstance(told, dict):
        purposes = Counter({str(purpose): int(size) for purpose, size in told.items()})
    else:
        purposes = Counter({"KV cache": decoder.cache_bytes})
        for tensor in decoder.model.tensors.values():
            purposes[f"weights {tensor.format.name}"] += tensor.nbytes
    return {
        "peak_bytes": peak.peak_bytes,
        "source": peak.source,
        "by_purpose": dict(purposes.most_common()),
    }
