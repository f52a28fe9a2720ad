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
ENVIRONMENT = "environment"
_HASH_LENGTH = 8  # as asv shortens it in its own file names
_LONG_ENVIRONMENT = 128  # likewise


def write_sidecar(
    results: Path,
    machine: str,
    commit: str,
    benchmark: str,
    data: Mapping[str, object],
    environment: str | None = None,
) -> Path:
    """Write ``results/<machine>/evidence/<commit>-<benchmark>.evidence``; returns its path.

    ``environment`` is asv's, where it measures in one: it stands behind the commit, as in the names
    of asv's files. A sidecar of the same commit, environment and benchmark is replaced. Written for
    rejected runs too.

    Raises
    ------
    BadInput
        Where it cannot be written.

    """
    filed = _as_asv_files(environment or "")
    path = results / machine / "evidence" / sidecar_name(commit, benchmark, filed)
    told = {ENVIRONMENT: filed} if filed else {}
    said = {"schema": "moe-harness/evidence/1", **data, **told}
    # As it will be read: a tuple comes back as a list.
    content = json.loads(json.dumps(said, allow_nan=False))
    sealed = {**content, SEAL: digest(content)}
    write_atomically(path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")
    return path


def sidecar_name(commit: str, benchmark: str, environment: str = "") -> str:
    """Name of the file for a commit, a benchmark with its parameters, and asv's environment."""
    words = [commit[:_HASH_LENGTH], *filter(None, (environment,)), benchmark]
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", "-".join(words)) + ENDING


def _as_asv_files(environment: str) -> str:
    """Shorten an environment's name as asv does in its files' names (asv.results.get_filename)."""
    if len(environment) < _LONG_ENVIRONMENT:
        return environment
    return "env-" + hashlib.md5(environment.encode(), usedforsecurity=False).hexdigest()


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
