"""How close inner loops come to the multiply-add bound of ARM processors, by llvm-mca.

    python -m benchmarks.arm_mca [--output benchmarks/results/arm_mca.md]

There is no board here, so these are not times: llvm-mca counts the cycles of a loop in LLVM's model
of a processor, with every load a hit in the first cache level. The bound is what the same model
gives for multiply-adds alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.report import markdown_table
from tilewright.compiler.codegen import assembly
from tilewright.compiler.pipeline import lower
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.tuner.device.mca import Loop, bound, cycles, hottest_loop, mca_version

_HEAD = """\
# Inner loops on ARM, by a model

Written by `python -m benchmarks.arm_mca`; cycles of one round of the loop as {tool} counts
them, not times. In LLVM, Cortex-A76 has the model of Cortex-A57, as Cortex-A72 does; Neoverse N1
is the same core with a model of its own.

"""
_SVE_HEAD = """
## Does SVE pay on Neoverse V1?

Its SVE vectors have 256 bits, but half as many pipes take them: products of independent
instructions in a cycle of the same model. No SVE instruction computes more in a cycle than the
NEON instruction that kernels use (fmla, usmmla), so kernels do without it.

"""
# NEON and SVE forms of a multiply-add, and the products that one of each computes.
_FORMS = {
    "float32 fmla": ("fmla v{}.4s, v30.4s, v31.s[0]", 4, "fmla z{}.s, z30.s, z7.s[0]", 8),
    "int8 usdot": ("usdot v{}.4s, v30.16b, v31.16b", 16, "usdot z{}.s, z30.b, z31.b", 32),
    "int8 usmmla": ("usmmla v{}.4s, v30.16b, v31.16b", 32, "usmmla z{}.s, z30.b, z31.b", 64),
}
_INDEPENDENT = range(8, 30)
PROCESSORS = ("cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-v1")


@dataclass(frozen=True)
class Row:
    """One line of the table; cycles are those of one round of the loop."""

    operator: str
    processor: str
    loop: Loop
    cycles: float
    bound: float

    @property
    def share(self) -> float:
        """Part of the bound that the loop reaches."""
        return self.bound / self.cycles


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def _model(
    node: onnx.NodeProto, shape: Sequence[int], out: Sequence[int], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    dtype = TensorProto.UINT8 if node.op_type.startswith("QLinear") else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, out)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _quantized(w: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the inputs of a QLinear operator, and its constants: scales, zero points, weights."""
    scale, zero = np.float32(0.02), np.uint8(128)
    constants = {
        **{"xs": scale, "xz": zero, "ws": scale, "wz": np.int8(0), "ys": scale, "yz": zero},
        "w": np.clip(w * 40, -127, 127).astype("int8"),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    return names, {name: np.asarray(array) for name, array in constants.items()}


def convolution(channels: int, size: int, kernel: int, dtype: str = "float32") -> onnx.ModelProto:
    """Return a convolution that keeps channels and size; "int8" is a QLinearConv."""
    shape, w = (1, channels, size, size), _weights(channels, channels, kernel, kernel)
    names, constants = _quantized(w) if dtype == "int8" else (["x", "w"], {"w": w})
    kind = "QLinearConv" if dtype == "int8" else "Conv"
    node = helper.make_node(kind, names, ["y"], pads=[kernel // 2] * 4)
    return _model(node, shape, shape, constants)


def product(rows: int, depth: int, columns: int, dtype: str = "float32") -> onnx.ModelProto:
    """Return a matrix product with constant weights; "int8" is a QLinearMatMul."""
    w = _weights(depth, columns)
    names, constants = _quantized(w) if dtype == "int8" else (["x", "w"], {"w": w})
    node = helper.make_node("QLinearMatMul" if dtype == "int8" else "MatMul", names, ["y"])
    return _model(node, (rows, depth), (rows, columns), constants)


OPERATORS = {
    f"{name} {dtype}": make(*arguments, dtype)
    for dtype in ("float32", "int8")
    for name, make, arguments in (
        ("C2D 3x3 64 of 56x56", convolution, (64, 56, 3)),
        ("C2D 3x3 256 of 14x14", convolution, (256, 14, 3)),
        ("C2D 1x1 128 of 28x28", convolution, (128, 28, 1)),
        ("GMM 128x128x128", product, (128, 128, 128)),
        ("GMM 197x768x768", product, (197, 768, 768)),
    )
}


def _without_dot(operator: str, processor: str) -> bool:
    """Tell whether a row says nothing: bytes on a processor without dot products."""
    return (
        operator.endswith("int8") and "asimddp" not in parse_target(f"aarch64:{processor}").features
    )


def measure(operator: str, processor: str) -> Row:
    """Build one operator for one processor and model its hottest loop."""
    target = parse_target(f"aarch64:{processor}")
    model = import_onnx(OPERATORS[operator])
    lowered = lower(model.module, model.inputs, model.outputs, target, winograd=False)
    loop = hottest_loop(assembly(lowered.program.kernels, target))
    return Row(operator, processor, loop, cycles(loop.lines, processor), bound(loop, processor))


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [
        "| operator | processor | multiply-adds | instructions | spills | cycles | of the bound |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        loop = row.loop
        lines.append(
            f"| {row.operator} | {row.processor} | {loop.multiply_adds} | {len(loop.lines)} | "
            f"{loop.spills} | {row.cycles:.1f} | {row.share:.0%} |"
        )
    return "\n".join(lines) + "\n"


def sve_table() -> str:
    """Return products in a cycle of Neoverse V1 by NEON and by SVE, as a Markdown table."""
    rows = []
    for name, (neon, neon_products, sve, sve_products) in _FORMS.items():
        rates = [
            products * len(_INDEPENDENT) / cycles(_repeated(form), "neoverse-v1")
            for form, products in ((neon, neon_products), (sve, sve_products))
        ]
        rows.append([name, *(f"{rate:.0f}" for rate in rates)])
    return markdown_table(["products in a cycle", "NEON", "SVE"], rows)


def _repeated(form: str) -> list[str]:
    return [f"\t{form.format(register)}" for register in _INDEPENDENT]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a loop spills or stays under 85% of the bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="also write it to a file")
    options = parser.parse_args(arguments)
    rows = [
        measure(name, processor)
        for name in OPERATORS
        for processor in PROCESSORS
        if not _without_dot(name, processor)
    ]
    text = _HEAD.format(tool=mca_version()) + table(rows) + _SVE_HEAD + sve_table()
    print(text, end="")
    if options.output is not None:
        options.output.write_text(text)
    return int(any(row.loop.spills or row.share < 0.85 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
