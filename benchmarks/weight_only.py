"""Time products with weights in 4 and 8 bits: `python -m benchmarks.weight_only [--rows 1,16,128]`.

MatMulNBits with random weights, activations in floats, one thread. A model has so many products,
each with weights of its own, that one run reads more than four times the last-level cache; ours,
ONNX Runtime at each accuracy level (1: float32; 4: activations rounded to int8 in blocks) and a
probes that read 256 MiB in one stream and in four take turns in one process. "Of the bandwidth" is
the rate at which our weights (codes, scales and zero points, as they lie in memory) are read, over
that of a probe.
Writes benchmarks/results/weight_only_<instructions>.json and .md.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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

SHAPES = ((4096, 4096), (4096, 11008))
"""(rows of the weights K, columns N)."""
FORMATS = {
    "W4 g32": (4, 32, True),
    "W4 g128": (4, 128, True),
    "W4 g32 zero points": (4, 32, False),
    "W8 g32": (8, 32, True),
}
LEVELS = (1, 4)
_TOTAL_BYTES = 136 << 20
# For products bound by arithmetic, the weights of one are beyond the second cache level anyway.
_FEWER_BYTES = 40 << 20


def weight_bytes(rows: int, columns: int, bits: int, group: int, symmetric: bool) -> int:
    """Return the bytes that a kernel of ours reads of one matrix."""
    return rows * columns * bits // 8 + rows // group * columns * (4 if symmetric else 8)


def products(
    batch: int, rows: int, columns: int, form: tuple[int, int, bool], count: int, level: int
) -> onnx.ModelProto:
    """Return a model of `count` products of one input."""
    bits, group, symmetric = form
    rng = np.random.default_rng(0)
    blocks = rows // group
    nodes, constants, outputs = [], [], []
    for number in range(count):
        codes = rng.integers(0, 256, (columns, blocks, group * bits // 8), np.uint8)
        scales = rng.uniform(0.001, 0.002, columns * blocks).astype(np.float32)
        given = {f"codes{number}": codes, f"scales{number}": scales}
        if not symmetric:
            shape = columns * -(-blocks * bits // 8)
            given[f"zeros{number}"] = rng.integers(0, 256, shape, np.uint8)
        constants += [numpy_helper.from_array(array, name) for name, array in given.items()]
        attributes = {"K": rows, "N": columns, "bits": bits, "block_size": group}
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                ["x", *given],
                [f"y{number}"],
                domain="com.microsoft",
                accuracy_level=level,
                **attributes,
            )
        )
        shape = [batch, columns]
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, shape))
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, rows])
    graph = helper.make_graph(nodes, "products", [data], outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _onnxruntime(model: onnx.ModelProto):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def measure(batch: int, shape: tuple[int, int], name: str, rounds: int) -> dict:
    """Return the row of one product."""
    import tilewright
    from tilewright.runtime.benchmark import compare, interleave, summarize

    form = FORMATS[name]
    size = weight_bytes(*shape, *form)
    count = -(-(_TOTAL_BYTES if batch == 1 else _FEWER_BYTES) // size)
    x = np.random.default_rng(1).standard_normal((batch, shape[0])).astype(np.float32)
    probes, peaks, reads, streams = Probes(), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.so"
        tilewright.compile(products(batch, *shape, form, count, 0), logs=()).save(path)
        ours = tilewright.load(path)
        sessions = {
            level: _onnxruntime(products(batch, *shape, form, count, level)) for level in LEVELS
        }
        wanted = sessions[1].run(["y0"], {"x": x})[0]
        found = ours(x)[0] if count > 1 else ours(x)
        difference = float(np.abs(found - wanted).max() / wanted.std())
        calls: dict = {
            "read": lambda: reads.append(probes.read_gb_s()),
            "streams": lambda: streams.append(probes.read_streams_gb_s()),
            "peak": lambda: peaks.append(probes.peak_gflops()),
            "ours": lambda: ours(x),
        }
        for level, session in sessions.items():
            calls[f"level {level}"] = partial(session.run, None, {"x": x})
        samples = interleave(calls, rounds=rounds, warmup=1)
    seconds = summarize(samples["ours"]).median_s / count
    ratios = {level: compare(samples["ours"], samples[f"level {level}"]) for level in LEVELS}
    row = {
        "shape": f"{shape[0]}x{shape[1]}",
        "format": name,
        "batch": batch,
        "matrices": count,
        "difference": difference,
        "ours_us": 1e6 * seconds,
        "gb_s": size / seconds / 1e9,
        "read_gb_s": median(reads),
        "streams_gb_s": median(streams),
        "gflops": 2e-9 * batch * shape[0] * shape[1] / seconds,
        "peak_gflops": median(peaks),
        "commit": commit(),
    }
    for level, ratio in ratios.items():
        row[f"level{level}_us"] = 1e6 * summarize(samples[f"level {level}"]).median_s / count
        row[f"level{level}_ratio"] = [ratio.median, ratio.low, ratio.high]
    return row


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = ["product", "weights", "M", "ours, us", "GB/s"]
    header += ["of the bandwidth, 1 stream", "of 4 streams", "of the peak"]
    for level in LEVELS:
        header += [f"ORT level {level}, us", "ours / it [95%]"]
    cells = []
    for row in rows:
        line = [row["shape"], row["format"], str(row["batch"]), f"{row['ours_us']:.0f}"]
        line.append(f"{row['gb_s']:.1f}")
        for probe in ("read_gb_s", "streams_gb_s"):
            line.append(f"{row['gb_s'] / row[probe]:.0%} of {row[probe]:.1f}")
        line.append(f"{row['gflops'] / row['peak_gflops']:.0%}")
        for level in LEVELS:
            line.append(f"{row[f'level{level}_us']:.0f}")
            line.append("{:.2f} [{:.2f} .. {:.2f}]".format(*row[f"level{level}_ratio"]))
        cells.append([*line, row["commit"]])
    about = __doc__.split("\n", 2)[2]
    table = markdown_table([*header, "commit"], cells)
    greatest = max(row["difference"] for row in rows)
    return (
        "# Products with weights in 4 and 8 bits, one thread\n\n"
        f"`python -m benchmarks.weight_only`\n\n{about}\n{table}\n"
        f"Greatest difference to ONNX Runtime at level 1: {greatest:.1e} standard deviations.\n\n"
        f"{markdown_machine(describe())}"
    )


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,16,128", help="of the data (M)")
    parser.add_argument("--formats", default=";".join(FORMATS), help="separated by semicolons")
    parser.add_argument("--shapes", default="4096x4096,4096x11008")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    stem = RESULTS / f"weight_only_{instruction_set()}"
    data = stem.with_suffix(".json")
    for batch in map(int, args.rows.split(",")):
        for shape in SHAPES:
            if "x".join(map(str, shape)) not in args.shapes.split(","):
                continue
            for name in args.formats.split(";"):
                row = measure(batch, shape, name, args.rounds)
                print(row, flush=True)
                rows = merge_rows(data, [row], ["shape", "format", "batch"])
                rows.sort(key=lambda item: (item["shape"], item["batch"], item["format"]))
                write_json(data, {"machine": describe(), "rows": rows})
                write_text(stem.with_suffix(".md"), render(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
