"""The emulated boards of the tests."""

from __future__ import annotations

import pytest

from benchmarks.qemu import BOARDS, CORTEX_A7, HEADERS, NEWEST, PI4, PI5, RUNNER, Board, runner

__all__ = [
    "BOARDS",
    "CORTEX_A7",
    "HEADERS",
    "NEWEST",
    "PI4",
    "PI5",
    "RUNNER",
    "Board",
    "board_for",
    "runner",
]


def board_for(target: str) -> Board:
    """Return the board of a target; skips the test, saying why, where it cannot be had."""
    board = BOARDS[target]
    lacking = board.missing()
    if lacking:
        pytest.skip(lacking)
    return board
