"""The joint space of an operator on a GPU: its layouts, and for each the tiles of its product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from tilewright.compiler.cuda.estimate import estimate_seconds
from tilewright.compiler.cuda.layouts import cuda_choices
from tilewright.compiler.cuda.parts import Part, split
from tilewright.compiler.cuda.product import Product, read_product
from tilewright.compiler.cuda.storage import STORED_AS, restore
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.cuda.tile import GemmTile, check_tile, tile_dtypes
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.program import item_bytes
from tilewright.compiler.targets import Target
from tilewright.errors import CompileError, InvalidScheduleError
from tilewright.tuner.candidate import Candidate

_ROWS = (16, 32, 64, 128, 256)
_COLUMNS = (32, 64, 128, 256)
_DEPTH_BYTES = (32, 64, 128)
_WARPS = (1, 2, 4, 8)
_STAGES = (2, 3, 4, 5)
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
# A tile whose estimate exceeds the least by this factor is never built.
_IMPLAUSIBLE = 4.0


@dataclass(frozen=True, eq=False)
class LayoutOption:
    """One layout choice of an operator, and the product that it is then."""

    choice: Choice
    part: Part
    product: Product


@dataclass(frozen=True, eq=False)
class CudaSpace:
    """Candidates of one operator.

    Attributes:
        options: its layouts; empty where it has no product to tune.
        rejected: why tiles were refused before anything was built: reason -> how many.
    """

    target: CudaTarget
    precision: str
    options: tuple[LayoutOption, ...]
    rejected: Counter[str] = field(default_factory=Counter)

    def candidates(self, option: LayoutOption) -> list[Candidate]:
        """Return the candidates of one layout, best estimate first."""
        found = []
        for tile in self._tiles(option.product):
            seconds = estimate_seconds(tile, option.product, self.precision, self.target)
            found.append((seconds, tile))
        found.sort(key=lambda pair: pair[0])
        kept = [tile for seconds, tile in found if seconds <= _IMPLAUSIBLE * found[0][0]]
        self.rejected["implausible"] += len(found) - len(kept)
        return [Candidate(option.choice.layouts, tile.to_json()) for tile in kept]

    def _tiles(self, product_: Product) -> Iterator[GemmTile]:
        element = item_bytes(tile_dtypes(product_, self.precision)[0])
        together = (False, True) if self.target.has_warpgroups else (False,)
        for rows, columns, depth, high, wide, stages, by_warpgroups in product(
            _ROWS, _COLUMNS, _DEPTH_BYTES, _WARPS, _WARPS, _STAGES, together
        ):
            if not 2 <= high * wide <= 16:
                continue
            for parts in _SPLITS:
                tile = GemmTile(
                    rows, columns, depth // element, high, wide, stages, parts, by_warpgroups
                )
                try:
                    check_tile(tile, product_, self.precision, self.target)
                except InvalidScheduleError as error:
                    self.rejected[_reason(str(error))] += 1
                    break  # what splits the depth further does not fit either
                yield tile

    def option_of(self, candidate: Candidate) -> LayoutOption:
        """Return the layout choice of a candidate."""
        return next(o for o in self.options if o.choice.layouts == candidate.layouts)


def _reason(message: str) -> str:
    """Return the word of a refusal that says of what kind it is."""
    refusal = message.partition("): ")[2]
    words = (
        *("shared memory", "registers", "threads", "split", "multiple", "divide", "warpgroup"),
        "depth",
    )
    return next((word for word in words if word in refusal), "other")


def cuda_space(operator: Operator, host: Target, target: CudaTarget, precision: str) -> CudaSpace:
    """Return the space of an operator; without options where it is no product."""
    options = []
    for choice in cuda_choices(operator, host):
        changed = {p: layout for p, layout in enumerate(choice.layouts) if layout.primitives}
        func = rewrite(operator.func, changed) if changed else operator.func
        storage = {}
        if precision in STORED_AS:
            storage = {
                p: STORED_AS[precision]
                for p, param in enumerate(func.params)
                if str(param.dtype) == "float32" and p < operator.output
            }
        try:
            parts, _ = restore(split(func), func, storage)
        except CompileError:
            continue
        found = _product(parts)
        if found is not None:
            options.append(LayoutOption(choice, *found))
    return CudaSpace(target, precision, tuple(options))


def _product(parts: Sequence[Part]) -> tuple[Part, Product] | None:
    for part in parts:
        found = read_product(part)
        if found is not None:
            return part, found
    return None


def neighbours(tile: GemmTile, rng: np.random.Generator) -> GemmTile:
    """Return a tile that differs in one or two numbers; it may not be allowed."""
    options = {
        "rows": _ROWS,
        "columns": _COLUMNS,
        "warp_rows": _WARPS,
        "warp_columns": _WARPS,
        "stages": _STAGES,
        "split": _SPLITS,
        "by_warpgroups": (False, True),
    }
    changed = tile
    for _ in range(int(rng.integers(1, 3))):
        name = str(rng.choice(list(options)))
        value = rng.choice(options[name])
        changed = replace(changed, **{name: value.item()})
    return changed
