"""What a GPU was doing at one instant: clocks, heat, power, and what held its clocks down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

# Our word for a clock event reason, and how NVML's constant ends. It begins with
# nvmlClocksEventReason or, in older packages (and for the last two in newer ones as well), with
# nvmlClocksThrottleReason.
_REASONS = {
    "gpu_idle": "GpuIdle",
    "applications_clocks_setting": "ApplicationsClocksSetting",
    "sw_power_cap": "SwPowerCap",
    "hw_slowdown": "HwSlowdown",
    "sync_boost": "SyncBoost",
    "sw_thermal_slowdown": "SwThermalSlowdown",
    "hw_thermal_slowdown": "HwThermalSlowdown",
    "hw_power_brake_slowdown": "HwPowerBrakeSlowdown",
    "display_clock_setting": "DisplayClockSetting",
    "board_limit": "BoardLimit",
    "reliability": "Reliability",
}
_PREFIXES = ("nvmlClocksEventReason", "nvmlClocksThrottleReason")

# A defect or the surroundings hold the clocks down: heat, the power supply, an external brake. The
# same commit would be faster on the same GPU in a cooler room, so the sample is not the commit's.
#
# sw_power_cap (and board_limit, reliability) is not among them: it is how a GPU governs itself
# within its rated power. Many cards run into it under any lasting load, so it is the speed that
# a user gets, and dropping it would leave nothing to measure there. It stays in the evidence.
# Idle, application clocks, sync boost and display clocks are settings, or the absence of work.
_THROTTLING = frozenset(
    {"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"}
)


def decode_reasons(nvml: ModuleType, mask: int) -> tuple[str, ...]:
    """Names of the clock event reasons in NVML's bit mask, lowest bit first.

    A bit that the installed package has no constant for is named ``unknown_0x…``, never dropped.
    """
    known = {
        int(getattr(nvml, prefix + ending)): name
        for name, ending in _REASONS.items()
        for prefix in _PREFIXES
        if hasattr(nvml, prefix + ending)
    }
    bits = [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
    return tuple(known.get(bit, f"unknown_{bit:#x}") for bit in bits)


@dataclass(frozen=True)
class GpuState:
    """One reading. What this GPU or its driver does not tell is None."""

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    temperature_celsius: int | None
    power_watts: float | None
    reasons: tuple[str, ...] | None

    @property
    def throttling(self) -> tuple[str, ...]:
        """Those of the reasons that spoil a sample."""
        return tuple(reason for reason in self.reasons or () if reason in _THROTTLING)

    @property
    def throttled(self) -> bool | None:
        """Whether a sample taken now is spoilt; None where the reasons are not told."""
        return None if self.reasons is None else bool(self.throttling)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the sidecar."""
        return {**asdict(self), "throttled": self.throttled}
