"""Time operators on integers of few bits against int8: `python -m benchmarks.low_bit`.

`--count` counts the instructions that one run of a 3x3 convolution executes on emulated boards.

Convolutions and matrix products on bytes with weights of 8, 4, 2 and 1 bits and data of 8, 4, 2 and
1, requantized to bytes, one thread, untuned. All forms of a shape take turns in one process. The
bound is that of instruction counts: products that an instruction of the inner loop makes (what cuts
indices, counts the sums of a block and adds them included; loads not), over those of int8, which
makes 2.25 times as many where it uses Winograd's algorithm. A product of one row waits for its
weights more than for instructions: fewer bits of them are fewer bytes.

    vpmaddubsw   bytes in pairs, summed in 16 bits     tables    vpshufb of sums of 4 data
    codes        the same, weights packed in memory    planes    and, popcount, add
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import engines
from benchmarks.machine import commit, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.baselines.machine import instruction_set

FORMS = ((8, 8), (4, 8), (4, 4), (2, 8), (2, 2), (1, 1))
_TYPES = {8: "int8", 4: "int4", 2: "int2", 1: "int2"}
_GROUPS = {"int8": 2, "vpmaddubsw": 4, "tables": 8, "codes": 16, "planes": 32}
_KERNELS = {f" by {group}": name for name, group in _GROUPS.items()} | {"": "int8"}
_WINOGRAD = 2.25
_INSTRUCTIONS_OF_A_SLOT = 2

COUNTED = (64, 14, 64, 3)
# Rows, depth, columns; or channels, size, outputs, side of the window.
SHAPES: dict[str, tuple[int, ...]] = {
    **{
        f"GMM {m}x{k}x{n}": (m, k, n)
        for m, k, n in (
            *((128, 768, 768), (128, 768, 3072), (128, 3072, 768)),
            *((512, 512, 512), (197, 384, 384), (1, 4096, 4096)),
        )
    },
    **{
        f"C2D {k}x{k} {c} of {s}x{s}": (c, s, c, k)
        for c, s, k in ((64, 56, 3), (128, 28, 3), (256, 14, 3), (256, 14, 1))
    },
}


def model(shape: tuple[int, ...], weight_bits: int, data_bits: int) -> onnx.ModelProto:
    """Return requantize(x op w) on bytes, of which a mask leaves the bits of the data."""
    rng = np.random.default_rng(0)
    is_product = len(shape) == 3
    if is_product:
        rows, depth, columns = shape
        data, weight, axis = (rows, depth), (depth, columns), 1
    else:
        channels, size, columns, side = shape
        depth = channels * side * side
        data, weight, axis = (1, size, size, channels), (columns, channels, side, side), 0
    top = 1 << (weight_bits - 1)
    whole = rng.choice([-1, 1], weight) if weight_bits == 1 else rng.integers(-top, top, weight)
    kind = getattr(TensorProto, _TYPES[weight_bits].upper())
    spread = np.sqrt(depth) * max(1, top) * (1 << data_bits)
    tensors = [
        helper.make_tensor("mask", TensorProto.UINT8, [], [(1 << data_bits) - 1]),
        helper.make_tensor("xs", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("xz", TensorProto.UINT8, [], [0]),
        helper.make_tensor("w", kind, weight, whole.flatten()),
        helper.make_tensor("ws", TensorProto.FLOAT, [columns], np.ones(columns)),
        helper.make_tensor("wz", kind, [columns], np.zeros(columns, int)),
        helper.make_tensor("ys", TensorProto.FLOAT, [], [float(spread) / 64]),
        helper.make_tensor("yz", TensorProto.UINT8, [], [128]),
    ]
    pads = {} if is_product else {"pads": [shape[3] // 2] * 4}
    # Images come and go as networks have them between layers: channels last.
    before = [("Transpose", "x", "xp", [0, 3, 1, 2])] if not is_product else []
    after = [("Transpose", "yp", "y", [0, 2, 3, 1])] if not is_product else []
    turns = [
        [helper.make_node(k, [i], [o], perm=p) for k, i, o, p in each] for each in (before, after)
    ]
    first, last = ("x", "y") if is_product else ("xp", "yp")
    nodes = [
        *turns[0],
        helper.make_node("BitwiseAnd", [first, "mask"], ["xm"]),
        helper.make_node("DequantizeLinear", ["xm", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node("MatMul" if is_product else "Conv", ["xd", "wd"], ["s"], **pads),
        helper.make_node("QuantizeLinear", ["s", "ys", "yz"], [last]),
        *turns[1],
    ]
    graph = helper.make_graph(
        nodes,
        "low_bit",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, data)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [None] * len(data))],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)


def kernel_of(path: Path) -> str:
    """Return which kernel computes the operator of a model, untuned."""
    from tilewright.api import lower_model
    from tilewright.compiler.targets import parse_target

    lowered, _ = lower_model(path, parse_target("native"), None)
    if any("winograd" in name for name in lowered.program.kernels):
        return "winograd"
    names = [choice.name for choice in lowered.plan.choices]
    suffixes = [name.removeprefix("packed").removeprefix("C -> C") for name in names]
    return next((_KERNELS[suffix] for suffix in reversed(suffixes) if suffix in _KERNELS), "other")


def products_of_an_instruction(
    kernel: str, weight_bits: int, data_bits: int, rows: int = 4
) -> float:
    """Return the products that one vector instruction makes, by count.

    Args:
        kernel: of `_GROUPS`, or "winograd".
        weight_bits, data_bits: form.
        rows: that share the weights of a tile, at most.
    """
    from tilewright.compiler.schedule.dot_groups import products_in_a_cell
    from tilewright.compiler.schedule.low_bit import LowBit
    from tilewright.compiler.targets import parse_target

    target = parse_target("native")
    top = 1 << (weight_bits - 1)
    bounds = (-1, 1, True) if weight_bits == 1 else (-top, top - 1, False)
    low_bit = LowBit(*bounds, mask=(1 << data_bits) - 1)
    group = _GROUPS.get(kernel, _GROUPS["int8"])
    rate = products_in_a_cell(target, group, low_bit, rows) * target.lanes("int32")
    rate /= _INSTRUCTIONS_OF_A_SLOT
    return rate * (_WINOGRAD if kernel == "winograd" else 1)


def measure(name: str, rounds: int) -> list[dict]:
    """Return the rows of one shape."""
    import tilewright
    from tilewright.runtime.benchmark import compare, interleave, summarize

    shape = SHAPES[name]
    calls, kernels = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            path = Path(folder) / f"w{form[0]}a{form[1]}.onnx"
            proto = model(shape, *form)
            onnx.save(proto, path)
            kernels[form] = kernel_of(path)
            tilewright.compile(path, logs=()).save(path.with_suffix(".so"))
            dims = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
            feed = {"x": np.random.default_rng(0).integers(0, 256, dims).astype("uint8")}
            run = engines.open_tilewright(path.with_suffix(".so"))
            calls |= {f"warm {form}": partial(run, feed), str(form): partial(run, feed)}
        samples = interleave(calls, rounds=rounds)
    base = products_of_an_instruction(kernels[FORMS[0]], *FORMS[0])
    rows = []
    for form in FORMS:
        ratio = compare(samples[str(FORMS[0])], samples[str(form)])
        rows_of_tile = shape[0] if len(shape) == 3 else 4
        rate = products_of_an_instruction(kernels[form], *form, rows_of_tile)
        rows.append(
            {
                "shape": name,
                "form": "int8" if form == (8, 8) else f"W{form[0]}A{form[1]}",
                "kernel": kernels[form],
                "median_s": summarize(samples[str(form)]).median_s,
                "speedup": ratio.median,
                "interval": [ratio.low, ratio.high],
                "products": rate,
                "bound": rate / base,
                "commit": commit(),
            }
        )
    return rows


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = [
        *("operator", "form", "kernel", "median, ms", "int8 / this [95%]"),
        *("bound", "products an instruction", "commit"),
    ]
    cells = [
        [
            row["shape"],
            row["form"],
            row["kernel"],
            f"{1e3 * row['median_s']:.3f}",
            "{:.2f} [{:.2f} .. {:.2f}]".format(row["speedup"], *row["interval"]),
            f"{row['bound']:.2f}",
            f"{row['products']:.1f}",
            row["commit"],
        ]
        for row in rows
    ]
    forms = [row["form"] for row in rows[: len(FORMS)]]
    means = [
        np.exp(np.mean([np.log(row["speedup"]) for row in rows if row["form"] == form]))
        for form in forms
    ]
    summary = ", ".join(f"{form} {mean:.2f}" for form, mean in zip(forms, means, strict=True))
    return (
        f"# Integers of few bits\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"Geometric means of int8 / this: {summary}.\n\n"
        f"{markdown_table(header, cells)}\n{markdown_machine(describe())}"
    )


def count_boards(targets: list[str]) -> list[dict]:
    """Return what one run of a convolution executes on each board, by form."""
    import tilewright
    from benchmarks.arm_instructions import count

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            for form in FORMS:
                path = Path(folder) / "operator.so"
                tilewright.compile(model(COUNTED, *form), target, logs=()).save(path)
                total = sum(count(path, target).values())
                name = "int8" if form == FORMS[0] else f"W{form[0]}A{form[1]}"
                rows.append({"target": target, "form": name, "instructions": total})
    return rows


def render_counts(rows: list[dict]) -> str:
    """Return the Markdown page of `count_boards`."""
    int8 = {row["target"]: row["instructions"] for row in rows if row["form"] == "int8"}
    cells = [
        [
            row["target"],
            row["form"],
            f"{row['instructions']:,}",
            f"{int8[row['target']] / row['instructions']:.2f}",
        ]
        for row in rows
    ]
    channels, size, outputs, side = COUNTED
    return (
        "# Integers of few bits on ARM, in instructions\n\n"
        f"One run of a convolution {side}x{side}, {channels} to {outputs} channels of "
        f"{size} x {size}, emulated by qemu-user: how many instructions it executes, not how long "
        "they take (`python -m benchmarks.low_bit --count`). Fewer than 8 bits gain where bits are "
        "counted (cnt); other forms run as int8.\n\n"
        f"{markdown_table(['target', 'form', 'instructions', 'int8 / this'], cells)}"
    )


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=20)
    boards = "aarch64,aarch64:cortex-a76,armv7:cortex-a7"
    parser.add_argument("--count", nargs="?", const=boards, help="targets, separated by commas")
    args = parser.parse_args()
    if args.count:
        rows = count_boards(args.count.split(","))
        write_json(RESULTS / "low_bit_arm.json", {"machine": describe(), "rows": rows})
        write_text(RESULTS / "low_bit_arm.md", render_counts(rows))
        return 0
    stem = RESULTS / f"low_bit_{instruction_set()}"
    for name in args.shapes.split(","):
        rows = measure(name, args.rounds)
        merged = merge_rows(stem.with_suffix(".json"), rows, ["shape", "form"])
        write_json(stem.with_suffix(".json"), {"machine": describe(), "rows": merged})
        write_text(stem.with_suffix(".md"), render(merged))
        for row in rows:
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
