"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) beside ``path``, then rename it into place.

    Raises
    ------
    BadInput
        Where that cannot be written; nothing half-written is left.

    """
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True) if beside.parent.is_dir() else None
        raise BadInput(
            f"{path}: cannot be written ({error.strerror}); name a place that can be"
        ) from None
