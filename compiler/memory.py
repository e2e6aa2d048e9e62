"""Where every tensor of a program lives: the caller's buffers, the weights, or the arena.

Intermediates share one arena. Two of them may overlap if no call needs both; offsets are chosen
largest first, each in the smallest gap that fits (Pisarchyk and Lee, "Efficient Memory Management
for Deep Neural Net Inference", 2020, section 5.2). Every tensor starts at a multiple of 64 bytes
and is followed by 64 bytes that belong to nobody else, so that a vector load past its end is safe.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tilewright.compiler.program import Program, Region

ALIGNMENT_BYTES = 64
_TAIL_BYTES = 64
_COUNTER_BYTES = 8  # an iteration or a condition

Space = Literal["input", "output", "weights", "arena"]


@dataclass(frozen=True, slots=True)
class Location:
    """The address of a tensor: byte `offset` in `space`; input and output buffers have an index."""

    space: Space
    index: int
    offset: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Addresses for a whole program.

    Attributes:
        locations: one per tensor of the program.
        copies: (tensor id, output index) pairs to copy to the caller after the last call, because
            the tensor could not be written in place: a constant, an input, or a second use.
        arena_bytes: size of the arena.
        peak_live_bytes: the largest sum of sizes needed at one call; no arena can be smaller.
        weights: (offset, data) of each distinct constant, by rising offset; bodies included.
        weights_bytes: size of the region that holds the constants.
        workspaces: arena offset by the position of a call that is control flow.
        regions: how that uses its workspace, by the kernel that stands for it.
    """

    locations: tuple[Location, ...]
    copies: tuple[tuple[int, int], ...]
    arena_bytes: int
    peak_live_bytes: int
    weights: tuple[tuple[int, np.ndarray], ...]
    weights_bytes: int
    workspaces: Mapping[int, int] = field(default_factory=dict)
    regions: Mapping[str, RegionPlan] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """Memory of control flow within a workspace in the arena of the program around it.

    Attributes:
        bodies: plans whose arena begins at `arena`.
        buffers: offsets of a loop's own tensors: iteration, condition before and after, two of each
            carried tensor, one row of each scan output.
        arena: where the bodies' memory begins.
        workspace_bytes: size of all.
    """

    bodies: tuple[MemoryPlan, ...]
    buffers: tuple[int, ...]
    arena: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A block of `size_bytes` needed from call `first` to call `last`, both included."""

    size_bytes: int
    first: int
    last: int


def plan_memory(program: Program) -> MemoryPlan:
    """Choose an address for every tensor of `program`."""
    weights = _Weights()
    plan = _plan(program, weights)
    return replace(plan, weights=tuple(weights.placed), weights_bytes=weights.size_bytes)


def _plan(program: Program, weights: _Weights) -> MemoryPlan:
    """Plan a program or a body; constants of all go into the same weights."""
    owners: dict[int, Location] = {}
    for index, tensor_id in enumerate(program.inputs):
        owners[program.storage_of(tensor_id)] = Location("input", index, 0)
    copies = _place_outputs(program, owners)
    weights.place(program, owners)
    regions = {
        name: _plan_region(region, weights) for name, region in sorted(program.regions.items())
    }

    lifetimes = _arena_lifetimes(program, owners, copies)
    busy = [index for index, call in enumerate(program.calls) if call.kernel in regions]
    spaces = [
        Lifetime(regions[program.calls[index].kernel].workspace_bytes, index, index)
        for index in busy
    ]
    blocks = [*lifetimes.values(), *spaces]
    offsets = plan_offsets(blocks)
    for storage, offset in zip(lifetimes, offsets, strict=False):
        owners[storage] = Location("arena", 0, offset)
    ends = [at + block.size_bytes for at, block in zip(offsets, blocks, strict=True)]
    nowhere = Location("arena", 0, 0)  # never used by any call
    return MemoryPlan(
        locations=tuple(
            owners.get(program.storage_of(index), nowhere) for index in range(len(program.tensors))
        ),
        copies=copies,
        arena_bytes=max(ends, default=0),
        peak_live_bytes=peak_live_bytes(blocks),
        weights=(),
        weights_bytes=0,
        workspaces=dict(zip(busy, offsets[len(lifetimes) :], strict=True)),
        regions=regions,
    )


def _plan_region(region: Region, weights: _Weights) -> RegionPlan:
    """Lay out the workspace of control flow: its own buffers, then the memory of its bodies."""
    bodies = tuple(_plan(body, weights) for body in region.bodies)
    sizes: list[int] = []
    if region.kind == "loop":
        body = region.bodies[0]
        results = [body.tensors[index].size_bytes for index in body.outputs[1:]]
        carried, rows = results[: region.carried], results[region.carried :]
        sizes = [_COUNTER_BYTES] * 3 + [size for size in carried for _ in range(2)] + rows
    buffers, end = [], 0
    for size in sizes:
        buffers.append(end)
        end += padded(size)
    largest = max(body.arena_bytes for body in bodies)
    return RegionPlan(bodies, tuple(buffers), end, end + padded(largest))


def plan_offsets(lifetimes: Sequence[Lifetime]) -> list[int]:
    """Return an offset for each block such that blocks needed at the same call do not overlap."""
    offsets = [0] * len(lifetimes)
    # Start, stop, first and last call of what is placed, by rising start. In numpy, as every block
    # looks at all that are placed: networks have thousands.
    placed = np.empty((4, 0), np.int64)
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size_bytes, i))
    for current in order:
        block = lifetimes[current]
        starts, stops, firsts, lasts = placed
        together = (firsts <= block.last) & (lasts >= block.first)
        offset = _smallest_gap(starts[together], stops[together], block.size_bytes)
        row = (offset, offset + block.size_bytes, block.first, block.last)
        placed = np.insert(placed, np.searchsorted(starts, offset), row, axis=1)
        offsets[current] = offset
    return offsets


def _smallest_gap(starts: np.ndarray, stops: np.ndarray, size_bytes: int) -> int:
    """Return the start of the smallest gap of `size_bytes` between ranges, or their end.

    Args:
        starts, stops: of the ranges, by rising start; they may overlap.
        size_bytes: of what is to be placed.
    """
    ends = np.maximum.accumulate(np.concatenate(([0], stops)))
    gaps = starts - ends[:-1]
    fitting = np.flatnonzero(gaps >= size_bytes)
    if not fitting.size:
        return int(ends[-1])
    return int(ends[fitting[np.argmin(gaps[fitting])]])


def peak_live_bytes(lifetimes: Sequence[Lifetime]) -> int:
    """Return the largest number of bytes needed at the same call: a lower bound for any plan."""
    change: dict[int, int] = {}
    for block in lifetimes:
        change[block.first] = change.get(block.first, 0) + block.size_bytes
        change[block.last + 1] = change.get(block.last + 1, 0) - block.size_bytes
    live = peak = 0
    for call in sorted(change):
        live += change[call]
        peak = max(peak, live)
    return peak


def padded(size_bytes: int) -> int:
    """Return the bytes to reserve for a tensor: its tail included, a multiple of the alignment."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + _TAIL_BYTES


def _place_outputs(program: Program, owners: dict[int, Location]) -> tuple[tuple[int, int], ...]:
    """Put computed outputs into the caller's buffers; return those that must be copied instead."""
    copies = []
    for index, tensor_id in enumerate(program.outputs):
        storage = program.storage_of(tensor_id)
        owner = program.tensors[storage]
        fits = owner.size_bytes == program.tensors[tensor_id].size_bytes
        if owner.kind in ("input", "constant") or storage in owners or not fits:
            copies.append((tensor_id, index))
        else:
            owners[storage] = Location("output", index, 0)
    return tuple(copies)


class _Weights:
    """Constants one after the other; equal bytes are stored once.

    Attributes:
        placed: (offset, data) of each distinct constant, by rising offset.
        size_bytes: where the next one would begin.
    """

    def __init__(self) -> None:
        self.placed: list[tuple[int, np.ndarray]] = []
        self.size_bytes = 0
        self._by_content: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}

    def place(self, program: Program, owners: dict[int, Location]) -> None:
        """Give every constant that the program uses its place."""
        used = {program.storage_of(index) for call in program.calls for index in call.args}
        used |= {program.storage_of(index) for index in program.outputs}
        for index, tensor in enumerate(program.tensors):
            if tensor.data is None or index not in used:
                continue
            raw = tensor.data.reshape(-1).view(np.uint8)
            same = self._by_content.setdefault((raw.size, zlib.crc32(raw.data)), [])
            offset = next((at for at, other in same if np.array_equal(raw, other)), None)
            if offset is None:
                offset = self.size_bytes
                self.size_bytes += padded(raw.size)
                same.append((offset, raw))
                self.placed.append((offset, tensor.data))
            owners[index] = Location("weights", 0, offset)


def _arena_lifetimes(
    program: Program, owners: dict[int, Location], copies: tuple[tuple[int, int], ...]
) -> dict[int, Lifetime]:
    """Return when each storage without an owner is needed, and how many bytes it takes."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, call in enumerate(program.calls):
        for index in call.args:
            storage = program.storage_of(index)
            if storage not in owners:
                first.setdefault(storage, position)
                last[storage] = position
    for tensor_id, _ in copies:
        storage = program.storage_of(tensor_id)
        if storage in first:
            last[storage] = len(program.calls)
    return {
        storage: Lifetime(
            padded(program.tensors[storage].size_bytes), first[storage], last[storage]
        )
        for storage in first
    }
