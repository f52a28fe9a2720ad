"""The meter on decoders that cheat, and on one that does not."""

import json

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.errors import Rejected
from harness.guard import guard
from harness.meter.decode import Workload, measure_decode
from harness.meter.measurement import Measurement
from harness.meter.stopping import StoppingRule
from harness.model import open_model
from harness.reference import Oracle

RULE = StoppingRule(least_seconds=0.01, time_out=0.2)
WORKLOAD = Workload(prompt=(1, 2, 3), depth=0, tokens=6)


@pytest.fixture
def decoder(tiny_path):
    return open_decoder(open_model(tiny_path), backend="cpu", capacity=64)


def check(decoder, ids, cache):
    return guard(decoder, Oracle(decoder.model, capacity=64), ids, cache=cache)


@pytest.mark.parametrize("depth", [0, 20])
def test_an_honest_decoder_is_measured(decoder, depth):
    workload = Workload((1, 2, 3), depth, 6)
    measured = measure_decode(decoder, workload, check, rule=RULE)
    data = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert len(data["tokens"]) == 6
    assert len(data["ms_per_token"]["samples"]) % 6 == 0
    assert 0 < data["ms_per_token"]["median"] <= data["ms_per_token"]["p99"]
    assert data["verdict"]["accepted"]
    assert data["evidence"]["cached_positions"] == depth
    assert data["memory"]["peak_bytes"] > 10e6
    assert data["ran"]["model_fingerprint"] == decoder.model.fingerprint
    assert sum(data["bytes_by_purpose"].values()) == data["bytes_per_token"]
    assert data["roofline_fraction"] > 0


def after_the_guard(decoder, change):
    """Let ``change(step)`` replace the decoder's step once the guard has been passed."""

    def checked(candidate, ids, cache):
        evidence = check(candidate, ids, cache)
        decoder.step = change(decoder.step)
        return evidence

    return checked


def test_a_decoder_that_skips_work_once_guarded_is_caught(decoder):
    def lazy(step):
        done = []

        def cheat(token, *rest):
            if len(done) < 5:
                done.append(step(token, *rest))
            return done[-1]

        return cheat

    with pytest.raises(Rejected, match="something else than the guarded run"):
        measure_decode(decoder, WORKLOAD, after_the_guard(decoder, lazy), rule=RULE)


def test_a_decoder_that_is_one_bit_off_when_timed_is_caught(decoder):
    def nudged(step):
        def cheat(token, *rest):
            logits = step(token, *rest)
            logits[7] = np.nextafter(logits[7], np.float32(9))
            return logits

        return cheat

    with pytest.raises(Rejected, match="logits differ at position"):
        measure_decode(decoder, WORKLOAD, after_the_guard(decoder, nudged), rule=RULE)


@pytest.mark.parametrize("plant", ["cached_output", "nan", "drop_lowest_expert"])
def test_a_rejected_decode_is_never_timed(tiny_path, plant, monkeypatch):
    decoder = open_decoder(open_model(tiny_path), backend="cpu", capacity=64, plant=plant)
    monkeypatch.setattr(
        "harness.meter.decode.GuardedRun.one_pass", lambda _self: pytest.fail("timed")
    )
    with pytest.raises(Rejected):
        measure_decode(decoder, WORKLOAD, check, rule=RULE)


def test_there_is_no_other_way_to_a_measurement(decoder):
    evidence = check(decoder, [1, 2, 3], None)
    assert Measurement.accept([1.0, 3.0], "ms", evidence).median == 2
    with pytest.raises(TypeError, match="accept alone"):
        Measurement((1.0,), "ms", evidence, None)
    for samples in ([], [float("nan")], [0.0], [-1.0]):
        with pytest.raises(ValueError, match="sample"):
            Measurement.accept(samples, "ms", evidence)
    bad = check(
        open_decoder(decoder.model, backend="cpu", capacity=64, plant="nan"), [1, 2, 3], None
    )
    with pytest.raises(Rejected):
        Measurement.accept([1.0], "ms", bad)


def test_tokens_that_do_not_follow_from_the_guarded_logits_are_rejected(small_model):
    decoder = open_decoder(small_model, backend="cpu", capacity=64)
    generate = decoder.generate
    decoder.generate = lambda *asked: [(token + 1) % 517 for token in generate(*asked)]
    with pytest.raises(Rejected, match="not the argmaxes"):
        measure_decode(decoder, Workload((1, 2, 3), 0, 4), check)
