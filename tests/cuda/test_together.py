"""Launches that do not need each other, as one: the order stays right, and so do the results."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tvm import tirx

from tests.cuda.programs import lower, model_of
from tests.cuda.test_operators import check, convolution, normal
from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.structure import read_code
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.compiler.cuda.together import run_together
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore")
TARGET = parse_cuda_target("cuda:sm_90")
BOTH = (False, True)


def together(schedules):
    """Return of how many launches each is made."""
    return [int(name.split()[-2]) for name in schedules if name.endswith(" together")]


def launched(model, precision="fp32"):
    lowered = lower(model, precision)
    return [lowered.kernels[call.kernel].schedule for call in lowered.program.calls]


def projections():
    """Three products of one input, one beside the other."""
    weights = {name: normal(48, 40, seed=i) for i, name in enumerate("abc")}
    nodes = [helper.make_node("MatMul", ["x", name], [f"p{name}"]) for name in "abc"]
    nodes.append(helper.make_node("Concat", ["pa", "pb", "pc"], ["y"], axis=1))
    x = normal(24, 48, seed=9)
    return model_of(nodes, {"x": x}, weights), {"x": x}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_projections_of_one_input_are_one_launch(precision):
    model, feeds = projections()
    assert together(launched(model, precision)) == [3]
    check(model, feeds, precision, backwards=BOTH)


def test_phases_of_a_transposed_convolution_are_one_launch():
    model, feeds = convolution(
        normal(1, 64, 4, 4),
        normal(64, 64, 4, 4, seed=1),
        operator="ConvTranspose",
        strides=[2, 2],
        pads=[1] * 4,
    )
    assert 4 in together(launched(model, "fp16"))
    check(model, feeds, "fp16", backwards=BOTH)


@pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")
def test_nvcc_takes_functions_that_two_launches_share():
    kernels = dict(lower(projections()[0], "fp16").kernels)
    (name,) = (name for name, kernel in kernels.items() if "together" in kernel.schedule)
    source = kernels[name].source.replace(f" {name}(", " again(")
    again = replace(kernels[name], name="again", source=source)
    found = read_code(compile_kernels(kernels | {"again": again}, TARGET))
    assert {name, "again"} <= set(found)
    assert all(use.spills == 0 for use in found.values())


def _program(edges):
    """Return calls (what each reads, what it writes) as a program and its kernels."""
    count = 1 + max(index for reads, write in edges for index in (*reads, write))
    tensors = tuple(
        Tensor(f"t{i}", (4,), "float32", "input" if i == 0 else "intermediate")
        for i in range(count)
    )
    buffer = tirx.decl_buffer((4,), "float32")
    calls, signatures, kernels = [], {}, {}
    for number, (reads, write) in enumerate(edges):
        name = f"k{number}"
        pointers = [f"const float *__restrict__ in{i}" for i in range(len(reads))]
        parameters = ", ".join([*pointers, "float *__restrict__ out0"])
        text = f"TW_GLOBAL(32) {name}({parameters}) {{\n}}\n"
        kernels[name] = Kernel(name, text, (1, 1, 1), 32, 0, "elementwise x1")
        signatures[name] = tirx.PrimFunc(
            [buffer] * (len(reads) + 1), tirx.Evaluate(tirx.IntImm("int32", 0))
        )
        calls.append(Call(name, (*reads, write), name))
    spec = TensorSpec("x", (4,), "float32")
    return Program(tensors, tuple(calls), (0,), (), signatures, (spec,), ()), kernels


@st.composite
def _edges(draw):
    """Draw calls that read what was written before, and write something, maybe again."""
    known, edges = [0], []
    for number in range(draw(st.integers(2, 10))):
        reads = tuple(dict.fromkeys(draw(st.lists(st.sampled_from(known), max_size=3))))
        again = [index for index in known[1:] if index not in reads]
        write = draw(st.sampled_from([number + 1, *again]))
        edges.append((reads, write))
        known = list(dict.fromkeys([*known, write]))
    return edges


@settings(max_examples=200, deadline=None)
@given(_edges())
def test_every_call_sees_what_it_saw_before(edges):
    program, kernels = _program(edges)
    changed, _ = run_together(program, kernels, TARGET)
    done = [call.label.split(" + ") for call in changed.calls]
    assert sorted(name for group in done for name in group) == sorted(kernels)

    def versions(groups):
        """Return what every call reads, as the calls that wrote it last."""
        last, seen = {}, {}
        for group in groups:
            numbers = [int(name[1:]) for name in group]
            for number in numbers:
                seen[number] = [last.get(index) for index in edges[number][0]]
            written = [edges[number][1] for number in numbers]
            assert len(set(written)) == len(written)
            last |= dict(zip(written, numbers, strict=True))
        return seen, last

    assert versions(done) == versions([[name] for name in kernels])


def test_arguments_that_calls_share_are_one():
    program, kernels = _program([((0,), 1), ((0,), 2), ((1, 2), 3)])
    changed, made = run_together(program, kernels, TARGET)
    assert [call.args for call in changed.calls] == [(0, 1, 2), (1, 2, 3)]
    source = made[changed.calls[0].kernel].source
    assert "k1_part(tw_place{block % 1, block / 1 % 1, block / 1}, p0, p2);" in source
    assert np.prod(made[changed.calls[0].kernel].grid) == 2


def test_split_depths_and_their_sums_are_one_launch_each():
    weights = {name: normal(2048, 24, seed=i) for i, name in enumerate("ab")}
    nodes = [helper.make_node("MatMul", ["x", name], [f"p{name}"]) for name in "ab"]
    nodes.append(helper.make_node("Concat", ["pa", "pb"], ["y"], axis=1))
    model = model_of(nodes, {"x": normal(16, 2048)}, weights)
    schedules = launched(model)
    assert together(schedules) == [2, 2], schedules
    check(model, {"x": normal(16, 2048)}, backwards=BOTH)
