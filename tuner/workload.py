"""What the tuner knows of a task as plain data: for people, for transfer, for the cost model."""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

import tvm
from tvm.tirx import PrimFunc

from tilewright.compiler.access import blocks, find_contraction
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.schedule.analysis import Anchor, find_anchor, read_stages
from tilewright.compiler.schedule.cost import (
    column_vectors,
    padding_can_be_clipped,
    row_extents,
    sliding_reductions,
    window_reductions,
)
from tilewright.compiler.schedule.integer import find_dot, packed_weights
from tilewright.compiler.schedule.padding import fusable_rows
from tilewright.compiler.schedule.panels import panel_options
from tilewright.compiler.schedule.planar_access import find_planar
from tilewright.compiler.schedule.planar_window import MOST_NEAR_BYTES, most_rows
from tilewright.compiler.schedule.staged import reads_far
from tilewright.compiler.schedule.weight_only import find_weight_only
from tilewright.compiler.targets import Target

if TYPE_CHECKING:
    from tilewright.compiler.tasks import Task

# Longest window along a row whose padding the schedulers can clip.
_LONGEST_WINDOW = 7


def describe(task: Task) -> dict[str, Any]:
    """Return what a record says of its task.

    Keys: name; blocks (names of the stages in order), shapes and dtypes of the parameters,
    constants, images and outputs (positions and count), macs (of the contraction, else 0).
    """
    operator = task.operator
    accesses = blocks(operator.func)
    anchor = find_contraction(accesses)
    stages = read_stages(operator.func) or ()
    return {
        "name": task.name,
        "blocks": [_without_number(stage.name) for stage in stages],
        "shapes": [list(shape) for shape in operator.shapes],
        "dtypes": [str(param.ty.dtype) for param in operator.func.params],
        "constants": sorted(operator.constants),
        "images": sorted(operator.images),
        "outputs": operator.n_outputs,
        "macs": 0 if anchor is None else anchor.points,
        "axes": [] if anchor is None else _axes(stages),
    }


def _axes(stages: Any) -> list[int]:
    """Return the extents of the largest reduction: what a similar task has in other numbers."""
    reductions = [stage for stage in stages if stage.reduction]
    if not reductions:
        return []
    largest = max(reductions, key=lambda stage: stage.work)
    return [axis.extent for axis in largest.axes]


def _without_number(name: str) -> str:
    return name.rstrip("0123456789").rstrip("_")


def task_request(task: Task) -> dict[str, Any]:
    """Return a task as plain data for the building process."""
    operator = task.operator
    return {
        "key": task.key,
        "func": tvm.ir.save_json(operator.func),
        "constants": sorted(operator.constants),
        "images": sorted(operator.images),
        "n_outputs": operator.n_outputs,
    }


def moved_bytes(operator: Operator) -> int:
    """Return the bytes of all parameters."""
    return sum(
        prod(shape) * max(1, tvm.DataType(str(param.ty.dtype)).bits // 8)
        for shape, param in zip(operator.shapes, operator.func.params, strict=True)
    )


def describe_loops(func: PrimFunc, target: Target) -> dict[str, Any]:
    """Return what there is to decide about the loops of a rewritten function, as plain data.

    Keys: kind (that of its decisions); for a contraction or a window also lanes, rows (extents of
    the last two row axes for each number of fused axes), points (of all spatial axes), vectors
    (that a tile may span), columns, row_points, batch, reductions (extents), clip (padding can be
    clipped), padded, window (reduction axes that slide along a row), slides, data_bytes, panels
    (steps of the reduction that a task may walk for all its tiles), ordered (the reduction axes
    stay in their order: groups of packed weights), plane_rows (of a window over planes: most rows
    of a task; else 0), far (a task may copy what its row tiles share: its steps lie far apart).
    """
    kind = json.loads(default_decisions(func, target).to_json())["kind"]
    anchor = _anchor(func, target) if kind in ("contraction", "window") else None
    if anchor is None:
        return {"kind": kind}
    pads = [access.pad for access in anchor.accesses if access.pad is not None]
    fused = fusable_rows(anchor, pads) if kind == "contraction" else 1
    planar = find_planar(anchor)
    grouped = find_weight_only(read_stages(func) or ()) is not None
    return {
        "kind": kind,
        "lanes": anchor.lanes,
        "rows": [list(row_extents(anchor, count)) for count in range(1, fused + 1)],
        "points": prod(axis.extent for axis in anchor.stage.spatial),
        "vectors": column_vectors(anchor),
        "columns": prod(anchor.stage.spatial[p].extent for p in anchor.columns),
        "row_points": prod(anchor.stage.spatial[p].extent for p in anchor.rows),
        "batch": prod(anchor.stage.spatial[p].extent for p in anchor.batch),
        "reductions": [axis.extent for axis in anchor.stage.reduction],
        "clip": padding_can_be_clipped(anchor, _LONGEST_WINDOW)
        and not packed_weights(func, target),
        "padded": bool(pads),
        "window": list(window_reductions(anchor)),
        "slides": list(sliding_reductions(anchor)) if kind == "window" else [],
        "data_bytes": _data_bytes(anchor),
        "panels": [] if kind == "window" or grouped else panel_options(anchor, target),
        "ordered": grouped,
        "far": kind == "contraction" and reads_far(anchor) and not target.multiplies_by_lane,
        "plane_rows": 0 if planar is None else most_rows(anchor, planar, MOST_NEAR_BYTES),
    }


def _anchor(func: PrimFunc, target: Target) -> Anchor | None:
    """Return the anchor that decisions are about; for integers that of 32-bit cells."""
    stages = read_stages(func)
    if stages is None:
        return None
    weight_only = find_weight_only(stages)
    if weight_only is not None:
        return weight_only.anchor
    dot = find_dot(stages, target)
    return find_anchor(stages, target.lanes("float32")) if dot is None else dot.cells


def _data_bytes(anchor: Anchor) -> int:
    access = next((a for a in anchor.accesses if not a.vector), anchor.accesses[0])
    return prod(int(extent) for extent in access.buffer.shape) * 4
