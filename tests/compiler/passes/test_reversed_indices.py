"""Quotients and remainders of indices that run backwards, through TVM's flattening."""

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tvm import sym, tirx

import tilewright
from tilewright.compiler.passes.reversed_indices import HideReversedIndices, ShowReversedIndices
from tilewright.compiler.schedule.expressions import substitute


def _number(value):
    return tirx.const(value, "int64")


def _flattened(index_of, extent):
    """Return the loop variable and the index of x in `for v: y[v] = x[index]`, as lowered."""
    var = tirx.Var("v", "int64")
    x, y = (tirx.decl_buffer((4096,), "float32", name) for name in "xy")
    store = tirx.BufferStore(y, tirx.BufferLoad(x, [index_of(var)]), [var])
    loop = tirx.For(var, _number(0), _number(extent), tirx.ForKind.SERIAL, store)
    mod = tvm.IRModule({"main": tirx.PrimFunc([x, y], loop).with_attr("global_symbol", "main")})
    for each in (HideReversedIndices(), tirx.transform.FlattenBuffer(), ShowReversedIndices()):
        mod = each(mod)
    body = mod["main"].body
    while not isinstance(body, tirx.For):
        body = body.seq[-1] if isinstance(body, tirx.SeqStmt) else body.body
    return body.loop_var, body.body.value.indices[0]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 13),
    st.integers(2, 9),
    st.integers(-3, 3),
    st.integers(-20, 40),
    st.sampled_from(["remainder", "quotient", "both"]),
)
def test_indices_keep_their_values(extent, divisor, step, start, form):
    def index(var):
        at = var * step + start if step >= 0 else _number(start) - var * -step
        if form == "remainder":
            return tirx.floormod(at, _number(divisor))
        if form == "quotient":
            return tirx.floordiv(at, _number(divisor)) + 100
        return tirx.floordiv(tirx.floormod(at, _number(2 * divisor)), _number(divisor))

    var, found = _flattened(index, extent)
    for value in range(extent):
        at = value * step + start
        expected = {
            "remainder": at % divisor,
            "quotient": at // divisor + 100,
            "both": at % (2 * divisor) // divisor,
        }[form]
        assert int(sym.Analyzer().simplify(substitute(found, {var: _number(value)}))) == expected


@pytest.mark.parametrize("shape", [(1, 7, 1, 4), (3, 2, 1, 5), (2, 3, 1, 8)], ids=str)
def test_repeated_rows_are_reversed(shape):
    """Found by fuzzing: repeated twice, then backwards, came out turned by one."""
    constants = {
        "repeats": [1, 1, 2, 1],
        "axis": [1],
        "from": [2**31],
        "to": [-(2**31)],
        "by": [-1],
    }
    nodes = [
        helper.make_node("Tile", ["x", "repeats"], ["twice"]),
        helper.make_node("Flatten", ["twice"], ["flat"], axis=2),
        helper.make_node("Slice", ["flat", "from", "to", "axis", "by"], ["y"]),
    ]
    rows, columns = shape[0] * shape[1], 2 * shape[3]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(tilewright.compile(model, logs=()).run({"x": x})["y"], expected)
