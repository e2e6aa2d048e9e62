"""Int8 inner loops of x86 processors that are not at hand, by their machine code."""

import pytest

from benchmarks.arm_mca import OPERATORS
from benchmarks.x86_mca import loops
from tilewright.compiler.codegen import assembly
from tilewright.compiler.pipeline import lower
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx


@pytest.mark.parametrize(
    ("processor", "kind", "least"),
    [("cascadelake", "vpdpbusd", 24), ("x86-64-v3", "vpmaddwd", 10)],
)
def test_inner_loop_of_bytes_keeps_its_sums_in_registers(processor, kind, least):
    model = import_onnx(OPERATORS["GMM 128x128x128 int8"])
    target = parse_target(processor)
    lowered = lower(model.module, model.inputs, model.outputs, target)
    found = list(loops(assembly(lowered.program.kernels, target)))
    assert {name for loop in found for name in loop.kinds} == {kind}
    assert max(loop.multiply_adds for loop in found) >= least
    assert all(loop.spills == 0 for loop in found)


def test_spills_are_counted():
    text = "\n".join(
        [
            ".LBB0_1:",
            "\tvmovdqu\t32(%rsp), %ymm1                # 32-byte Reload",
            "\tvpmaddwd\t(%rax), %ymm0, %ymm2",
            "\tvpaddd\t%ymm2, %ymm1, %ymm1",
            "\tvmovdqu\t%ymm1, 32(%rsp)",
            "\tdecq\t%rcx",
            "\tjne\t.LBB0_1",
        ]
    )
    (loop,) = loops(text)
    assert (loop.kinds, loop.multiply_adds) == (("vpmaddwd",), 1)
    assert (loop.spills, len(loop.lines)) == (2, 6)
