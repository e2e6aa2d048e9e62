"""The joint space: every point that passes the filter schedules, and the default is in it."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from tests.tuner.helpers import matmul_task, native
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import decisions_from_json, schedule
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.cost_model import (
    PRETRAINED,
    RankingModel,
    ranking_accuracy,
    top_recall,
)
from tilewright.tuner.features import NAMES, features
from tilewright.tuner.measure import Measurement
from tilewright.tuner.search import (
    CrossExploration,
    Evolutionary,
    Exhaustive,
    Explorer,
    RandomSearch,
    Tuner,
    layouts_by_kind,
)
from tilewright.tuner.space import LayoutChoice, TaskSpace, task_space
from tilewright.tuner.worker.build import Builder
from tilewright.tuner.workload import task_request


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    builder = Builder({"folder": str(tmp_path_factory.mktemp("work"))})
    task = matmul_task(24, 40, 48)
    found = builder.choices(task_request(task), native().to_json())["choices"]
    return task, task_space(json.loads(json.dumps(found)), native())


def test_default_is_a_point_of_the_space(space):
    _, joint = space
    for choice in joint.choices:
        genome = choice.loops.genome_of_default()
        assert choice.loops.decisions(genome) == choice.loops.default
        assert choice.loops.genome_of(choice.loops.default) == genome
        assert choice.loops.plausible(choice.loops.default)


def test_every_plausible_point_schedules(space):
    task, joint = space
    rng = np.random.default_rng(0)
    choice = joint.choices[-1]
    layouts = {p: layout for p, layout in enumerate(choice.layouts) if layout.primitives}
    func = rewrite(task.operator.func, layouts)
    tried = 0
    while tried < 40:
        decisions = choice.loops.decisions(choice.loops.random(rng))
        if choice.loops.plausible(decisions):
            schedule(func, native(), decisions_from_json(json.dumps(decisions)))
            tried += 1


def test_space_says_its_size(space):
    _, joint = space
    assert joint.size == sum(len(choice.loops.all()) for choice in joint.choices)
    assert joint.size > 100


def test_decisions_of_another_shape_are_fitted(space):
    _, joint = space
    loops = joint.choices[-1].loops
    larger = {**loops.default, "row_block": 1000, "row_tile": [1, 14]}
    fitted = loops.fit(larger)
    assert fitted is None or fitted["row_block"] < 1000
    assert loops.fit({"kind": "window"}) is None


def _imagined(candidate: Candidate) -> Measurement:
    """Measure by a made-up rule: large tiles in packed layouts are fast."""
    schedule_data = json.loads(candidate.schedule)
    cells = np.prod(schedule_data["row_tile"]) * schedule_data["column_vectors"]
    packed = any(layout.primitives for layout in candidate.layouts)
    seconds = 1e-3 / cells * (1 if packed else 4) * (1 + 0.01 * schedule_data["unroll"])
    return Measurement(candidate, "ok", "", (float(seconds),))


class StrategyContract:
    """What every strategy must do."""

    def make(self, explorer):
        raise NotImplementedError

    def tuner(self, space, seed=0):
        explorer = Explorer(native(), RankingModel())
        return Tuner(space[1], self.make(explorer), explorer, np.random.default_rng(seed))

    def test_asks_for_the_incumbent_first(self, space):
        tuner = self.tuner(space)
        assert tuner.ask(3)[0] == tuner.incumbent

    def test_never_proposes_twice(self, space):
        tuner = self.tuner(space)
        seen = []
        for _ in range(6):
            asked = tuner.ask(8)
            seen += asked
            tuner.tell([_imagined(candidate) for candidate in asked])
        assert len(seen) == len(set(seen)) == 48

    def test_best_is_never_worse_than_the_incumbent(self, space):
        tuner = self.tuner(space)
        best = tuner.run(lambda asked, _best: [_imagined(c) for c in asked], 32)
        assert best.seconds <= tuner.history.results[tuner.incumbent].seconds
        assert tuner.history.trials == 32

    def test_same_seed_same_search(self, space):
        runs = []
        for _ in range(2):
            tuner = self.tuner(space, seed=3)
            tuner.run(lambda asked, _best: [_imagined(c) for c in asked], 24)
            runs.append(list(tuner.history.results))
        assert runs[0] == runs[1]

    def test_failures_are_not_proposed_again(self, space):
        tuner = self.tuner(space)
        asked = tuner.ask(8)
        tuner.tell([Measurement(candidate, "timeout", "slow") for candidate in asked])
        assert tuner.best() is None
        assert not set(asked) & set(tuner.ask(8))


class TestRandom(StrategyContract):
    def make(self, explorer):
        return RandomSearch(explorer)


class TestEvolutionary(StrategyContract):
    def make(self, explorer):
        return Evolutionary(explorer)


class TestCrossExploration(StrategyContract):
    def make(self, explorer):
        return CrossExploration(explorer, 16)

    def test_ends_in_the_better_layout(self, space):
        tuner = self.tuner(space)
        best = tuner.run(lambda asked, _best: [_imagined(c) for c in asked], 48)
        assert any(layout.primitives for layout in best.candidate.layouts)


class TestExhaustive(StrategyContract):
    def make(self, explorer):
        return Exhaustive()


def test_search_ends_where_the_space_does(space):
    _, joint = space
    choice = joint.choices[0]
    loops = copy.copy(choice.loops)
    first, *others = zip(loops.groups, loops.genome_of_default(), strict=True)
    loops.groups = [first[0], *([group[at]] for group, at in others)]
    small = type(joint)((dataclasses.replace(choice, loops=loops),))
    explorer = Explorer(native())
    tuner = Tuner(small, Exhaustive(), explorer, np.random.default_rng(0))
    tuner.run(lambda asked, _best: [_imagined(c) for c in asked], 10_000)
    assert tuner.history.trials <= small.size
    assert tuner.ask(4) == []


def test_ranking_model_learns_an_order():
    rng = np.random.default_rng(0)
    rows = rng.random((120, len(NAMES))).astype(np.float32)
    seconds = 1e-3 * (1 + 3 * rows[:, 5] + rows[:, 9])
    model = RankingModel()
    assert model.predict(rows) is None
    model.update("a", rows[:80], seconds[:80])
    scores = model.predict(rows[80:])
    assert ranking_accuracy(scores, seconds[80:]) > 0.8
    assert top_recall(scores, seconds[80:]) > 0.7


def test_ranking_model_round_trips(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.random((40, len(NAMES))).astype(np.float32)
    model = RankingModel()
    model.update("a", rows, 1e-3 * (1 + rows[:, 0]))
    before = model.predict(rows)
    model.save(tmp_path / "model.json")
    assert np.allclose(RankingModel(tmp_path / "model.json").predict(rows), before, atol=1e-6)


def test_pretrained_model_ships_and_knows_these_features():
    rows = np.random.default_rng(0).random((8, len(NAMES))).astype(np.float32)
    scores = RankingModel(PRETRAINED).predict(rows)
    assert scores is not None
    assert len(set(scores.tolist())) > 1


def test_features_are_finite(space):
    _, joint = space
    for choice in joint.choices:
        values = features(choice.loops.loops, choice.loops.default, native())
        assert values.shape == (len(NAMES),)
        assert np.isfinite(values).all()


def test_layouts_survive_json(space):
    _, joint = space
    for choice in joint.choices:
        assert all(Layout.from_json(each.to_json()) == each for each in choice.layouts)


def test_layouts_of_each_kind_are_judged_before_other_block_sizes():
    def choice(name: str, seconds: float) -> LayoutChoice:
        return LayoutChoice(name, (), seconds, None)

    choices = [
        choice("L", 9.0),
        choice("B -> B", 1.0),
        choice("B -> B /16", 1.0),
        choice("B -> C", 1.2),
        choice("B -> B /32", 1.1),
        choice("C -> C", 1.9),
    ]
    names = [each.name for each in layouts_by_kind(TaskSpace(tuple(choices)))]
    assert names == ["B -> B", "B -> C", "C -> C", "B -> B /16", "B -> B /32"]
