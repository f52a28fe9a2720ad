"""Power over time: readings while something runs, and an error that is not swallowed."""

import time

import pytest

from harness.meter.gpu_state import GpuState
from harness.profile.power import PowerWatch


def state(watts):
    return GpuState(1980, 3201, 1980, 40, watts, ())


def test_readings_are_taken_while_it_is_entered():
    with PowerWatch(lambda: state(350.0)) as watch:
        time.sleep(0.3)
    count = len(watch.readings)
    assert count >= 2
    assert all(reading[1:] == (350.0, 1980) for reading in watch.readings)
    times = [at for at, _, _ in watch.readings]
    assert times == sorted(times)
    time.sleep(0.15)
    assert len(watch.readings) == count


def test_what_nvml_does_not_tell_is_no_reading():
    with PowerWatch(lambda: state(None)) as watch:
        time.sleep(0.1)
    assert watch.readings == []


def test_an_error_comes_out():
    def fail():
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"), PowerWatch(fail):
        time.sleep(0.05)
