"""The ways in which a graph is compiled and run, each through a branch that can be wrong."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import tilewright as tw
from benchmarks.qemu import Board
from tilewright.api import lower_model
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.package import package
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.targets import Target, parse_target
from tilewright.compiler.tasks import Lookup, Task, TunedDecision
from tilewright.errors import CompileError, InvalidScheduleError, LayoutError, TilewrightError
from tilewright.quantization import quantize
from tilewright.tuner.candidate import canonical_json
from tilewright.tuner.layouts import layout_choices
from tilewright.tuner.space import LoopSpace
from tilewright.tuner.workload import describe_loops

Arrays = Mapping[str, np.ndarray]
_ATTEMPTS = 20
_MOST_THREADS = 3
_SAMPLES = 2


@dataclass(frozen=True)
class Way:
    """One way to compile and run.

    Attributes:
        run: model, inputs, seed -> outputs.
        prepare: model, inputs -> the model that is compiled in its place, and compared with.
        graphs: how many at most are compiled side by side.
    """

    run: Callable[[onnx.ModelProto, Arrays, int], Arrays]
    prepare: Callable[[onnx.ModelProto, Arrays], onnx.ModelProto] = lambda model, _feed: model
    graphs: int = 12


def run_module(compiled: tw.CompiledModule, feed: Arrays, seed: int) -> Arrays:
    """Run on NaN first, then on the inputs: what reads memory that it did not write shows it."""
    module = tw.load(compiled.path, threads=1 + seed % _MOST_THREADS)
    module.run({name: np.full_like(array, np.nan) for name, array in feed.items()})
    return module.run(feed)


def _untuned(model: onnx.ModelProto, feed: Arrays, seed: int) -> Arrays:
    return run_module(tw.compile(model, logs=()), feed, seed)


def _for_v3(model: onnx.ModelProto, feed: Arrays, seed: int) -> Arrays:
    return run_module(tw.compile(model, target="x86-64-v3", logs=()), feed, seed)


def _with_random(
    model: onnx.ModelProto, feed: Arrays, seed: int, *, layouts: bool, loops: bool
) -> Arrays:
    lookup = random_decisions(parse_target("native"), seed, layouts=layouts, loops=loops)
    return run_module(compile_with(model, lookup), feed, seed)


def _in_integers(model: onnx.ModelProto, feed: Arrays, seed: int) -> Arrays:
    """Run without floats in between; a model that needs some is refused, and runs with them."""
    try:
        compiled = tw.compile(model, logs=(), integer_only=True)
    except CompileError as error:
        if "integer-only is not possible" not in str(error):
            raise
        return _untuned(model, feed, seed)
    return run_module(compiled, feed, seed)


def _on_aarch64(model: onnx.ModelProto, feed: Arrays, seed: int) -> Arrays:
    """Run under qemu, where that and a compiler for it are installed; else for AVX2."""
    board = Board("aarch64", "cortex-a76")
    if board.missing():
        return _for_v3(model, feed, seed)
    compiled = tw.compile(model, target="aarch64:cortex-a76", logs=())
    names = [output.name for output in model.graph.output]
    return dict(zip(names, board.run(compiled.path, feed), strict=True))


def quantized(model: onnx.ModelProto, feed: Arrays) -> onnx.ModelProto:
    """Return what `tilewright quantize` makes of a model; itself where there is nothing to do."""
    rng = np.random.default_rng(0)
    samples = [dict(feed)] + [
        {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in feed.items()}
        for _ in range(_SAMPLES - 1)
    ]
    with tempfile.TemporaryDirectory(prefix="tilewright-fuzz-") as name:
        source, target = Path(name, "float.onnx"), Path(name, "quantized.onnx")
        onnx.save(model, source)
        try:
            quantize(source, samples, target)
        except TilewrightError as error:
            if "no convolution or matrix product" in str(error):
                return model
            raise
        return onnx.load(target)


WAYS: dict[str, Way] = {
    "untuned": Way(_untuned),
    "random layouts and loops": Way(functools.partial(_with_random, layouts=True, loops=True)),
    "quantized": Way(_untuned, quantized),
    "integers only": Way(_in_integers, quantized, graphs=1),
    "random loops": Way(functools.partial(_with_random, layouts=False, loops=True)),
    "x86-64-v3": Way(_for_v3),
    "random layouts": Way(functools.partial(_with_random, layouts=True, loops=False)),
    "aarch64": Way(_on_aarch64),
}
# In the order in which batches take them: what is emulated, or compiled thrice, comes less often.
ORDER = (
    *("untuned", "random layouts and loops", "random loops", "x86-64-v3"),
    *("random layouts", "quantized", "untuned", "random layouts and loops"),
    *("random loops", "integers only", "random layouts", "aarch64"),
)


def compile_with(model: onnx.ModelProto, lookup: Lookup) -> tw.CompiledModule:
    """Compile for this processor with decisions from a function instead of a log."""
    target = parse_target("native")
    lowered, digest = lower_model(model, target, tuned=lookup)
    folder = tempfile.TemporaryDirectory(prefix="tilewright-fuzz-")
    path = Path(folder.name) / "model.so"
    package(lowered.program, target, path, {"model_digest": digest}, "so")
    return tw.CompiledModule(path, folder, {})


def random_decisions(
    target: Target, seed: int, *, layouts: bool = True, loops: bool = True
) -> Lookup:
    """Return a lookup that knows a random layout, random loops or both for every task."""
    rng = np.random.default_rng(seed)

    def lookup(task: Task) -> tuple[TunedDecision, ...]:
        choices = layout_choices(task.operator, target)
        choice = choices[rng.integers(len(choices)) if layouts else 0]
        changed = {p: layout for p, layout in enumerate(choice.layouts) if layout.primitives}
        try:
            func = rewrite(task.operator.func, changed) if changed else task.operator.func
            default = json.loads(default_decisions(func, target).to_json())
            space = LoopSpace(describe_loops(func, target), default, target)
        except (LayoutError, InvalidScheduleError, ValueError):
            return ()
        decisions = default
        for _ in range(_ATTEMPTS if loops else 0):
            drawn = space.decisions(space.random(rng))
            if space.plausible(drawn):
                decisions = drawn
                break
        # So fast that it is chosen wherever its layouts are not too far from its neighbours'.
        return (TunedDecision(task.key, choice.layouts, canonical_json(decisions), 1e-12),)

    return lookup
