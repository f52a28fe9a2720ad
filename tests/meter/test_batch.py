"""Several sequences measured together: each guarded, and one that is wrong rejects them all."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.contract.figures import derived_figures
from harness.decoder import TimedPass
from harness.errors import BadInput, Rejected
from harness.guard import guard
from harness.meter.batch import BatchEvidence, BatchWorkload, Seen, measure_batch
from harness.meter.instruments import HostInstruments
from harness.meter.stopping import StoppingRule
from harness.meter.traffic import batch_traffic, distinct_experts, token_traffic
from harness.model import open_model
from harness.model.prompts import distinct_prompts
from harness.reference import Oracle

RULE = StoppingRule(least_seconds=0.01, time_out=0.2)
PROMPTS = ((1, 2, 3), (4, 5, 6), (7, 8, 9))


class Together:
    """CPU decoders that take turns: as much of a batch as the meter sees."""

    def __init__(self, model, plants=(None, None, None)):
        self.members = [
            open_decoder(model, backend="cpu", capacity=64, plant=plant) for plant in plants
        ]
        self.let_go_of = 0

    def step(self, tokens):
        return [m.step(token) for m, token in zip(self.members, tokens, strict=True)]

    def generate(self, prompts, count):
        return [seen.tokens[:count] for seen in self.timed_pass(prompts, count)]

    def timed_pass(self, prompts, count):
        for tokens in zip(*prompts, strict=True):
            rows = self.step(tokens)
        chosen = [[int(row.argmax())] for row in rows]
        for _ in range(count):
            rows = self.step([each[-1] for each in chosen])
            for each, row in zip(chosen, rows, strict=True):
                each.append(int(row.argmax()))
        return [
            TimedPass([1.0] * count, each, {count: row})
            for each, row in zip(chosen, rows, strict=True)
        ]

    def ran(self):
        return self.members[0].ran()

    def let_go(self):
        self.let_go_of += 1

    def close(self):
        pass


@contextmanager
def guarding(first):
    oracle = Oracle(first.model, capacity=64)

    def check(member, ids, cache):
        kept = []
        layers = member.model.config.layers
        evidence = guard(member, oracle, ids, cache=cache, keep=lambda got, _: kept.append(got))
        experts = [[c["moe_router_indices", n] for n in range(layers)] for c in kept[0]]
        return Seen(evidence, np.array(experts, np.int64))

    yield check


def measured(batch, depth=0):
    workload = BatchWorkload(PROMPTS, depth, 5)
    return measure_batch(batch, workload, guarding, instruments=HostInstruments(), rule=RULE)


@pytest.fixture(scope="module")
def model(tiny_path):
    return open_model(tiny_path)


@pytest.mark.parametrize("depth", [0, 20])
def test_honest_sequences_are_measured_together(model, depth):
    batch = Together(model)
    found = measured(batch, depth)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["batch"] == 3
    assert [len(tokens) for tokens in data["tokens"]] == [5, 5, 5]
    assert data["verdict"] == {"accepted": True, "reasons": []}
    assert [each["prompt_ids"][:3] for each in data["evidence"]["sequences"]] == [
        *map(list, PROMPTS)
    ]
    assert [each["cached_positions"] for each in data["evidence"]["sequences"]] == [depth] * 3
    assert data["tokens_per_second"] == pytest.approx(3 * 1000 / data["ms_per_step"]["median"])
    assert sum(data["bytes_by_purpose"].values()) == data["bytes_per_step"]
    assert batch.let_go_of == 3
    figures = derived_figures(data)
    assert figures["tokens_per_second"] == pytest.approx(found.tokens_per_second)
    assert figures["distinct_experts"] == pytest.approx(found.distinct_experts)
    assert figures["roofline_fraction"] == pytest.approx(found.roofline_fraction)
    top_k, experts = model.config.top_k, model.config.experts
    assert all(top_k <= each <= min(experts, 3 * top_k) for each in found.distinct)
    weights, cache = model.weight_bytes, batch.members[0].cache_bytes // 64 * 256
    assert data["memory"]["weights_and_cache_bytes"] == weights + 3 * cache


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("plant", ["drop_lowest_expert", "nan", "cached_output"])
def test_a_fault_in_one_sequence_rejects_them_all_untimed(model, monkeypatch, place, plant):
    plants = [None, None, None]
    plants[place] = plant
    monkeypatch.setattr(
        "harness.meter.batch.GuardedBatch.one_pass", lambda _self: pytest.fail("timed")
    )
    with pytest.raises(Rejected) as refused:
        measured(Together(model, plants))
    assert all(reason.startswith(f"sequence {place}: ") for reason in refused.value.reasons)
    seen = refused.value.evidence["sequences"]
    assert [each["verdict"]["accepted"] for each in seen] == [n != place for n in range(3)]
    assert refused.value.evidence["ran"]["backend"] == "cpu"


class Idle(Together):
    """Once guarded, the last sequence is not decoded any more: its last answer is shown again."""

    def step(self, tokens):
        rows = super().step(tokens)
        if self.let_go_of == 3:
            self.rows = getattr(self, "rows", rows)
            rows[-1] = self.rows[-1]
        return rows


class Crossed(Together):
    """Once guarded, the first two sequences have each other's answers."""

    def step(self, tokens):
        rows = super().step(tokens)
        return [rows[1], rows[0], rows[2]] if self.let_go_of == 3 else rows


class Nudged(Together):
    """Once guarded, the second sequence is one bit off, once."""

    def step(self, tokens):
        rows = super().step(tokens)
        if self.let_go_of == 3 and self.members[0].position == 6:
            rows[1][7] = np.nextafter(rows[1][7], np.float32(9))
        return rows


class Late(Together):
    """Honest until the last pass, which nobody times."""

    passes = 0

    def timed_pass(self, prompts, count):
        self.passes += 1
        return super().timed_pass(prompts, count)

    def step(self, tokens):
        rows = super().step(tokens)
        if self.passes > 1 and self.members[2].position == 5 and self.alone():
            rows[2][0] += np.float32(1)
        return rows

    def alone(self):
        import inspect  # noqa: PLC0415

        return any(frame.function == "every_row" for frame in inspect.stack())


@pytest.mark.parametrize(("cheat", "number"), [(Idle, 2), (Crossed, 0), (Nudged, 1), (Late, 2)])
def test_what_is_timed_is_what_was_guarded_in_every_sequence(model, cheat, number):
    with pytest.raises(Rejected, match=f"sequence {number}: the timed run computed something else"):
        measured(cheat(model))


def test_tokens_that_do_not_follow_from_the_guarded_logits_are_rejected(model):
    class Liar(Together):
        def generate(self, prompts, count):
            first, *others = super().generate(prompts, count)
            return [[*first[:-1], (first[-1] + 1) % model.config.vocab], *others]

    with pytest.raises(Rejected, match="sequence 0: the tokens decoded are not the argmaxes"):
        measured(Liar(model))


def test_nothing_is_not_accepted():
    assert not BatchEvidence(()).verdict.accepted
    for prompts in ((), ((),), ((1, 2), (1,))):
        with pytest.raises(BadInput, match="expected one length"):
            BatchWorkload(prompts, 0, 4)


def test_bytes_of_a_batch_are_its_union_and_everything_else_once(small_model):
    c = small_model.config
    alone = token_traffic(small_model, "cuda", 9).terms
    assert batch_traffic(small_model, "cuda", 9, 1, [c.top_k] * c.layers).terms == alone
    both = batch_traffic(small_model, "cuda", 9, 2, [1.5 * c.top_k] * c.layers).terms
    for purpose, nbytes in alone.items():
        times = {"experts": 1.5, "kv_cache": 2, "embedding": 2}.get(purpose, 1)
        assert both[purpose] == pytest.approx(times * nbytes, abs=c.layers), purpose
    for wrong in ([c.top_k], [c.top_k - 1] * c.layers, [2 * c.top_k + 1] * c.layers):
        with pytest.raises(ValueError, match="distinct experts"):
            batch_traffic(small_model, "cuda", 9, 2, wrong)


def test_distinct_experts_are_counted_step_by_step():
    chosen = np.array([[[[0, 1]], [[2, 3]]], [[[0, 1]], [[3, 4]]]])  # [sequences 2, steps 2, 1, 2]
    assert distinct_experts(chosen) == [(2 + 3) / 2]


@pytest.mark.parametrize("vocab", [10, 517, 7919, 151936])
def test_prompts_of_a_batch_differ_everywhere_and_are_always_the_same(vocab):
    count = min(vocab, 8)
    found = distinct_prompts([1, 2, 3], count, vocab)
    assert found == distinct_prompts([1, 2, 3], count, vocab)
    assert found[0] == [1, 2, 3]
    for place in zip(*found, strict=True):
        assert len(set(place)) == count
        assert all(0 <= token < vocab for token in place)
    with pytest.raises(BadInput, match="vocabulary has 10"):
        distinct_prompts([1], 11, 10)
