"""Results are kept by machine, resumed row by row, and two runs are compared honestly."""

import pytest

from benchmarks import models, operators, readme, repeatability
from benchmarks.zoo import NAMES
from tilewright.baselines import Budget


def _run(processor="a", **rows):
    made = []
    for name, ratios in rows.items():
        engines = {peer: {"ratio": ratio} for peer, ratio in ratios.items()}
        empty = {"failed": {}, "largest_error": {}, "notes": {}}
        made.append({"name": name, "engines": engines, **empty})
    return {"machine": {"processor": processor}, "rows": made, "peers": {}, "left_out": {}}


def test_results_of_two_processors_are_not_mixed():
    with pytest.raises(ValueError, match="do not mix"):
        operators.merge(_run("a", r={"x": 1.0}), _run("b", r={"x": 1.0}))


def test_merged_rows_keep_engines_that_were_not_measured_again():
    merged = operators.merge(_run(r={"x": 1.0, "y": 2.0}, s={"x": 3.0}), _run(r={"x": 1.5}))
    figures = {row["name"]: row["engines"] for row in merged["rows"]}
    assert figures["r"] == {"x": {"ratio": 1.5}, "y": {"ratio": 2.0}}
    assert figures["s"] == {"x": {"ratio": 3.0}}


def test_a_row_is_done_when_every_peer_has_a_figure_or_a_reason():
    run = _run(r={"x": 1.0})
    assert operators.is_done(run, "r", ("x",))
    assert not operators.is_done(run, "r", ("x", "y"))
    assert not operators.is_done(run, "s", ("x",))
    assert not operators.is_done(None, "r", ("x",))
    run["rows"][0]["failed"]["y"] = "no kernel"
    assert operators.is_done(run, "r", ("x", "y"))


def test_tuned_results_and_threads_have_files_of_their_own():
    names = {
        operators.result_path("operators", threads, budget).name
        for threads in (1, 2)
        for budget in (Budget(), Budget(64), Budget(time_s=120.0))
    }
    assert len(names) == 6


def test_changes_between_two_runs():
    first = _run(r={"x": 1.0, "y": 2.0}, s={"x": 1.0})
    second = _run(r={"x": 1.06, "y": 1.8}, t={"x": 1.0})
    changes = repeatability.compare(first, second)
    assert [item["peer"] for item in changes] == ["x", "y"]
    assert repeatability.share_within(changes) == 0.5
    assert "| all | 2 | 50% |" in repeatability.render(changes)


def test_model_suite_names_models_of_the_zoo_once():
    rows = models.rows()
    assert len({row["name"] for row in rows}) == len(rows)
    assert {row["model"] for row in rows} <= set(NAMES)


def test_inputs_of_a_row_have_its_batch_and_size():
    row = {"name": "n", "model": "rlfn", "batch": 2, "size": [128, 64]}
    (array,) = models.feed_of(row).values()
    assert array.shape == (2, 3, 128, 64)
    assert not (array[0] == array[1]).all()


def test_readme_is_what_the_results_say():
    text = readme.README.read_text()
    assert readme.renewed(text, readme.figures()) == text


def test_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="has no"):
        readme.renewed("# a readme", "table")
