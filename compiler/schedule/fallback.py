"""Schedule what no other scheduler understands: right first, parallel where that is certain."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import s_tir, tirx

# Fused outer loops beyond this give more tasks than any number of cores needs.
_ENOUGH_TASKS = 1024


def schedule_fallback(func: tirx.PrimFunc, parallel_work: int) -> tirx.PrimFunc:
    """Run the leading spatial loops of every block in parallel; leave all else as it is.

    Serves reductions with several results (argmax), with unusual combiners, and opaque code such
    as scans, which stays serial. A function that is loops without blocks is returned unchanged.
    """
    if not isinstance(func.body, s_tir.SBlockRealize):
        return func
    schedule = s_tir.Schedule(func)
    root = schedule.get_sblock(str(func.body.block.name_hint))
    for block in schedule.get_child_blocks(root):
        loops = schedule.get_loops(block)
        extents = [schedule.get(loop).extent for loop in loops]
        if not loops or not all(isinstance(extent, tirx.IntImm) for extent in extents):
            continue
        sizes = [int(extent) for extent in extents]
        count = _parallel_prefix(schedule.get(block), [schedule.get(loop) for loop in loops])
        while count > 1 and prod(sizes[: count - 1]) >= _ENOUGH_TASKS:
            count -= 1
        if count and prod(sizes) >= parallel_work:
            schedule.parallel(schedule.fuse(*loops[:count]))
    return schedule.mod["main"]


def _parallel_prefix(block: Any, loops: list[Any]) -> int:
    """Return how many outermost loops each drive one spatial axis and nothing else."""
    count = 0
    for loop, axis in zip(loops, block.iter_vars, strict=False):
        if axis.iter_type != tirx.IterVar.DataPar or int(loop.extent) != int(axis.dom.extent):
            break
        count += 1
    return count
