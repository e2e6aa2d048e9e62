"""Search of one task's joint space: ask for candidates, tell what they measured.

Strategies propose; the tuner keeps what is known, never proposes a candidate twice, and asks for
the incumbent (the compiler's own choice) before anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.targets import Target
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.cost_model import CostModel, NoModel
from tilewright.tuner.estimate import estimate_cycles
from tilewright.tuner.features import features
from tilewright.tuner.measure import Measurement
from tilewright.tuner.space import Genome, LayoutChoice, TaskSpace, parse_schedule

_POOL = 192
_PARENTS = 6
_RANDOM_SHARE = 0.2
_MOST_ATTEMPTS = 6
# Layouts that are estimated slower than the best by more than this factor are not judged.
_IMPLAUSIBLE = 2.0


class History:
    """What is known of one task's candidates.

    Args:
        space: the task's space.
    """

    def __init__(self, space: TaskSpace) -> None:
        self.space = space
        self.results: dict[Candidate, Measurement] = {}
        self.genomes: dict[Candidate, Genome] = {}
        self.proposed: set[Candidate] = set()

    @property
    def trials(self) -> int:
        """Number of measured candidates, failures included."""
        return len(self.results)

    def ok(self, layouts: tuple[Layout, ...] | None = None) -> list[Measurement]:
        """Return the good measurements (of certain layouts), fastest first."""
        found = [
            result
            for result in self.results.values()
            if result.ok and (layouts is None or result.candidate.layouts == layouts)
        ]
        return sorted(found, key=lambda result: result.seconds)

    def best(self) -> Measurement | None:
        """Return the fastest, or None."""
        return next(iter(self.ok()), None)

    def is_new(self, candidate: Candidate) -> bool:
        """Say whether a candidate was neither measured nor proposed."""
        return candidate not in self.results and candidate not in self.proposed


class Strategy(Protocol):
    """How candidates are proposed."""

    def propose(self, history: History, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return at most `count` new candidates; none where the space is exhausted."""


class Explorer:
    """Proposes loop decisions for one layout choice.

    The best so far are mutated and crossed, others are random; an analytical filter drops what is
    clearly bad; the cost model, or before it knows anything the analytical estimate, picks.

    Args:
        target: for estimates and features.
        model: ranks candidates.
    """

    def __init__(self, target: Target, model: CostModel | None = None) -> None:
        self.target = target
        self.model = model or NoModel()

    def explore(
        self, history: History, choice: LayoutChoice, count: int, rng: np.random.Generator
    ) -> list[Candidate]:
        """Return at most `count` new candidates in these layouts."""
        pool = self._pool(history, choice, rng)
        if not pool:
            return []
        candidates = list(pool)
        scores = self.scores(choice, candidates)
        order = list(np.argsort(-scores, kind="stable"))
        picked = []
        for _ in range(min(count, len(candidates))):
            at = int(rng.integers(len(order))) if rng.random() < _RANDOM_SHARE else 0
            picked.append(candidates[order.pop(at)])
        for candidate in picked:
            history.genomes[candidate] = pool[candidate]
            history.proposed.add(candidate)
        return picked

    def scores(self, choice: LayoutChoice, candidates: Sequence[Candidate]) -> np.ndarray:
        """Return a score for each candidate; higher is better."""
        predicted = self.model.predict(self.features(choice, candidates))
        if predicted is not None:
            return predicted
        loops = choice.loops.loops
        return -np.array(
            [estimate_cycles(loops, parse_schedule(c), self.target) for c in candidates]
        )

    def features(self, choice: LayoutChoice, candidates: Sequence[Candidate]) -> np.ndarray:
        """Return the features of candidates, float32 [n, features]."""
        ranks = (
            len(choice.layouts[0].physical_shape),
            len(choice.layouts[-1].physical_shape),
        )
        return np.stack(
            [
                features(choice.loops.loops, parse_schedule(c), self.target, ranks)
                for c in candidates
            ]
        )

    def _pool(
        self, history: History, choice: LayoutChoice, rng: np.random.Generator
    ) -> dict[Candidate, Genome]:
        space = choice.loops
        parents = [
            history.genomes[result.candidate]
            for result in islice(history.ok(choice.layouts), _PARENTS)
            if result.candidate in history.genomes
        ] or [space.genome_of_default()]
        pool: dict[Candidate, Genome] = {}
        for _ in range(min(_POOL * _MOST_ATTEMPTS, 4 * space.size)):
            draw = rng.random()
            if draw < 0.3:
                genome = space.random(rng)
            else:
                genome = parents[int(rng.integers(len(parents)))]
                if draw > 0.85 and len(parents) > 1:
                    other = parents[int(rng.integers(len(parents)))]
                    genome = space.cross(genome, other, rng)
                genome = space.mutate(genome, rng)
            decisions = space.decisions(genome)
            candidate = choice.candidate(genome)
            if candidate not in pool and history.is_new(candidate) and space.plausible(decisions):
                pool[candidate] = genome
                if len(pool) >= _POOL:
                    break
        return pool


@dataclass
class RandomSearch:
    """Any plausible candidate of any layout."""

    explorer: Explorer

    def propose(self, history: History, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return random new candidates."""
        found: list[Candidate] = []
        choices = history.space.choices
        for _ in range(count * 50):
            choice = choices[int(rng.integers(len(choices)))]
            genome = choice.loops.random(rng)
            candidate = choice.candidate(genome)
            if history.is_new(candidate) and choice.loops.plausible(choice.loops.decisions(genome)):
                history.proposed.add(candidate)
                history.genomes[candidate] = genome
                found.append(candidate)
                if len(found) == count:
                    break
        return found


@dataclass
class Evolutionary:
    """Model-guided evolution in every layout alike, best layouts most often."""

    explorer: Explorer

    def propose(self, history: History, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return new candidates of layouts drawn by rank."""
        found: list[Candidate] = []
        ranked = rank_layouts(history)
        shares = Counter(min(int(rng.exponential(1.5)), len(ranked) - 1) for _ in range(count))
        for index, share in sorted(shares.items()):
            found += self.explorer.explore(history, ranked[index], share, rng)
        return found


@dataclass
class CrossExploration:
    """ALT's two stages.

    Joint stage: each layout is judged by a brief exploration of its loops, and the worse half is
    given up again and again. Loop-only stage: the rest of the budget for the best layouts. Layouts
    that are judged differ in kind first and in block sizes then: a third of the joint stage goes
    into judging each for the first time.

    Attributes:
        explorer: proposes loop decisions.
        joint_trials: length of the joint stage.
        layouts_kept: how many layouts the loop-only stage has.
    """

    explorer: Explorer
    joint_trials: int = 20
    layouts_kept: int = 2

    def propose(self, history: History, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return new candidates of the layouts that are still in the race."""
        known = {candidate.layouts for candidate in [*history.results, *history.proposed]}
        judged = layouts_by_kind(history.space)[: max(self.layouts_kept, self.joint_trials // 3)]
        untried = [choice for choice in judged if choice.layouts not in known]
        found = [_default(history, choice) for choice in untried[:count]]
        racing = {choice.layouts for choice in judged} | known
        ranked = [choice for choice in rank_layouts(history) if choice.layouts in racing]
        joint = history.trials < self.joint_trials
        kept = self.layouts_kept
        if joint:
            rounds = max(1, history.trials // max(1, len(ranked)))
            kept = max(kept, len(ranked) >> rounds)
        shares: Counter[int] = Counter()
        for turn in range(count - len(found)):
            # In the loop-only stage the best layout gets every second turn.
            index = turn % kept if joint or turn % 2 else 0
            shares[min(index, len(ranked) - 1)] += 1
        for index, share in sorted(shares.items()):
            found += self.explorer.explore(history, ranked[index], share, rng)
        if not found:  # the kept layouts are exhausted
            for choice in rank_layouts(history):
                found += self.explorer.explore(history, choice, count - len(found), rng)
                if len(found) >= count:
                    break
        return found


def layouts_by_kind(space: TaskSpace) -> list[LayoutChoice]:
    """Return the plausible layouts: the best of each kind first, then those of other block sizes.

    A kind is a name up to its block size, as in "B -> B /32".
    """
    best = min((choice.estimate_s for choice in space.choices), default=0.0)
    kinds: Counter[str] = Counter()
    places: list[tuple[int, int, LayoutChoice]] = []
    for choice in sorted(space.choices, key=lambda choice: choice.estimate_s):
        kind = choice.name.partition(" /")[0]
        if choice.estimate_s <= _IMPLAUSIBLE * best:
            places.append((kinds[kind], len(places), choice))
        kinds[kind] += 1
    return [choice for _, _, choice in sorted(places, key=lambda place: place[:2])]


@dataclass
class Exhaustive:
    """Every valid point of every layout, in order: for tests and tiny spaces."""

    def propose(self, history: History, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return the next points."""
        del rng
        found = []
        for choice in history.space.choices:
            for genome in choice.loops.all():
                candidate = choice.candidate(genome)
                decisions = choice.loops.decisions(genome)
                if history.is_new(candidate) and choice.loops.plausible(decisions):
                    history.proposed.add(candidate)
                    history.genomes[candidate] = genome
                    found.append(candidate)
                    if len(found) == count:
                        return found
        return found


def rank_layouts(history: History) -> list[LayoutChoice]:
    """Return the layout choices, best first: by measured time, else by scaled estimate."""
    best = {
        choice.layouts: results[0].seconds
        for choice in history.space.choices
        if (results := history.ok(choice.layouts))
    }
    ratios = [best[c.layouts] / c.estimate_s for c in history.space.choices if c.layouts in best]
    scale = float(np.median(ratios)) if ratios else 1.0
    failed = {r.candidate.layouts for r in history.results.values() if not r.ok}

    def seconds(choice: LayoutChoice) -> float:
        if choice.layouts in best:
            return best[choice.layouts]
        return choice.estimate_s * scale * (1e3 if choice.layouts in failed else 1.0)

    return sorted(history.space.choices, key=seconds)


def _default(history: History, choice: LayoutChoice) -> Candidate:
    genome = choice.loops.genome_of_default()
    candidate = choice.candidate(genome)
    history.genomes[candidate] = genome
    history.proposed.add(candidate)
    return candidate


class Tuner:
    """Ask and tell for one task.

    Args:
        space: what the task may be computed by.
        strategy: proposes candidates.
        explorer: its model learns from what is told.
        rng: all randomness.
        name: of the task, groups its samples in the model.
    """

    def __init__(
        self,
        space: TaskSpace,
        strategy: Strategy,
        explorer: Explorer,
        rng: np.random.Generator,
        name: str = "task",
    ) -> None:
        self.space, self.strategy, self.explorer, self.rng = space, strategy, explorer, rng
        self.name = name
        self.history = History(space)
        first = min(space.choices, key=lambda choice: choice.estimate_s)
        self.incumbent = first.candidate(first.loops.genome_of_default())
        self._first = first

    def ask(self, count: int = 1) -> list[Candidate]:
        """Return at most `count` candidates to measure; none where the space is exhausted."""
        found = []
        if self.history.is_new(self.incumbent):
            found.append(_default(self.history, self._first))
        if len(found) < count:
            found += self.strategy.propose(self.history, count - len(found), self.rng)
        return found

    def tell(self, measurements: Sequence[Measurement]) -> None:
        """Take in results."""
        for measurement in measurements:
            candidate = measurement.candidate
            self.history.results[candidate] = measurement
            self.history.proposed.discard(candidate)
            choice = self.space.choice_of(candidate)
            if candidate not in self.history.genomes and choice is not None:
                genome = choice.loops.genome_of(parse_schedule(candidate))
                if genome is not None:
                    self.history.genomes[candidate] = genome
            if measurement.ok and choice is not None and candidate.schedule is not None:
                self.explorer.model.update(
                    self.name,
                    self.explorer.features(choice, [candidate]),
                    np.array([measurement.seconds]),
                )

    def best(self) -> Measurement | None:
        """Return the fastest good candidate, or None."""
        return self.history.best()

    def run(
        self,
        measure: Callable[[Sequence[Candidate], float | None], Sequence[Measurement]],
        max_trials: int,
        batch: int = 8,
    ) -> Measurement | None:
        """Ask, measure and tell until `max_trials` candidates are measured; return the best."""
        while self.history.trials < max_trials:
            candidates = self.ask(min(batch, max_trials - self.history.trials))
            if not candidates:
                break
            best = self.best()
            self.tell(measure(candidates, None if best is None else best.seconds))
        return self.best()
