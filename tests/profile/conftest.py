"""A session on the CPU that every test reads, and recordings made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from harness.meter.decode import Workload
from harness.meter.stopping import StoppingRule
from harness.model import open_model
from harness.profile.recording import Recording, Traced, Undisturbed
from harness.profile.session import Wanted
from harness.suite import DecodeSession

LAYER = ["qkv", "attend", "attention_output", "route", "gate_up", "down"]
RULE = StoppingRule(least_seconds=0.01, time_out=0.2)
WORKLOAD = Workload(prompt=(1, 2, 3), depth=5, tokens=6)


def record(model, *, plant=None, unguarded=False, numerics=None):
    with DecodeSession(model, backend="cpu", numerics=numerics, plant=plant) as session:
        return session.profile(WORKLOAD, Wanted(unguarded=unguarded), rule=RULE)


@pytest.fixture(scope="session")
def tiny_model(tiny_path):
    return open_model(tiny_path)


@pytest.fixture(scope="session")
def recorded(tiny_model):
    return record(tiny_model)


@pytest.fixture(scope="session")
def rejected(tiny_model):
    return record(tiny_model, plant="drop_top_expert", unguarded=True)


def made(starts, ends, names, layers, **changes):
    """A recording of given times, nanoseconds ``[tokens][launches]``."""
    starts, ends = np.array(starts, np.int64), np.array(ends, np.int64)
    recording = Recording(
        Traced(tuple(names), starts, ends, (0.001,) * len(starts), "by hand"),
        Undisturbed(median_ms=0.001, p99_ms=0.002, samples=10, stopped_by="converged"),
        layers=layers,
        bytes=(1000,) * len(names),
        positions=4,
        read_bandwidth=1e9,
        verdict={"accepted": True, "reasons": []},
        memory={"peak_bytes": 300, "source": "by hand", "by_purpose": {"weights Q4_K": 100}},
        energy=None,
        workload={"prompt": [1], "depth": 0, "tokens": len(starts)},
        ran={"backend": "cuda", "device": "GPU", "numerics": "f32", "model": "m", "commit": "abc"},
        conditions={},
    )
    return replace(recording, **changes)
