"""Two profiles side by side, what changed most first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.profile.table import warning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.profile.summary import Profile, Row

_PATH = {
    "kernels_us": "kernels",
    "gaps_us": "gaps between them",
    "host_us": "host, token to token",
    "undisturbed_us": "token, undisturbed",
    "traced_us": "token, traced",
    "floor_us": "floor",
}


@dataclass(frozen=True)
class Change:
    """One kernel in both: microseconds of a token and launches; 0 where it is not launched."""

    name: str
    before_us: float
    after_us: float
    before_calls: int
    after_calls: int

    @property
    def us(self) -> float:
        """What it takes more."""
        return self.after_us - self.before_us


@dataclass(frozen=True)
class ProfileComparison:
    """``after`` held against ``before``."""

    before_name: str
    after_name: str
    before: Profile
    after: Profile

    @property
    def changes(self) -> list[Change]:
        """Each kernel that either launches, the greatest change first."""
        before, after = _by_name(self.before), _by_name(self.after)
        changes = [
            Change(
                name,
                _us(before, name),
                _us(after, name),
                before[name].calls if name in before else 0,
                after[name].calls if name in after else 0,
            )
            for name in dict.fromkeys((*before, *after))
        ]
        return sorted(changes, key=lambda change: -abs(change.us))

    def lines(self) -> list[str]:
        """Lines of the comparison."""
        warned = {
            name: told
            for name, profile in ((self.before_name, self.before), (self.after_name, self.after))
            if (told := warning(profile.recording)) is not None
        }
        apart = self._apart()
        return [
            *(f"{name}: {told}" for name, told in warned.items()),
            *(f"NOT ALIKE: {what}" for what in apart),
            f"before: {self.before_name}; after: {self.after_name}",
            f"{'kernel':<23} {'before us':>10} {'after us':>10} {'change us':>10} {'':>8}",
            *(
                _line(change.name, change.before_us, change.after_us)
                + _calls(change.before_calls, change.after_calls)
                for change in self.changes
            ),
            "",
            *(
                _line(words, getattr(self.before.path, key), getattr(self.after.path, key))
                for key, words in _PATH.items()
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain data; both profiles are in it, whole."""
        return {
            "schema": "moe-harness/profile-comparison/1",
            "before": {"name": self.before_name, **self.before.to_json()},
            "after": {"name": self.after_name, **self.after.to_json()},
            "not_alike": self._apart(),
            "changes": [{**vars(change), "us": change.us} for change in self.changes],
        }

    def _apart(self) -> list[str]:
        """Say what makes the two unlike beyond what is compared."""
        one, two = self.before.recording, self.after.recording
        pairs = {
            "model": (one.ran.get("model_fingerprint"), two.ran.get("model_fingerprint")),
            "device": (one.ran["device"], two.ran["device"]),
            "backend": (one.ran["backend"], two.ran["backend"]),
            "position": (one.positions, two.positions),
        }
        return [f"{what} {a} and {b}" for what, (a, b) in pairs.items() if a != b]


def _by_name(profile: Profile) -> dict[str, Row]:
    return {row.kind.name: row for row in profile.rows}


def _us(rows: Mapping[str, Row], name: str) -> float:
    return rows[name].adds_us if name in rows else 0.0


def _line(words: str, before: float, after: float) -> str:
    share = f"{100 * (after / before - 1):+.1f} %" if before else "new" if after else ""
    return f"{words:<23} {before:10.1f} {after:10.1f} {after - before:+10.1f} {share:>8}"


def _calls(before: int, after: int) -> str:
    return "" if before == after else f"  {before} launches, then {after}"
