"""A recording to a file and back; files that are none."""

import json

import numpy as np
import pytest

from harness.errors import BadInput
from harness.profile.recording import read_recording

from .conftest import LAYER, made


@pytest.fixture
def written(recorded, tmp_path):
    path = tmp_path / "recording.json"
    recorded.write(path)
    return path


def test_to_a_file_and_back(recorded, written):
    again = read_recording(written)
    assert again.to_json() == json.loads(json.dumps(recorded.to_json()))
    assert np.array_equal(again.traced.ends, recorded.traced.ends)
    assert again.accepted


BROKEN = {
    "another schema": lambda d: d.update(schema="moe-harness/decode/1"),
    "no kernels": lambda d: d["traced"].update(names=[], starts_ns=[[]], durations_ns=[[]]),
    "no tokens": lambda d: d["traced"].update(starts_ns=[], durations_ns=[]),
    "an unknown kernel": lambda d: d["traced"]["names"].__setitem__(0, "<script>"),
    "names that are numbers": lambda d: d["traced"]["names"].__setitem__(0, 7),
    "a launch too few": lambda d: d["traced"]["names"].pop(),
    "rows of unlike length": lambda d: d["traced"]["starts_ns"][1].pop(),
    "rows that are none": lambda d: d["traced"].update(starts_ns=[1, 2]),
    "times that are text": lambda d: d["traced"]["starts_ns"][0].__setitem__(1, "0"),
    "times that are not whole": lambda d: d["traced"]["starts_ns"][0].__setitem__(1, 0.5),
    "huge times": lambda d: d["traced"]["durations_ns"][0].__setitem__(1, 10**30),
    "negative durations": lambda d: d["traced"]["durations_ns"][0].__setitem__(1, -5),
    "time that goes back": lambda d: d["traced"]["starts_ns"][0].__setitem__(1, 10**12),
    "other layers": lambda d: d.update(layers=d["layers"] + 1),
    "no layers": lambda d: d.update(layers=0),
    "bytes missing": lambda d: d["bytes"].pop(),
    "no bytes at all": lambda d: d.update(bytes=[0] * len(d["bytes"])),
    "bandwidth of nothing": lambda d: d.update(read_bandwidth=0),
    "bandwidth that is true": lambda d: d.update(read_bandwidth=True),
    "bandwidth that is no number": lambda d: d.update(read_bandwidth=float("nan")),
    "endless token": lambda d: d["undisturbed"].update(median_ms=float("inf")),
    "verdict that is text": lambda d: d.update(verdict="accepted"),
    "accepted as text": lambda d: d["verdict"].update(accepted="yes"),
    "reasons that are numbers": lambda d: d["verdict"].update(reasons=[1]),
    "no verdict": lambda d: d.pop("verdict"),
    "no device": lambda d: d["ran"].pop("device"),
    "purposes that are a list": lambda d: d["memory"].update(by_purpose=[1]),
    "power that goes back": lambda d: d.update(
        energy={"joules_per_token": 1.0, "power": [[1.0, 5.0, None], [0.5, 5.0, None]]}
    ),
    "power that is text": lambda d: d.update(
        energy={"joules_per_token": 1.0, "power": [[1.0, "5", None]]}
    ),
    "half a reading": lambda d: d.update(energy={"joules_per_token": 1.0, "power": [[1.0]]}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_recording_is_refused_in_one_line(written, case):
    data = json.loads(written.read_text())
    BROKEN[case](data)
    written.write_text(json.dumps(data))
    with pytest.raises(BadInput) as refused:
        read_recording(written)
    assert str(written) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "1" * 10_000, "\x00\xff"])
def test_files_that_are_something_else(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput):
        read_recording(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_recording(tmp_path)


def test_a_recording_made_by_hand_is_one(tmp_path):
    names = ["embed", *LAYER, "logits"]
    count = len(names)
    starts = [[100 * (count * token + i) for i in range(count)] for token in range(2)]
    recording = made(starts, np.array(starts) + 60, names, layers=1)
    recording.write(tmp_path / "r.json")
    assert read_recording(tmp_path / "r.json").to_json() == recording.to_json()
