"""Several sequences in one graph, the kernels compiled for this CPU: each computes what it computes
alone. Launches of different sequences take turns here, so that shared scratch would show."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SMALL, k_quant_model
from helpers import emulated

from harness.backends import check_batch, open_batch, open_decoder
from harness.backends.cuda.batch import CudaBatch
from harness.backends.cuda.decoder import CudaDecoder
from harness.batch_suite import BatchSession
from harness.errors import BadInput, Rejected
from harness.meter.stopping import StoppingRule
from harness.numerics import CUDA_NUMERICS

PROMPTS = ([3, 1, 4], [1, 5, 9], [2, 6, 5])
RULE = StoppingRule(least_seconds=0.001, time_out=0.001)

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ here")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with emulated.installed(tmp_path_factory.mktemp("emulated")) as gpu:
        yield gpu


@pytest.fixture(scope="module")
def model():
    return k_quant_model(replace(SMALL, layers=2))


@pytest.fixture
def first(here, model):
    decoder = CudaDecoder(model, CUDA_NUMERICS["i24"], 10)
    assert decoder.device == here.name
    yield decoder
    decoder.close()


def rows_alone(decoder, ids):
    decoder.reset()
    return [decoder.step(token) for token in ids]


def test_each_sequence_computes_what_it_computes_alone(first):
    tokens = []
    for prompt in PROMPTS:
        first.reset()
        tokens.append(first.generate(prompt, 4))
    fed = [[*p, *t] for p, t in zip(PROMPTS, tokens, strict=True)]
    alone = [rows_alone(first, ids) for ids in fed]
    first.reset()
    batch = open_batch(first, 3)
    together = [batch.step(step) for step in zip(*fed, strict=True)]
    for number, rows in enumerate(alone):
        for row, step in zip(rows, together, strict=True):
            assert row.tobytes() == step[number].tobytes()
    for member in batch.members:
        member.rewind(0)
    assert batch.generate(PROMPTS, 4) == tokens
    ran = batch.ran()
    assert ran["graph_branches"] == 3
    assert ran["graph_nodes"] == 3 * first.ran()["graph_nodes"]
    kv = ran["memory_by_purpose"]["KV cache"]
    assert kv == 3 * first.cache_bytes
    batch.close()
    assert rows_alone(first, fed[0])[-1].tobytes() == alone[0][-1].tobytes()


def test_a_branch_that_is_missing_leaves_nothing_to_be_taken_for_its_answer(first):
    batch = CudaBatch(first, 2)
    tokens = batch.generate(PROMPTS[:2], 3)
    batch._graph = None
    batch.members[1].launch = lambda: None
    for member in batch.members:
        member.rewind(0)
    idle = batch.timed_pass(PROMPTS[:2], 3)
    assert idle[0].tokens[:3] == tokens[0]
    assert idle[1].tokens[1:] == [-1] * 3
    assert np.isnan(idle[1].logits[3]).all()
    batch.close()


def session(model, plant=None):
    made = BatchSession(model, backend="cpu", plant=plant)
    made._backend = "cuda"  # nothing is read off from a GPU here
    return made


@pytest.mark.usefixtures("here")
def test_a_session_guards_and_times_batch_after_batch_on_the_same_weights(model, monkeypatch):
    monkeypatch.setenv("MOE_HARNESS_ORACLE", "cpu")
    with session(model) as decoding:
        found = decoding.measure_batch(PROMPTS[:2], tokens=2, rule=RULE)
        weights = decoding._decoder._on_device
        again = decoding.measure_batch(PROMPTS, tokens=2, rule=RULE)
        assert decoding._decoder._on_device is weights
    assert (found.size, again.size) == (2, 3)
    assert found.tokens == again.tokens[:2]
    assert again.ran["graph_branches"] == 3
    assert again.time.evidence.verdict.accepted
    assert "trace" not in again.ran["memory_by_purpose"]
    assert found.distinct_experts <= again.distinct_experts


@pytest.mark.usefixtures("here")
def test_a_fault_in_the_last_sequence_alone_rejects_the_batch(model, monkeypatch):
    monkeypatch.setenv("MOE_HARNESS_ORACLE", "cpu")
    with (
        session(model, plant="swap_two_weights") as decoding,
        pytest.raises(Rejected, match="sequence 1: ") as refused,
    ):
        decoding.measure_batch(PROMPTS[:2], tokens=2, rule=RULE)
    seen = refused.value.evidence["sequences"]
    assert [each["verdict"]["accepted"] for each in seen] == [True, False]


def test_bad_batches_are_refused_before_anything_is_taken(first, here, model, monkeypatch):
    with pytest.raises(BadInput, match="a batch of 0 sequences"):
        CudaBatch(first, 0)
    with pytest.raises(ValueError, match="one of the same length"):
        open_batch(first, 2).timed_pass([[1, 2], [1]], 1)
    with pytest.raises(BadInput, match="cache is full at 10"):
        open_batch(first, 1).timed_pass([[1]], 100)
    with pytest.raises(BadInput, match="decodes one sequence"):
        check_batch(model, backend="cpu", capacity=8, size=2)
    with pytest.raises(BadInput, match="decodes one sequence"):
        open_batch(open_decoder(model, backend="cpu", capacity=8), 2)
    monkeypatch.setattr(
        "harness.backends.cuda.memory.DeviceMemory.take", lambda *_: pytest.fail("taken")
    )
    folded = 4 * model.config.layers * model.config.experts * model.config.q_width
    few = first.cache_bytes + model.weight_bytes + folded + (64 << 20)
    monkeypatch.setattr(type(here), "free_bytes", lambda _self: few)
    check_batch(model, backend="cuda", capacity=10, size=1)
    for size in (2, 1 << 40):
        with pytest.raises(BadInput, match=f"GB are needed .* of {size} sequences.* fewer"):
            check_batch(model, backend="cuda", capacity=10, size=size)
