"""The joint space of a task: layout choices, and for each the decisions about its loops.

A loop space is a list of groups of options; each option sets some fields of the decisions. A point
is one option of each group (its genome), so that points can be sampled, mutated and crossed without
knowing the class of operator. Options that stand for the same code appear once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from math import prod
from typing import Any, TypeAlias

import numpy as np

from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.schedule.panels import MOST_PARTIAL_BYTES
from tilewright.compiler.schedule.staged import MOST_STAGED_BYTES, staged_size
from tilewright.compiler.targets import Target
from tilewright.tuner.candidate import Candidate, canonical_json
from tilewright.tuner.estimate import estimate_cycles, registers_needed

Genome: TypeAlias = tuple[int, ...]
Options: TypeAlias = list[dict[str, Any]]

# A point whose modelled cycles exceed the least by this factor is never built.
_IMPLAUSIBLE = 2.5
_MOST_TILES_OF_ROWS = 4
_MOST_VECTORS = 8
_MOST_ORDERS = 24
_UNROLLS = (1, 2, 3, 4, 8, 16)
_SAMPLES_FOR_LEAST = 200
# Fields that records made before they were there lack, with what was done then.
_BEFORE = {"contraction": {"panel": 0, "staged": False}}
# Of operators whose loops are cut into as many tasks as there are threads.
_MANY_TASKS = 1024


def _tile_sizes(extent: int, most: int) -> list[int]:
    """Return sizes up to `most` that cut the extent into different numbers of tiles.

    Tiles are made even, so of all sizes with one number only the least matters.
    """
    counts = {-(-extent // size) for size in range(1, min(extent, most) + 1)}
    return sorted({-(-extent // count) for count in counts})


def _blocks(tiles: int) -> list[int]:
    """Return numbers of tiles in a task, about a factor of two apart, with 1 and all."""
    sizes = {1, tiles}
    size = 2
    while size < tiles:
        sizes.add(-(-tiles // -(-tiles // size)))
        size *= 2
    return sorted(sizes)


def _nearest(group: Options, decisions: Mapping[str, Any]) -> int | None:
    """Return the option that agrees with decisions; a number alone may be the nearest."""
    for index, option in enumerate(group):
        if all(decisions.get(name) == value for name, value in option.items()):
            return index
    for name in ("row_block", "unroll"):
        if set(group[0]) == {name} and name in decisions:
            return min(range(len(group)), key=lambda i: abs(group[i][name] - decisions[name]))
    return None


class LoopSpace:
    """All decisions about the loops of one layout choice.

    Args:
        loops: see `workload.describe_loops`.
        default: decisions of the compiler's analytical model, as plain data.
        target: registers and cores.
    """

    def __init__(
        self, loops: Mapping[str, Any], default: Mapping[str, Any], target: Target
    ) -> None:
        self.loops, self.default, self.target = loops, dict(default), target
        # Of other classes, whose decisions leave nothing to choose, only the default is a point.
        make: dict[str, Callable[[], list[Options]]] = {
            "contraction": self._contraction,
            "window": self._window,
            "reduction": self._reduction,
            "elementwise": self._elementwise,
        }
        self.groups: list[Options] = [
            self._with_default(group)
            for group in make.get(str(loops["kind"]), list)()
            if set(group[0]) <= set(self.default)
        ]
        self._least: float | None = None

    @property
    def size(self) -> int:
        """Number of points; some of them are not valid."""
        return prod(len(group) for group in self.groups)

    def genome_of_default(self) -> Genome:
        """Return the point of the analytical model."""
        return tuple(
            next(i for i, option in enumerate(group) if self._is_default(option))
            for group in self.groups
        )

    def genome_of(self, decisions: Mapping[str, Any]) -> Genome | None:
        """Return the point that stands for decisions, or None where there is none."""
        genome = []
        for group in self.groups:
            at = _nearest(group, self._completed(decisions))
            if at is None:
                return None
            genome.append(at)
        return tuple(genome)

    def _completed(self, decisions: Mapping[str, Any]) -> dict[str, Any]:
        """Return decisions with what records of before they could be made stand for."""
        return {**_BEFORE.get(str(self.loops["kind"]), {}), **decisions}

    def decisions(self, genome: Genome) -> dict[str, Any]:
        """Return the decisions that a point stands for."""
        result = dict(self.default)
        for group, index in zip(self.groups, genome, strict=True):
            result.update(group[index])
        if "row_block" in result:
            result["row_block"] = max(1, min(int(result["row_block"]), self._tiles(result)))
        if "chains" in result:
            result["unroll"] = -(-int(result["unroll"]) // result["chains"]) * result["chains"]
        return result

    def plausible(self, decisions: Mapping[str, Any]) -> bool:
        """Say whether decisions are valid and not clearly bad by the analytical model."""
        if decisions == self.default:
            return True
        if not self._valid(decisions):
            return False
        return estimate_cycles(self.loops, decisions, self.target) <= _IMPLAUSIBLE * self.least()

    def fit(self, decisions: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return decisions of another shape fitted to this one.

        None where they do not fit, or are modelled to be slower than the default.
        """
        fitted = self._completed(decisions)
        if set(fitted) != set(self.default):
            return None
        loops = self.loops
        if loops["kind"] == "contraction":
            fitted["fused_rows"] = min(fitted["fused_rows"], len(loops["rows"]))
            extents = loops["rows"][fitted["fused_rows"] - 1]
            tile = fitted["row_tile"]
            fitted["row_tile"] = [min(a, b) for a, b in zip(tile, extents, strict=True)]
            if len(fitted["reduction_order"]) != len(loops["reductions"]):
                return None
            fitted["unroll"] = min(fitted["unroll"], loops["reductions"][-1])
            if fitted["panel"] not in loops["panels"]:
                fitted["panel"] = 0
            fitted["staged"] = fitted["staged"] and bool(loops.get("far"))
        elif loops["kind"] == "window":
            fitted["row_tile"] = min(fitted["row_tile"], loops["rows"][0][1])
            if not set(fitted["written_out"]) <= set(range(len(loops["reductions"]))):
                return None
        if "row_block" in fitted:
            fitted["column_vectors"] = min(fitted["column_vectors"], loops["vectors"])
            fitted["row_block"] = min(fitted["row_block"], self._tiles(fitted))
            if self._over_planes:
                most = self.loops["plane_rows"] // fitted["row_tile"]
                fitted["row_block"] = max(1, min(fitted["row_block"], most))
        if not self._valid(fitted):
            return None
        worse = estimate_cycles(loops, fitted, self.target) > 1.05 * estimate_cycles(
            loops, self.default, self.target
        )
        return None if worse else fitted

    def least(self) -> float:
        """Return about the least modelled cycles of any point."""
        if self._least is None:
            rng = np.random.default_rng(0)
            found = [estimate_cycles(self.loops, self.default, self.target)]
            for _ in range(_SAMPLES_FOR_LEAST):
                decisions = self.decisions(self.random(rng))
                if self._valid(decisions):
                    found.append(estimate_cycles(self.loops, decisions, self.target))
            self._least = min(found)
        return self._least

    def random(self, rng: np.random.Generator) -> Genome:
        """Return any point, valid or not."""
        return tuple(int(rng.integers(len(group))) for group in self.groups)

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Return a neighbour: one or two groups changed, mostly to a nearby option."""
        changed = list(genome)
        free = [i for i, group in enumerate(self.groups) if len(group) > 1]
        if not free:
            return genome
        for position in rng.choice(
            free, size=min(len(free), int(rng.integers(1, 3))), replace=False
        ):
            count = len(self.groups[position])
            if rng.random() < 0.5:
                step = int(rng.integers(1, 4)) * (1 if rng.random() < 0.5 else -1)
                changed[position] = (changed[position] + step) % count
            else:
                changed[position] = int(rng.integers(count))
        return tuple(changed)

    def cross(self, one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """Return a point with each group from one of two."""
        return tuple(a if rng.random() < 0.5 else b for a, b in zip(one, other, strict=True))

    def all(self) -> list[Genome]:
        """Return every point, in order."""
        return list(product(*(range(len(group)) for group in self.groups)))

    def _valid(self, decisions: Mapping[str, Any]) -> bool:
        if self.loops["kind"] == "contraction":
            if decisions["clip_pad"] and (not self.loops["clip"] or decisions["row_tile"][0] != 1):
                return False
            if decisions["unroll"] > max(self.loops["reductions"][-1], decisions["chains"]):
                return False
            if decisions["panel"] and not self._sums_fit(decisions):
                return False
            if decisions["staged"] and not self._can_stage(decisions):
                return False
        if self.loops["kind"] == "window" and self._over_planes:
            if not self._stays_near(decisions):
                return False
        elif self.loops["kind"] == "window" and decisions["clip_pad"]:
            window = set(self.loops["window"])
            if not self.loops["clip"] or not window <= set(decisions["written_out"]):
                return False
        if self.target.cores > 1 and self.tasks(decisions) < self.target.cores:
            return False
        return registers_needed(decisions) <= self.target.vector_registers

    @property
    def _over_planes(self) -> bool:
        return bool(self.loops.get("plane_rows"))

    def _stays_near(self, decisions: Mapping[str, Any]) -> bool:
        """Say whether a task over planes reads no more than it may, its window written out."""
        rows = decisions["row_tile"] * decisions["row_block"]
        whole = len(decisions["written_out"]) == len(self.loops["reductions"])
        return whole and rows <= max(decisions["row_tile"], self.loops["plane_rows"])

    def _sums_fit(self, decisions: Mapping[str, Any]) -> bool:
        """Say whether a task has several tiles, and their sums may wait between panels."""
        vectors = prod(decisions["row_tile"]) * decisions["column_vectors"]
        sums = decisions["row_block"] * vectors * self.loops["lanes"] * 4
        return decisions["row_block"] > 1 and sums <= MOST_PARTIAL_BYTES

    def _can_stage(self, decisions: Mapping[str, Any]) -> bool:
        """Say whether what a task would copy fits a stack, and nothing speaks against it."""
        loops = self.loops
        size = staged_size(loops["reductions"], decisions["column_vectors"], loops["lanes"])
        return size <= MOST_STAGED_BYTES and not decisions["panel"] and not decisions["clip_pad"]

    def tasks(self, decisions: Mapping[str, Any]) -> int:
        """Return how many tasks threads can share; a large number where it does not matter."""
        if "row_block" not in decisions:
            return _MANY_TASKS
        blocks = -(-self._tiles(decisions) // decisions["row_block"])
        columns = -(-self.loops["columns"] // (decisions["column_vectors"] * self.loops["lanes"]))
        return blocks * columns * int(self.loops["batch"])

    def _tiles(self, decisions: Mapping[str, Any]) -> int:
        """Return the number of row tiles."""
        if self.loops["kind"] == "contraction":
            outer, inner = self.loops["rows"][decisions["fused_rows"] - 1]
            tile = decisions["row_tile"]
        else:
            outer, inner = self.loops["rows"][0]
            tile = (1, decisions["row_tile"])
        images = max(1, self.loops["row_points"] // (outer * inner))
        return images * -(-outer // tile[0]) * -(-inner // tile[1])

    def _is_default(self, option: Mapping[str, Any]) -> bool:
        return all(self.default[name] == value for name, value in option.items())

    def _with_default(self, options: Options) -> Options:
        if any(self._is_default(option) for option in options):
            return options
        return [{name: self.default[name] for name in options[0]}, *options]

    def _contraction(self) -> list[Options]:
        loops, registers = self.loops, self.target.vector_registers
        tiles: Options = []
        for fused, (outer, inner) in enumerate(loops["rows"], 1):
            for vectors in range(1, min(loops["vectors"], _MOST_VECTORS) + 1):
                for size in _tile_sizes(inner, registers // vectors):
                    for rows in range(1, min(outer, _MOST_TILES_OF_ROWS) + 1):
                        option = {
                            "fused_rows": fused,
                            "row_tile": [rows, size],
                            "column_vectors": vectors,
                            "chains": 1,
                        }
                        if registers_needed(option) <= registers:
                            tiles += [option, *self._chained(option)]
        points = loops["row_points"]
        orders = self._orders(loops["reductions"])
        if loops["ordered"]:
            orders = [list(range(len(loops["reductions"])))]
        groups = [
            tiles,
            [{"row_block": block} for block in _blocks(max(1, points // 4))],
            [{"reduction_order": order} for order in orders],
            [{"unroll": unroll} for unroll in _UNROLLS],
        ]
        if loops["clip"]:
            groups.append([{"clip_pad": False}, {"clip_pad": True}])
        if loops["panels"]:
            groups.append([{"panel": steps} for steps in (0, *loops["panels"])])
        if loops.get("far"):
            groups.append([{"staged": False}, {"staged": True}])
        return groups

    def _chained(self, option: dict[str, Any]) -> Options:
        """Return small tiles with several accumulators per output, which hide latency."""
        cells = prod(option["row_tile"]) * option["column_vectors"]
        inner = self.loops["reductions"][-1] if self.loops["reductions"] else 1
        return [
            {**option, "chains": chains}
            for chains in (2, 4, 8)
            if cells < 8 and cells * chains <= 16 and inner % chains == 0
        ]

    def _orders(self, extents: Sequence[int]) -> list[list[int]]:
        """Return orders of the reduction axes; axes of one step stay where they are."""
        moving = [axis for axis, extent in enumerate(extents) if extent > 1]
        orders = []
        for order in permutations(moving):
            places = iter(order)
            orders.append(
                [next(places) if extent > 1 else axis for axis, extent in enumerate(extents)]
            )
        return orders[:_MOST_ORDERS]

    def _window(self) -> list[Options]:
        loops = self.loops
        inner = loops["rows"][0][1]
        tiles = [
            {"row_tile": size, "column_vectors": vectors}
            for vectors in range(1, min(loops["vectors"], 4) + 1)
            for size in _tile_sizes(inner, self.target.vector_registers // vectors)
        ]
        steps = loops["reductions"]
        whole = list(range(len(steps)))
        written = [[], list(loops["slides"]), list(loops["window"]), whole]
        unique = {tuple(axes): axes for axes in written if prod(steps[axis] for axis in axes) <= 16}
        if self._over_planes:
            unique = {tuple(whole): whole}
        groups: list[Options] = [
            tiles,
            [{"row_block": block} for block in _blocks(loops["row_points"])],
            [{"written_out": axes} for axes in unique.values()],
        ]
        if loops["clip"]:
            groups.append([{"clip_pad": False}, {"clip_pad": True}])
        return groups

    def _lanes(self) -> Options:
        lanes = self.target.lanes("float32")
        return [{"lanes": lanes >> shift} for shift in range(3) if lanes >> shift >= 4]

    def _reduction(self) -> list[Options]:
        return [self._lanes(), [{"accumulators": count} for count in (1, 2, 4, 8)]]

    def _elementwise(self) -> list[Options]:
        return [self._lanes(), [{"transpose": True}, {"transpose": False}]]


@dataclass(frozen=True)
class LayoutChoice:
    """One layout choice of a task and its loop space."""

    name: str
    layouts: tuple[Layout, ...]
    estimate_s: float
    loops: LoopSpace

    def candidate(self, genome: Genome) -> Candidate:
        """Return the candidate at a point."""
        return Candidate(self.layouts, canonical_json(self.loops.decisions(genome)))


@dataclass(frozen=True)
class TaskSpace:
    """Everything that a task may be computed by."""

    choices: tuple[LayoutChoice, ...]

    @property
    def size(self) -> int:
        """Number of points over all layouts."""
        return sum(choice.loops.size for choice in self.choices)

    @cached_property
    def defaults(self) -> frozenset[Candidate]:
        """The compiler's own decisions in each of the layouts."""
        return frozenset(c.candidate(c.loops.genome_of_default()) for c in self.choices)

    def choice_of(self, candidate: Candidate) -> LayoutChoice | None:
        """Return the layout choice that a candidate belongs to."""
        return next((c for c in self.choices if c.layouts == candidate.layouts), None)


def task_space(choices: Sequence[Mapping[str, Any]], target: Target) -> TaskSpace:
    """Return the space over layout choices as `Measurer.choices` gives them."""
    return TaskSpace(
        tuple(
            LayoutChoice(
                choice["name"],
                tuple(Layout.from_json(layout) for layout in choice["layouts"]),
                float(choice["estimate_s"]),
                LoopSpace(choice["loops"], choice["default"], target),
            )
            for choice in choices
        )
    )


def parse_schedule(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate's decisions as plain data."""
    return {} if candidate.schedule is None else json.loads(candidate.schedule)
