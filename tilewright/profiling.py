"""Where a module's time goes: each operator against the machine's peak and bandwidth.

A roofline: an operator cannot be faster than its operations at the peak, nor than its bytes at the
bandwidth of memory, unless they are still in a cache. What runs over its data in order and reaches
neither waits for its other instructions, not for memory: softmax of 64 x 128 takes 86 ns a row, of
16384 x 128 91 ns (Zen 3, `python -m benchmarks.waits`). Times are the fastest of several rounds;
peak and bandwidth are the best that was measured between those rounds, with as many threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import ModuleError
from tilewright.inner_loops import inner_loops
from tilewright.inputs import random_inputs
from tilewright.runtime.module import Module

# An operator at this share of peak or bandwidth is limited by it.
_LIMITED = 0.75
# Below this time a call is mostly its own start and end.
_SHORT_S = 3e-6
# Data that moves this much faster than memory is in a cache.
_CACHED = 1.25
# Of the last cache level, which other programs use as well, so much keeps data between two calls.
_KEPT = 0.5
# Multiply-adds of bytes in the time of one of floats: four where there are instructions for it,
# else two, as products of 16 bits are added in pairs (vpmaddwd, smlal).
_DOT_FEATURES = frozenset(("avx512_vnni", "avx_vnni", "asimddp"))
_BYTE_KERNEL = re.compile(r"(conv|matmul)_int8")


@dataclass(frozen=True, slots=True)
class OperatorProfile:
    """One operator call.

    Attributes:
        label: of the call.
        kernel: that it runs.
        seconds: fastest of the rounds.
        share: of the time of all calls.
        gflops: 1e9 operations per second; None where the module does not say how many there are.
        gbytes: 1e9 bytes of arguments per second.
        peak_share: of the multiply-add peak; that of bytes where the kernel multiplies bytes.
        bandwidth_share: of the read bandwidth of memory; above 1 the data came from a cache.
        waits_for: what limits it.
        instructions: of its inner loop; None where there is no objdump.
    """

    label: str
    kernel: str
    seconds: float
    share: float
    gflops: float | None
    gbytes: float | None
    peak_share: float | None
    bandwidth_share: float | None
    waits_for: str
    instructions: str | None


@dataclass(frozen=True, slots=True)
class Profile:
    """All operator calls of a module in order, and what they are judged by."""

    module: str
    target: str
    threads: int
    rounds: int
    peak_gflops: float
    bandwidth_gbytes: float
    seconds: float
    has_instructions: bool
    operators: tuple[OperatorProfile, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def profile(
    path: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    rounds: int = 20,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Profile:
    """Time every operator call of a module.

    Args:
        path: a module for this machine's processor.
        inputs: what to run on; None draws random inputs.
        threads: threads per call.
        rounds: how often the module and the probes run.
        progress: called before each round.

    Raises:
        ModuleError: not a module, or one for another processor.
    """
    from tilewright.probes import Probes

    module = Module(Path(path), threads)
    calls = module.description["entries"][0]["calls"]
    if not calls:
        raise ModuleError(f"'{path}' computes nothing: it has no operator calls to profile")
    target = module.description["target"]
    probes = Probes(str(target["name"]), threads)
    feed = random_inputs(module.inputs, 0) if inputs is None else inputs
    times, probed = [], []
    for number in range(1, rounds + 1):
        progress(f"measuring, round {number} of {rounds}")
        times.append([item.seconds for item in module.profile(feed, rounds=1)])
        probed.append(probes.measure())
    fastest = np.min(times, axis=0)
    peak, bandwidth = np.max(probed, axis=0)
    loops = inner_loops(Path(path))
    features = tuple(target["features"])
    machine = _Machine(float(peak), float(bandwidth), int(target["l3_bytes"]), features)
    weights = sum(call.get("constant_bytes", 0) for call in calls)
    total = float(fastest.sum())
    rows = [
        _operator(call, float(seconds), total, machine, weights, loops)
        for call, seconds in zip(calls, fastest, strict=True)
    ]
    return Profile(
        module=str(path),
        target=str(target["name"]),
        threads=threads,
        rounds=rounds,
        peak_gflops=float(peak) / 1e9,
        bandwidth_gbytes=float(bandwidth) / 1e9,
        seconds=total,
        has_instructions=loops is not None,
        operators=tuple(rows),
    )


def byte_ratio(kernel: str, features: Iterable[str]) -> int:
    """Return how many multiply-adds a kernel may do in the time of one of floats.

    Args:
        kernel: its name.
        features: of the target.
    """
    if _BYTE_KERNEL.search(kernel) is None:
        return 1
    return 4 if _DOT_FEATURES & set(features) else 2


@dataclass(frozen=True, slots=True)
class _Machine:
    """Operations of floats and bytes per second, size of the last cache level, features."""

    peak: float
    bandwidth: float
    l3_bytes: int
    features: tuple[str, ...]


def _operator(
    call: Mapping[str, Any],
    seconds: float,
    total: float,
    machine: _Machine,
    weights_bytes: int,
    loops: Mapping[str, str] | None,
) -> OperatorProfile:
    seconds = max(seconds, 1e-9)
    operations, moved = call.get("operations"), call.get("bytes")
    flops = None if operations is None else operations / seconds
    rate = None if moved is None else moved / seconds
    peak = machine.peak * byte_ratio(call["kernel"], machine.features)
    peak_share = None if flops is None else flops / peak
    bandwidth_share = None if rate is None else rate / machine.bandwidth
    from_memory = far_bytes(call, weights_bytes, machine.l3_bytes) / seconds / machine.bandwidth
    return OperatorProfile(
        label=call["label"],
        kernel=call["kernel"],
        seconds=seconds,
        share=seconds / total,
        gflops=None if flops is None else flops / 1e9,
        gbytes=None if rate is None else rate / 1e9,
        peak_share=peak_share,
        bandwidth_share=bandwidth_share,
        waits_for=waits_for(
            seconds, peak_share, from_memory, bool(call.get("scattered")) and from_memory > 0
        ),
        instructions=None if loops is None else loops.get(call["kernel"], ""),
    )


def far_bytes(call: Mapping[str, Any], weights_bytes: int, l3_bytes: int) -> int:
    """Return how many bytes of a call's arguments come from memory, run after run.

    Weights do where those of all calls together outgrow the last cache level, other data, which
    was written shortly before, where that of the call alone does.

    Args:
        call: of a module's description.
        weights_bytes: of all calls.
        l3_bytes: last cache level.
    """
    weights = int(call.get("constant_bytes", 0))
    data = int(call.get("bytes", 0)) - weights
    kept = _KEPT * l3_bytes
    return weights * (weights_bytes > kept) + data * (data > kept)


def waits_for(
    seconds: float, peak_share: float | None, memory_share: float, is_scattered: bool
) -> str:
    """Say what an operator waits for, by its place under the roofline.

    Args:
        seconds: time of one call.
        peak_share: of the multiply-add peak; None where it is not known.
        memory_share: of the bandwidth of memory, by the bytes that come from there.
        is_scattered: reads from memory where other data says, which no prefetch foresees.

    Returns:
        "multiply-add units", "memory", "memory latency, scattered reads", "call and loop
        overhead", or "other instructions": arithmetic that is no multiply-add, and loads and stores
        that a cache serves.
    """
    if peak_share is None:
        return "not known: compiled by a release that does not count operations"
    if peak_share >= _LIMITED:
        return "multiply-add units"
    if seconds < _SHORT_S:
        return "call and loop overhead"
    if _LIMITED <= memory_share < _CACHED:
        return "memory"
    if is_scattered:
        return "memory latency, scattered reads"
    return "other instructions"
