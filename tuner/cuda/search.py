"""Search over layouts and tiles: a joint stage over all layouts, then the best layouts alone.

Candidates that were measured well are varied; a ranking model, or before it knows anything the
estimate, picks among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.compiler.cuda.tile import GemmTile
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.cost_model import CostModel, RankingModel
from tilewright.tuner.cuda.features import features
from tilewright.tuner.cuda.space import CudaSpace, neighbours

_JOINT_SHARE = 0.4
_PARENTS = 4
_MUTANTS = 64
_POOL = 256
_RANDOM_SHARE = 0.15


@dataclass(frozen=True)
class Result:
    """One measured candidate; `seconds` is None where it failed, and `error` says how."""

    candidate: Candidate
    seconds: float | None
    error: str = ""


class CudaTuner:
    """Asks for candidates of one operator and learns from their times.

    Args:
        space: what to search.
        trials: how many candidates will be measured.
        rng: of all randomness.
        model: ranks candidates.
    """

    def __init__(
        self,
        space: CudaSpace,
        trials: int,
        rng: np.random.Generator,
        model: CostModel | None = None,
    ) -> None:
        self.space, self.trials, self.rng = space, trials, rng
        self.model = RankingModel() if model is None else model
        self.results: dict[Candidate, Result] = {}
        self._by_layout = {
            option.choice.layouts: space.candidates(option) for option in space.options
        }
        self._allowed = {c for candidates in self._by_layout.values() for c in candidates}
        self._proposed: set[Candidate] = set()

    def ask(self, count: int) -> list[Candidate]:
        """Return at most `count` new candidates; none where the space is exhausted."""
        layouts = list(self._by_layout)
        best = self.best()
        if best is not None and len(self.results) >= _JOINT_SHARE * self.trials:
            layouts = [best.candidate.layouts]
        picked: list[Candidate] = []
        for index, layout in enumerate(layouts):
            share = count // len(layouts) + (index < count % len(layouts))
            picked += self._pick(self._pool(self._by_layout[layout]), share)
        return picked

    def tell(self, results: list[Result]) -> None:
        """Learn from measured candidates."""
        for result in results:
            self.results[result.candidate] = result
        good = [r for r in results if r.seconds is not None]
        if good:
            seconds = np.array([r.seconds for r in good])
            self.model.update("task", self._features([r.candidate for r in good]), seconds)

    def best(self) -> Result | None:
        """Return the fastest result, or None."""
        good = [r for r in self.results.values() if r.seconds is not None]
        return min(good, key=lambda r: r.seconds or 0.0, default=None)

    def _pool(self, candidates: list[Candidate]) -> list[Candidate]:
        new = [c for c in candidates[:_POOL] if c not in self._proposed]
        measured = [c for c in candidates if (r := self.results.get(c)) and r.seconds is not None]
        measured.sort(key=lambda c: self.results[c].seconds or 0.0)
        for parent in measured[:_PARENTS]:
            assert parent.schedule is not None
            for _ in range(_MUTANTS):
                tile = neighbours(GemmTile.from_json(parent.schedule), self.rng)
                child = Candidate(parent.layouts, tile.to_json())
                if child in self._allowed and child not in self._proposed and child not in new:
                    new.append(child)
        return new

    def _pick(self, pool: list[Candidate], count: int) -> list[Candidate]:
        if not pool:
            return []
        matrix = self._features(pool)
        scores = self.model.predict(matrix)
        order = list(np.argsort(matrix[:, -1] if scores is None else -scores, kind="stable"))
        picked = []
        for _ in range(min(count, len(pool))):
            at = int(self.rng.integers(len(order))) if self.rng.random() < _RANDOM_SHARE else 0
            picked.append(pool[order.pop(at)])
        self._proposed.update(picked)
        return picked

    def _features(self, candidates: list[Candidate]) -> np.ndarray:
        rows = []
        for candidate in candidates:
            product = self.space.option_of(candidate).product
            assert candidate.schedule is not None
            tile = GemmTile.from_json(candidate.schedule)
            rows.append(features(tile, product, self.space.precision, self.space.target))
        return np.stack(rows)
