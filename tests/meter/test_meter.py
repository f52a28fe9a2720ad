import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

from harness.backends.cuda.forward import TOKEN_FAMILIES
from harness.errors import BadInput
from harness.meter import statistics
from harness.meter.bandwidth import cpu_read_bandwidth
from harness.meter.identity import machine_identity, write_asv_machine
from harness.meter.lock import measuring
from harness.meter.sidecar import SEAL, digest, write_sidecar
from harness.meter.stopping import CONVERGED, TIME_IS_UP, StoppingRule
from harness.meter.traffic import family_traffic, launch_traffic, token_traffic
from harness.model import open_model


def test_percentiles_against_numpy_and_each_other():
    samples = np.random.default_rng(0).gamma(5, size=999)
    assert statistics.median(samples) == np.median(samples)
    assert statistics.percentile(samples, 99) > statistics.percentile(samples, 50)
    assert statistics.relative_deviation([1.0, 3.0]) == pytest.approx(2**0.5 / 2)
    assert statistics.relative_deviation([1.0]) == float("inf")


class TestStoppingRule:
    rule = StoppingRule()

    def test_quiet_samples_end_it_once_there_are_enough(self):
        quiet = [100.0, 100.1] * 5
        assert self.rule.ends(quiet, 1) == CONVERGED
        assert self.rule.ends(quiet[:9], 1) is None

    def test_a_burst_of_short_samples_does_not(self):
        assert self.rule.ends([1.0] * 499, 0.5) is None
        assert self.rule.ends([1.0] * 500, 0.5) == CONVERGED

    def test_noise_ends_at_the_time_out_and_says_so(self):
        noisy = [90.0, 110.0] * 10
        assert self.rule.ends(noisy, 14.9) is None
        assert self.rule.ends(noisy, 15) == TIME_IS_UP

    def test_the_time_out_too_needs_the_least_samples(self):
        assert self.rule.ends([20000.0], 20) is None


PEAK = """
import numpy as np
from harness.meter.memory import ProcessPeak
ballast = np.ones(30_000_000)
del ballast
peak = ProcessPeak()
before = peak.read()
block = np.ones(20_000_000)
print(peak.read().peak_bytes - before.peak_bytes, block.nbytes, before.source)
"""


def test_peak_memory_sees_what_is_allocated_and_forgets_what_was():
    # A process of its own: what other tests hold and let go of would be counted here.
    answer = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True
    )
    grown, size, source = answer.stdout.split(maxsplit=2)
    assert int(grown) >= 0.9 * int(size)
    assert "VmHWM" in source or "ru_maxrss" in source


def test_machine_file_keeps_other_machines(tmp_path):
    path = tmp_path / "asv.json"
    path.write_text(json.dumps({"other": {"machine": "other"}, "version": 1}))
    write_asv_machine(path)
    known = json.loads(path.read_text())
    name = machine_identity()["machine"]
    assert set(known) == {"other", name, "version"}
    assert known[name] == machine_identity()


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}'])
def test_a_foreign_machine_file_is_left_alone(tmp_path, text):
    path = tmp_path / "asv.json"
    path.write_text(text)
    with pytest.raises(BadInput, match="mend or remove"):
        write_asv_machine(path)
    assert path.read_text() == text


def hold(folder, ready, go):
    with measuring("cpu", folder=folder):
        ready.set()
        go.wait(30)


def test_two_measurements_do_not_share_a_device(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, go))
    other.start()
    assert ready.wait(60)
    with (
        pytest.raises(BadInput, match=f"measured by process {other.pid}"),
        measuring("cpu", wait=0.1, folder=tmp_path),
    ):
        pass
    with measuring("gpu-1", wait=0.1, folder=tmp_path):
        pass
    other.kill()  # however it ends, the lock is free
    other.join()
    with measuring("cpu", wait=0.1, folder=tmp_path):
        pass


def test_an_exception_frees_the_lock(tmp_path):
    with pytest.raises(KeyError), measuring("cpu", folder=tmp_path):
        raise KeyError
    with measuring("cpu", wait=0, folder=tmp_path):
        pass


def test_sidecars_end_in_what_asv_does_not_read(tmp_path):
    path = write_sidecar(tmp_path, "m", "0123456789ab", "decode.Embedded(0)", {"a": 1})
    assert path.relative_to(tmp_path).parts[:2] == ("m", "evidence")
    assert path.name == "01234567-decode.Embedded-0-.evidence"
    data = json.loads(path.read_text())
    assert data["a"] == 1
    assert data[SEAL] == digest(data) == digest({"a": 1, "schema": data["schema"]})
    assert digest(data | {"a": 2}) != data[SEAL]


def test_traffic_counts_the_chosen_experts_only(tiny_path):
    model = open_model(tiny_path)
    c = model.config
    traffic = token_traffic(model, "cpu", 10)
    one = sum(
        model.layer(n, f"ffn_{part}_exps").blocks[0].nbytes
        for n in range(c.layers)
        for part in ("gate", "up", "down")
    )
    assert traffic.terms["experts"] == c.top_k * one
    assert traffic.terms["kv_cache"] == c.layers * 2 * c.kv_heads * c.head_dim * 4 * 10
    assert traffic.terms["embedding"] == model["token_embd.weight"].blocks[0].nbytes
    everything = model.weight_bytes - model["token_embd.weight"].nbytes
    assert traffic.total < everything + traffic.terms["kv_cache"] + traffic.terms["embedding"]


def test_bytes_by_family_are_those_of_the_token_and_each_is_what_that_kernel_is_given(tiny_path):
    model = open_model(tiny_path)
    c = model.config
    for positions in (1, 10):
        families = family_traffic(model, positions)
        assert families.total == token_traffic(model, "cuda", positions).total
        assert tuple(sorted(families.terms)) == tuple(sorted(TOKEN_FAMILIES))
        cached = c.layers * 2 * c.kv_width * 2
        norms = c.layers * 2 * c.head_dim * 4
        assert families.terms["attend"] == norms + cached * positions
    terms = family_traffic(model, 1).terms

    def layers(*names):
        return sum(model.layer(n, name).nbytes for n in range(c.layers) for name in names)

    assert terms["qkv"] == layers("attn_norm", "attn_q", "attn_k", "attn_v")
    assert terms["attention_output"] == layers("attn_output")
    assert terms["route"] == layers("ffn_norm", "ffn_gate_inp")
    assert terms["gate_up"] * c.experts == layers("ffn_gate_exps", "ffn_up_exps") * c.top_k
    assert terms["down"] * c.experts == layers("ffn_down_exps") * c.top_k
    assert terms["logits"] == model.output.nbytes + model["output_norm.weight"].nbytes
    assert terms["argmax"] == 0
    # Where the router's logits are announced, who announces them reads what it would have read.
    announced = family_traffic(model, 1, [name for name in TOKEN_FAMILIES if name != "route"])
    assert "route" not in announced.terms
    some = {(name, n) for name in TOKEN_FAMILIES for n in (None, *range(c.layers))} - {("route", 0)}
    mixed, whole = (launch_traffic(model, "cuda", 1, given) for given in (some, None))
    moved = {key: mixed.get(key, 0) - nbytes for key, nbytes in whole.items()}
    router = whole["route", 0]
    assert {key: by for key, by in moved.items() if by} == {
        ("route", 0): -router,
        ("attention_output", 0): router,
    }
    both = terms["attention_output"] + terms["route"]
    assert announced.terms == {
        **{name: nbytes for name, nbytes in terms.items() if name != "route"},
        "attention_output": both,
    }


def test_bandwidth_is_of_this_world():
    assert 1e9 < cpu_read_bandwidth() < 2e12
