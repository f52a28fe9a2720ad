"""Whether the newest GPU evidence was taken on the kernels that stand here (invariant 9).

Needs no GPU: it compares hashes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput
from harness.meter.sidecar import ENDING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCHEMA = "moe-harness/decode/1"
_RUN_THIS = "on that GPU: asv run --bench Qwen3MoeDecode, and commit results/"


@dataclass(frozen=True)
class GpuEvidence:
    """The newest accepted decode of one kind of GPU."""

    gpu: str
    path: Path
    date: str
    source_hash: str

    def why_stale(self, source_hash: str) -> str | None:
        """Say why it does not speak for sources of that hash, or None where it does."""
        why = why_stale(self.path, self.source_hash, source_hash)
        return None if why is None else f"{self.gpu}: {why}; {_RUN_THIS}"


def why_stale(path: Path, taken_on: str, source_hash: str) -> str | None:
    """Say why evidence taken on some sources does not speak for others, or None where it does."""
    if taken_on == source_hash:
        return None
    return f"{path} was taken on sources {taken_on}, these are {source_hash}"


def newest_gpu_evidence(results: Path) -> list[GpuEvidence]:
    """Find the newest accepted decode of every kind of GPU under ``results``.

    Raises
    ------
    BadInput
        For a sidecar that is no evidence.

    """
    newest: dict[str, GpuEvidence] = {}
    for path, data in _sidecars(results):
        if data.get("schema") != _SCHEMA:  # other sidecars have other hashes, or none
            continue
        ran = data.get("ran")
        accepted = isinstance(data.get("verdict"), dict) and data["verdict"].get("accepted") is True
        if not (accepted and isinstance(ran, dict) and ran.get("backend") == "cuda"):
            continue
        found = GpuEvidence(str(ran["gpu"]), path, str(ran["date"]), str(ran["source_hash"]))
        known = newest.get(found.gpu)
        if known is None or known.date < found.date:
            newest[found.gpu] = found
    return sorted(newest.values(), key=lambda evidence: evidence.gpu)


def _sidecars(results: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(results.glob(f"*/evidence/*{ENDING}")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: no evidence ({error}); restore it from the commit") from None
        if not isinstance(data, dict):
            raise BadInput(f"{path}: no evidence (no JSON object); restore it from the commit")
        yield path, data
