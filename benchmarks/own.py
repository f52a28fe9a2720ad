"""Kernels of one's own (docs/own-kernel.md), guarded and cold: time, bytes per second, share."""

from examples.silu_gate.silu_gate import SILU_GATE
from harness import tracking

DECLARATIONS = {declaration.name: declaration for declaration in (SILU_GATE,)}


class OwnKernels:
    """Each declared kernel on the GPU."""

    params = list(DECLARATIONS)
    param_names = ["kernel"]
    timeout = 600

    def setup_cache(self):
        return tracking.own_kernels("own.OwnKernels", DECLARATIONS.values())

    def setup(self, outcomes, kernel):
        outcomes[kernel].require()

    def track_microseconds(self, outcomes, kernel):
        return outcomes[kernel].figures["microseconds"]

    def track_gigabytes_per_second(self, outcomes, kernel):
        return outcomes[kernel].figures["gigabytes_per_second"]

    def track_roofline_fraction(self, outcomes, kernel):
        return outcomes[kernel].figures["roofline_fraction"]

    track_microseconds.unit = "us"
    track_gigabytes_per_second.unit = "GB/s"
    track_roofline_fraction.unit = "of read bandwidth"
