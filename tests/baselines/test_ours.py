"""tilewright's own log as a contender reads it."""

from types import SimpleNamespace

from tilewright.baselines.ours import _until


def _record(name, raced=False):
    return SimpleNamespace(name=name, hardware={"raced": True} if raced else {})


def test_the_races_of_the_trials_that_count_decide_with_them():
    log = [*map(_record, "abc"), _record("a again", raced=True), _record("d")]
    log.append(_record("d again", raced=True))
    assert [r.name for r in _until(log, 2)] == ["a", "b"]
    assert [r.name for r in _until(log, 3)] == ["a", "b", "c", "a again"]
    assert _until(log, 4) == log
