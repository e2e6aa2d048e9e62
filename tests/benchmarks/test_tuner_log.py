"""What of the raw records of a machine goes into the log that ships."""

from benchmarks.tuner_log import select
from tests.tuner.helpers import make_record
from tilewright.compiler.layout.primitives import Layout, blocked
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.records import Record

_LOGICAL = Layout((16, 5))
_BLOCKED = blocked((16, 5), 0, 8)


def _record(seconds: float, layout: Layout, unroll: int, **changes) -> Record:
    candidate = Candidate((layout,), f'{{"kind":"contraction","unroll":{unroll}}}')
    task = {"name": "matmul", "blocks": ["matmul"]}
    return make_record(seconds, candidate=candidate, task=task, **changes)


def test_winner_and_default_of_each_layout_are_kept() -> None:
    default = _record(1.1e-3, _BLOCKED, 1, hardware={"default": True})
    winner = _record(1.02e-3, _BLOCKED, 2, hardware={"raced": True, "winner": True})
    lucky = _record(1e-3, _BLOCKED, 3)
    failed = _record(1e-3, _BLOCKED, 4, status="run_error")
    assert select([default, lucky, failed, winner]) == [winner, default]


def test_slow_layouts_are_dropped_but_the_logical_one() -> None:
    best = _record(1e-3, _BLOCKED, 1)
    near = _record(1.1e-3, blocked((16, 5), 0, 4), 1)
    slow = _record(2e-3, blocked((16, 5), 0, 2), 1)
    logical = _record(9e-3, _LOGICAL, 1)
    assert select([slow, logical, near, best]) == [best, near, logical]


def test_every_algorithm_of_a_convolution_is_kept() -> None:
    task = {"name": "algorithm of a convolution", "blocks": ["algorithm"]}
    times = {"direct": 3e-3, "winograd2": 2e-3, "winograd4": 1e-3}
    records = [
        make_record(
            seconds,
            candidate=Candidate((), f'{{"kind":"algorithm","name":"{name}"}}'),
            task=task,
        )
        for name, seconds in times.items()
    ]
    assert select(records) == records


def test_warm_times_of_what_reads_its_weights_once_are_left_out() -> None:
    task = {"name": "matmul", "blocks": ["matmul"], "shapes": [[1, 64], [64, 32]]}
    task |= {"constants": [1], "macs": 64 * 32}
    candidate = Candidate((_BLOCKED,), '{"kind":"contraction"}')
    warm = make_record(1e-6, candidate=candidate, task=task)
    cold = make_record(2e-6, candidate=candidate, task=task, hardware={"cold": True})
    many = make_record(1e-6, "b" * 64, candidate=candidate, task={**task, "macs": 64 * 64 * 32})
    assert select([warm, cold, many]) == [cold, many]
