"""A model of a kernel's cycles from its decisions alone: to leave out what is clearly bad.

It follows the compiler's own model (compiler/schedule/cost.py) but covers every decision of the
search, and it need not be exact: what is near its least is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from tilewright.compiler.targets import Target

_FMA_PER_CYCLE = 2
_LOADS_PER_CYCLE = 2
_FMA_LATENCY = 4
_TILE_OVERHEAD = 30.0
_STORE_CYCLES = 2.0
_STREAM_CYCLES = 0.5
_L2_BYTE = 1 / 48
_L3_BYTE = 1 / 20
_EXPOSED = 0.4
_CACHE_SHARE = 0.6


def registers_needed(decisions: Mapping[str, Any]) -> int:
    """Return the vector registers of the accumulators and operands of a register tile."""
    if "column_vectors" not in decisions:
        return 0
    vectors = int(decisions["column_vectors"])
    tile = decisions["row_tile"]
    if isinstance(tile, int):
        return tile * vectors + 2
    operands = 3 if vectors == 1 else vectors + 1
    return prod(tile) * vectors * int(decisions.get("chains", 1)) + operands


def estimate_cycles(
    loops: Mapping[str, Any], decisions: Mapping[str, Any], target: Target
) -> float:
    """Return modelled cycles; only ratios between decisions of one layout choice mean anything."""
    if loops["kind"] == "contraction":
        return _contraction(loops, decisions, target)
    if loops["kind"] == "window":
        return _window(loops, decisions)
    return 1.0


def outside_cycles(loops: Mapping[str, Any], decisions: Mapping[str, Any], target: Target) -> float:
    """Return the modelled cycles of a contraction outside of its reduction: stores and memory."""
    if loops["kind"] != "contraction":
        return 0.0
    return _contraction(loops, decisions, target, reduction=False)


def _even(extent: int, tile: int) -> tuple[int, float]:
    """Return the number of tiles and their mean size."""
    count = -(-extent // tile)
    return count, extent / count


def _contraction(
    loops: Mapping[str, Any], decisions: Mapping[str, Any], target: Target, reduction: bool = True
) -> float:
    outer, inner = loops["rows"][decisions["fused_rows"] - 1]
    images = max(1, loops["row_points"] // (outer * inner)) * int(loops["batch"])
    outer_count, outer_size = _even(outer, decisions["row_tile"][0])
    inner_count, inner_size = _even(inner, decisions["row_tile"][1])
    vectors_all = -(-loops["columns"] // loops["lanes"])
    column_count, vectors = _even(vectors_all, decisions["column_vectors"])
    rows = outer_size * inner_size
    cells = rows * vectors
    depth = prod(loops["reductions"])
    chains = int(decisions["chains"])
    latency = _FMA_LATENCY / chains if cells * chains < _FMA_PER_CYCLE * _FMA_LATENCY else 0.0
    step = max(cells / _FMA_PER_CYCLE, (rows + vectors) / _LOADS_PER_CYCLE, latency)
    step += _STREAM_CYCLES * vectors
    # The counter and branch of the innermost loop, where a round has little to do.
    step += 1.0 / int(decisions["unroll"]) if cells < 12 else 0.0
    step = step if reduction else 0.0
    tiles = images * outer_count * inner_count
    total = tiles * column_count * (depth * step + _TILE_OVERHEAD + _STORE_CYCLES * cells * chains)
    return total + _EXPOSED * _memory(loops, decisions, target, tiles, column_count, depth)


def _memory(
    loops: Mapping[str, Any],
    decisions: Mapping[str, Any],
    target: Target,
    tiles: int,
    column_count: int,
    depth: int,
) -> float:
    block = max(1, min(int(decisions["row_block"]), tiles))
    panel = depth * decisions["column_vectors"] * loops["lanes"] * 4
    data = float(loops["data_bytes"])
    share = data * block / tiles
    blocks = -(-tiles // block)
    weights = _read(panel, panel * column_count, target) + (block - 1) * _read(panel, panel, target)
    reuse = 0.0 if block == 1 else _read(share, share + panel, target)
    return blocks * (column_count * (weights + reuse) + _read(share, data, target))


def _read(size: float, resident: float, target: Target) -> float:
    if resident <= _CACHE_SHARE * target.l1_bytes:
        return 0.0
    return size * (_L2_BYTE if resident <= _CACHE_SHARE * target.l2_bytes else _L3_BYTE)


def _window(loops: Mapping[str, Any], decisions: Mapping[str, Any]) -> float:
    count, size = _even(loops["rows"][0][1], decisions["row_tile"])
    cells = size * decisions["column_vectors"]
    steps = prod(loops["reductions"])
    written = prod(loops["reductions"][axis] for axis in decisions["written_out"])
    rolled = steps / max(1, written)
    # Written out steps reuse the loads that overlap; rolled ones load once for each output.
    loads = rolled * (written + size if written > 1 else size) * decisions["column_vectors"]
    cycles = max(cells * steps / _FMA_PER_CYCLE, loads / _LOADS_PER_CYCLE)
    return count * (cycles + 4 * rolled + _TILE_OVERHEAD) / decisions["column_vectors"]
