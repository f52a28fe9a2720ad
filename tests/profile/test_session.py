"""The guard comes first; what it rejects is refused, or says so on every page."""

import json
from dataclasses import replace

import pytest

from harness.errors import BadInput, Rejected
from harness.meter.decode import Workload
from harness.profile import Profile
from harness.profile.roofline import roofline
from harness.profile.session import Wanted
from harness.profile.table import profile_lines
from harness.profile.timeline import power_chart, timeline
from harness.profile.trace import chrome_trace
from harness.suite import DecodeSession

from .conftest import record


def test_an_accepted_session_says_what_ran(recorded, tiny_model):
    assert recorded.accepted
    assert recorded.verdict == {"accepted": True, "reasons": []}
    assert recorded.ran["backend"] == "cpu"
    assert recorded.ran["model_fingerprint"] == tiny_model.fingerprint
    assert recorded.workload["depth"] == 5
    assert recorded.read_bandwidth > 1e8
    assert len(recorded.bytes) == len(recorded.traced.names)


def test_what_the_guard_rejects_is_not_recorded(tiny_model, monkeypatch):
    monkeypatch.setattr(
        "harness.profile.tracers.PhaseTracer.record", lambda *_: pytest.fail("recorded")
    )
    with pytest.raises(Rejected):
        record(tiny_model, plant="drop_top_expert")


def test_every_page_of_an_unguarded_profile_says_so(rejected):
    assert not rejected.accepted
    energy = {"joules_per_token": 1.0, "power": [[0.0, 5.0, None], [1.0, 6.0, None]]}
    profile = Profile(replace(rejected, energy=energy))
    lines = profile_lines(profile)
    assert lines[0].startswith("UNGUARDED: the guard rejected")
    assert lines[-1].startswith("UNGUARDED: ")
    assert "verdict: REJECTED" in lines
    pages = [roofline(profile), timeline(profile), power_chart(profile)]
    pages.append(json.dumps(chrome_trace(rejected)))
    for page in pages:
        assert "UNGUARDED" in page
    data = profile.to_json()
    assert data["verdict"]["accepted"] is False
    assert data["verdict"]["reasons"] == rejected.verdict["reasons"]
    assert data["verdict"]["reasons"]


def test_an_accepted_profile_says_no_such_thing(recorded):
    pages = [roofline(Profile(recorded)), timeline(Profile(recorded))]
    pages += [json.dumps(chrome_trace(recorded)), "\n".join(profile_lines(Profile(recorded)))]
    assert not any("UNGUARDED" in page for page in pages)


def test_passes_that_differ_from_one_another_are_told_even_unguarded(tiny_model):
    recording = record(tiny_model, plant="cached_output", unguarded=True)
    assert not recording.accepted
    assert recording.verdict["reasons"]


def test_more_than_the_context_is_refused(tiny_model):
    with DecodeSession(tiny_model, backend="cpu") as session:
        workload = Workload((1,), 0, tiny_model.config.context_length)
        with pytest.raises(BadInput, match="context"):
            session.profile(workload, Wanted())
