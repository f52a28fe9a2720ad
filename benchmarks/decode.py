"""Guarded decode: time per token, tokens per second, memory, share of the roofline."""

from benchmarks.selection import BATCHES, DEPTHS, batches, depths, require
from harness import tracking


class EmbeddedDecode:
    """The embedded model on the CPU."""

    params = [0, 512]
    param_names = ["depth"]
    timeout = 600

    def setup_cache(self):
        return tracking.embedded_decode("decode.EmbeddedDecode", self.params)

    def setup(self, outcomes, depth):
        outcomes[depth].require()

    def track_ms_per_token(self, outcomes, depth):
        return outcomes[depth].figures["ms_per_token"]

    def track_tokens_per_second(self, outcomes, depth):
        return outcomes[depth].figures["tokens_per_second"]

    def track_peak_memory(self, outcomes, depth):
        return outcomes[depth].figures["peak_memory"]

    def track_roofline_fraction(self, outcomes, depth):
        return outcomes[depth].figures["roofline_fraction"]

    track_ms_per_token.unit = "ms/token"
    track_tokens_per_second.unit = "tok/s"
    track_peak_memory.unit = "bytes"
    track_roofline_fraction.unit = "of read bandwidth"


class Qwen3MoeDecode:
    """Qwen3-30B-A3B, Q4_K_M, on the GPU: 128 tokens after a prompt of three."""

    params = DEPTHS
    param_names = ["depth"]
    timeout = 1800

    def setup_cache(self):
        return tracking.qwen3moe_decode("decode.Qwen3MoeDecode", depths(self.params))

    def setup(self, outcomes, depth):
        require(outcomes, depth)

    def track_ms_per_token(self, outcomes, depth):
        return outcomes[depth].figures["ms_per_token"]

    def track_tokens_per_second(self, outcomes, depth):
        return outcomes[depth].figures["tokens_per_second"]

    def track_peak_memory(self, outcomes, depth):
        return outcomes[depth].figures["peak_memory"]

    def track_memory_share(self, outcomes, depth):
        return outcomes[depth].figures["memory_share"]

    def track_roofline_fraction(self, outcomes, depth):
        return outcomes[depth].figures["roofline_fraction"]

    def track_joules_per_token(self, outcomes, depth):
        return outcomes[depth].figures["joules_per_token"]

    def track_distance(self, outcomes, depth):
        return outcomes[depth].figures["distance"]

    def track_cosine_loss(self, outcomes, depth):
        return outcomes[depth].figures["cosine_loss"]

    def track_experts_swapped(self, outcomes, depth):
        return outcomes[depth].figures["experts_swapped"]

    def track_argmaxes_changed(self, outcomes, depth):
        return outcomes[depth].figures["argmaxes_changed"]

    track_ms_per_token.unit = "ms/token"
    track_tokens_per_second.unit = "tok/s"
    track_peak_memory.unit = "bytes"
    track_memory_share.unit = "of weights and cache"
    track_roofline_fraction.unit = "of read bandwidth"
    track_joules_per_token.unit = "J/token"
    track_distance.unit = "of the limit"
    track_cosine_loss.unit = "1 - worst cosine"
    track_experts_swapped.unit = "layer-positions"
    track_argmaxes_changed.unit = "positions"


class Qwen3MoeBatch:
    """The same model: several independent sequences at once, 128 tokens of each from depth 0."""

    params = BATCHES
    param_names = ["batch"]
    timeout = 3600

    def setup_cache(self):
        return tracking.qwen3moe_batch("decode.Qwen3MoeBatch", batches(self.params))

    def setup(self, outcomes, batch):
        require(outcomes, batch)

    def track_ms_per_step(self, outcomes, batch):
        return outcomes[batch].figures["ms_per_step"]

    def track_tokens_per_second(self, outcomes, batch):
        return outcomes[batch].figures["tokens_per_second"]

    def track_peak_memory(self, outcomes, batch):
        return outcomes[batch].figures["peak_memory"]

    def track_memory_share(self, outcomes, batch):
        return outcomes[batch].figures["memory_share"]

    def track_distinct_experts(self, outcomes, batch):
        return outcomes[batch].figures["distinct_experts"]

    def track_bytes_per_step(self, outcomes, batch):
        return outcomes[batch].figures["bytes_per_step"]

    def track_roofline_fraction(self, outcomes, batch):
        return outcomes[batch].figures["roofline_fraction"]

    def track_joules_per_token(self, outcomes, batch):
        return outcomes[batch].figures["joules_per_token"]

    def track_distance(self, outcomes, batch):
        return outcomes[batch].figures["distance"]

    def track_cosine_loss(self, outcomes, batch):
        return outcomes[batch].figures["cosine_loss"]

    def track_experts_swapped(self, outcomes, batch):
        return outcomes[batch].figures["experts_swapped"]

    def track_argmaxes_changed(self, outcomes, batch):
        return outcomes[batch].figures["argmaxes_changed"]

    track_ms_per_step.unit = "ms/step"
    track_tokens_per_second.unit = "tok/s, all sequences"
    track_peak_memory.unit = "bytes"
    track_memory_share.unit = "of weights and caches"
    track_distinct_experts.unit = "of a layer"
    track_bytes_per_step.unit = "bytes"
    track_roofline_fraction.unit = "of read bandwidth"
    track_joules_per_token.unit = "J/token"
    track_distance.unit = "of the limit"
    track_cosine_loss.unit = "1 - worst cosine"
    track_experts_swapped.unit = "layer-positions"
    track_argmaxes_changed.unit = "positions"
