"""Timing has a processor of its own wherever there are two."""

import pytest

from tilewright.errors import MeasureError
from tilewright.tuner import processors
from tilewright.tuner.processors import Placement, place


@pytest.fixture
def machine(monkeypatch):
    """Return a function that pretends a machine: processors allowed, and pairs of one core."""

    def pretend(allowed, pairs=()):
        monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _pid: set(allowed))
        monkeypatch.setattr(processors.os, "cpu_count", lambda: 8)
        cores = {cpu: set(pair) for pair in pairs for cpu in pair}
        monkeypatch.setattr(processors, "_threads_of_core", lambda cpu: cores.get(cpu, {cpu}))

    return pretend


@pytest.mark.parametrize(
    ("allowed", "options", "expected"),
    [
        ({0, 1}, (1, None, None, False), Placement(1, (0,), (1,))),
        ({0, 1}, (1, None, None, True), Placement(1, (0,), ())),
        ({0, 1}, (1, 1, None, False), Placement(1, (0,), ())),
        ({0, 1, 2, 3}, (1, None, 0, False), Placement(0, (1, 2, 3), (0,))),
        ({0}, (1, None, None, False), Placement(None, (), (None,))),
        ({0}, (1, None, 1, True), Placement(1, (0,), ())),
        ({0, 1}, (2, None, None, False), Placement(None, (), (None, None))),
    ],
)
def test_builders_are_free_stopped_or_kept_away(machine, allowed, options, expected):
    machine(allowed)
    assert place(*options) == expected


def test_second_thread_of_the_timing_core_is_stopped_too(machine):
    machine({0, 1, 2, 3}, [(0, 1), (2, 3)])
    assert place(1, None, None, False) == Placement(3, (0, 1), (2, 3))


def test_unknown_processor_is_named(machine):
    machine({0, 1})
    with pytest.raises(MeasureError, match="there is no processor 8; this machine has 0 to 7"):
        place(1, None, 8, False)


def test_core_of_this_machine_holds_the_processor_itself():
    assert 0 in processors._threads_of_core(0)
