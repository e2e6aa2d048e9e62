"""Models that rank candidates before they are built; higher scores are better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xgboost

PRETRAINED = Path(__file__).with_name("pretrained.json")
"""Model that ships with the package, built by benchmarks/tuner_pretrain.py from tuning_logs/."""

_FEWEST_SAMPLES = 12
_MOST_SAMPLES = 4000
_ROUNDS = 60
_PARAMETERS = {
    "objective": "rank:pairwise",
    "max_depth": 5,
    "eta": 0.15,
    "min_child_weight": 1,
    "subsample": 0.9,
    "nthread": 1,
    "seed": 0,
    "verbosity": 0,
}


class CostModel(Protocol):
    """What a search asks for scores."""

    def update(self, group: str, features: np.ndarray, seconds: np.ndarray) -> None:
        """Learn from measured candidates of one task: float32 [n, features], seconds [n]."""

    def predict(self, features: np.ndarray) -> np.ndarray | None:
        """Return scores [n], or None where nothing is known yet."""


class NoModel:
    """Knows nothing; a search then goes by its analytical estimate."""

    def update(self, group: str, features: np.ndarray, seconds: np.ndarray) -> None:
        """Learn nothing."""

    def predict(self, features: np.ndarray) -> np.ndarray | None:
        """Know nothing."""
        return None


class RankingModel:
    """Gradient boosted trees that learn which of two candidates of a task is faster.

    Args:
        pretrained: a model file to start from; new trees are added to it.
    """

    def __init__(self, pretrained: Path | None = None) -> None:
        self._start: xgboost.Booster | None = None
        if pretrained is not None and pretrained.exists():
            self._start = xgboost.Booster()
            self._start.load_model(pretrained)
        self._booster = self._start
        self._features: dict[str, list[np.ndarray]] = defaultdict(list)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._stale = False

    def update(self, group: str, features: np.ndarray, seconds: np.ndarray) -> None:
        """Learn from measured candidates of one task."""
        self._features[group] += list(features)
        self._seconds[group] += [float(value) for value in seconds]
        self._stale = True

    def predict(self, features: np.ndarray) -> np.ndarray | None:
        """Return scores, or None before enough was measured."""
        if self._stale:
            self.fit()
        if self._booster is None:
            return None
        return self._booster.predict(xgboost.DMatrix(features))

    def fit(self, rounds: int = _ROUNDS) -> None:
        """Train on everything seen, the newest samples of each task first."""
        self._stale = False
        rows, labels, sizes = [], [], []
        share = max(_FEWEST_SAMPLES, _MOST_SAMPLES // max(1, len(self._seconds)))
        for group, seconds in self._seconds.items():
            if len(seconds) < 2:
                continue
            recent = np.array(seconds[-share:])
            rows.append(np.stack(self._features[group][-share:]))
            # Relevance 0..31: how close to the best of its task, in logarithmic steps.
            closeness = np.log2(recent / recent.min())
            labels.append(np.clip(31 - 10 * closeness, 0, 31).round())
            sizes.append(len(recent))
        if sum(sizes) < _FEWEST_SAMPLES:
            return
        data = xgboost.DMatrix(np.concatenate(rows), np.concatenate(labels))
        data.set_group(sizes)
        self._booster = xgboost.train(_PARAMETERS, data, rounds, xgb_model=self._start)

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        if self._booster is not None:
            self._booster.save_model(path)


def ranking_accuracy(scores: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the share of pairs, at least 5% apart, that scores order as the times do.

    Pairs of equal score count half.
    """
    score, time = np.asarray(scores), np.asarray(seconds)
    first, second = np.triu_indices(len(time), 1)
    apart = np.abs(np.log(time[first] / time[second])) > 0.05
    if not apart.any():
        return 1.0
    order = np.sign(score[first] - score[second]) * np.sign(time[second] - time[first])
    return float((order[apart].mean() + 1) / 2)


def top_recall(scores: Sequence[float], seconds: Sequence[float], count: int = 8) -> float:
    """Return best time / best time among the `count` highest scores; 1 is perfect."""
    order = np.argsort(-np.asarray(scores))[:count]
    time = np.asarray(seconds)
    return float(time.min() / time[order].min())
