"""Which commit is measured, and whether the tree is as it was committed."""

from __future__ import annotations

import datetime as dt
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness import __version__
from harness.settings import settings

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Commit:
    """``hash`` is ``unknown`` outside a git checkout; ``dirty`` is then None."""

    hash: str
    dirty: bool | None


def this_commit() -> Commit:
    """Read the commit that asv installed, or else that of the checkout this package runs from."""
    installed = settings().commit
    if installed is not None:
        return Commit(installed, dirty=False)
    head = _git("rev-parse", "HEAD")
    if head is None:
        return Commit("unknown", None)
    # Results and evidence are written while measuring: they do not change what is measured.
    status = _git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    return Commit(head, None if status is None else bool(status))


def provenance() -> dict[str, object]:
    """Say which commit was measured, and when."""
    commit = this_commit()
    return {
        "commit": commit.hash,
        "dirty": commit.dirty,
        "version": __version__,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(_HERE), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
