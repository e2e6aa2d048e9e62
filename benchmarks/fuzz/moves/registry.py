"""The list of moves, and what several of them draw from."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.fuzz.graph import Graph, Value

Move = Callable[[Graph, Value], Value | None]
MOVES: list[Move] = []

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 31, 32, 33, 40, 64)


def move(function: Move) -> Move:
    """Register a move."""
    MOVES.append(function)
    return function
