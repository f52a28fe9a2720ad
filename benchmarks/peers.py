"""Peers on the same file: their own figures, without a guard, to set beside ``decode``."""

from benchmarks.selection import DEPTHS, depths, require
from harness import tracking


class LlamaBench:
    """llama.cpp's llama-bench on the 30B model: n/a where no binary is pointed to."""

    params = DEPTHS
    param_names = ["depth"]
    timeout = 3600

    def setup_cache(self):
        return tracking.peers("peers.LlamaBench", depths(self.params))

    def setup(self, outcomes, depth):
        require(outcomes, depth)

    def track_ms_per_token(self, outcomes, depth):
        return outcomes[depth].figures["ms_per_token"]

    def track_tokens_per_second(self, outcomes, depth):
        return outcomes[depth].figures["tokens_per_second"]

    track_ms_per_token.unit = "ms/token"
    track_tokens_per_second.unit = "tok/s"
