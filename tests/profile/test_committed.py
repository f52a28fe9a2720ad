"""Recordings of real sessions that are committed: ``tests/profile/recordings/*.json``."""

from pathlib import Path

import pytest

from harness.profile import Profile
from harness.profile.recording import read_recording
from harness.profile.roofline import roofline
from harness.profile.timeline import timeline
from harness.profile.trace import chrome_trace

from .test_pictures import within_paper
from .test_trace import nesting_errors

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.json"))


@pytest.fixture(params=RECORDINGS or [None], ids=lambda path: path.stem if path else "none")
def committed(request):
    if request.param is None:
        pytest.skip("no recording is committed yet: none was taken on a GPU")
    return read_recording(request.param)


def test_kernels_and_gaps_sum_to_the_measured_token_within_3_percent(committed):
    assert committed.accepted
    assert abs(Profile(committed).path.sum_off) < 0.03


def test_its_trace_nests(committed):
    assert not nesting_errors(chrome_trace(committed)["traceEvents"])


def test_its_pictures_are_whole(committed):
    profile = Profile(committed)
    for picture in (roofline(profile), timeline(profile)):
        within_paper(picture)
