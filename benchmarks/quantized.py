"""Time int8 models against other engines' int8: `python -m benchmarks.quantized`.

Models of the zoo, quantized by ONNX Runtime's own quantizer (two calibration inputs; weights per
channel unless said otherwise), in tilewright, ONNX Runtime and OpenVINO, and in tilewright's own
float32. The engines and the probe of the int8 peak (vpdpbusd, or without VNNI vpmaddwd and an add)
take turns in one process. Fidelity is the signal-to-noise
ratio against ONNX Runtime without graph optimisations, of ours and of ONNX Runtime's optimised run.
Load is the number of runnable threads on the machine, other programs' included.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np

from benchmarks import engines, zoo
from benchmarks.machine import Probes, commit, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from benchmarks.worker import ROOT, StepError, give_result, run_step
from tilewright.baselines.machine import instruction_set
from tilewright.baselines.rounds import settle, settle_seconds

MODELS = ("resnet18", "resnet50", "mobilenetv2", "efficientnet_b0", "bert_tiny", "minilm")
FOLDER = ROOT / "build" / "quantized"
OURS, FLOAT = "tilewright", "tilewright float32"
_CALIBRATION_INPUTS = 2


def model_path(name: str, form: str, act: str, per_channel: bool) -> Path:
    """Return where the quantized model lies."""
    return FOLDER / f"{name}.{form}.{act}.{'channel' if per_channel else 'tensor'}.onnx"


def quantize(name: str, form: str, act: str, per_channel: bool) -> Path:
    """Quantize a model of the zoo by ONNX Runtime's quantizer, unless that was done before."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = model_path(name, form, act, per_channel)
    if path.exists():
        return path

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([zoo.inputs(name, seed) for seed in range(_CALIBRATION_INPUTS)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    FOLDER.mkdir(parents=True, exist_ok=True)
    prepared = FOLDER / f"{name}.prepared.onnx"
    quant_pre_process(str(zoo.load(name)), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
        activation_type=QuantType.QUInt8 if act == "u8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )
    prepared.unlink()
    return path


def compile_models(name: str, path: Path) -> None:
    """Compile the quantized model and the float one."""
    import tilewright

    tilewright.compile(path).save(path.with_suffix(".so"))
    tilewright.compile(zoo.load(name)).save(FOLDER / f"{name}.so")


def fidelity(name: str, path: Path) -> dict:
    """Return signal-to-noise ratios in dB against ONNX Runtime without optimisations."""
    import onnxruntime

    from tilewright.compiler.quantize.post_training import noise

    feed = zoo.inputs(name, 0)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    wanted = plain.run(None, dict(feed))[0]

    def ratio(run: engines.Engine) -> float:
        return min(noise(next(iter(run(feed).values())), wanted), 999.0)

    ours = engines.open_tilewright(path.with_suffix(".so"))
    return {"ours_db": ratio(ours), "ort_db": ratio(engines.open_onnxruntime(path))}


def time_engines(name: str, path: Path, rounds: int, threads: int) -> dict:
    """Time all engines in turns, each on so many threads."""
    from tilewright.runtime.benchmark import compare, interleave, summarize

    feed = zoo.inputs(name, 0)
    probes, peaks = Probes(), []
    runs = {
        OURS: engines.open_tilewright(path.with_suffix(".so"), threads),
        "onnxruntime": engines.open_onnxruntime(path, threads),
        "openvino": engines.ENGINES["openvino"](path, threads),
        FLOAT: engines.open_tilewright(FOLDER / f"{name}.so", threads),
    }
    calls = {"peak": lambda: peaks.append(probes.int8_gops())}
    for engine, run in runs.items():
        warm = partial(settle, partial(run, feed), settle_seconds(threads))
        calls |= {f"warm {engine}": warm, engine: partial(run, feed)}
    samples = interleave(calls, rounds=rounds)
    row: dict = {"int8_gops": median(peaks), "load": os.getloadavg()[0], "engines": {}}
    for engine in runs:
        ratio = compare(samples[OURS], samples[engine])
        row["engines"][engine] = {
            "median_s": summarize(samples[engine]).median_s,
            "least_s": min(samples[engine]),
            "ratio": ratio.median,
            "interval": [ratio.low, ratio.high],
        }
    return row


def measure(name: str, args: argparse.Namespace) -> dict:
    """Return the row of one model; each step runs in a fresh process."""
    row = {"model": name, "form": args.form, "act": args.act, "commit": commit()}
    row["weights"] = "tensor" if args.per_tensor else "channel"
    for step in ("quantize", "compile", "fidelity", "time"):
        options = ["--models", name, "--step", step, "--form", args.form, "--act", args.act]
        options += ["--rounds", str(args.rounds), *(["--per-tensor"] if args.per_tensor else [])]
        options += ["--threads", str(args.threads)]
        row |= run_step("benchmarks.quantized", options) or {}
    return row


def render(rows: list[dict], threads: int = 1) -> str:
    """Return the Markdown page."""
    header = ["model", "engine", "median, ms", "least, ms", "ours / it [95%]"]
    header += ["SNR ours / ORT, dB", "int8 peak, GOP/s", "load", "commit"]
    cells = []
    for row in rows:
        label = f"{row['model']} {row['form']} {row['act']} per {row['weights']}"
        if "error" in row:
            cells.append([label, f"FAILS: {row['error']}", *[""] * 7])
            continue
        for engine, timed in row["engines"].items():
            low, high = timed["interval"]
            ratio = "" if engine == OURS else f"{timed['ratio']:.2f} [{low:.2f} .. {high:.2f}]"
            times = [f"{1e3 * timed[key]:.2f}" for key in ("median_s", "least_s")]
            snr = f"{row['ours_db']:.1f} / {row['ort_db']:.1f}"
            probes = [f"{row['int8_gops']:.0f}", f"{row['load']:.1f}", row["commit"]]
            cells.append([label, engine, *times, ratio, snr, *probes])
    # Of the two peers that with the greater ratio is the faster.
    slowest = [
        max(row["engines"][peer]["ratio"] for peer in ("onnxruntime", "openvino"))
        for row in rows
        if "error" not in row
    ]
    mean = geometric_mean(slowest) if slowest else float("nan")
    return (
        f"# Quantized models\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"Threads: {threads}. Geometric mean of ours / the faster peer: {mean:.2f} over "
        f"{len(slowest)} models.\n\n"
        f"{markdown_table(header, cells)}\n{markdown_machine(describe())}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--form", default="qdq", choices=("qdq", "qoperator"))
    parser.add_argument("--act", default="u8", choices=("u8", "s8"))
    parser.add_argument("--per-tensor", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step", help="quantize, compile, fidelity or time, in this process")
    return parser.parse_args()


def _run_single_step(args: argparse.Namespace) -> dict | None:
    path = model_path(args.models, args.form, args.act, not args.per_tensor)
    if args.step == "quantize":
        quantize(args.models, args.form, args.act, not args.per_tensor)
        return None
    if args.step == "compile":
        compile_models(args.models, path)
        return None
    if args.step == "fidelity":
        return fidelity(args.models, path)
    return time_engines(args.models, path, args.rounds, args.threads)


def main() -> int:
    """Measure what the command line names; return 1 if a model fails."""
    args = _parse()
    if args.step:
        give_result(_run_single_step(args))
        return 0
    rows = []
    for name in args.models.split(","):
        try:
            row = measure(name, args)
        except StepError as error:
            weights = "tensor" if args.per_tensor else "channel"
            row = {"model": name, "form": args.form, "act": args.act, "weights": weights}
            row |= {"commit": commit(), "error": str(error).replace("|", "/")}
        rows.append(row)
        print(render([row]).split("\n\n")[3], flush=True)
        threaded = "" if args.threads == 1 else f"_{args.threads}_threads"
        stem = RESULTS / f"quantized_{instruction_set()}{threaded}"
        data = stem.with_suffix(".json")
        merged = merge_rows(data, rows, ["model", "form", "act", "weights"])
        write_json(data, {"machine": describe(), "rows": merged})
        write_text(stem.with_suffix(".md"), render(merged, args.threads))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
