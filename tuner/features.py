"""Features of a candidate for the cost model: its workload, layouts and decisions as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, prod
from typing import Any

import numpy as np

from tilewright.compiler.targets import Target
from tilewright.tuner.estimate import estimate_cycles, registers_needed

NAMES = (
    *("kind_contraction", "kind_window", "kind_reduction", "kind_elementwise"),
    *("points", "depth", "columns", "row_points", "batch", "vectors", "data_bytes", "inner"),
    *("last_reduction", "reductions", "clippable", "padded", "lanes"),
    *("tile_outer", "tile_inner", "tile_vectors", "cells", "registers", "chains", "unroll"),
    *("fused", "row_block", "tiles", "blocks", "tasks", "clip", "order_moved", "written_out"),
    *("panel_bytes", "panel_in_l1", "panel_in_l2", "block_bytes", "block_in_l2"),
    *("rows_remainder", "columns_remainder", "cycles_per_point", "accumulators", "transpose"),
    *("dims_in", "dims_out"),
)


def features(
    loops: Mapping[str, Any],
    decisions: Mapping[str, Any],
    target: Target,
    physical_ranks: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Return float32 [len(NAMES)].

    Args:
        loops: see `workload.describe_loops`.
        decisions: of the schedule, as plain data.
        target: caches and registers.
        physical_ranks: dimensions of the first input and of the output as stored.
    """
    values = dict.fromkeys(NAMES, 0.0)
    if f"kind_{loops['kind']}" in values:
        values[f"kind_{loops['kind']}"] = 1.0
    values["dims_in"], values["dims_out"] = map(float, physical_ranks)
    values["lanes"] = float(decisions.get("lanes", loops.get("lanes", 0)))
    values["accumulators"] = float(decisions.get("accumulators", 0))
    values["transpose"] = float(decisions.get("transpose", 0))
    if loops["kind"] in ("contraction", "window"):
        _loops(values, loops)
        _tiles(values, loops, decisions, target)
    return np.array([values[name] for name in NAMES], np.float32)


def _log(value: float) -> float:
    return log2(1 + value)


def _loops(values: dict[str, float], loops: Mapping[str, Any]) -> None:
    for name in ("points", "columns", "row_points", "batch", "vectors", "data_bytes"):
        values[name] = _log(loops[name])
    values["depth"] = _log(prod(loops["reductions"]))
    values["inner"] = float(loops["rows"][0][1])
    values["last_reduction"] = float(loops["reductions"][-1])
    values["reductions"] = float(sum(extent > 1 for extent in loops["reductions"]))
    values["clippable"], values["padded"] = float(loops["clip"]), float(loops["padded"])


def _tiles(
    values: dict[str, float],
    loops: Mapping[str, Any],
    decisions: Mapping[str, Any],
    target: Target,
) -> None:
    tile = decisions["row_tile"]
    outer_tile, inner_tile = (1, tile) if isinstance(tile, int) else tile
    fused = int(decisions.get("fused_rows", 1))
    outer, inner = loops["rows"][fused - 1]
    vectors = int(decisions["column_vectors"])
    images = max(1, loops["row_points"] // (outer * inner))
    tiles = images * -(-outer // outer_tile) * -(-inner // inner_tile)
    block = max(1, min(int(decisions["row_block"]), tiles))
    columns = -(-loops["columns"] // (vectors * loops["lanes"]))
    panel = prod(loops["reductions"]) * vectors * loops["lanes"] * 4
    block_bytes = loops["data_bytes"] * block / tiles
    order = decisions.get("reduction_order", [])
    values.update(
        tile_outer=float(outer_tile),
        tile_inner=float(inner_tile),
        tile_vectors=float(vectors),
        cells=float(outer_tile * inner_tile * vectors),
        registers=registers_needed(decisions) / target.vector_registers,
        chains=float(decisions.get("chains", 1)),
        unroll=float(decisions.get("unroll", 1)),
        fused=float(fused),
        row_block=_log(block),
        tiles=_log(tiles),
        blocks=_log(-(-tiles // block)),
        tasks=_log(-(-tiles // block) * columns * loops["batch"]),
        clip=float(decisions["clip_pad"]),
        order_moved=float(sum(axis != place for place, axis in enumerate(order))),
        written_out=float(len(decisions.get("written_out", []))),
        panel_bytes=_log(panel),
        panel_in_l1=panel / target.l1_bytes,
        panel_in_l2=panel / target.l2_bytes,
        block_bytes=_log(block_bytes),
        block_in_l2=block_bytes / target.l2_bytes,
        rows_remainder=float(inner % inner_tile) / inner_tile,
        columns_remainder=float(loops["columns"] % (vectors * loops["lanes"]) != 0),
        cycles_per_point=estimate_cycles(loops, decisions, target) / max(1, loops["points"]),
    )
    # Cycles of a point grow with the depth; the model is to see how far from the ideal they are.
    values["cycles_per_point"] *= loops["lanes"] / max(1, prod(loops["reductions"]))
