"""How new the kernels of each class are: what was tuned with older ones may have been outgrown.

A number is raised with a change that makes kernels of its class faster at unchanged decisions, or
lets the analytical model choose faster ones. Tuning records carry it.
"""

from __future__ import annotations

FIRST = 1

# contraction 2: pixels of planes are copied by each task (1x1: twice as fast over planes); rows in
# blocks that leave room in the third level (0.55 of the time at batch 16).
# window 2: planes by blocks of rows from a copy with borders (1.9 times as fast).
_GENERATIONS = {"contraction": 2, "window": 2}


def generation(kind: str) -> int:
    """Return the generation of the kernels that decisions of this kind make today."""
    return _GENERATIONS.get(kind, FIRST)
