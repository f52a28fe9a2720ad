"""Sidecars as evidence: which of them can be believed, and what they are about."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.meter.sidecar import ENDING, ENVIRONMENT, SEAL, digest, sidecar_name

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 64 << 20
# No sidecar had these before it had a seal.
_CAME_WITH_SEALS = ("figures", "commit", ENVIRONMENT)


class Damaged(Exception):  # noqa: N818 - it is the file that is damaged
    """A file that is not as it was written; the message says how."""


@dataclass(frozen=True)
class Finding:
    """A file that is not what was measured, and in what."""

    path: Path
    what: str


@dataclass(frozen=True)
class Sidecar:
    """One sidecar, read. ``sealed`` is false for those written before there were seals.

    ``machine`` is the folder that it lies in.
    """

    path: Path
    machine: str
    content: dict[str, Any]
    sealed: bool

    @property
    def benchmark(self) -> str:
        """Class and parameters: ``decode.Qwen3MoeDecode depth=0``."""
        return " ".join(str(self.content.get("benchmark")).split()) or "?"

    @property
    def commit(self) -> str:
        """First digits of the measured commit's hash, as the file's name has them."""
        return self.path.name.partition("-")[0]

    @property
    def environment(self) -> str:
        """Asv's environment, as its files are named by; empty for one from before that was told."""
        # Only a seal says that it was told by a run.
        return str(self.content.get(ENVIRONMENT, "")) if self.sealed else ""

    @property
    def ran(self) -> dict[str, Any]:
        """What computed; empty where that is not known."""
        ran = self.content.get("ran")
        return ran if isinstance(ran, dict) else {}

    @property
    def subject(self) -> str:
        """Whose figures these are: the GPU's, or what else computed."""
        machine = self.content.get("machine")
        told = machine if isinstance(machine, dict) else {}
        if self.ran.get("backend") == "oracle":
            return "oracle"
        name = self.ran.get("gpu") or self.ran.get("device") or told.get("gpu") or told.get("cpu")
        return re.sub(r"^\d+x ", "", str(name or self.machine))

    @property
    def date(self) -> str:
        """When it was measured, ISO 8601; empty where that is not known."""
        return str(self.ran.get("date", ""))

    @property
    def accepted(self) -> bool:
        """Whether the guard accepted."""
        return _verdict(self.content).get("accepted") is True

    @property
    def reasons(self) -> list[str]:
        """Why the guard did not."""
        reasons = _verdict(self.content).get("reasons")
        return [str(reason) for reason in reasons] if isinstance(reasons, list) else []


def read_sidecar(path: Path) -> Sidecar:
    """Read a sidecar and hold it against its seal, its name and its folder.

    Raises
    ------
    Damaged
        Where it is not what was written.

    """
    content, machine = read_json(path), path.parents[1].name
    if SEAL not in content:
        if any(key in content for key in _CAME_WITH_SEALS):
            raise Damaged("its seal was taken out")
        return Sidecar(path, machine, content, sealed=False)
    try:
        now = digest(content)
    except (ValueError, RecursionError):
        raise Damaged("holds NaN or an infinity, which no sidecar does") from None
    if content[SEAL] != now:
        raise Damaged("what it says does not fit its seal: it was changed after it was written")
    sidecar = Sidecar(path, machine, content, sealed=True)
    told = content.get("machine")
    if not isinstance(told, dict) or told.get("machine") != machine:
        raise Damaged(f"lies in the folder of {machine}, but was written for another machine")
    commit = str(content.get("commit", ""))
    if path.name != sidecar_name(commit, sidecar.benchmark, sidecar.environment):
        raise Damaged(f"is named as another one; it is {sidecar.benchmark} of {commit[:8]}")
    return sidecar


def sidecar_paths(results: Path) -> list[Path]:
    """All sidecars under ``results/``."""
    return sorted(results.glob(f"*/evidence/*{ENDING}"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, of which no key stands twice.

    Raises
    ------
    Damaged
        For anything else.

    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise Damaged(f"more than {_MOST_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"no JSON ({error})") from None
    if not isinstance(data, dict):
        raise Damaged("no JSON object")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _verdict(content: dict[str, Any]) -> dict[str, Any]:
    """The guard's verdict; kernels have it inside the evidence."""
    for place in (content, content.get("evidence")):
        if isinstance(place, dict) and isinstance(place.get("verdict"), dict):
            return dict(place["verdict"])
    return {}
