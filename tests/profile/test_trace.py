"""The trace: well-formed, named, and properly nested, whatever was recorded."""

import json
from collections import defaultdict

import pytest

from harness.profile.trace import chrome_trace

from .conftest import LAYER, made


def nesting_errors(events):
    """Complete events of one thread that overlap and do not nest (Trace Event Format)."""
    threads = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            start = round(event["ts"] * 1000)
            threads[event["pid"], event["tid"]].append(
                (start, start + round(event["dur"] * 1000), event["name"])
            )
    wrong = []
    for slices in threads.values():
        open_slices = []
        # As viewers do: by start, the longer first; equals stay in the order of the file.
        for start, end, name in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_slices and open_slices[-1][1] <= start:
                open_slices.pop()
            if open_slices and end > open_slices[-1][1]:
                wrong.append((open_slices[-1], name))
            open_slices.append((start, end, name))
    return wrong


def parents(events):
    """Names of the slices around each slice of the first thread, outermost first."""
    found, open_slices = [], []
    slices = [event for event in events if event["ph"] == "X" and event["tid"] == 1]
    for event in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
        while open_slices and open_slices[-1]["ts"] + open_slices[-1]["dur"] <= event["ts"] + 1e-6:
            open_slices.pop()
        found.append(([outer["name"] for outer in open_slices], event))
        open_slices.append(event)
    return found


def test_the_check_finds_what_does_not_nest():
    def event(ts, dur):
        return {"ph": "X", "pid": 1, "tid": 1, "ts": ts, "dur": dur, "name": f"{ts}"}

    assert not nesting_errors([event(0, 10), event(0, 4), event(4, 6), event(5, 1)])
    assert nesting_errors([event(0, 10), event(5, 6)])
    assert nesting_errors([event(0, 10), event(0, 4), event(3, 2)])


def test_a_recorded_session_nests_token_layer_kernel_stages(recorded):
    trace = json.loads(json.dumps(chrome_trace(recorded), allow_nan=False))
    events = trace["traceEvents"]
    assert not nesting_errors(events)
    assert {event["ph"] for event in events} == {"M", "X"}
    for event in events:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ph"] == "M" or (event["ts"] >= 0 and event["dur"] >= 0)
    [process] = [event for event in events if event["name"] == "process_name"]
    assert recorded.ran["device"] in process["args"]["name"]
    tokens, layers = len(recorded.traced.starts), recorded.layers
    slices = [event for event in events if event["ph"] == "X"]
    counts = {name: sum(e["cat"] == name for e in slices) for name in ("token", "layer")}
    assert counts == {"token": tokens, "layer": tokens * layers}
    down = [e for e in slices if e["name"] == "down"]
    assert [e["args"]["layer"] for e in down] == [*range(layers)] * tokens
    assert all(e["args"]["bytes"] > 0 for e in down)
    for around, event in parents(events):
        if event["name"] == "ffn_gate + ffn_up + ffn_silu + ffn_swigl":
            assert [name.split()[0] for name in around] == ["token", "layer", "gate_up"]


@pytest.mark.parametrize("overlap", [1, 400, 1300])
def test_kernels_that_overlap_keep_their_times_and_nest_all_the_same(overlap):
    names = ["embed", *(LAYER * 2), "logits", "argmax"]
    step = 1500 - overlap
    count = len(names)
    starts = [[step * (count * token + i) for i in range(count)] for token in range(3)]
    ends = [[start + 1500 for start in row] for row in starts]
    recording = made(starts, ends, names, layers=2)
    events = chrome_trace(recording)["traceEvents"]
    assert not nesting_errors(events)
    threads = {event["tid"] for event in events if event["ph"] == "X"}
    assert len(threads) > 1
    named = {event["tid"] for event in events if event["name"] == "thread_name"}
    assert named == threads
    shown = sorted(e["ts"] for e in events if e["ph"] == "X" and e["name"] == "qkv")
    assert shown == [starts[t][i] / 1e3 for t in range(3) for i in (1, 1 + len(LAYER))]
    assert all(e["dur"] == 1.5 for e in events if e.get("name") == "down")


def test_without_overlap_there_is_one_thread(recorded):
    events = chrome_trace(recorded)["traceEvents"]
    assert {event["tid"] for event in events} == {1}
