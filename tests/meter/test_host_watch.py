"""The CPU meter notices what others take of the cores."""

import multiprocessing
import time

import pytest

from harness.errors import BadInput
from harness.meter import host_watch, instruments
from harness.meter.host_watch import HostWatch
from harness.meter.instruments import HostInstruments


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_ones_own_work_is_not_foreign(monkeypatch):
    wall, own, busy = iter([10.0, 12.0]), iter([3.0, 4.5]), iter([100.0, 102.0])
    monkeypatch.setattr(host_watch.time, "monotonic", lambda: next(wall))
    monkeypatch.setattr(host_watch.time, "process_time", lambda: next(own))
    monkeypatch.setattr(host_watch, "_busy_seconds", lambda: next(busy))
    # Two seconds of CPU time in two seconds, one and a half of them this process's own.
    assert HostWatch().foreign_cores() == 0.25


def test_a_foreign_task_is_seen():
    watch = HostWatch()
    other = multiprocessing.get_context("spawn").Process(target=spin, args=(3,))
    other.start()
    time.sleep(1)  # it starts
    watch.begin()
    time.sleep(0.5)
    beside = watch.foreign_cores()
    other.terminate()
    other.join()
    assert beside > 0.5


def with_others(monkeypatch, cores, **options):
    monkeypatch.setattr(instruments, "_WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(instruments, "_MOST_DISTURBED", 3)
    measured = HostInstruments(**options)
    shares = iter(cores)
    monkeypatch.setattr(measured._watch, "foreign_cores", lambda: next(shares))
    return measured


def one_pass():
    time.sleep(0.001)
    return [1.0, 2.0]


def test_disturbed_samples_are_dropped_and_counted(monkeypatch):
    measured = with_others(monkeypatch, [0.1, 0.9, 0.2], bear_others=False)
    kept = [measured.undisturbed(one_pass) for _ in range(3)]
    assert [bool(samples) for samples in kept] == [True, False, True]
    data = measured.to_json()
    assert data["foreign_cores"] == 0.2
    assert data["dropped"]["foreign process"] >= 2


def test_a_machine_that_is_never_quiet_is_refused_in_one_line(monkeypatch):
    measured = with_others(monkeypatch, [0.9] * 3, bear_others=False)
    measured.undisturbed(one_pass)
    measured.undisturbed(one_pass)
    with pytest.raises(BadInput, match=r"other processes kept 0\.9 cores"):
        measured.undisturbed(one_pass)


def test_whoever_bears_others_says_so(monkeypatch):
    measured = with_others(monkeypatch, [0.9, None], bear_others=True)
    assert measured.undisturbed(one_pass)
    assert measured.undisturbed(one_pass)  # a system that tells nothing disturbs nothing
    data = measured.to_json()
    assert data["foreign_cores"] == 0.9
    assert data["most_foreign_cores"] is None
