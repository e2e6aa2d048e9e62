"""Transposed convolutions with few outputs, in one kernel for all phases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tilewright
from tests.relax_models import run
from tilewright.compiler.passes.lower_phases import LowerPhases
from tilewright.compiler.phase_convolution import PHASE_BLOCK
from tilewright.compiler.pipeline import lower
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.schedule.phases import PhaseDecisions, chains, most_vectors
from tilewright.compiler.targets import parse_target
from tilewright.errors import InvalidScheduleError
from tilewright.frontends.onnx import import_onnx

TARGET = parse_target("x86-64-v3")
LANES = TARGET.lanes("float32")


def _model(shape, outputs, kernel, **attributes):
    """One transposed convolution of stride 2, and its weights."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((shape[1], outputs, *kernel)).astype("float32")
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[2] * len(kernel), **attributes
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _kernels(model, target=TARGET):
    imported = import_onnx(model)
    found = lower(imported.module, imported.inputs, imported.outputs, target)
    return list(found.program.kernels)


def _agrees(model, shape):
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    found = tilewright.compile(model, logs=()).run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# Shape, outputs, kernel, padding and output padding.
FITS = [
    ((1, 32, 8, 32), 3, (4, 4), [1, 1, 1, 1], [0, 0]),
    ((2, 16, 5, 37), 3, (4, 4), [1, 1, 1, 1], [0, 0]),
    ((1, 64, 6, 33), 2, (2, 2), [0, 0, 0, 0], [0, 0]),
    ((1, 24, 7, 35), 4, (6, 4), [2, 1, 2, 1], [0, 0]),
    ((1, 16, 4, 40), 3, (4, 4), [0, 3, 0, 1], [0, 0]),
    ((1, 16, 3, 33), 1, (4, 4), [2, 2, 1, 1], [1, 1]),
    ((1, 8, 3, 5, 32), 1, (4, 4, 4), [1] * 6, [0, 0, 0]),
    ((2, 16, 2, 3, 33), 2, (4, 2, 4), [1, 0, 1, 1, 0, 1], [0, 0, 0]),
]
# With few sums in a tile, which AVX-512 keeps in parts; of two pieces of the channels, too.
FEW_SUMS = [
    ((1, 32, 5, 33), 1, (4, 4), [1, 1, 1, 1]),
    ((1, 96, 3, 3, 17), 1, (4, 4, 4), [1] * 6),
    ((2, 16, 2, 3, 33), 1, (2, 6, 4), [0, 2, 1, 0, 2, 1]),
]


@pytest.mark.parametrize(("shape", "outputs", "kernel", "pads", "extra"), FITS, ids=str)
def test_all_phases_are_one_kernel(shape, outputs, kernel, pads, extra):
    model = _model(shape, outputs, kernel, pads=pads, output_padding=extra)
    assert any(name.startswith(PHASE_BLOCK) for name in _kernels(model))
    _agrees(model, shape)


@pytest.mark.parametrize(("shape", "outputs", "kernel", "pads"), FEW_SUMS, ids=str)
def test_sums_are_kept_in_parts_where_a_tile_has_few(shape, outputs, kernel, pads):
    model = _model(shape, outputs, kernel, pads=pads)
    wide = _kernels(model, parse_target("x86-64-v4"))
    assert any(name.startswith(PHASE_BLOCK) for name in wide)
    _agrees(model, shape)


@pytest.mark.parametrize(
    ("shape", "outputs", "attributes"),
    [
        ((1, 32, 8, 32), 16, {}),
        ((1, 32, 8, 6), 3, {}),
        ((1, 8, 8, 32), 3, {}),
        ((1, 32, 8, 32), 3, {"output_padding": [1, 0]}),
    ],
    ids=["many outputs", "short rows", "short sum", "uneven phases"],
)
def test_others_are_left_to_ordinary_convolutions(shape, outputs, attributes):
    model = _model(shape, outputs, (4, 4), pads=[1, 1, 1, 1], **attributes)
    assert not any(name.startswith(PHASE_BLOCK) for name in _kernels(model))


@settings(max_examples=12, deadline=None)
@given(
    taps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    after=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    outputs=st.integers(2, 4),
)
def test_expression_equals_definition(taps, cut, after, outputs):
    """Before any schedule: the sum over phases is the transposed convolution."""
    kernel = tuple(2 * count for count in taps)
    pads = [*cut, *after]
    shape = (1, 64, 3, 34)
    sizes = [2 * (shape[2 + i] - 1) + kernel[i] - cut[i] - after[i] for i in range(2)]
    if min(sizes) < 1:
        return
    model = _model(shape, outputs, kernel, pads=pads)
    module = import_onnx(model).module
    lowered = LowerPhases(TARGET)(module)
    fits = all(size % 2 == 0 for size in sizes) and all(
        p < k for p, k in zip(cut, kernel, strict=True)
    )
    names = [var.name_hint for var in lowered.get_global_vars()]
    assert fits == any(name.startswith(PHASE_BLOCK) for name in names)
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(run(lowered, x), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "aarch64"])
@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("positions", [16, 24, 32, 48, 256])
@pytest.mark.parametrize("rows_read", [1, 2, 3, 4])
def test_tile_fits_the_registers(name, outputs, positions, rows_read):
    target = parse_target(name)
    most = most_vectors(outputs, positions, rows_read, target)
    assert most > 0 or positions < 256
    for vectors in range(1, most + 1):
        cells = 2 * outputs * vectors
        assert cells * chains(cells, rows_read) + vectors + 1 <= target.vector_registers


def test_tile_divides_long_rows():
    """32 vectors of one channel: 8 tiles of 4 rather than 7 of 5 that overlap."""
    model = _model((1, 64, 4, 256), 1, (4, 4), pads=[1, 1, 1, 1])
    module = LowerPhases(TARGET)(import_onnx(model).module)
    (func,) = (f for name, f in module.functions.items() if PHASE_BLOCK in name.name_hint)
    assert default_decisions(func, TARGET).vectors == 4


def test_decisions_are_json_and_checked():
    decisions = PhaseDecisions(2, (2, 4), 16)
    assert PhaseDecisions.from_json(decisions.to_json()) == decisions
    with pytest.raises(InvalidScheduleError, match="not phases decisions"):
        PhaseDecisions.from_json('{"kind": "phases", "vectors": 2}')
