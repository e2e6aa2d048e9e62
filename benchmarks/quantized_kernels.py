"""Time int8 operators against the peak: `python -m benchmarks.quantized_kernels`.

Convolutions and matrix products on bytes, requantized to bytes, one thread. Ours, ONNX Runtime's
and the probe take turns in one process. The peak is that of the exact int8 multiply-add in
registers: vpdpbusd, or without VNNI vpmaddwd and an add. ONNX Runtime's kernels without VNNI
(vpmaddubsw) multiply twice as many bytes at once, and saturate.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnx

from benchmarks import engines
from benchmarks.arm_mca import convolution, product
from benchmarks.machine import Probes, commit, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.baselines.machine import instruction_set

# name -> (model, multiply-adds)
Operator = tuple[Callable[[], onnx.ModelProto], int]


def _conv(channels: int, size: int, kernel: int) -> Operator:
    count = channels * channels * size * size * kernel * kernel
    return partial(convolution, channels, size, kernel, "int8"), count


def _gemm(rows: int, depth: int, columns: int) -> Operator:
    return partial(product, rows, depth, columns, "int8"), rows * depth * columns


OPERATORS: dict[str, Operator] = {
    **{
        f"C2D {k}x{k} {c} of {n}x{n}": _conv(c, n, k)
        for k in (3, 1)
        for c, n in ((64, 56), (128, 28), (256, 14), (512, 7))
    },
    **{
        f"GMM {m}x{k}x{n}": _gemm(m, k, n)
        for m, k, n in (
            *((128, 128, 128), (128, 384, 384), (128, 384, 1536), (128, 1536, 384)),
            *((197, 768, 768), (512, 512, 512)),
        )
    },
}


def measure(name: str, rounds: int) -> dict:
    """Return the row of one operator."""
    import tilewright
    from tilewright.runtime.benchmark import compare, interleave, summarize

    make, multiplications = OPERATORS[name]
    model = make()
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": np.random.default_rng(0).integers(0, 256, shape).astype("uint8")}
    probes, peaks = Probes(), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operator.onnx"
        onnx.save(model, path)
        tilewright.compile(path, logs=()).save(path.with_suffix(".so"))
        runs = {
            "ours": engines.open_tilewright(path.with_suffix(".so")),
            "onnxruntime": engines.open_onnxruntime(path),
        }
        calls: dict = {"peak": lambda: peaks.append(probes.int8_gops())}
        for engine, run in runs.items():
            calls |= {f"warm {engine}": partial(run, feed), engine: partial(run, feed)}
        samples = interleave(calls, rounds=rounds)
    ratio = compare(samples["ours"], samples["onnxruntime"])
    gops = 2e-9 * multiplications / summarize(samples["ours"]).median_s
    return {
        "operator": name,
        "median_s": summarize(samples["ours"]).median_s,
        "gops": gops,
        "peak_gops": median(peaks),
        "ort_ratio": ratio.median,
        "ort_interval": [ratio.low, ratio.high],
        "commit": commit(),
    }


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = [
        "operator",
        "median, ms",
        "GOP/s",
        "of the peak",
        "ours / ONNX Runtime [95%]",
        "commit",
    ]
    cells = [
        [
            row["operator"],
            f"{1e3 * row['median_s']:.3f}",
            f"{row['gops']:.0f}",
            f"{row['gops'] / row['peak_gops']:.0%}",
            "{:.2f} [{:.2f} .. {:.2f}]".format(row["ort_ratio"], *row["ort_interval"]),
            row["commit"],
        ]
        for row in rows
    ]
    share = median(row["gops"] / row["peak_gops"] for row in rows)
    peak = median(row["peak_gops"] for row in rows)
    return (
        f"# Int8 operators\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"Peak {peak:.0f} GOP/s; median share {share:.0%}.\n\n"
        f"{markdown_table(header, cells)}\n{markdown_machine(describe())}"
    )


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operators", default=",".join(OPERATORS), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    stem = RESULTS / f"quantized_kernels_{instruction_set()}"
    for name in args.operators.split(","):
        row = measure(name, args.rounds)
        merged = merge_rows(stem.with_suffix(".json"), [row], ["operator"])
        write_json(stem.with_suffix(".json"), {"machine": describe(), "rows": merged})
        write_text(stem.with_suffix(".md"), render(merged))
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
