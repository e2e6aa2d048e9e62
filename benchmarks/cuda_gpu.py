"""Modules for a GPU, built here and measured where one is: correctness, and speed beside torch.

    python -m benchmarks.cuda_gpu build                     # needs nvcc, no GPU
    python -m benchmarks.cuda_gpu measure                   # needs a GPU; no TVM, no nvcc
    python -m benchmarks.cuda_gpu report

`build` writes modules and what they are into build/cuda_gpu.tar.xz, which with the repository is
all that `measure` needs, on any machine: it takes numpy, onnx, onnxruntime (expected results, on
the processor) and torch (the peer; without it only correctness). Operators run as float32, or as
float16 in and out. Times, medians over the rounds, ours and torch's in turns:

- call: one call on tensors of the device, waited for. Torch: eager, cuDNN choosing by measurement,
  the faster of both memory formats.
- device: time on the device alone. Ours: the kernels of the module between events. Torch: a CUDA
  graph of the same call, replayed.

Models are the ONNX files of the zoo (models/, see benchmarks/models.py); they have no peer yet.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from benchmarks.report import RESULTS, markdown_table, write_json, write_text
from tilewright.baselines.suite import Operator, build_model, load_suite

ROOT = Path(__file__).parent.parent
ARCHIVE = ROOT / "build" / "cuda_gpu.tar.xz"
RESULT = RESULTS / "cuda_gpu.json"
_PRECISIONS = ("fp32", "tf32", "fp16")
_TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2}
_MODELS = ("resnet50", "bert_base", "mobilenetv2")
# Weights are rounded to this share of their spread, so that the archive stays small.
_GRAIN = 8
_ROUNDS, _CALLS = 15, 20


def coarse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights of few different values, which compress well."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 64:
            step = float(array.std()) / _GRAIN
            rounded = (np.round(array / step) * step).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return model


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float16 in place of float32 everywhere."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


# ---- build: here ----


def build(args: argparse.Namespace) -> None:
    """Compile operators and models, and pack them."""
    import tilewright

    rows: list[dict[str, Any]] = []
    args.archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(args.archive, "w:xz") as archive:
        for name, source, extra in _sources(args):
            for precision in args.precisions:
                is_operator = extra is not None
                model = in_half(source) if precision == "fp16" and is_operator else source
                start = time.perf_counter()
                compiled = tilewright.compile(
                    model, args.target, precision=precision, logs=args.log
                )
                seconds = time.perf_counter() - start
                file = f"{name}-{precision}.so"
                archive.add(compiled.path, file)
                row = {"name": name, "precision": precision, "file": file, "operator": extra}
                rows.append({**row, "build_s": round(seconds, 1)})
                print(f"{file}: {seconds:.1f} s", file=sys.stderr, flush=True)
        text = json.dumps({"target": args.target, "rows": rows}).encode()
        entry = tarfile.TarInfo("plan.json")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    print(f"{args.archive}: {args.archive.stat().st_size / 2**20:.1f} MiB")


def _sources(args: argparse.Namespace) -> Iterator[tuple[str, Any, dict[str, Any] | None]]:
    for operator in load_suite(args.suite, batches=args.batches) if args.suite != "none" else ():
        yield operator.name, coarse(build_model(operator)), asdict(operator)
    for name in args.models:
        yield name, ROOT / "models" / f"{name}.onnx", None


# ---- measure: where there is a GPU ----


def measure(args: argparse.Namespace) -> None:
    """Run every module of the archive; a row that fails says how, and the next one runs."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(args.archive) as archive:
            archive.extractall(folder, filter="data")
        plan = json.loads(Path(folder, "plan.json").read_text())
        facts = {"target": plan["target"], **_device_facts()}
        rows = []
        for row in plan["rows"]:
            try:
                found = _measure_row(row, Path(folder), args.models_folder)
            except Exception as error:  # the table must say it; other rows still count
                found = {"error": f"{type(error).__name__}: {error}"[:500]}
            rows.append({**row, **found})
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "operator"}), flush=True)
            write_json(args.output, {"machine": facts, "rows": rows})
            gc.collect()


def _device_facts() -> dict[str, str]:
    torch = _torch()
    if torch is None:
        return {"device": "unknown: no torch with CUDA"}
    return {"device": torch.cuda.get_device_name(0), "torch": torch.__version__}


def _torch() -> Any:
    """Return torch where it has a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _measure_row(row: Mapping[str, Any], folder: Path, models: Path) -> dict[str, Any]:
    from tilewright.runtime.module import Module

    module = Module(folder / row["file"])
    model: Any = models / f"{row['name']}.onnx"
    if row["operator"] is not None:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in row["operator"].items()}
        operator = Operator(**fields)
        model = coarse(build_model(operator))
    feed = _feed(module)
    result = module.run(feed)
    found: dict[str, Any] = {}
    if isinstance(model, onnx.ModelProto) or model.exists():
        found["error_share"] = _error(model, feed, result)
        found["correct"] = bool(found["error_share"] <= _TOLERANCES[row["precision"]])
    again = module.run(feed)
    found["same_as_a_graph"] = all(np.array_equal(again[k], v) for k, v in result.items())
    ours = _our_times(module, feed)
    peer: dict[str, Callable[[], Any]] = {}
    if row["operator"] is not None and _torch() is not None:
        peer = _torch_operator(operator, row["precision"])
    return {**found, **_in_turns(ours, peer)}


def _feed(module: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feed = {}
    for spec in module.inputs:
        if spec.dtype.startswith("float"):
            feed[spec.name] = rng.standard_normal(spec.shape, np.float32).astype(spec.dtype)
        else:
            feed[spec.name] = np.ones(spec.shape, spec.dtype)
    return feed


def _error(model: Any, feed: Mapping[str, np.ndarray], result: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference from ONNX Runtime, of the largest value."""
    import onnxruntime

    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    types = {item.name: item.type for item in session.get_inputs()}
    given = {
        name: array.astype(np.float32) if types[name] == "tensor(float)" else array
        for name, array in feed.items()
    }
    worst = 0.0
    for item, expected in zip(session.get_outputs(), session.run(None, given), strict=True):
        difference = np.abs(result[item.name].astype(np.float64) - expected).max()
        worst = max(worst, float(difference / max(1e-6, np.abs(expected).max())))
    return worst


def _our_times(module: Any, feed: Mapping[str, np.ndarray]) -> dict[str, Callable[[], float]]:
    """Return functions that give one time in seconds."""

    def on_device() -> float:
        return sum(call.seconds for call in module.profile(feed, rounds=_CALLS))

    times = {"ours_device": on_device}
    torch = _torch()
    if torch is None:
        return times
    names = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64}
    inputs = {name: torch.from_numpy(array).cuda() for name, array in feed.items()}
    outputs = {
        spec.name: torch.empty(spec.shape, dtype=names[spec.dtype], device="cuda")
        for spec in module.outputs
        if spec.dtype in names
    }
    if len(outputs) < len(module.outputs):
        return times

    def call() -> float:
        start = time.perf_counter()
        for _ in range(_CALLS):
            module.run_into(inputs, outputs)
        return (time.perf_counter() - start) / _CALLS

    return {**times, "ours_call": call}


def _torch_operator(operator: Operator, precision: str) -> dict[str, Callable[[], float]]:
    """Return the same operator of torch: an eager call, and a replayed graph, in both formats."""
    import torch
    from torch.nn import functional

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = torch.float16 if precision == "fp16" else torch.float32
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
    device = torch.device("cuda")
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
    times: dict[str, Callable[[], float]] = {}
    for suffix, operands in formats.items():
        with torch.inference_mode():
            times[f"torch_call{suffix}"] = _eager_timer(run, operands)
            times[f"torch_device{suffix}"] = _graph_timer(run, operands)
    return times


def _eager_timer(run: Callable, operands: Sequence[Any]) -> Callable[[], float]:
    import torch

    def call() -> float:
        with torch.inference_mode():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(_CALLS):
                run(*operands)
                torch.cuda.synchronize()
            return (time.perf_counter() - start) / _CALLS

    return call


def _graph_timer(run: Callable, operands: Sequence[Any]) -> Callable[[], float]:
    import torch

    for _ in range(3):
        run(*operands)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(*operands)

    def replay() -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(_CALLS):
            graph.replay()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / _CALLS

    return replay


def _in_turns(
    ours: Mapping[str, Callable[[], float]], peer: Mapping[str, Callable[[], float]]
) -> dict[str, float]:
    """Return the median of every time over rounds in which each is taken once."""
    timers = {**ours, **peer}
    taken: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(_ROUNDS + 1):
        for name, timer in timers.items():
            seconds = timer()
            if number:
                taken[name].append(seconds)
    return {f"{name}_s": statistics.median(values) for name, values in taken.items()}


# ---- report ----


def ratio(row: Mapping[str, Any], what: str) -> float | None:
    """Return torch's time over ours, above 1 where we are faster; None where one is missing."""
    peers = [row[k] for k in (f"torch_{what}_s", f"torch_{what}_last_s") if k in row]
    return min(peers) / row[f"ours_{what}_s"] if peers and f"ours_{what}_s" in row else None


def report(args: argparse.Namespace) -> None:
    """Write the table of what was measured."""
    content = json.loads(args.output.read_text())
    lines = []
    means = []
    for precision in _PRECISIONS:
        rows = [row for row in content["rows"] if row["precision"] == precision]
        for what in ("call", "device"):
            found = [r for row in rows if (r := ratio(row, what)) is not None]
            if found:
                means.append([precision, what, str(len(found)), f"{_geometric(found):.2f}"])
        for row in rows:
            shown = [f"{r:.2f}" if (r := ratio(row, w)) else "" for w in ("call", "device")]
            state = row.get("error") or ("right" if row.get("correct") else "WRONG or unchecked")
            micro = f"{row['ours_device_s'] * 1e6:.1f}" if "ours_device_s" in row else ""
            lines.append([row["name"], precision, state, micro, *shown])
    text = f"# On {content['machine'].get('device')}\n\n"
    text += "`python -m benchmarks.cuda_gpu build`, `measure`, `report`. Ratios are torch's time\n"
    text += "over tilewright's: above 1 tilewright is faster. Geometric means:\n\n"
    text += markdown_table(["precision", "time of", "rows", "torch / tilewright"], means) + "\n"
    header = ["row", "precision", "result", "microseconds", "call", "device"]
    text += markdown_table(header, lines)
    write_text(args.output.with_suffix(".md"), text)
    print(text)


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    steps = parser.add_subparsers(dest="step", required=True)
    making = steps.add_parser("build")
    making.add_argument("--target", default="cuda:sm_90")
    making.add_argument("--suite", default="core", choices=("alt", "core", "quick", "none"))
    making.add_argument("--batches", type=int, nargs="+", default=[1])
    making.add_argument("--precisions", nargs="+", default=["fp32", "fp16"], choices=_PRECISIONS)
    making.add_argument("--models", nargs="*", default=[], choices=_MODELS)
    making.add_argument("--log", type=Path, nargs="*", help="tuning logs; default: the user's")
    making.set_defaults(run=build)
    taking = steps.add_parser("measure")
    taking.add_argument("--models-folder", type=Path, default=ROOT / "models")
    taking.set_defaults(run=measure)
    steps.add_parser("report").set_defaults(run=report)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
