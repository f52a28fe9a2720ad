"""The hash of what computes here and now, by backend: what its evidence must be taken on."""

from __future__ import annotations

from harness.backends.cpu.decoder import source_hash
from harness.backends.cuda.decoder import gpu_source_hash
from harness.peers.hugging_face import oracle_source_hash


def source_hashes() -> dict[str, str]:
    """``cpu``, ``cuda`` and ``oracle``; no GPU is needed."""
    return {"cpu": source_hash(), "cuda": gpu_source_hash(), "oracle": oracle_source_hash()}
