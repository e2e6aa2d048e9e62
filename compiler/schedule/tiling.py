"""Cut axes into register tiles of at most two sizes, so that no extent needs a slow tail."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tiles that the same code handles.

    Attributes:
        first: index of the first tile.
        count: number of tiles.
        start: element at which the first tile starts.
        size: elements in each tile.
    """

    first: int
    count: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Index after the last tile."""
        return self.first + self.count


def tile_count(extent: int, tile: int) -> int:
    """Return how many tiles of at most `tile` elements cover `extent`."""
    return -(-extent // tile)


def partition(extent: int, tile: int) -> tuple[Run, ...]:
    """Cut `extent` into the fewest tiles of at most `tile` elements, as even as possible.

    197 in tiles of 14 becomes 2 of 14 and 13 of 13: no tile of 1 row remains.
    """
    count = tile_count(extent, tile)
    small, larger = divmod(extent, count)
    runs = []
    if larger:
        runs.append(Run(0, larger, 0, small + 1))
    if larger < count:
        runs.append(Run(larger, count - larger, larger * (small + 1), small))
    return tuple(runs)


def refine(runs: tuple[Run, ...], key: Callable[[int, int], Hashable]) -> tuple[Run, ...]:
    """Split runs so that `key(start, size)` is the same for all tiles of a run."""
    refined: list[Run] = []
    keys: list[Hashable] = []
    for run in runs:
        for i in range(run.count):
            start = run.start + i * run.size
            this = (run.size, key(start, run.size))
            if keys and keys[-1] == this and refined[-1].end == run.first + i:
                last = refined[-1]
                refined[-1] = Run(last.first, last.count + 1, last.start, last.size)
            else:
                refined.append(Run(run.first + i, 1, start, run.size))
                keys.append(this)
    return tuple(refined)
