"""Modules for a GPU, built here and measured where one is: correctness, and speed beside torch.

    python -m benchmarks.cuda_gpu build                     # needs nvcc, no GPU
    python -m benchmarks.cuda_gpu measure                   # needs a GPU; no TVM, no nvcc
    python -m benchmarks.cuda_gpu report

`build` writes modules and what they are into build/cuda_gpu.tar.xz, which with the repository is
all that `measure` needs, on any machine: it takes numpy, onnx, onnxruntime (expected results of
operators, on the processor), torch, timm and transformers (the peers; without torch only
correctness). Operators run as float32, or as float16 in and out; models are rows of
benchmarks/suites/models.json, with weights of few values, and bring their expected results along.
Times, medians over the rounds, ours and the peers' (see cuda_peers.py) in turns:

- call: one call on tensors of the device, waited for.
- device: time on the device alone. Ours: the kernels of the module, started one by one, between
  events.
- kernels: what CUPTI says that the kernels took; once a row.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import lzma
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from benchmarks import models as model_rows
from benchmarks.cuda_peers import (
    CALLS,
    PEERS,
    WHATS,
    cuda_torch,
    kernel_seconds,
    model_timers,
    operator_timers,
)
from benchmarks.report import RESULTS, markdown_table, write_json, write_text
from tilewright.baselines.suite import Operator, build_model, load_suite

ROOT = Path(__file__).parent.parent
ARCHIVE = ROOT / "build" / "cuda_gpu.tar.xz"
RESULT = RESULTS / "cuda_gpu.json"
_PRECISIONS = ("fp32", "tf32", "fp16")
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2}
_MODELS = ("resnet50-b1", "resnet50-b16", "bert_base-b1", "bert_base-b16", "mobilenetv2-b1")
# Weights have so many values in one standard deviation, so that the archive stays small: about 5
# bits each, and about 1.5 of the models' many.
_GRAIN, _MODEL_GRAIN = 8.0, 0.6
# Modules of one model hold the same weights, which compress once within this distance.
_WINDOW = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 768 << 20}
_ROUNDS = 15


def coarse(model: onnx.ModelProto, grain: float = _GRAIN) -> onnx.ModelProto:
    """Return the model with weights of few different values, which compress well."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 64:
            step = float(array.std()) / grain
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
    rows: list[dict[str, Any]] = []
    args.archive.parent.mkdir(parents=True, exist_ok=True)
    with (
        lzma.open(args.archive, "wb", filters=[_WINDOW]) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        operators = () if args.suite == "none" else load_suite(args.suite, batches=args.batches)
        for operator in operators:
            model = coarse(build_model(operator))
            row = {"name": operator.name, "operator": asdict(operator)}
            for precision in args.precisions:
                source = in_half(model) if precision == "fp16" else model
                rows.append(row | _compile(source, operator.name, precision, args, archive))
        for name in args.models:
            rows += _model_rows(name, args, archive)
        _add(archive, "plan.json", json.dumps({"target": args.target, "rows": rows}).encode())
    print(f"{args.archive}: {args.archive.stat().st_size / 2**20:.1f} MiB")


def _model_rows(
    name: str, args: argparse.Namespace, archive: tarfile.TarFile
) -> Iterator[dict[str, Any]]:
    """Compile a model in every precision; add what it takes and what it must give."""
    import onnxruntime

    suite_row = next(row for row in model_rows.rows() if row["name"] == name)
    feed = model_rows.feed_of(suite_row)
    model = coarse(onnx.load(model_rows.path_of(suite_row, feed)), _MODEL_GRAIN)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [f"expected.{item.name}" for item in session.get_outputs()]
    arrays = io.BytesIO()
    np.savez(arrays, **feed, **dict(zip(names, session.run(None, feed), strict=True)))
    _add(archive, f"{name}.npz", arrays.getvalue())
    row = {"name": name, "operator": None, "model": suite_row["model"], "arrays": f"{name}.npz"}
    for precision in args.precisions:
        yield row | _compile(model, name, precision, args, archive)


def _compile(
    model: onnx.ModelProto,
    name: str,
    precision: str,
    args: argparse.Namespace,
    archive: tarfile.TarFile,
) -> dict[str, Any]:
    import tilewright

    start = time.perf_counter()
    compiled = tilewright.compile(model, args.target, precision=precision, logs=args.log)
    seconds, file = time.perf_counter() - start, f"{name}-{precision}.so"
    archive.add(compiled.path, file)
    print(f"{file}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return {"precision": precision, "file": file, "build_s": round(seconds, 1)}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


# ---- measure: where there is a GPU ----


def measure(args: argparse.Namespace) -> None:
    """Run every module of the archive; a row that fails says how, and the next one runs.

    Rows that the result has already stay; where time is lent by the minute, `--seconds` ends it.
    """
    end = time.monotonic() + args.seconds
    done: list[dict[str, Any]] = []
    if args.output.exists() and not args.again:
        done = json.loads(args.output.read_text())["rows"]
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(args.archive) as archive:
            # The filter came with Python 3.11.4; before it, members are taken as they are.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(folder)
        plan = json.loads(Path(folder, "plan.json").read_text())
        facts = {"target": plan["target"], **_device_facts()}
        known = {(row["name"], row["precision"]) for row in done}
        rows = [row for row in plan["rows"] if (row["name"], row["precision"]) not in known]
        for row in rows:
            if time.monotonic() >= end:
                print(f"{len(done)} of {len(plan['rows'])} rows; run it again for the others")
                return
            try:
                found = _measure_row(row, Path(folder))
            except Exception as error:  # the table must say it; other rows still count
                found = {"error": f"{type(error).__name__}: {error}"[:500]}
            done.append({**row, **found})
            print(json.dumps({k: v for k, v in done[-1].items() if k != "operator"}), flush=True)
            write_json(args.output, {"machine": facts, "rows": done})
            gc.collect()


def _device_facts() -> dict[str, str]:
    torch = cuda_torch()
    if torch is None:
        return {"device": "unknown: no torch with CUDA"}
    return {"device": torch.cuda.get_device_name(0), "torch": torch.__version__}


def _measure_row(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from tilewright.runtime.module import Module

    module = Module(folder / row["file"])
    peer: dict[str, Callable[[], float]] = {}
    if row["operator"] is not None:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in row["operator"].items()}
        operator = Operator(**fields)
        feed = random_feed(module)
        expected = expected_results(coarse(build_model(operator)), feed)
        if cuda_torch() is not None:
            peer = operator_timers(operator, row["precision"])
    else:
        with np.load(folder / row["arrays"]) as file:
            arrays = dict(file)
        feed = {spec.name: arrays[spec.name] for spec in module.inputs}
        expected = {spec.name: arrays[f"expected.{spec.name}"] for spec in module.outputs}
        if cuda_torch() is not None:
            peer = model_timers(row["model"], feed, row["precision"])
    result = module.run(feed)
    share = error_share(result, expected)
    again = module.run(feed)
    found = {
        "error_share": share,
        "correct": bool(share <= TOLERANCES[row["precision"]]),
        "same_as_a_graph": all(np.array_equal(again[k], v) for k, v in result.items()),
    }
    return {**found, **_in_turns(_our_times(module, feed), peer)}


def random_feed(module: Any) -> dict[str, np.ndarray]:
    """Return values for what a module takes."""
    rng = np.random.default_rng(0)
    feed = {}
    for spec in module.inputs:
        if spec.dtype.startswith("float"):
            feed[spec.name] = rng.standard_normal(spec.shape, np.float32).astype(spec.dtype)
        else:
            feed[spec.name] = np.ones(spec.shape, spec.dtype)
    return feed


def expected_results(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return what ONNX Runtime gives on the processor, in float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    types = {item.name: item.type for item in session.get_inputs()}
    given = {
        name: array.astype(np.float32) if types[name] == "tensor(float)" else array
        for name, array in feed.items()
    }
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def error_share(result: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of any output, of its largest value."""
    shares = [
        np.abs(result[name].astype(np.float64) - wanted).max() / max(1e-6, np.abs(wanted).max())
        for name, wanted in expected.items()
    ]
    return float(max(shares))


def _our_times(module: Any, feed: Mapping[str, np.ndarray]) -> dict[str, Callable[[], float]]:
    """Return functions that give one time in seconds."""

    def on_device() -> float:
        return sum(call.seconds for call in module.profile(feed, rounds=CALLS))

    times = {"ours_device": on_device}
    torch = cuda_torch()
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
        for _ in range(CALLS):
            module.run_into(inputs, outputs)
        return (time.perf_counter() - start) / CALLS

    def kernels() -> float:
        return kernel_seconds(lambda: module.run_into(inputs, outputs))

    return {**times, "ours_call": call, "ours_kernels": kernels}


def _in_turns(
    ours: Mapping[str, Callable[[], float]], peer: Mapping[str, Callable[[], float]]
) -> dict[str, float]:
    """Return the median of every time over rounds in which each is taken once."""
    timers = {**ours, **peer}
    taken: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(_ROUNDS + 1):
        for name, timer in timers.items():
            if "_kernels" in name and number != 1:
                continue
            seconds = timer()
            if number:
                taken[name].append(seconds)
    return {f"{name}_s": statistics.median(values) for name, values in taken.items()}


# ---- report ----


def ratio(row: Mapping[str, Any], peer: str, what: str) -> float | None:
    """Return a peer's time over ours, above 1 where we are faster; None where one is missing."""
    times = [row[key] for key in row if key.startswith(f"{peer}_{what}") and key.endswith("_s")]
    ours = row.get(f"ours_{what}_s")
    return min(times) / ours if times and ours else None


def report(args: argparse.Namespace) -> None:
    """Write the table of what was measured."""
    content = json.loads(args.output.read_text())
    columns = [(peer, what) for peer in PEERS for what in WHATS]
    lines, means = [], []
    for precision in _PRECISIONS:
        rows = [row for row in content["rows"] if row["precision"] == precision]
        for kind in ("operators", "models"):
            own = [row for row in rows if (row.get("operator") is None) == (kind == "models")]
            for peer, what in columns:
                found = [r for row in own if (r := ratio(row, peer, what)) is not None]
                if found:
                    mean = f"{statistics.geometric_mean(found):.2f}"
                    means.append([kind, precision, peer, what, str(len(found)), mean])
        for row in rows:
            shown = [f"{r:.2f}" if (r := ratio(row, *c)) else "" for c in columns]
            state = row.get("error") or ("right" if row.get("correct") else "WRONG")
            micro = f"{row['ours_device_s'] * 1e6:.1f}" if "ours_device_s" in row else ""
            lines.append([row["name"], precision, state, micro, *shown])
    text = f"# On {content['machine'].get('device')}\n\n"
    text += "`python -m benchmarks.cuda_gpu build`, `measure`, `report`. Ratios are the peer's\n"
    text += "time over tilewright's: above 1 tilewright is faster. Geometric means:\n\n"
    header = ["rows of", "precision", "peer", "time of", "rows", "peer / tilewright"]
    text += markdown_table(header, means) + "\n"
    header = ["row", "precision", "result", "microseconds", *(f"{p}, {w}" for p, w in columns)]
    text += markdown_table(header, lines)
    write_text(args.output.with_suffix(".md"), text)
    print(text)


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
    taking.add_argument("--seconds", type=float, default=float("inf"), help="start no row after")
    taking.add_argument("--again", action="store_true", help="measure known rows again")
    taking.set_defaults(run=measure)
    steps.add_parser("report").set_defaults(run=report)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
