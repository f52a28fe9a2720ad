"""A profiling session: where a token's time goes, kernel by kernel.

A session guards, times undisturbed and records under a tracer (``session``); all that it saw is a
``Recording``, and everything else is computed from that: the ``Profile``, tables, pictures, trace.
"""

from harness.profile.recording import Recording
from harness.profile.summary import Profile

__all__ = ["Profile", "Recording"]
