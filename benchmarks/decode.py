"""Guarded decode: time per token, tokens per second, memory, share of the roofline."""

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
