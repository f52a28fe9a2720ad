"""Every environment variable that is read, in one place: for what no command line can carry.

asv starts the benchmarks, so a benchmark's options can only come from the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes
    ----------
    model
        ``MOE_HARNESS_MODEL``: the GGUF of the GPU's benchmarks; None: a synthetic one, written
        once into ``models``.
    models
        ``MOE_HARNESS_MODELS``: where that is kept, ``~/.cache/moe-harness/models`` unless given.
    plant
        ``MOE_HARNESS_PLANT``: a fault to plant in every benchmarked decoder, to see it rejected.
    results
        ``MOE_HARNESS_RESULTS``: where evidence goes; asv's results folder unless given.
    llama_bench
        ``MOE_HARNESS_LLAMA_BENCH``: a llama-bench to measure beside us, None for none.
    oracle
        ``MOE_HARNESS_ORACLE``: where the oracle computes, ``cpu`` or ``cuda``; None: on the GPU
        where torch sees one.
    busy
        ``MOE_HARNESS_BUSY``: measure on the CPU although others use it, and say so.
    commit
        ``ASV_COMMIT``: what asv installed, None where it measures the checkout.
    environment
        ``ASV_ENV_NAME``: which of asv's environments this runs in, None for none.

    """

    model: Path | None
    models: Path
    plant: str | None
    results: Path
    llama_bench: Path | None
    oracle: str | None
    busy: bool
    commit: str | None
    environment: str | None


_CHECKOUT = Path(__file__).parents[1]
_MODELS = "~/.cache/moe-harness/models"


def settings() -> Settings:
    """Read the environment as it is now."""
    model, results = os.environ.get("MOE_HARNESS_MODEL"), os.environ.get("MOE_HARNESS_RESULTS")
    llama_bench = os.environ.get("MOE_HARNESS_LLAMA_BENCH")
    return Settings(
        model=Path(model) if model else None,
        models=Path(os.environ.get("MOE_HARNESS_MODELS") or _MODELS).expanduser(),
        plant=os.environ.get("MOE_HARNESS_PLANT") or None,
        results=Path(results) if results else _asv_folder() / "results",
        llama_bench=Path(llama_bench) if llama_bench else None,
        oracle=os.environ.get("MOE_HARNESS_ORACLE") or None,
        busy=os.environ.get("MOE_HARNESS_BUSY", "") not in ("", "0"),
        commit=os.environ.get("ASV_COMMIT") or None,
        environment=os.environ.get("ASV_ENV_NAME") or None,
    )


# What profilers leave in the environment of the processes that they start.
_PROFILERS = {
    "NSYS_PROFILING_SESSION_ID": "nsys",
    "NV_NSIGHT_INJECTION_TRANSPORT_TYPE": "ncu",
    "NVPROF_ID": "nvprof",
    "CUDA_INJECTION64_PATH": "a tool that is injected into CUDA (CUDA_INJECTION64_PATH)",
}


def foreign_profiler() -> str | None:
    """Name the profiler that this process was started under, if any."""
    return next((name for key, name in _PROFILERS.items() if os.environ.get(key)), None)


def _asv_folder() -> Path:
    """Where ``asv.conf.json`` lies: asv says so, but not where it measures the checkout itself."""
    told = os.environ.get("ASV_CONF_DIR")
    if told:
        return Path(told)
    return _CHECKOUT if (_CHECKOUT / "asv.conf.json").is_file() else Path.cwd()
