"""NVML is played by a fake module; tests marked gpu ask the real one."""

# ruff: noqa: N802 - the fake has NVML's names

import json
import os
import sys
import time
import types
import uuid

import pytest

from harness.errors import BadInput, HardwareAbsent
from harness.meter import gpu_energy
from harness.meter.gpu_driver import installed_driver
from harness.meter.gpu_energy import EnergyWindow
from harness.meter.gpu_peak import GpuPeak
from harness.meter.gpu_watch import Watch
from harness.meter.instruments import GpuInstruments
from harness.meter.memory import PeakMemory
from harness.meter.nvml import Gpu, UsedMemory, normalised_uuid

OURS = os.getpid()
HOSTS = [2**31 - 1, 2**31 - 2]  # beyond any PID that Linux gives: the host's, seen from inside
OTHER = os.getppid()  # a process that is here, and is not this one
UUIDS = ["GPU-0b1dd0b7-5fd2-4a43-9b1c-0123456789ab", "GPU-ffffffff-5fd2-4a43-9b1c-0123456789ab"]

EVENT_BITS = {
    "GpuIdle": 0x1,
    "ApplicationsClocksSetting": 0x2,
    "SwPowerCap": 0x4,
    "HwSlowdown": 0x8,
    "SyncBoost": 0x10,
    "SwThermalSlowdown": 0x20,
    "HwThermalSlowdown": 0x40,
    "HwPowerBrakeSlowdown": 0x80,
    "DisplayClockSetting": 0x100,
}
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, NO_LIBRARY, NO_FUNCTION, LOST = 3, 4, 6, 12, 13, 15
WORDS = {3: "Not Supported", 6: "Not Found", 12: "NVML Shared Library Not Found", 15: "GPU is lost"}


class FakeNvml(types.ModuleType):
    """Two GPUs, and an error for each query named in ``fails``."""

    NVML_ERROR_NOT_SUPPORTED = NOT_SUPPORTED
    NVML_ERROR_NO_PERMISSION = NO_PERMISSION
    NVML_ERROR_FUNCTION_NOT_FOUND = NO_FUNCTION
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        def __init__(self, value):
            super().__init__(value)
            self.value = value

        def __str__(self):
            return WORDS.get(self.value, f"error {self.value}")

    def __init__(self, prefix="nvmlClocksEventReason"):
        super().__init__("pynvml")
        self.users, self.fails = 0, {}
        self.total, self.used, self.compute, self.graphics = 1000, 100, [], []
        self.mask, self.millijoules, self.clock, self.heat = 0, 5_000_000, 1980, 41
        for ending, bit in EVENT_BITS.items():
            setattr(self, prefix + ending, bit)

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name.startswith("nvml") and name in super().__getattribute__("fails"):
            return super().__getattribute__("_fail")(name)
        return value

    def _fail(self, name):
        def fail(*_arguments):
            raise self.NVMLError(self.fails[name])

        return fail

    def nvmlInit(self):
        self.users += 1

    def nvmlShutdown(self):
        self.users -= 1

    def nvmlSystemGetDriverVersion(self):
        return "580.159.03"

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return 13010

    def nvmlDeviceGetCount(self):
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index):
        if not 0 <= index < len(UUIDS):
            raise self.NVMLError(NOT_FOUND)
        return index

    def nvmlDeviceGetHandleByUUID(self, wanted):
        if wanted not in UUIDS:
            raise self.NVMLError(NOT_FOUND)
        return UUIDS.index(wanted)

    def nvmlDeviceGetName(self, _handle):
        return "NVIDIA H200"

    def nvmlDeviceGetUUID(self, handle):
        return UUIDS[handle]

    def nvmlDeviceGetMemoryInfo(self, _handle):
        return types.SimpleNamespace(total=self.total, used=self.used)

    def nvmlDeviceGetClockInfo(self, _handle, which):
        return self.clock if which == self.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetMaxClockInfo(self, _handle, _which):
        return 1980

    def nvmlDeviceGetTemperature(self, _handle, _sensor):
        return self.heat

    def nvmlDeviceGetPowerUsage(self, _handle):
        return 345_600

    def nvmlDeviceGetCurrentClocksEventReasons(self, _handle):
        return self.mask

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle):
        return self.millijoules

    def nvmlDeviceGetComputeRunningProcesses_v3(self, _handle):
        return [process(*entry) for entry in self.compute]

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, _handle):
        return [process(*entry) for entry in self.graphics]


def process(pid, used):
    return types.SimpleNamespace(pid=pid, usedGpuMemory=used)


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def gpu(nvml):
    with Gpu.at(0) as gpu:
        yield gpu
    assert nvml.users == 0


class TestOpening:
    def test_says_what_it_is(self, gpu):
        assert (gpu.name, gpu.uuid) == ("NVIDIA H200", UUIDS[0])
        assert (gpu.driver.version, gpu.driver.cuda) == ("580.159.03", (13, 1))
        assert (gpu.total_bytes, gpu.used_bytes) == (1000, 100)

    def test_evidence_tells_the_memory_that_it_has(self, gpu):
        assert GpuInstruments(gpu, lambda: 1.0).to_json()["memory_total_bytes"] == 1000

    @pytest.mark.parametrize(
        "form",
        [
            UUIDS[1],
            UUIDS[1].upper(),
            UUIDS[1].removeprefix("GPU-"),
            uuid.UUID(UUIDS[1][4:]).hex,
            uuid.UUID(UUIDS[1][4:]).bytes,
        ],
    )
    def test_any_form_of_a_uuid_finds_its_gpu(self, nvml, form):
        with Gpu.open(form) as gpu:
            assert gpu.uuid == UUIDS[1]
        assert nvml.users == 0

    @pytest.mark.parametrize("form", ["", "GPU-", "GPU-12", "0", b"", b"GPU-0b1dd0b7"])
    def test_what_is_no_uuid(self, form):
        with pytest.raises(BadInput, match="is no GPU UUID; expected GPU-x") as caught:
            normalised_uuid(form)
        assert not isinstance(caught.value, HardwareAbsent)

    def test_a_missing_gpu_lists_those_here_and_lets_go(self, nvml):
        missing = "GPU-12345678-5fd2-4a43-9b1c-0123456789ab"
        with pytest.raises(HardwareAbsent, match=f"no GPU {missing}") as caught:
            Gpu.open(missing)
        assert all(f"NVIDIA H200 {here}" in str(caught.value) for here in UUIDS)
        with pytest.raises(HardwareAbsent, match="no GPU number 2"):
            Gpu.at(2)
        assert nvml.users == 0

    def test_a_lost_gpu_is_not_listed(self, nvml):
        nvml.fails = {"nvmlDeviceGetUUID": LOST}
        with pytest.raises(HardwareAbsent, match=r"GPU is lost.*here: none"):
            Gpu.at(0)
        assert nvml.users == 0

    def test_the_package_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        for ask in (lambda: Gpu.at(0), installed_driver):
            with pytest.raises(HardwareAbsent, match="nvidia-ml-py is not installed; pip install"):
                ask()

    def test_the_library_is_missing(self, nvml):
        nvml.fails = {"nvmlInit": NO_LIBRARY}
        for ask in (lambda: Gpu.at(0), installed_driver):
            with pytest.raises(HardwareAbsent, match="Shared Library Not Found; install"):
                ask()
        assert nvml.users == 0

    def test_the_driver_does_not_tell_its_version(self, nvml):
        nvml.fails = {"nvmlSystemGetDriverVersion": NOT_SUPPORTED}
        with pytest.raises(HardwareAbsent, match="does not tell the driver's version"):
            installed_driver()
        assert nvml.users == 0

    def test_an_exception_lets_go_and_closing_twice_is_harmless(self, nvml):
        with pytest.raises(KeyError), Gpu.at(0) as gpu:
            raise KeyError
        gpu.close()
        assert nvml.users == 0


FIELDS = {
    "nvmlDeviceGetClockInfo": {"sm_clock_mhz", "memory_clock_mhz"},
    "nvmlDeviceGetMaxClockInfo": {"max_sm_clock_mhz"},
    "nvmlDeviceGetTemperature": {"temperature_celsius"},
    "nvmlDeviceGetPowerUsage": {"power_watts"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"reasons", "throttled"},
}


class TestState:
    def test_units(self, gpu):
        assert gpu.state().to_json() == {
            "sm_clock_mhz": 1980,
            "memory_clock_mhz": 3201,
            "max_sm_clock_mhz": 1980,
            "temperature_celsius": 41,
            "power_watts": 345.6,
            "reasons": (),
            "throttled": False,
        }

    @pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, NO_FUNCTION])
    @pytest.mark.parametrize("query", FIELDS)
    def test_what_is_not_told_is_none_and_nothing_else_is(self, nvml, gpu, query, error):
        nvml.fails = {query: error}
        read = gpu.state().to_json()
        assert {name for name, value in read.items() if value is None} == FIELDS[query]

    def test_a_query_that_the_package_lacks_is_not_told(self, gpu):
        assert gpu.ask("nvmlDeviceGetSomethingNew") is None

    @pytest.mark.parametrize("query", FIELDS)
    def test_any_other_error_is_loud(self, nvml, gpu, query):
        nvml.fails = {query: LOST}
        with pytest.raises(BadInput, match=f"{UUIDS[0]}: {query}: GPU is lost"):
            gpu.state()

    @pytest.mark.parametrize(
        ("mask", "names", "throttled"),
        [
            (0x0, (), False),
            (0x1, ("gpu_idle",), False),
            (0x2, ("applications_clocks_setting",), False),
            (0x4, ("sw_power_cap",), False),
            (0x8, ("hw_slowdown",), True),
            (0x10, ("sync_boost",), False),
            (0x20, ("sw_thermal_slowdown",), True),
            (0x40, ("hw_thermal_slowdown",), True),
            (0x80, ("hw_power_brake_slowdown",), True),
            (0x100, ("display_clock_setting",), False),
            (0x48, ("hw_slowdown", "hw_thermal_slowdown"), True),
            (0x8001, ("gpu_idle", "unknown_0x8000"), False),
        ],
    )
    @pytest.mark.parametrize("prefix", ["nvmlClocksEventReason", "nvmlClocksThrottleReason"])
    def test_clock_event_bits(self, monkeypatch, prefix, mask, names, throttled):
        fake = FakeNvml(prefix)
        fake.mask = mask
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        with Gpu.at(0) as gpu:
            state = gpu.state()
        assert (state.reasons, state.throttled) == (names, throttled)

    def test_an_older_driver_answers_under_the_older_name(self, nvml, gpu):
        nvml.fails = {"nvmlDeviceGetCurrentClocksEventReasons": NO_FUNCTION}
        nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _handle: 0x40
        assert gpu.state().throttling == ("hw_thermal_slowdown",)


class TestMemory:
    def test_of_this_process(self, nvml, gpu):
        nvml.compute = [(OTHER, 70), (OURS, 30)]
        gpu.memory_baseline()
        assert gpu.memory() == UsedMemory(30, "NVML, this process")
        assert gpu.memory(OTHER) == UsedMemory(70, f"NVML, process {OTHER}")

    @pytest.mark.parametrize("told", [[(HOSTS[0], 30)], [(OURS, None)], [(OURS, 0)], []])
    def test_not_told_apart_is_the_device_less_the_baseline(self, nvml, gpu, told):
        nvml.compute, nvml.used = told, 3_100_000
        assert gpu.memory_baseline() == 3_100_000
        nvml.used = 8_100_000
        source = "NVML, device used minus 3.1 MB before the decoder was opened"
        assert gpu.memory() == UsedMemory(5_000_000, source)

    def test_without_a_process_list(self, nvml, gpu):
        gpu.memory_baseline()
        nvml.fails = {"nvmlDeviceGetComputeRunningProcesses_v3": NOT_SUPPORTED}
        nvml.used = 150
        assert gpu.memory().bytes == 50

    def test_without_a_baseline_nothing_is_subtracted(self, gpu):
        used, source = gpu.memory()
        assert used == 100
        assert "no baseline" in source

    def test_a_baseline_that_was_freed_is_not_subtracted(self, nvml, gpu):
        gpu.memory_baseline()
        nvml.used = 60
        used, source = gpu.memory()
        assert used == 60
        assert "less than 0.0 MB before" in source

    def test_not_supported_at_all_is_none(self, nvml, gpu):
        nvml.fails = {"nvmlDeviceGetMemoryInfo": NOT_SUPPORTED}
        assert gpu.memory_baseline() is None
        assert gpu.memory() is None
        assert gpu.total_bytes is None
        nvml.compute = [(OURS, 30)]  # integrated GPUs tell processes but no device
        assert gpu.memory().bytes == 30


class TestPeak:
    def test_is_the_highest_of_the_samples_with_its_source(self, nvml, gpu):
        nvml.compute = [(OURS, 30)]
        peak = GpuPeak(gpu)
        nvml.compute = [(OURS, 90)]
        peak.sample()
        nvml.compute = [(OURS, 40)]
        assert peak.read() == PeakMemory(90, "NVML, this process")

    def test_reading_is_a_sample(self, nvml, gpu):
        nvml.compute = [(OURS, 30)]
        peak = GpuPeak(gpu)
        nvml.compute = [(OURS, 31)]
        assert peak.read().peak_bytes == 31

    def test_of_another_process(self, nvml, gpu):
        nvml.compute = [(OURS, 30), (OTHER, 70)]
        assert GpuPeak(gpu, pid=OTHER).read().peak_bytes == 70

    def test_in_the_background_sees_what_came_and_went(self, nvml, gpu):
        nvml.compute = [(OURS, 30)]
        with GpuPeak(gpu, background=True) as peak:
            nvml.compute = [(OURS, 90)]
            until(lambda: peak._peak.bytes == 90)
            nvml.compute = [(OURS, 40)]
        assert not peak._thread.is_alive()
        assert peak.read().peak_bytes == 90

    def test_without_the_background_it_does_not(self, nvml, gpu):
        nvml.compute = [(OURS, 30)]
        with GpuPeak(gpu) as peak:
            assert not peak._thread.is_alive()

    def test_an_error_in_the_background_is_raised_by_read(self, nvml, gpu):
        with GpuPeak(gpu, background=True) as peak:
            nvml.fails = {"nvmlDeviceGetMemoryInfo": LOST}
            until(lambda: not peak._thread.is_alive())
            nvml.fails = {}
            with pytest.raises(BadInput, match="GPU is lost"):
                peak.read()

    def test_nothing_told_is_no_peak(self, nvml, gpu):
        nvml.fails = {"nvmlDeviceGetMemoryInfo": NOT_SUPPORTED}
        with pytest.raises(HardwareAbsent, match="no peak can be taken"):
            GpuPeak(gpu)


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class TestForeignProcesses:
    @pytest.mark.parametrize(
        ("compute", "graphics", "foreign", "drawing", "note"),
        [
            ([OURS], [], (), (), "this process by its PID"),
            ([OURS, OTHER], [], (OTHER,), (), "this process by its PID"),
            ([OURS, HOSTS[0]], [], (HOSTS[0],), (), "this process by its PID"),
            ([OURS], [OTHER], (), (OTHER,), "this process by its PID"),
            ([OURS, OTHER], [OURS, OTHER], (OTHER,), (), "this process by its PID"),
            ([OTHER], [], (OTHER,), (), "but not this one"),
            ([], [], (), (), "others may be hidden"),
            ([HOSTS[0]], [], (), (), f"as {HOSTS[0]}, a PID of the host: taken to be this one"),
            ([0], [], (), (), "taken to be this one"),
            (HOSTS, [], tuple(sorted(HOSTS)), (), "2 processes under PIDs of the host"),
        ],
    )
    def test_told_from_this_one(self, nvml, gpu, compute, graphics, foreign, drawing, note):
        nvml.compute = [(pid, None) for pid in compute]
        nvml.graphics = [(pid, None) for pid in graphics]
        others = gpu.foreign_processes()
        assert (others.compute, others.graphics) == (foreign, drawing)
        assert note in others.note

    def test_a_process_of_another_user_is_here(self, nvml, gpu, monkeypatch):
        def refuse(_pid, _signal):
            raise PermissionError

        monkeypatch.setattr(os, "kill", refuse)
        nvml.compute = [(OTHER, None)]
        assert gpu.foreign_processes().compute == (OTHER,)

    def test_not_listed_is_none_not_empty(self, nvml, gpu):
        nvml.fails = {
            "nvmlDeviceGetComputeRunningProcesses_v3": NOT_SUPPORTED,
            "nvmlDeviceGetGraphicsRunningProcesses_v3": NO_PERMISSION,
        }
        others = gpu.foreign_processes()
        assert (others.compute, others.graphics) == (None, None)
        assert "others are not seen" in others.note


class TestEnergy:
    @pytest.fixture
    def clock(self, monkeypatch):
        clock = types.SimpleNamespace(now=100.0)
        monkeypatch.setattr(gpu_energy.time, "monotonic", lambda: clock.now)
        return clock

    def test_over_a_window(self, nvml, gpu, clock):
        window = EnergyWindow(gpu)
        window.start()
        clock.now += 2
        nvml.millijoules += 700_500
        energy = window.stop()
        assert (energy.joules, energy.seconds, energy.watts) == (700.5, 2, 350.25)
        assert energy.source.startswith("NVML")
        assert window.reason is None

    def test_too_short(self, nvml, gpu, clock):
        window = EnergyWindow(gpu)
        window.start()
        clock.now += 0.99
        nvml.millijoules += 300_000
        assert window.stop() is None
        assert "0.99 s is too short" in window.reason
        window.start()
        clock.now += 1
        nvml.millijoules += 300_000
        assert window.stop().joules == 300
        assert window.reason is None

    def test_not_supported(self, nvml, gpu, clock):
        nvml.fails = {"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED}
        window = EnergyWindow(gpu)
        window.start()
        clock.now += 2
        assert window.stop() is None
        assert window.reason == "NVML tells no energy of this GPU"

    @pytest.mark.parametrize("moved", [0, -1000])
    def test_a_counter_that_does_not_rise(self, nvml, gpu, clock, moved):
        window = EnergyWindow(gpu)
        window.start()
        clock.now += 2
        nvml.millijoules += moved
        assert window.stop() is None
        assert "reset, or stands still" in window.reason

    def test_no_window_no_energy(self, gpu):
        window = EnergyWindow(gpu)
        with pytest.raises(RuntimeError):
            window.stop()
        window.start()
        window.stop()
        with pytest.raises(RuntimeError):
            window.stop()


class TestWatch:
    def test_a_quiet_pass_is_usable(self, nvml, gpu):
        nvml.compute, nvml.mask = [(OURS, 1)], 0x4
        watch = Watch(gpu)
        assert not watch.before()
        assert not watch.after(128)
        assert watch.dropped == {"throttled": 0, "foreign process": 0}

    @pytest.mark.parametrize("side", ["before", "after"])
    def test_throttling_on_either_side_drops_the_samples(self, nvml, gpu, side):
        watch = Watch(gpu)
        nvml.mask = 0x44 if side == "before" else 0
        assert bool(watch.before()) == (side == "before")
        nvml.mask = 0x44 if side == "after" else 0
        seen = watch.after(128)
        assert seen.throttled == ("hw_thermal_slowdown",)
        assert str(seen) == "throttled: hw_thermal_slowdown"
        assert watch.dropped == {"throttled": 128, "foreign process": 0}

    @pytest.mark.parametrize("side", ["before", "after"])
    def test_so_does_a_foreign_process(self, nvml, gpu, side):
        alone, shared = [(OURS, 1)], [(OURS, 1), (OTHER, 1)]
        watch = Watch(gpu)
        nvml.compute = shared if side == "before" else alone
        watch.before()
        nvml.compute = shared if side == "after" else alone
        seen = watch.after(16)
        assert seen.foreign == (OTHER,)
        assert str(seen) == f"foreign process: {OTHER}"
        assert watch.dropped == {"throttled": 0, "foreign process": 16}

    def test_counts_add_up_and_one_pass_does_not_stain_the_next(self, nvml, gpu):
        watch = Watch(gpu)
        for mask, compute in [(0x8, [OURS, OTHER]), (0, [OURS]), (0x20, [OURS])]:
            nvml.mask, nvml.compute = mask, [(pid, 1) for pid in compute]
            watch.before()
            assert bool(watch.after(10)) == (mask != 0)
        assert watch.dropped == {"throttled": 20, "foreign process": 10}

    def test_a_process_that_draws_is_noted_only(self, nvml, gpu):
        nvml.compute, nvml.graphics = [(OURS, 1)], [(OTHER, 1)]
        watch = Watch(gpu)
        watch.before()
        assert not watch.after()
        assert watch.to_json()["graphics_processes"] == [OTHER]

    def test_after_needs_before(self, gpu):
        watch = Watch(gpu)
        with pytest.raises(RuntimeError):
            watch.after()
        watch.before()
        watch.after()
        with pytest.raises(RuntimeError):
            watch.after()

    def test_evidence(self, nvml, gpu):
        watch = Watch(gpu)
        nvml.compute = [(OURS, 1), (OTHER, 1)]
        nvml.clock, nvml.heat, nvml.mask = 1980, 60, 0x4
        watch.before()
        nvml.clock, nvml.heat, nvml.mask = 1200, 85, 0x24
        watch.after(4)
        assert json.loads(json.dumps(watch.to_json())) == {
            "gpu": "NVIDIA H200",
            "uuid": UUIDS[0],
            "driver": "580.159.03",
            "passes": 1,
            "dropped": {"throttled": 4, "foreign process": 4},
            "clock_event_reasons": {"sw_power_cap": 2, "sw_thermal_slowdown": 1},
            "max_sm_clock_mhz": 1980,
            "sm_clock_mhz": [1200, 1980],
            "memory_clock_mhz": [3201, 3201],
            "temperature_celsius": [60, 85],
            "power_watts": [345.6, 345.6],
            "foreign_processes": [OTHER],
            "graphics_processes": [],
            "processes_note": ["NVML lists this process by its PID"],
        }

    def test_what_is_not_told_is_null_in_the_evidence(self, nvml, gpu):
        told_by = [*FIELDS, "nvmlDeviceGetComputeRunningProcesses_v3"]
        told_by += ["nvmlDeviceGetGraphicsRunningProcesses_v3"]
        nvml.fails = dict.fromkeys(told_by, NOT_SUPPORTED)
        watch = Watch(gpu)
        watch.before()
        assert not watch.after()
        evidence = watch.to_json()
        unknown = {name for name, value in evidence.items() if value is None}
        assert unknown == {
            "clock_event_reasons",
            "max_sm_clock_mhz",
            "sm_clock_mhz",
            "memory_clock_mhz",
            "temperature_celsius",
            "power_watts",
            "foreign_processes",
            "graphics_processes",
        }


@pytest.fixture
def real_gpu():
    with Gpu.at(0) as gpu:
        yield gpu


@pytest.mark.gpu
class TestRealGpu:
    def test_says_what_it_is(self, real_gpu):
        assert "NVIDIA" in real_gpu.name or "Tesla" in real_gpu.name
        assert real_gpu.driver.cuda >= (12, 0)
        assert real_gpu.total_bytes > 1 << 30
        assert 0 < real_gpu.used_bytes < real_gpu.total_bytes
        with Gpu.open(real_gpu.uuid) as again:
            assert again.uuid == real_gpu.uuid

    def test_state_is_of_this_world(self, real_gpu):
        state = real_gpu.state()
        assert 100 <= state.sm_clock_mhz <= state.max_sm_clock_mhz <= 5000
        assert state.memory_clock_mhz > 100
        assert 10 < state.temperature_celsius < 110
        assert 5 < state.power_watts < 2000
        assert state.reasons is not None
        assert not [reason for reason in state.reasons if reason.startswith("unknown")]

    def test_energy_rises(self, real_gpu):
        window = EnergyWindow(real_gpu)
        window.start()
        time.sleep(1.2)
        energy = window.stop()
        assert window.reason is None
        assert 1.2 <= energy.seconds < 3
        assert 5 < energy.watts < 2000

    def test_memory_sees_an_allocation(self):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("torch here is built without CUDA")
        size, slack = 256 << 20, 16 << 20
        device = torch.device("cuda", 0)
        torch.zeros(1, device=device)
        torch.cuda.synchronize()
        with Gpu.open(str(torch.cuda.get_device_properties(device).uuid)) as gpu:
            before, used_before = gpu.memory(), gpu.used_bytes
            with GpuPeak(gpu, background=True) as peak:
                block = torch.empty(size, dtype=torch.uint8, device=device)
                grown, used_grown = gpu.memory().bytes - before.bytes, gpu.used_bytes - used_before
                del block
                torch.cuda.empty_cache()
            print(before.source, gpu.foreign_processes())
            assert abs(grown - size) <= slack
            assert abs(used_grown - size) <= slack
            assert peak.read().peak_bytes - before.bytes >= 0
            assert gpu.memory().bytes - before.bytes <= slack

    def test_this_process_is_not_foreign(self):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("torch here is built without CUDA")
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        with Gpu.open(str(torch.cuda.get_device_properties(0).uuid)) as gpu:
            others = gpu.foreign_processes()
            print(others)
            assert OURS not in others.compute
            watch = Watch(gpu)
            watch.before()
            watch.after()
            json.dumps(watch.to_json(), allow_nan=False)
