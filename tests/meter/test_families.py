"""Timing kernel families: what the meter asks of their clock, and what it does not let pass.

The clock is played on a real CPU decoder; the GPU's own is in tests/backends/test_cuda_families.py.
"""

import json
import math
import time

import numpy as np
import pytest

from benchmarks.kernels import CudaAttention, CudaFamilies
from harness import tracking
from harness.backends.cpu.decoder import CpuDecoder
from harness.backends.cuda.forward import TOKEN_FAMILIES
from harness.backends.cuda.gpu import is_here
from harness.errors import BadInput, Rejected
from harness.guard import guard
from harness.meter.decode import Workload
from harness.meter.families import measure_families
from harness.meter.instruments import HostInstruments
from harness.meter.sidecar import write_sidecar
from harness.meter.stopping import CONVERGED, StoppingRule
from harness.meter.traffic import family_traffic
from harness.model import open_model
from harness.numerics import CUDA_NUMERICS, find_numerics
from harness.reference import Oracle
from harness.staleness import newest_gpu_evidence

RULE = StoppingRule(most_deviation=10, least_seconds=0, time_out=1)
WORKLOAD = Workload(prompt=(1, 2, 3), depth=0, tokens=0)
FAMILIES = ("qkv", "argmax")


class PlayedClock:
    """Repeats the decoder's last step for real; the times of its families are made up."""

    def __init__(self, decoder, token):
        self.decoder, self.token, self.replays, self.closed = decoder, token, 0, False
        self.launches = {"qkv": decoder.model.config.layers, "argmax": 1}
        self.read_before = {"qkv": "logits", "argmax": "gate_up"}

    def logits(self):
        self.decoder.rewind(self.decoder.position - 1)
        return self.decoder.step(self.token)

    def milliseconds(self, family, repeats):
        self.replays += repeats
        time.sleep(repeats / 1000)
        return [0.1 * self.launches[family]] * repeats

    def left(self):
        return b"the same bits"

    def close(self):
        self.closed = True


class FamilyCpuDecoder(CpuDecoder):
    clock, clocks = PlayedClock, None

    def family_clock(self, token):
        made = self.clock(self, token)
        self.clocks = [*(self.clocks or []), made]
        return made


@pytest.fixture
def decoder(tiny_path):
    return opened(tiny_path)


def opened(path, plant=None):
    return FamilyCpuDecoder(open_model(path), find_numerics("f32"), 64, plant)


def check(decoder, ids, cache):
    return guard(decoder, Oracle(decoder.model, capacity=64), ids, cache=cache)


def measured(decoder, workload=WORKLOAD, checked=check):
    return measure_families(
        decoder, workload, FAMILIES, checked, instruments=HostInstruments(), rule=RULE
    )


@pytest.mark.parametrize("depth", [0, 20])
def test_families_are_timed_on_what_was_guarded(decoder, depth):
    timed = measured(decoder, Workload((1, 2, 3), depth, 0))
    (clock,) = decoder.clocks
    assert clock.closed
    assert clock.token == 3
    assert list(timed.families) == list(FAMILIES)
    traffic = family_traffic(decoder.model, depth + 3)
    for name, family in timed.families.items():
        assert family.time.samples == pytest.approx([100] * len(family.time.samples))  # us each
        assert family.stopped_by == CONVERGED
        assert family.bytes == traffic.terms[name]
    moved = timed.families["qkv"].bytes_per_second
    assert moved == pytest.approx(traffic.terms["qkv"] / decoder.model.config.layers / 100e-6)
    assert timed.roofline_fraction("qkv") == moved / timed.bandwidth
    assert timed.roofline_fraction("argmax") is None  # reads activations alone
    data = json.loads(json.dumps(timed.to_json(), allow_nan=False))
    assert data["verdict"]["accepted"]
    assert data["evidence"]["cached_positions"] == depth
    assert data["families"]["qkv"]["bytes_read_before"] == {"logits": traffic.terms["logits"]}


def test_a_family_whose_launches_leave_other_bits_later_gives_no_number(decoder):
    class Tiring(PlayedClock):
        def left(self):
            return b"other bits" if self.replays > 1 else b"the same bits"

    decoder.clock = Tiring
    with pytest.raises(Rejected, match="qkv: its last launches left other bits") as rejected:
        measured(decoder)
    assert rejected.value.evidence["layers"]
    assert decoder.clocks[0].closed


def test_a_clock_that_repeats_another_step_gives_no_number(decoder):
    class Elsewhere(PlayedClock):
        def logits(self):
            return np.nextafter(super().logits(), np.float32(9))

        def milliseconds(self, _family, _repeats):
            pytest.fail("timed")

    decoder.clock = Elsewhere
    with pytest.raises(Rejected, match="other logits than guarded"):
        measured(decoder)


def test_a_decoder_that_computes_something_else_afterwards_gives_no_number(decoder):
    class Wrecking(PlayedClock):
        def close(self):
            step = self.decoder.step
            self.decoder.step = lambda token: step((token + 1) % self.decoder.model.config.vocab)

    decoder.clock = Wrecking
    with pytest.raises(Rejected, match="logits differ at position 0"):
        measured(decoder)


def test_a_decoder_that_computes_something_else_once_guarded_is_not_timed(decoder):
    def checked(*what):
        evidence = check(*what)
        step = decoder.step
        decoder.step = lambda token: np.nextafter(step(token), np.float32(9))
        return evidence

    with pytest.raises(Rejected, match="logits differ at position 0"):
        measured(decoder, checked=checked)
    assert decoder.clocks is None


@pytest.mark.parametrize("plant", ["cached_output", "nan", "drop_lowest_expert"])
def test_a_rejected_decoder_is_not_timed(tiny_path, plant):
    decoder = opened(tiny_path, plant)
    with pytest.raises(Rejected):
        measured(decoder)
    assert decoder.clocks is None


def test_a_workload_that_decodes_tokens_is_refused(decoder):
    with pytest.raises(ValueError, match="2 tokens to decode, expected 0"):
        measured(decoder, Workload((1,), 0, 2))


def test_it_says_nothing_of_the_newest_decode(decoder, tmp_path):
    write_sidecar(
        tmp_path, "machine", "commit", "kernels.CudaFamilies", measured(decoder).to_json()
    )
    assert newest_gpu_evidence(tmp_path) == []


def test_the_benchmark_has_every_family_and_every_numerics():
    assert CudaFamilies.params == [list(TOKEN_FAMILIES), list(CUDA_NUMERICS)]


@pytest.mark.parametrize(
    ("benchmark", "count"),
    [(CudaFamilies, len(TOKEN_FAMILIES) * len(CUDA_NUMERICS)), (CudaAttention, 2)],
)
def test_without_a_gpu_the_benchmarks_are_not_applicable(benchmark, count):
    if is_here():
        pytest.skip("there is a GPU here: the benchmark would measure")
    made = benchmark()
    outcomes = made.setup_cache()
    assert len(outcomes) == count
    for key in outcomes:
        with pytest.raises(NotImplementedError):
            made.setup(outcomes, *(key if isinstance(key, tuple) else (key,)))


class PlayedSession:
    """A session whose decoder is the played one."""

    def __init__(self, path, plant=None):
        self.path, self.plant = path, plant

    def measure_families(self, _prompt, families, *, numerics, depth):
        if numerics == "broken":
            raise BadInput("matvec.cu does not compile")
        return measure_families(
            opened(self.path, self.plant),
            Workload((1, 2, 3), depth, 0),
            families,
            check,
            instruments=HostInstruments(),
            rule=RULE,
        )


def sidecar(results, name):
    (path,) = results.glob(f"*/evidence/*-{name}.evidence")
    assert path.stat().st_size < 50_000
    return json.loads(path.read_text())


def test_one_sidecar_holds_all_families_and_each_has_its_own_figures(
    tiny_path, tmp_path, monkeypatch
):
    monkeypatch.setenv("MOE_HARNESS_RESULTS", str(tmp_path))
    outcome = tracking._families("K f32", PlayedSession(tiny_path), FAMILIES, numerics="f32")
    data = sidecar(tmp_path, "K-f32")
    assert data["schema"] == "moe-harness/families/1"
    for family in FAMILIES:
        one = tracking._family(outcome, family)
        one.require()
        figures, kept = one.figures, data["families"][family]["us"]
        assert figures["microseconds"]["number"] == 1
        assert kept["samples_taken"] == len(figures["microseconds"]["samples"])
        assert len(kept["samples"]) <= 50
        of_family = data["families"][family]
        if family == "argmax":
            assert of_family["roofline_fraction"] is of_family["bytes_per_second"] is None
            assert math.isnan(figures["gigabytes_per_second"])
            assert math.isnan(figures["roofline_fraction"])
        else:
            assert figures["gigabytes_per_second"] == of_family["bytes_per_second"] / 1e9
            assert figures["roofline_fraction"] == of_family["roofline_fraction"]


def test_a_family_that_a_token_does_not_launch_is_not_applicable(tiny_path, tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_HARNESS_RESULTS", str(tmp_path))
    monkeypatch.setattr(
        FamilyCpuDecoder, "clock", staticmethod(lambda *given: without_route(PlayedClock(*given)))
    )
    families = (*FAMILIES, "route")
    outcome = tracking._families("K i24", PlayedSession(tiny_path), families, numerics="i24")
    assert sidecar(tmp_path, "K-i24")["families"].keys() == set(FAMILIES)
    for family in FAMILIES:
        tracking._family(outcome, family).require()
    with pytest.raises(NotImplementedError, match="launches no route"):
        tracking._family(outcome, "route").require()


def without_route(clock):
    clock.launches["route"] = 0
    return clock


def test_a_rejected_numerics_is_a_hole_in_every_family_and_keeps_its_reasons(
    tiny_path, tmp_path, monkeypatch
):
    monkeypatch.setenv("MOE_HARNESS_RESULTS", str(tmp_path))
    planted = PlayedSession(tiny_path, "drop_lowest_expert")
    for session, name in ((planted, "f32"), (PlayedSession(tiny_path), "broken")):
        outcome = tracking._families(f"K {name}", session, FAMILIES, numerics=name)
        reasons = sidecar(tmp_path, f"K-{name}")["verdict"]["reasons"]
        assert reasons
        for family in FAMILIES:
            with pytest.raises(Rejected) as rejected:
                tracking._family(outcome, family).require()
            assert rejected.value.reasons == reasons
