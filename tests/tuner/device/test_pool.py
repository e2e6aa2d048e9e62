"""A pool of devices that are lost and come back."""

import threading

import pytest

from tilewright.errors import DeviceLostError, MeasureError
from tilewright.tuner.device.pool import DevicePool
from tilewright.tuner.worker.process import WorkerTimeout


class _Device:
    """A device whose checks answer its name; the numbers in `losses` are lost instead."""

    def __init__(self, name, losses=(), connects=True):
        self.name, self.losses, self.connects = name, set(losses), connects
        self.calls, self.closed = 0, False

    def connect(self):
        if not self.connects:
            raise DeviceLostError(f"{self.name}: nobody there")
        return {"processor": "imagined"}

    def check(self, entry, tolerance, timeout_s):
        self.calls += 1
        if self.calls in self.losses:
            raise DeviceLostError(f"{self.name}: the connection broke")
        return {"seconds": [1.0], "by": self.name, **entry}

    def close(self):
        self.closed = True


def test_what_a_lost_device_leaves_undone_another_does():
    first, second = _Device("one", losses=[1]), _Device("two")
    pool = DevicePool([first, second])
    assert pool.check({}, 0.0, 1.0)["by"] == "two"
    assert pool.warnings == ["device lost: one: the connection broke"]
    pool.close()
    assert first.closed
    assert second.closed


def test_a_device_that_comes_back_is_used_again():
    device = _Device("one", losses=[1])
    pool = DevicePool([device])
    assert pool.check({}, 0.0, 1.0)["by"] == "one"
    assert pool.warnings[-1] == "device back: one"
    pool.close()


def test_a_candidate_that_loses_three_devices_is_to_blame():
    devices = [_Device(name, losses=[1]) for name in ("one", "two", "three")]
    pool = DevicePool(devices)
    assert "3 devices were lost on it" in pool.check({}, 0.0, 1.0)["error"]
    pool.close()


def test_devices_work_at_the_same_time():
    barrier = threading.Barrier(2, timeout=10)

    class Meeting(_Device):
        def check(self, entry, tolerance, timeout_s):
            barrier.wait()
            return super().check(entry, tolerance, timeout_s)

    pool = DevicePool([Meeting("one"), Meeting("two")])
    assert pool.parallel == 2
    other = threading.Thread(target=pool.check, args=({}, 0.0, 1.0))
    other.start()
    pool.check({}, 0.0, 1.0)
    other.join()
    pool.close()


def test_no_device_at_all_is_an_error_that_names_them():
    with pytest.raises(MeasureError, match="no device answers: one: nobody there; two: nobody"):
        DevicePool([_Device("one", connects=False), _Device("two", connects=False)])


def test_devices_that_stay_away_end_the_wait():
    device = _Device("one", losses=[1])
    pool = DevicePool([device], patience_s=0.2)
    device.connects = False
    with pytest.raises(MeasureError, match=r"no device has answered for 0\.2 s"):
        pool.check({}, 0.0, 1.0)
    pool.close()


def test_a_candidate_that_takes_too_long_is_no_lost_device():
    pool = DevicePool([_Device("one")])
    with pytest.raises(WorkerTimeout, match="took over 1 s"):
        pool.check({"error": "took over 1 s to run", "timeout": True}, 0.0, 1.0)
    assert pool.warnings == []
    pool.close()
