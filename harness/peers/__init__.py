"""Other engines on the same file, depth and token count: their own figures, beside ours.

A peer's figure carries no guard, so it is never a ``Measurement``.
"""

from harness.peers.llama_bench import PeerMeasurement, measure_llama_bench

__all__ = ["PeerMeasurement", "measure_llama_bench"]
