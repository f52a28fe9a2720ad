"""The curve over depth: from the committed evidence, and from points made up."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.report.depth import DepthPoint, depth_curve, depth_picture
from harness.report.model import gather

RESULTS = Path(__file__).parents[2] / "results"
SVG = "{http://www.w3.org/2000/svg}"
MACHINE, BENCHMARK = "nvidia-h200", "decode.Qwen3MoeDecode"


def tips(picture):
    """What each mark tells to a pointer, with its place."""
    root = ET.fromstring(picture)  # noqa: S314 - our own
    found = []
    for mark in root.iter():
        told = mark.find(f"{SVG}title")
        if told is not None and "mark" in mark.get("class", ""):
            x, y = mark.get("points", f"{mark.get('cx')},{mark.get('cy')}").split()[0].split(",")
            found.append((told.text, float(x), float(y)))
    return found


def words(picture):
    return [node.text for node in ET.fromstring(picture).iter(f"{SVG}text")]  # noqa: S314 - our own


def test_the_committed_decodes_stand_above_their_bytes_over_the_bandwidth():
    report = gather(RESULTS)
    picture = depth_picture(report, MACHINE, BENCHMARK)
    (machine,) = (each for each in report.machines if each.name == MACHINE)
    told = [tip for tip, _, _ in tips(picture)]
    assert len(told) == 2 * len(machine.decodes)
    for decode in machine.decodes:
        data = json.loads(decode.origin.path.read_text())
        floor = 1000 * data["bytes_per_token"] / data["read_bandwidth"]
        median = data["ms_per_token"]["median"]
        start = f"{decode.depth:,} cached: "
        assert f"{start}floor {floor:.3f} ms/token" in told
        assert f"{start}{median:.3f} ms/token, {median / floor:.2f} times the floor" in told
        assert decode.origin.commit[:8] in "\n".join(words(picture))


def test_depths_stand_in_their_order_and_heights_compare_from_zero():
    points = [DepthPoint(4096, 4.0, 2.0), DepthPoint(0, 1.0, 0.5), DepthPoint(512, 2.0, 1.0)]
    picture = depth_curve(points, "made up")
    measured = [(x, y) for told, x, y in tips(picture) if "times the floor" in told]
    across, down = zip(*measured, strict=True)
    assert list(across) == sorted(across)
    assert down[0] - down[1] == pytest.approx((down[1] - down[2]) / 2, abs=0.1)
    assert {"0", "512", "4,096"} <= set(words(picture))


@pytest.mark.parametrize("depths", [(0,), (512,), (0, 512), (1, 2, 1 << 20)])
def test_any_depths_fit_on_the_paper(depths):
    picture = depth_curve([DepthPoint(depth, 1 + depth, 0.5) for depth in depths], "<&>")
    root = ET.fromstring(picture)  # noqa: S314 - our own
    for _, x, y in tips(picture):
        assert 0 < x < float(root.get("width"))
        assert 0 < y < float(root.get("height"))


def test_no_decode_is_bad_input():
    with pytest.raises(BadInput, match="no accepted decode of"):
        depth_picture(gather(RESULTS), MACHINE, "decode.None")
