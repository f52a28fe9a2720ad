"""Evidence beside asv's results: asv's files have no room for it.

Sidecars end in ``.evidence`` (JSON inside): asv reads every ``.json`` under results/. Each is
sealed: it holds a digest of all that it says. A seal tells of accidents and of casual edits;
whoever means to forge can compute a digest too.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from harness.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENDING = ".evidence"
SEAL = "sealed"
_HASH_LENGTH = 8  # as asv shortens it in its own file names


def write_sidecar(
    results: Path, machine: str, commit: str, benchmark: str, data: Mapping[str, object]
) -> Path:
    """Write ``results/<machine>/evidence/<commit>-<benchmark>.evidence``; returns its path.

    A sidecar of the same commit and benchmark is replaced. Written for rejected runs too.

    Raises
    ------
    BadInput
        Where it cannot be written.

    """
    path = results / machine / "evidence" / sidecar_name(commit, benchmark)
    # As it will be read: a tuple comes back as a list.
    content = json.loads(json.dumps({"schema": "moe-harness/evidence/1", **data}, allow_nan=False))
    sealed = {**content, SEAL: digest(content)}
    write_atomically(path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")
    return path


def sidecar_name(commit: str, benchmark: str) -> str:
    """Name of the file for a commit and a benchmark with its parameters."""
    name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", benchmark)
    return f"{commit[:_HASH_LENGTH]}-{name}{ENDING}"


def digest(content: Mapping[str, object]) -> str:
    """``sha256:`` of what a sidecar says, its seal left out; layout and order of keys count not.

    Raises
    ------
    ValueError
        For NaN and infinities: no sidecar holds them.

    """
    said = {key: value for key, value in content.items() if key != SEAL}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
