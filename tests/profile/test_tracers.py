"""Recording: the CPU's phases change nothing; what CUPTI gives is cut into tokens or refused."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.errors import BadInput, Rejected
from harness.guard import guard
from harness.meter.decode import guarded_run
from harness.profile.tracers import PhaseTracer, _Clock, by_token, check_cupti, gpu_kernels
from harness.reference import Oracle

from .conftest import LAYER, RULE, WORKLOAD

NAMES = ["embed", *(LAYER * 2), "logits_tiled", "argmax"]


def test_timing_the_phases_changes_no_bit(tiny_model):
    decoder = open_decoder(tiny_model, backend="cpu", capacity=8)
    ids = [5, 9, 2, 6]
    plain = np.stack([decoder.step(token) for token in ids])
    decoder.reset()
    timed = np.stack([decoder.step(token, _Clock()) for token in ids])
    assert timed.tobytes() == plain.tobytes()


def test_phases_follow_one_another_and_end_with_the_token(tiny_model):
    decoder = open_decoder(tiny_model, backend="cpu", capacity=8)
    clock = _Clock()
    decoder.step(3, clock)
    phases = clock.phases(1e6)
    layers = tiny_model.config.layers
    assert [name for name, _, _ in phases] == ["embed", *(LAYER * layers), "logits", "argmax"]
    assert phases[0][1] == 0
    assert all(a[2] == b[1] for a, b in pairwise(phases))
    assert all(start <= end for _, start, end in phases)
    assert phases[-1][2] == 10**12
    assert clock.keys() == []  # no value was kept


def test_a_token_holds_the_phases_of_all_layers(recorded, tiny_model):
    traced = recorded.traced
    layers = tiny_model.config.layers
    assert traced.names == ("embed", *(LAYER * layers), "logits", "argmax")
    assert traced.starts.shape == (WORKLOAD.tokens, len(LAYER) * layers + 3)
    assert (traced.starts[1:, 0] == traced.ends[:-1, -1]).all()
    assert recorded.undisturbed.samples >= RULE.least_samples
    assert recorded.positions == WORKLOAD.depth + 3 + 3


def test_a_pass_that_computes_something_else_is_refused(tiny_model):
    decoder = open_decoder(tiny_model, backend="cpu", capacity=32)

    def check(candidate, ids, cache):
        return guard(candidate, Oracle(tiny_model, capacity=32), ids, cache=cache)

    run = guarded_run(decoder, WORKLOAD, check)
    honest = decoder.step
    decoder.step = lambda token, capture=None: honest(token, capture) + np.float32(1e-6)
    with pytest.raises(Rejected, match="something else than the guarded run"):
        PhaseTracer().record(run)


# -- what CUPTI gives --------------------------------------------------------------------------


def event(name, start, device="CUDA", index=0):
    return SimpleNamespace(
        name=lambda: name,
        start_ns=lambda: start,
        duration_ns=lambda: 5,
        device_type=lambda: SimpleNamespace(name=device),
        device_index=lambda: index,
    )


def test_kernels_of_one_gpu_are_taken_in_the_order_of_their_starts():
    events = [
        event("down", 30),
        event("Memcpy HtoD (Pageable -> Device)", 1),
        event("Memset (Device)", 2),
        event("cuGraphLaunch", 3, device="CPU"),
        event("qkv", 10),
        event("qkv", 11, index=1),
    ]
    assert gpu_kernels(events, 0) == [("qkv", 10, 15), ("down", 30, 35)]


def kernels(names, start=0):
    return [(name, start + 10 * i, start + 10 * i + 5) for i, name in enumerate(names)]


def test_kernels_are_cut_into_tokens():
    rows = by_token(kernels(NAMES * 3), 3)
    assert [[name for name, _, _ in row] for row in rows] == [NAMES] * 3
    assert rows[1][0][1] == 10 * len(NAMES)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "CUPTI is taken by another tool"),
        ((NAMES * 3)[:-1], "records were lost"),
        ([*NAMES, *NAMES, *NAMES[:-1], "embed"], "records were lost"),
        ([*(NAMES * 3)[:-1], "vectorized_elementwise_kernel"], "is none of a token's"),
    ],
)
def test_what_is_no_whole_number_of_tokens_is_refused(names, said):
    with pytest.raises(BadInput, match=said):
        by_token(kernels(names), 3)


@pytest.mark.parametrize(
    ("variable", "tool"),
    [
        ("NSYS_PROFILING_SESSION_ID", "nsys"),
        ("NV_NSIGHT_INJECTION_TRANSPORT_TYPE", "ncu"),
        ("CUDA_INJECTION64_PATH", "injected"),
    ],
)
def test_another_profiler_is_named(monkeypatch, variable, tool):
    check_cupti()
    monkeypatch.setenv(variable, "1")
    with pytest.raises(BadInput, match=f"CUPTI is taken.*{tool}"):
        check_cupti()
