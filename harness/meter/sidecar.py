"""Evidence beside asv's results: asv's files have no room for it.

Sidecars end in ``.evidence`` (JSON inside): asv reads every ``.json`` under results/.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from harness.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENDING = ".evidence"
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
    folder = results / machine / "evidence"
    name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", benchmark)
    path = folder / f"{commit[:_HASH_LENGTH]}-{name}{ENDING}"
    text = json.dumps({"schema": "moe-harness/evidence/1", **data}, indent=1, allow_nan=False)
    write_atomically(path, text + "\n")
    return path
