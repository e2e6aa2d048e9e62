"""Which task to spend the next trials on: the one with the most end-to-end time to win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_RECENT = 3
# A round is hoped to gain this share of the distance to the bound, and after every round without
# any gain this part of what was hoped before.
_HOPED = 0.3
_DECAY = 0.6
_FIRST_ROUNDS = 2
# Share of the bounds of all tasks below which a task has no right to first rounds.
_NEGLIGIBLE = 0.002
# Even where a bound says that nothing is left, trials may find what the model of it misses.
_LEAST_GAIN = 0.005


@dataclass
class Progress:
    """How far one task's search has come.

    Attributes:
        weight: calls of the task in the model.
        bound_s: no kernel can be faster, by peak arithmetic and memory bandwidth.
        best_s: best time after each round.
        exhausted: nothing is left to try.
    """

    weight: int
    bound_s: float
    best_s: list[float] = field(default_factory=list)
    exhausted: bool = False

    def expected_gain_s(self) -> float:
        """Return the seconds of the whole model that a further round is expected to win."""
        if self.exhausted:
            return 0.0
        if not self.best_s:
            return self.weight * _HOPED * self.bound_s
        best = self.best_s[-1]
        earlier = self.best_s[-1 - min(_RECENT, len(self.best_s) - 1)]
        recent = (earlier - best) / _RECENT
        stuck = 0
        for before, after in zip(
            reversed(self.best_s[:-1]), reversed(self.best_s[1:]), strict=True
        ):
            if after < before * 0.995:
                break
            stuck += 1
        hoped = max(best - self.bound_s, _LEAST_GAIN * best) * _HOPED * _DECAY**stuck
        return self.weight * max(recent, hoped)


def next_task(progress: Sequence[Progress], busy: Sequence[int] = ()) -> int | None:
    """Return the position of the task to go on with, or None where nothing is left to try.

    Every task that counts gets its first rounds before any other gets more, heaviest first.

    Args:
        progress: of each task.
        busy: rounds of each task whose results are not known yet. Such a task is asked again only
            where no other is left, and for one more round at most.
    """
    waiting = list(busy) or [0] * len(progress)
    least = _NEGLIGIBLE * sum(task.weight * task.bound_s for task in progress)
    open_tasks = [i for i, task in enumerate(progress) if not task.exhausted]
    for most in (0, 1):
        free = [i for i in open_tasks if waiting[i] <= most]
        if not free:
            continue
        fresh = [
            i
            for i in free
            if len(progress[i].best_s) < _FIRST_ROUNDS
            and progress[i].weight * progress[i].bound_s >= least
        ]
        if fresh:
            return min(fresh, key=lambda i: (len(progress[i].best_s), i))
        return max(free, key=lambda i: progress[i].expected_gain_s())
    return None
