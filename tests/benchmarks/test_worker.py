"""Steps in processes of their own, and the files that results go to."""

import sys

import pytest

from benchmarks import report, worker

STEP = """
import os, sys
from benchmarks.worker import give_result
if sys.argv[1] == "ok":
    print("noise before")
    give_result({"value": 1.5})
elif sys.argv[1] == "raise":
    raise ValueError("axis 7 of node 'conv' is unknown\\nsecond line")
else:
    os.abort()
"""


@pytest.fixture
def step(tmp_path, monkeypatch):
    (tmp_path / "a_step.py").write_text(STEP)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{worker.ROOT}")
    monkeypatch.setattr(worker, "ROOT", tmp_path)
    return lambda argument: worker.run_step("a_step", [argument])


def test_step_returns_its_result(step):
    assert step("ok") == {"value": 1.5}


def test_failing_step_is_reported_by_its_message(step):
    with pytest.raises(worker.StepError, match="ValueError: axis 7 of node 'conv' is unknown"):
        step("raise")


def test_killed_step_is_reported_by_its_signal(step):
    with pytest.raises(worker.StepError, match="killed by signal 6"):
        step("abort")


def test_slow_step_is_stopped():
    with pytest.raises(worker.StepError, match="took more than 0 s"):
        worker.run_step("http.server", ["0"], timeout_s=0.3)


def test_merged_rows_replace_those_with_the_same_key(tmp_path):
    path = tmp_path / "rows.json"
    assert report.merge_rows(path, [{"k": 1, "v": 1}], ["k"]) == [{"k": 1, "v": 1}]
    report.write_json(path, {"rows": [{"k": 1, "v": 1}, {"k": 2, "v": 2}]})
    merged = report.merge_rows(path, [{"k": 1, "v": 9}], ["k"])
    assert merged == [{"k": 1, "v": 9}, {"k": 2, "v": 2}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_markdown_table_has_a_line_per_row():
    assert (
        report.markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | --: |\n| x | 1 |\n"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_probes_and_description_are_plausible():
    from benchmarks.machine import Probes, describe, peak_rss_mb

    probes = Probes()
    # A crowded machine may give next to nothing: only what no machine can do is wrong.
    assert 0 < probes.peak_gflops() < 2000
    assert 0 < probes.read_gb_s() < 500
    assert 20 < peak_rss_mb() < 10_000
    assert {"processor", "memory", "commit", "numpy"} <= set(describe())
