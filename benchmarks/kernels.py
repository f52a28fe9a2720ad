"""Kernels by themselves, guarded and cold: time, bytes per second, share of the roofline."""

from benchmarks.selection import depths, numerics, require
from harness import tracking
from harness.numerics import CUDA_NUMERICS


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


class CudaFamilies:
    """All launches of one family in a token of the 30B model, on the GPU; the time of one."""

    params = [
        [
            "embed",
            "qkv",
            "attend",
            "attention_output",
            "route",
            "gate_up",
            "down",
            "logits",
            "argmax",
        ],
        list(CUDA_NUMERICS),
    ]
    param_names = ["family", "numerics"]
    timeout = 1800

    def setup_cache(self):
        families, known = self.params
        return tracking.cuda_families("kernels.CudaFamilies", families, numerics(known))

    def setup(self, outcomes, family, numerics):
        require(outcomes, family, numerics)

    def track_microseconds(self, outcomes, family, numerics):
        return outcomes[family, numerics].figures["microseconds"]

    def track_gigabytes_per_second(self, outcomes, family, numerics):
        return outcomes[family, numerics].figures["gigabytes_per_second"]

    def track_roofline_fraction(self, outcomes, family, numerics):
        return outcomes[family, numerics].figures["roofline_fraction"]

    track_microseconds.unit = "us"
    track_gigabytes_per_second.unit = "GB/s"
    track_roofline_fraction.unit = "of read bandwidth"


class CudaAttention:
    """Attention over a long cache, on the GPU; its kernel is the same in every numerics."""

    params = [4096, 32768]
    param_names = ["depth"]
    timeout = 1800

    def setup_cache(self):
        return tracking.cuda_attention("kernels.CudaAttention", depths(self.params))

    def setup(self, outcomes, depth):
        require(outcomes, depth)

    def track_microseconds(self, outcomes, depth):
        return outcomes[depth].figures["microseconds"]

    def track_gigabytes_per_second(self, outcomes, depth):
        return outcomes[depth].figures["gigabytes_per_second"]

    def track_roofline_fraction(self, outcomes, depth):
        return outcomes[depth].figures["roofline_fraction"]

    track_microseconds.unit = "us"
    track_gigabytes_per_second.unit = "GB/s"
    track_roofline_fraction.unit = "of read bandwidth"
