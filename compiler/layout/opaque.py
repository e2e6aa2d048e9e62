"""Rewrites statements that are not in normal form: the loops stay, the accesses move."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Range, TensorLoad
from tvm.sym import Analyzer

from tilewright.compiler.layout.indexing import map_load
from tilewright.compiler.layout.nest import Opaque
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.stage import Placement
from tilewright.errors import LayoutError


def rewrite_opaque(opaque: Opaque, places: Mapping[Any, Placement]) -> tirx.Stmt:
    """Return the statement with each access moved to its physical place.

    Raises:
        LayoutError: it writes a buffer whose layout has padding, or repeats elements.
    """
    if all(places[buffer].is_logical for buffer in opaque.buffers if buffer in places):
        return opaque.stmt
    for buffer in opaque.written:
        place = places.get(buffer)
        if place is not None and not is_rearrangement(place.layout):
            raise LayoutError(
                f"buffer {buffer.name!r} is written by a loop nest that is not in normal form; its "
                f"layout may only split, fuse and reorder, but is {place.layout}"
            )
    return _OpaqueRewriter(places).run(opaque.stmt)


def is_rearrangement(layout: Layout) -> bool:
    """Say whether a layout has every element exactly once, and nothing else."""
    return prod(layout.shape) == prod(layout.physical_shape) and layout.is_invertible


class _OpaqueRewriter:
    def __init__(self, places: Mapping[Any, Placement]) -> None:
        self.places = places
        self.analyzer = Analyzer()

    def run(self, stmt: tirx.Stmt) -> Any:
        """Return the rewritten statement."""
        return tvm_ffi.structural_mutate(
            stmt,
            [
                (tirx.For, self._for),
                (s_tir.SBlock, self._block),
                (tirx.BufferStore, self._store),
                (TensorLoad, self._load),
            ],
        )

    def _for(self, loop: Any, mutator: Any) -> Any:
        self.analyzer.bind(loop.loop_var, Range.from_min_extent(loop.min, loop.extent))
        return mutator.default_mutate(loop)

    def _block(self, block: Any, mutator: Any) -> Any:
        for iter_var in block.iter_vars:
            self.analyzer.bind(iter_var.var, iter_var.dom)
        body = mutator.mutate(block.body)
        init = mutator.mutate(block.init) if block.init is not None else None
        allocated = list(block.alloc_buffers)
        new = s_tir.SBlock(
            list(block.iter_vars), [], [], block.name_hint, body, init, allocated,
            list(block.match_buffers), block.annotations,
        )  # fmt: skip
        known = [place.physical for place in self.places.values()] + allocated
        reads, writes = s_tir.analysis.get_sblock_read_write_region(new, {b: b for b in known})
        return s_tir.SBlock(
            list(block.iter_vars), reads, writes, block.name_hint, body, init, allocated,
            list(block.match_buffers), block.annotations,
        )  # fmt: skip

    def _indices(self, place: Placement, indices: Any, mutator: Any) -> list[Any]:
        return map_load(place.layout, [mutator.mutate(i) for i in indices], self.analyzer)

    def _store(self, store: Any, mutator: Any) -> Any:
        place = self.places.get(store.buffer)
        if place is None:
            return mutator.default_mutate(store)
        value = mutator.mutate(store.value)
        return tirx.BufferStore(place.physical, value, self._indices(place, store.indices, mutator))

    def _load(self, load: Any, mutator: Any) -> Any:
        place = self.places.get(load.source)
        if place is None:
            return mutator.default_mutate(load)
        return tirx.BufferLoad(place.physical, self._indices(place, load.indices, mutator))
