"""Profiling another commit of this project: its files in a folder of their own, its own command."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput, Rejected
from harness.profile.recording import Recording, read_recording

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROOT = Path(__file__).parents[2]
_REJECTED = "moe-harness: rejected: "


def find_commit(name: str) -> str | None:
    """Full hash of a commit of this checkout; None where there is no such commit."""
    if name.startswith("-"):  # git would take it for an option
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def profile_commit(commit: str, arguments: Sequence[str]) -> Recording:
    """Run ``moe-harness profile`` of a commit in a process of its own, on the same arguments.

    Raises
    ------
    BadInput
        Where that commit cannot be had, has no such command, or its command refuses.
    Rejected
        Where its guard rejects.

    """
    short = commit[:10]
    with _files_of(commit) as folder, tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-m", "harness", "profile", *arguments, "--out", out],
            cwd=folder,
            # Its provenance: outside a checkout it could not tell which commit it is.
            env={**os.environ, "ASV_COMMIT": commit, "PYTHONPATH": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing was said"]
        recording = Path(out) / "recording.json"
        reasons = [line for line in said if line.startswith(_REJECTED)]
        if reasons and not recording.is_file():
            raise Rejected([f"commit {short}: {line.removeprefix(_REJECTED)}" for line in reasons])
        if not recording.is_file():
            raise BadInput(
                f"commit {short} cannot be profiled ({said[-1]}); name a commit that has the "
                "profile command, or a recording"
            )
        return read_recording(recording)


@contextmanager
def _files_of(commit: str) -> Iterator[Path]:
    """Unpack a commit's files, and remove them afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = folder / "files.tar"
        try:
            subprocess.run(
                ["git", "-C", str(_ROOT), "archive", "--output", str(packed), commit],
                capture_output=True,
                check=True,
                timeout=120,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BadInput(f"commit {commit[:10]} cannot be unpacked ({error})") from None
        files = folder / "files"
        with tarfile.open(packed) as archive:
            archive.extractall(files, filter="data")
        yield files
