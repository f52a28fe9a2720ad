"""Kernels by themselves, guarded and cold: time, bytes per second, share of the roofline."""

from harness import tracking


class CpuProducts:
    """What the CPU decoder multiplies in one go, on the embedded model's weights."""

    params = [
        ["attention_qkv", "attention_output", "expert_gate_up", "expert_down", "output"],
        ["f32", "q8_k"],
    ]
    param_names = ["family", "numerics"]
    timeout = 600

    def setup_cache(self):
        return tracking.cpu_products("kernels.CpuProducts", *self.params)

    def setup(self, outcomes, family, numerics):
        outcomes[family, numerics].require()

    def track_microseconds(self, outcomes, family, numerics):
        return outcomes[family, numerics].figures["microseconds"]

    def track_gigabytes_per_second(self, outcomes, family, numerics):
        return outcomes[family, numerics].figures["gigabytes_per_second"]

    def track_roofline_fraction(self, outcomes, family, numerics):
        return outcomes[family, numerics].figures["roofline_fraction"]

    track_microseconds.unit = "us"
    track_gigabytes_per_second.unit = "GB/s"
    track_roofline_fraction.unit = "of read bandwidth"
