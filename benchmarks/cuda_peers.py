"""PyTorch on the same GPU: eager, compiled by Inductor, and each of them as a CUDA graph.

Every peer is a set of timers by name, `PEER_WHAT_VARIANT`: PEER is "torch" or "inductor"; WHAT is
"call", an awaited call from Python, "device", a replayed graph between events, or "kernels", what
CUPTI says that the kernels of a call took, without what is between them. The fastest variant
(memory formats, ways to compile) counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.baselines.suite import Operator

CALLS = 20
PEERS = ("torch", "inductor")
WHATS = ("call", "device", "kernels")
Timers = dict[str, Callable[[], float]]
# Ways of torch.compile to make a call: kernels one by one, and recorded as a graph.
_MODES = {"": "default", "_graphs": "reduce-overhead"}


def cuda_torch() -> Any:
    """Return torch where it has a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def operator_timers(operator: Operator, precision: str, device: str = "cuda") -> Timers:
    """Return timers of an operator of the suite, with random operands."""
    import torch
    from torch.nn import functional

    _set_precision(precision)
    activations: dict[str, Callable] = {
        "none": lambda x: x,
        "relu": functional.relu,
        "relu6": functional.relu6,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "gelu": functional.gelu,
    }
    activate = activations[operator.activation]
    dtype = _dtype(precision)
    data = torch.randn(operator.data_shape, dtype=dtype, device=device)
    weight = torch.randn(operator.weight_shape, dtype=dtype, device=device)
    bias = torch.randn(operator.out_channels, dtype=dtype, device=device)
    rank = len(operator.size)

    def run(x: Any, w: Any) -> Any:
        if operator.kind == "GMM":
            return activate(torch.addmm(bias, x, w))
        name = f"conv{'_transpose' if operator.transposed else ''}{rank}d"
        convolve = getattr(functional, name)
        options = {
            "stride": operator.stride,
            "padding": operator.padding,
            "dilation": operator.dilation,
            "groups": operator.groups,
        }
        return activate(convolve(x, w, bias, **options))

    formats = {"": (data, weight)}
    if rank in (2, 3):
        last = torch.channels_last if rank == 2 else torch.channels_last_3d
        formats["_last"] = (data.to(memory_format=last), weight.to(memory_format=last))
    return _timers(run, formats)


def model_timers(
    name: str, feed: Mapping[str, np.ndarray], precision: str, device: str = "cuda"
) -> Timers:
    """Return timers of a model of the zoo, built from torch, on given inputs."""
    import torch

    from benchmarks.zoo.builders import build

    _set_precision(precision)
    built, dtype = build(name), _dtype(precision)
    module = built.model.to(device=device, dtype=dtype).eval()
    given = [torch.from_numpy(feed[key]).to(device) for key in built.input_names]
    given = [x.to(dtype) if x.is_floating_point() else x for x in given]
    formats = {"": tuple(given)}
    if any(x.dim() == 4 for x in given):
        module = module.to(memory_format=torch.channels_last)
        formats = {"_last": tuple(x.to(memory_format=torch.channels_last) for x in given)}
    return _timers(module, formats)


def _dtype(precision: str) -> Any:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def _set_precision(precision: str) -> None:
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _timers(run: Callable, formats: Mapping[str, Sequence[Any]]) -> Timers:
    import torch

    timers: Timers = {}
    for suffix, operands in formats.items():
        timers[f"torch_call{suffix}"] = _call_timer(run, operands)
        compiled = {way: torch.compile(run, mode=mode) for way, mode in _MODES.items()}
        for way, function in compiled.items():
            timers[f"inductor_call{suffix}{way}"] = _call_timer(function, operands)
        if operands[0].is_cuda:
            for peer, function in (("torch", run), ("inductor", compiled[""])):
                timers[f"{peer}_device{suffix}"] = _graph_timer(function, operands)
                timers[f"{peer}_kernels{suffix}"] = _kernels_timer(function, operands)
    return timers


def _kernels_timer(run: Callable, operands: Sequence[Any]) -> Callable[[], float]:
    import torch

    def kernels() -> float:
        with torch.inference_mode():
            return kernel_seconds(lambda: run(*operands))

    return kernels


def kernel_seconds(call: Callable[[], Any]) -> float:
    """Return what all kernels of a call took on the device, whoever started them."""
    import torch

    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / CALLS


def _call_timer(run: Callable, operands: Sequence[Any]) -> Callable[[], float]:
    import torch

    wait = torch.cuda.synchronize if operands[0].is_cuda else lambda: None

    def call() -> float:
        with torch.inference_mode():
            wait()
            start = time.perf_counter()
            for _ in range(CALLS):
                run(*operands)
                wait()
            return (time.perf_counter() - start) / CALLS

    return call


def _graph_timer(run: Callable, operands: Sequence[Any]) -> Callable[[], float]:
    import torch

    with torch.inference_mode():
        for _ in range(3):
            run(*operands)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(*operands)

    def replay() -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(CALLS):
            graph.replay()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / CALLS

    return replay
