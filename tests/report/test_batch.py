"""The curve over batch, and batches on the page: from evidence that is written here."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.contract.figures import derived_figures
from harness.contract.integrity import read_results
from harness.errors import BadInput
from harness.meter.sidecar import write_sidecar
from harness.report.batch import BatchPoint, batch_curve, batch_picture
from harness.report.depth import newest_decodes
from harness.report.model import gather
from harness.report.page import render

RESULTS = Path(__file__).parents[2] / "results"
SVG = "{http://www.w3.org/2000/svg}"
MACHINE, ALONE, TOGETHER = "nvidia-h200", "decode.Qwen3MoeDecode", "decode.Qwen3MoeBatch"


def told(picture):
    """What each mark tells to a pointer, from left to right as drawn."""
    return [
        node.find(f"{SVG}title").text
        for node in ET.fromstring(picture).iter()  # noqa: S314 - our own
        if node.find(f"{SVG}title") is not None and "mark" in node.get("class", "")
    ]


@pytest.fixture
def results(tmp_path):
    """The newest committed decode at depth 0, by itself."""
    (newest,) = (d for d in newest_decodes(gather(RESULTS), MACHINE, ALONE) if d.depth == 0)
    folder = tmp_path / MACHINE / "evidence"
    folder.mkdir(parents=True)
    shutil.copy(newest.origin.path, folder)
    shutil.copy(RESULTS / MACHINE / "machine.json", tmp_path / MACHINE)
    return tmp_path


def add_batch(results, size, ms, *, accepted=True, fewer=0):
    """Write a sidecar as a batch's, out of the decode's that is there."""
    (path,) = results.glob(f"{MACHINE}/evidence/*{ALONE}*")
    alone = json.loads(path.read_text())
    guarded = alone["evidence"] | {"verdict": {"accepted": accepted, "reasons": []}}
    data = {key: alone[key] for key in ("memory", "conditions", "read_bandwidth", "ran")}
    data |= {
        "schema": "moe-harness/batch/1",
        "benchmark": f"{TOGETHER} batch={size}",
        "batch": size,
        "workload": {"prompts": [[1]] * size, "depth": 0, "tokens": 2, "seed": 0},
        "tokens": [[1, 2]] * size,
        "ms_per_step": {"median": ms, "p99": 1.1 * ms, "samples": [ms], "stopped_by": "time"},
        "tokens_per_second": 1000 * size / ms,
        "energy_joules_per_token": None,
        "distinct_experts": {"by_layer": [8.0] * 48, "mean": 8.0},
        "bytes_per_step": 10**9 * size,
        "roofline_fraction": 10**9 * size / (ms / 1000) / alone["read_bandwidth"],
        "verdict": {"accepted": True, "reasons": []},
        "evidence": {"sequences": [guarded] * (size - fewer)},
        "commit": alone["commit"],
        "planted": None,
        "machine": alone["machine"],
    }
    try:
        data["figures"] = derived_figures(data)
    except Exception:  # noqa: BLE001 - what lacks a sequence has no figures
        data["figures"] = {}
    return write_sidecar(results, MACHINE, alone["commit"], data["benchmark"], data)


def test_batches_stand_above_the_bytes_of_their_union(results):
    for size, ms in ((8, 7.5), (2, 2.0), (4, 4.0)):
        add_batch(results, size, ms)
    found = told(batch_picture(gather(results), MACHINE, ALONE, TOGETHER))
    (path,) = results.glob(f"{MACHINE}/evidence/*{ALONE}*")
    alone = json.loads(path.read_text())
    bandwidth, expected = alone["read_bandwidth"], []
    single = alone["ms_per_token"]["median"], 1000 * alone["bytes_per_token"] / bandwidth
    several = [(ms, 1000 * 1e9 * size / bandwidth) for size, ms in ((2, 2.0), (4, 4.0), (8, 7.5))]
    for size, (ms, floor) in zip((1, 2, 4, 8), (single, *several), strict=True):
        start = f"batch {size}: "
        expected.append(f"{start}floor {floor:.3f} ms/step")
        assert f"{start}{ms:.3f} ms/step, {ms / floor:.2f} times the floor" in found
    assert found[-4:] == expected
    assert len(found) == 8
    assert not [each for each in read_results(results).findings if TOGETHER in each.path.name]


def test_it_is_drawn_of_what_there_is(results):
    assert len(told(batch_picture(gather(results), MACHINE, ALONE, TOGETHER))) == 2
    add_batch(results, 4, 4.0)
    assert len(told(batch_picture(gather(results), MACHINE, "decode.None", TOGETHER))) == 2
    with pytest.raises(BadInput, match="no accepted decode of"):
        batch_picture(gather(results), MACHINE, "decode.None", "decode.None")


def test_the_committed_results_are_drawn():
    assert told(batch_picture(gather(RESULTS), MACHINE, ALONE, TOGETHER))


@pytest.mark.parametrize("how", [{"accepted": False}, {"fewer": 1}])
def test_a_batch_with_a_sequence_that_was_not_accepted_is_no_figure(results, how):
    add_batch(results, 4, 4.0, **how)
    report = gather(results)
    assert ["evidence of each of 4" in each.why for each in report.unreadable] == [True]
    assert not any(machine.batches for machine in report.machines)


def test_fewer_sequences_than_said_are_found_by_the_contract(results):
    path = add_batch(results, 4, 4.0, fewer=1)
    (finding,) = (each for each in read_results(results).findings if each.path == path)
    assert "evidence of 3 sequences, not of 4" in finding.what


def test_batches_are_on_the_page(results):
    add_batch(results, 4, 4.0)
    page = render(gather(results))
    assert "sequences at once" in page
    assert f"{TOGETHER} batch=4" in page


@pytest.mark.parametrize("sizes", [(1,), (8,), (1, 2), (1, 2, 4, 8), (1, 3, 1000)])
def test_any_sizes_fit_on_the_paper(sizes):
    picture = batch_curve([BatchPoint(size, 1.0 + size, 0.5) for size in sizes], "<&>")
    root = ET.fromstring(picture)  # noqa: S314 - our own
    assert len(told(picture)) == 2 * len(sizes)
    places = [node.text for node in root.iter(f"{SVG}text")]
    assert {f"{size:,}" for size in sizes} <= set(places)
