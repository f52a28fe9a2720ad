"""A profile as a table: plain lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.profile.recording import Recording
    from harness.profile.summary import Profile, Row

_COLUMNS = (
    f"{'kernel':<17} {'calls':>5} {'adds us':>9} {'share':>7} {'MB moved':>9} {'GB/s':>8} "
    f"{'of peak':>8} {'ran us':>8} {'gap us':>8}"
)


def warning(recording: Recording) -> str | None:
    """What stands on every page of a profile that no guard accepted; None for others."""
    if recording.accepted:
        return None
    reason = next(iter(recording.verdict["reasons"]), "no reason was recorded")
    return f"UNGUARDED: the guard rejected what was profiled ({reason})"


def profile_lines(profile: Profile) -> list[str]:
    """Kernels, what adds most first; the critical path; the floor; the verdict."""
    recording, path = profile.recording, profile.path
    warned = warning(recording)
    calm, ran = recording.undisturbed, recording.ran
    lines = [] if warned is None else [warned, ""]
    lines += [_COLUMNS, *(_row(row) for row in profile.rows), ""]
    lines += [
        f"{'kernels':<17} {len(profile.nodes):>5} {path.kernels_us:9.1f} us",
        f"{'gaps between them':<23} {path.gaps_us:9.1f} us",
        f"{'host, token to token':<23} {path.host_us:9.1f} us",
        f"{'together':<23} {path.sum_us:9.1f} us, {_signed(path.sum_off)} of the undisturbed token",
        f"{'token, undisturbed':<23} {path.undisturbed_us:9.1f} us median of {calm.samples}, "
        f"{calm.p99_ms * 1e3:.1f} p99; beside the kernels it leaves {path.left_us:.1f}",
        f"{'token, traced':<23} {path.traced_us:9.1f} us median of "
        f"{len(recording.traced.token_ms)}: the tracer adds {_signed(path.perturbation)} "
        f"({recording.traced.tracer})",
        f"{'floor':<23} {path.floor_us:9.1f} us: {sum(recording.bytes) / 1e6:.2f} MB at "
        f"{recording.read_bandwidth / 1e9:.1f} GB/s, measured; the token takes "
        f"{path.distance:.2f} times that",
        "",
        f"ran on {ran['backend']}, {ran['device']}, {ran['numerics']}, at position "
        f"{recording.positions}",
        "verdict: ACCEPTED" if recording.accepted else "verdict: REJECTED",
    ]
    return lines if warned is None else [*lines, warned]


def memory_lines(recording: Recording) -> list[str]:
    """What was allocated, by purpose, against the peak that was seen."""
    memory = recording.memory
    counted = sum(memory["by_purpose"].values())
    lines = [f"{'memory':<23} {'bytes':>16}"]
    lines += [f"{purpose:<23} {size:>16,}" for purpose, size in memory["by_purpose"].items()]
    lines += [
        f"{'together':<23} {counted:>16,}",
        f"{'peak':<23} {memory['peak_bytes']:>16,}  {memory['source']}",
        f"{'not accounted for':<23} {memory['peak_bytes'] - counted:>16,}  what else "
        "the process holds",
    ]
    return lines


def energy_lines(recording: Recording) -> list[str]:
    """Joules a token; power over time as its range."""
    energy = recording.energy
    if energy is None:
        return []
    joules = energy["joules_per_token"]
    if joules is None:
        return ["energy: no counter tells it on this device"]
    lines = [f"{joules:.4f} J/token, of the whole board"]
    if energy["power"]:
        watts = [watts for _, watts, _ in energy["power"]]
        lines.append(
            f"{min(watts):.0f} to {max(watts):.0f} W over {energy['power'][-1][0]:.1f} s, "
            f"{len(watts)} readings: {_sparkline(watts)}"
        )
    return lines


def _row(row: Row) -> str:
    rate, share = row.bytes_per_second, row.bandwidth_share
    return (
        f"{row.kind.name:<17} {row.calls:>5} {row.adds_us:9.1f} {100 * row.share:5.1f} % "
        f"{row.bytes / 1e6:9.3f} {'-' if rate is None else f'{rate / 1e9:.1f}':>8} "
        f"{'-' if share is None else f'{100 * share:.1f} %':>8} {row.us:8.1f} {row.gap_us:8.1f}"
    )


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw values as bars from 0 to their most, the mean of each stretch."""
    bars = " ▁▂▃▄▅▆▇█"
    width, most = min(width, len(values)), max(values)
    means = []
    for place in range(width):
        part = values[place * len(values) // width : (place + 1) * len(values) // width]
        means.append(sum(part) / len(part))
    return "".join(bars[round(mean / most * (len(bars) - 1))] for mean in means)
