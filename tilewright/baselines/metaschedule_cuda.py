"""MetaSchedule of TVM for a GPU: its schedules and TVM's CUDA C, in a module of tilewright's.

TVM 0.27 from PyPI writes CUDA C but cannot run it. Its kernels become launches like ours: nvcc
compiles them, and our runtime starts and times them, in a process that a failing candidate may end.

Of its schedules for tensor cores, TVM 0.27 lowers those that sum in float16, not those that sum in
float32 ("tvm_access_ptr element type must match the source buffer"), as our functions of float16
do: such candidates fail.
"""

from __future__ import annotations

import os
import re
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock
from tvm.target import Target
from tvm.tirx.build import split_host_device_mods
from tvm_ffi import structural_walk

from tilewright.compiler.cuda.build import Launch, Launches, temporaries_of
from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.lower import CudaLowered, calls_of, signature_of, without_layouts
from tilewright.compiler.cuda.package import package_for_cuda
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.program import Program
from tilewright.errors import CompileError, TilewrightError
from tilewright.tuner.cuda.measure import DeviceProcess
from tilewright.tuner.cuda.program import KERNEL, call_alone, random_array

OUTPUTS = "tilewright.outputs"
"""Attribute of a function: how many of its last parameters it writes."""
_ROUNDS = 3
_DEFINITION = re.compile(r'^extern "C" __global__ void __launch_bounds__\((\d+)\) ', re.MULTILINE)
_START = "tirx.call_ffi_kernel"
_GLOBAL = "TW_GLOBAL(\\1) "


def tvm_target(target: CudaTarget) -> Target:
    """Return the GPU as TVM describes one."""
    return Target(
        {
            "kind": "cuda",
            "arch": target.arch,
            "max_threads_per_block": 1024,
            "max_num_threads": 1024,
            "thread_warp_size": 32,
            "max_shared_memory_per_block": 49152,
            "registers_per_block": 65536,
        }
    )


def with_outputs(program: Program) -> dict[str, tirx.PrimFunc]:
    """Return the program's functions with the attribute that the builder of candidates reads."""
    counts = {call.kernel: call.n_outputs for call in program.calls}
    return {
        name: func.with_attr(OUTPUTS, counts[name])
        for name, func in program.kernels.items()
        if name in counts
    }


# ---- from scheduled functions to launches ----


def lowered_by_tvm(
    program: Program, functions: Mapping[str, tirx.PrimFunc], target: CudaTarget
) -> CudaLowered:
    """Return a program whose functions, scheduled and with `OUTPUTS`, TVM turns into CUDA C.

    Raises:
        CompileError: a function cannot be one for a GPU.
    """
    made = _launches_of(functions, target)
    tensors, calls = list(program.tensors), []
    schedules: dict[str, tuple[str, ...]] = {}
    for call in program.calls:
        own = made[call.kernel]
        calls += calls_of(own, call, tensors)
        schedules[call.label] = tuple(launch.kernel.schedule for launch in own.launches)
    launches = [launch for own in made.values() for launch in own.launches]
    signatures = {launch.kernel.name: signature_of(launch.buffers) for launch in launches}
    kernels = {launch.kernel.name: launch.kernel for launch in launches}
    whole = replace(program, tensors=tuple(tensors), calls=tuple(calls), kernels=signatures)
    return CudaLowered(whole, kernels, schedules, without_layouts(program))


def _launches_of(functions: Mapping[str, tirx.PrimFunc], target: CudaTarget) -> dict[str, Launches]:
    """Return what computes every function."""
    named = {}
    for name, func in functions.items():
        named[f"tvm_{name}"] = func.with_attr("global_symbol", f"tvm_{name}")
    host, device, sources = _cuda_c(IRModule(named), tvm_target(target))
    started = _started(host)
    found = {}
    for name, func in functions.items():
        buffers = _buffers(func)
        first = len(func.params) - int(func.attrs[OUTPUTS])
        outputs = {param.name for param in list(func.params)[first:]}
        # A kernel reads what was written before it; anything else in memory is its own.
        written = {param.name for param in list(func.params)[:first]}
        launches: list[Launch] = []
        for symbol, numbers in started.get(f"tvm_{name}", ()):
            kernel = device[symbol]
            launch = _launch(kernel, symbol, numbers, sources[symbol], buffers, outputs, written)
            launches.append(launch)
            written |= {buffer.name for buffer in launch.buffers}
        if not launches:
            raise CompileError(f"TVM made no kernel of {name}")
        params = tuple(func.params)
        found[name] = Launches(tuple(launches), params, temporaries_of(launches, params))
    return found


def _cuda_c(
    mod: IRModule, target: Target
) -> tuple[IRModule, dict[str, tirx.PrimFunc], dict[str, str]]:
    """Return the host's functions, the kernels, and the text of each kernel."""
    mod = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod)
    mod = tvm.tirx.transform.BindTarget(target.with_host(Target("llvm")))(mod)
    lower, _, finish = tvm.tirx.get_default_tir_pipeline(target)
    host, devices = split_host_device_mods(lower(mod))
    if len(devices) != 1:
        raise CompileError("TVM's schedule leaves nothing, or not all, to the GPU")
    ((device_target, device),) = devices.items()
    device = finish()(device)
    built = tvm.get_global_func("target.build.cuda")(device, device_target)
    first, *texts = re.split(r'(?=^extern "C" __global__)', built.inspect_source(), flags=re.M)
    top = f"#if !defined(TW_EMULATE) && !defined(TW_TVM)\n#define TW_TVM\n{first}\n#endif\n"
    sources = {}
    for text in texts:
        head = _DEFINITION.match(text)
        if text.rstrip().endswith(";"):
            continue  # a declaration
        if head is None:
            raise CompileError("TVM wrote a kernel without bounds of its threads")
        name = text[head.end() :].split("(")[0]
        sources[name] = top + _DEFINITION.sub(_GLOBAL, text)
    return host, {var.name_hint: func for var, func in device.functions.items()}, sources


def _started(host: IRModule) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Return for every function the kernels that it starts, with their numbers."""
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for var, func in host.functions.items():
        own: list[tuple[str, tuple[int, ...]]] = []

        def note(call: Any, own: list[tuple[str, tuple[int, ...]]] = own) -> None:
            if getattr(call.op, "name", "") != _START:
                return
            name, *arguments = call.args
            numbers = tuple(int(value) for value in arguments if isinstance(value, tirx.IntImm))
            own.append((str(name.value), numbers))

        structural_walk(func.body, [(tvm.ir.Call, note)], order="pre")
        found[var.name_hint] = own
    return found


def _buffers(func: tirx.PrimFunc) -> dict[str, Any]:
    """Return the parameters and what lies in memory between kernels, by name."""
    own = [b for b in func.body.block.alloc_buffers if b.scope() == "global"]
    buffers = [*func.params, *own]
    found = {buffer.name: buffer for buffer in buffers}
    if len(found) < len(buffers):
        raise CompileError("two buffers of a function have one name")
    return found


def _launch(
    device: tirx.PrimFunc,
    symbol: str,
    numbers: Sequence[int],
    source: str,
    buffers: Mapping[str, Any],
    outputs: Collection[str],
    written: Collection[str],
) -> Launch:
    """Return a kernel whose parameters are what it reads, then what it writes."""
    names = [str(param.name).removesuffix("_ptr") for param in device.params]
    if any(name not in buffers for name in names):
        raise CompileError(f"TVM renamed a buffer of {symbol}")
    ends = [name for name in names if name in outputs or name not in written]
    order = [name for name in names if name not in ends] + ends
    first = source.index(f" {symbol}(") + len(symbol) + 2
    last = source.index(") {", first)
    texts = dict(zip(names, source[first:last].split(", "), strict=True))
    source = source[:first] + ", ".join(texts[name] for name in order) + source[last:]
    tags = [str(tag) for tag in device.attrs["tirx.kernel_launch_params"]]
    given = dict(zip(tags, numbers, strict=True))
    x, y, z = (given.get(f"threadIdx.{axis}", 1) for axis in "xyz")
    if y * z > 1:  # our runtime starts blocks of one dimension
        source = source.replace("threadIdx.x", f"threadIdx.x % {x}")
        source = source.replace("threadIdx.y", f"threadIdx.x / {x} % {y}")
        source = source.replace("threadIdx.z", f"threadIdx.x / {x * y}")
    grid = tuple(given.get(f"blockIdx.{axis}", 1) for axis in "xyz")
    kernel = Kernel(
        symbol,
        source,
        (grid[0], grid[1], grid[2]),
        x * y * z,
        given.get("tirx.use_dyn_shared_memory", 0),
        f"metaschedule, {prod(grid)} blocks of {x * y * z} threads",
    )
    return Launch(kernel, tuple(buffers[name] for name in order), len(ends))


# ---- candidates ----


def alone(func: tirx.PrimFunc) -> Program:
    """Return a program that calls a function with `OUTPUTS` once; its other parameters are inputs.

    Inputs and outputs are named after their positions: t0, t1, ..
    """
    return call_alone(func, len(func.params) - int(func.attrs[OUTPUTS]), {})


@contextmanager
def on_device(target: CudaTarget) -> Iterator[dict[str, Any]]:
    """Give the builder and the runner of candidates, for `meta_schedule.tune_tir`."""
    process = DeviceProcess()
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        try:
            yield {
                "builder": _builder(target, Path(folder)),
                "runner": _runner(process, Path(folder)),
            }
        finally:
            process.stop()


def _builder(target: CudaTarget, work: Path) -> Any:
    def lower(func: tirx.PrimFunc) -> CudaLowered:
        return lowered_by_tvm(alone(func), {KERNEL: func}, target)

    def write(building: CudaLowered | str) -> Any:
        """Compile by nvcc, many at once."""
        if isinstance(building, str):
            return meta_schedule.builder.BuilderResult(None, building)
        # MetaSchedule removes the folder when the module has run.
        path = Path(tempfile.mkdtemp(dir=work), "candidate.so")
        try:
            package_for_cuda(building, target, "fp32", path)
        except TilewrightError as error:
            return meta_schedule.builder.BuilderResult(None, str(error))
        return meta_schedule.builder.BuilderResult(str(path), None)

    @derived_object
    class Builder(meta_schedule.builder.PyBuilder):
        def build(self, build_inputs: Any) -> list[Any]:
            lowered: list[CudaLowered | str] = []
            for item in build_inputs:
                ((_, func),) = item.mod.functions.items()
                try:
                    lowered.append(lower(func))
                except Exception as error:  # of any class from TVM: a candidate that has no code
                    lowered.append(f"{type(error).__name__}: {error}"[:500])
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(pool.map(write, lowered))

    return Builder()


def _runner(process: DeviceProcess, folder: Path) -> Any:
    @derived_object
    class Future(meta_schedule.runner.PyRunnerFuture):
        def __init__(self, answer: dict[str, Any]) -> None:
            self.answer = answer

        def done(self) -> bool:
            return True

        def result(self) -> Any:
            error = self.answer.get("error")
            seconds = None if error else self.answer["seconds"]
            return meta_schedule.runner.RunnerResult(seconds, error)

    @derived_object
    class Runner(meta_schedule.runner.PyRunner):
        def run(self, runner_inputs: Any) -> list[Any]:
            return [Future(self._run(item)) for item in runner_inputs]

        def _run(self, item: Any) -> dict[str, Any]:
            module = Path(item.artifact_path)
            arrays = _arrays(item.args_info, folder)
            request: dict[str, object] = {"module": str(module), "arrays": str(arrays)}
            return process.ask(request | {"tolerance": 0.0, "rounds": _ROUNDS})

    return Runner()


def _arrays(args_info: Any, folder: Path) -> Path:
    """Return a file with a random array for each parameter; the same for the same parameters."""
    shapes = [(tuple(int(n) for n in info.shape), str(info.dtype)) for info in args_info]
    path = folder / f"{zlib.crc32(repr(shapes).encode()):08x}.npz"
    if not path.exists():
        rng = np.random.default_rng(1)
        arrays = {f"t{i}": random_array(*kind, rng) for i, kind in enumerate(shapes)}
        np.savez(path, **arrays)  # type: ignore[arg-type]
    return path
