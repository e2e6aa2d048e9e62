"""Control flow that only the data decide, against ONNX Runtime."""

import numpy as np
import onnx.parser
import pytest

import tilewright
from tests.frontends.onnx.oracle import compare, run_onnxruntime
from tilewright.errors import ModelError, UnsupportedModelError
from tilewright.frontends.onnx import import_onnx

RNG = np.random.default_rng(6)


def parsed(text):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    for output in model.graph.output:
        output.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.UNDEFINED, []))
    return model


def check(text, *feeds, tolerance=1e-5):
    """Compile once, and run on every set of inputs."""
    model = parsed(text)
    compiled = tilewright.compile(model, logs=())
    for given in feeds:
        arrays = {name: np.asarray(array) for name, array in given.items()}
        found = compiled.run(arrays)
        compare(list(found.values()), run_onnxruntime(model, arrays), tolerance, tolerance)
    return compiled


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


IF = """
    test (float[3, 4] x, float[4, 4] w, bool flag) => (float y) {
    h = Relu(x)
    y = If(flag) <
        then_branch = then () => (float[3, 4] a) { m = MatMul(h, w)
            a = Tanh(m) },
        else_branch = other () => (float[3, 4] b) { b = Neg(x) }
    >
    }"""


def test_if_runs_one_branch_only():
    feeds = [{"x": floats(3, 4), "w": floats(4, 4), "flag": np.array(f)} for f in (True, False)]
    compiled = check(IF, *feeds)
    labels = [call["kernel"] for call in compiled.description["entries"][0]["calls"]]
    assert not any("matmul" in label for label in labels)
    assert len(import_onnx(parsed(IF)).regions) == 1


def test_branches_may_differ_in_size():
    text = """
        test (float[6] x, bool flag) => (float y, float z) {
        y = If(flag) <
            then_branch = then () => (float[n] a) { zero = Constant<value_float = 0.0>()
                mask = Greater(x, zero)
                a = Compress(x, mask) },
            else_branch = other () => (float[m] b) { s = Constant<value_ints = [1]>()
                e = Constant<value_ints = [4]>()
                b = Slice(x, s, e) }
        >
        z = Neg(y)
        }"""
    check(text, *({"x": floats(6), "flag": np.array(f)} for f in (True, False, True)))


def test_branches_that_compute_nothing_are_selected_between():
    text = """
        test (float[2, 3] x, float[2, 3] w, bool flag) => (float y) {
        y = If(flag) <
            then_branch = then () => (float[2, 3] a) { a = Identity(x) },
            else_branch = other () => (float[2, 3] b) { b = Identity(w) }
        >
        }"""
    check(
        text, *({"x": floats(2, 3), "w": floats(2, 3), "flag": np.array(f)} for f in (1 > 0, 1 < 0))
    )
    assert import_onnx(parsed(text)).regions == ()


def test_branches_of_different_rank_are_refused():
    text = IF.replace("b = Neg(x)", "b = ReduceSum<keepdims = 0>(x)")
    with pytest.raises(UnsupportedModelError, match=r"selects between float32 \(3, 4\) and"):
        tilewright.compile(parsed(text), logs=())


def test_an_operator_without_converter_inside_a_branch_is_listed():
    text = IF.replace("b = Neg(x)", "b = Multinomial(x)").replace(
        "a = Tanh(m)", 'a = ImageDecoder<pixel_format = "RGB">(m)'
    )
    with pytest.raises(UnsupportedModelError, match=r"ai\.onnx\.ImageDecoder .* no converter"):
        tilewright.compile(parsed(text), logs=())


WHILE = """
    test (float[3] x, float limit, int64 most) => (float last, float total) {
    yes = Constant<value = bool {1}>()
    zero = Constant<value_float = 0.0>()
    last, total = Loop(most, yes, x, zero) <
        body = step (int64 i, bool c, float[3] s, float t) => (bool go, float[3] n, float u) {
            two = Constant<value_float = 2.0>()
            n = Mul(s, two)
            sum = ReduceSum<keepdims = 0>(n)
            u = Add(t, sum)
            go = Less(sum, limit)
        }
    >
    }"""


def test_loop_ends_by_condition_or_count():
    x = np.float32([1, 2, 0.5])
    cases = [(1000, 50), (1000, 3), (1000, 0), (-1, 9), (5, 1 << 40)]
    check(WHILE, *({"x": x, "limit": np.float32(a), "most": np.int64(b)} for a, b in cases))


def test_loop_without_a_count_ends_by_its_condition():
    text = WHILE.replace(", int64 most)", ")").replace("Loop(most, yes", "Loop(, yes")
    x = np.float32([1, 2, 0.5])
    check(text, *({"x": x, "limit": np.float32(limit)} for limit in (-5.0, 20.0, 1e6)))


ROWS = """
    test (float[3] x, float limit) => (float last, float rows, float mean) {
    yes = Constant<value = bool {1}>()
    ten = Constant<value_int = 10>()
    last, rows = Loop(ten, yes, x) <
        body = step (int64 i, bool c, float[3] s) => (bool go, float[3] n, float[3] row) {
            f = Cast<to = 1>(i)
            n = Add(s, f)
            row = Neg(n)
            top = ReduceMax<keepdims = 0>(n)
            go = Less(top, limit)
        }
    >
    axis = Constant<value_ints = [0]>()
    mean = ReduceMean<keepdims = 0>(rows, axis)
    }"""


def test_scan_outputs_are_as_long_as_the_loop_ran():
    x = floats(3)
    compiled = check(ROWS, *({"x": x, "limit": np.float32(m)} for m in (-9.0, 5.0, 12.0, 1e9)))
    assert [spec.shape for spec in compiled.module.outputs] == [(3,), (10, 3), (3,)]


def test_rows_of_a_loop_without_bound_say_how_to_bind_it():
    text = ROWS.replace("float limit)", "float limit, int64 ten)").replace(
        "    ten = Constant<value_int = 10>()\n", ""
    )
    with pytest.raises(UnsupportedModelError, match="--constant NAME=VALUE"):
        tilewright.compile(parsed(text), logs=())
    compiled = tilewright.compile(parsed(text), constants={"ten": np.int64(4)}, logs=())
    assert compiled.module.outputs[1].shape == (4, 3)


def test_long_loop_stays_a_loop_and_short_one_is_unrolled():
    text = ROWS.replace("Less(top, limit)", "Identity(c)")
    x = {"x": floats(3), "limit": np.float32(0)}
    check(text, x)
    assert import_onnx(parsed(text)).regions == ()
    long = text.replace("value_int = 10", "value_int = 2000")
    compiled = check(long, x, tolerance=1e-4)
    assert len(import_onnx(parsed(long)).regions) == 1
    assert compiled.module.outputs[1].shape == (2000, 3)


def test_carried_shape_that_changes_is_refused():
    text = WHILE.replace("n = Mul(s, two)", "n = Concat<axis = 0>(s, s)").replace(
        "float[3] n", "float[k] n"
    )
    with pytest.raises(UnsupportedModelError, match=r"begins as float32 \(3,\) and becomes"):
        tilewright.compile(parsed(text), logs=())


def test_nested_control_flow_with_captured_names():
    text = """
        test (float[3, 2] x, int64[2] counts, bool flag) => (float y) {
        yes = Constant<value = bool {1}>()
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        outer = Gather(counts, zero)
        inner = Gather(counts, one)
        y = Loop(outer, yes, x) <
            body = rows (int64 i, bool c, float[3, 2] s) => (bool go, float[3, 2] n) {
                go = Identity(c)
                m = Loop(inner, c, s) <
                    body = deep (int64 j, bool d, float[3, 2] t) => (bool on, float[3, 2] u) {
                        on = Identity(d)
                        k = Add(i, j)
                        f = Cast<to = 1>(k)
                        u = Add(t, f)
                    }
                >
                n = If(flag) <
                    then_branch = then () => (float[3, 2] a) { a = Mul(m, x) },
                    else_branch = other () => (float[3, 2] b) { b = Sub(m, x) }
                >
            }
        >
        }"""
    feeds = [
        {"x": floats(3, 2), "counts": np.array(counts, np.int64), "flag": np.array(flag)}
        for counts, flag in (((2, 3), True), ((3, 1), False), ((0, 5), True), ((2, 0), False))
    ]
    check(text, *feeds, tolerance=1e-4)


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_long_scan_stays_a_loop(axis, backwards):
    shape = "2000, 3" if axis == 0 else "3, 2000"
    text = f"""
        test (float[3] s, float[{shape}] x) => (float last, float y) {{
        last, y = Scan <num_scan_inputs = 1, scan_input_axes = [{axis}],
            scan_input_directions = [{backwards}], scan_output_axes = [{axis}],
            scan_output_directions = [{backwards}],
            body = step (float[3] before, float[3] now) => (float[3] after, float[3] out) {{
                half = Constant<value_float = 0.5>()
                h = Mul(before, half)
                after = Add(h, now)
                out = Tanh(after)
            }}
        > (s, x)
        }}"""
    x = floats(2000, 3)
    check(text, {"s": floats(3), "x": x if axis == 0 else np.ascontiguousarray(x.T)})
    assert len(import_onnx(parsed(text)).regions) == 1


def test_weights_inside_a_body_are_stored_once():
    weight = "{" + ", ".join(["1.5"] * 4096) + "}"
    text = f"""
        test (float[64, 64] x, int64 n) => (float y) {{
        yes = Constant<value = bool {{1}}>()
        w = Constant<value = float[64, 64] {weight}>()
        a = Add(x, w)
        y = Loop(n, yes, a) <
            body = step (int64 i, bool c, float[64, 64] s) => (bool go, float[64, 64] r) {{
                go = Identity(c)
                m = Add(s, w)
                k = Constant<value_float = 0.01>()
                r = Mul(m, k)
            }}
        >
        }}"""
    compiled = check(
        text, *({"x": floats(64, 64), "n": np.int64(n)} for n in (0, 1, 3)), tolerance=1e-2
    )
    assert compiled.description["weights_bytes"] < 2 * 64 * 64 * 4


def _nested(depth, body, result):
    """Return `body` within so many conditionals, which fall to other sizes than it has."""
    for level in range(depth):
        body = (
            f"r{level} = If(flag) <then_branch = t{level} () => (float[a{level}] {result}) "
            f"{{ {body} }}, else_branch = e{level} () => (float[b{level}] n{level}) "
            f"{{ n{level} = Neg(x) }}>"
        )
        result = f"r{level}"
    return body, result


def test_nested_branches_that_differ_in_size_are_imported_once_each():
    inner, result = _nested(9, "s = Slice(x, zero, two)", "s")
    text = f"""
        test (float[5] x, bool flag) => (float {result}) {{
        zero = Constant<value_ints = [0]>()
        two = Constant<value_ints = [2]>()
        {inner}
        }}"""
    check(text, *({"x": floats(5), "flag": np.array(flag)} for flag in (True, False)))
    deepest = import_onnx(parsed(text))
    assert len(deepest.regions) == 9  # twice as many for each level, were branches imported twice


def test_loops_in_unrolled_loops_stay_loops_when_they_would_multiply():
    body, value = "w = Neg(v0)", "w"
    for level in range(5):
        outer = "x" if level == 4 else f"v{level + 1}"
        body = (
            f"o{level} = Loop(trips, yes, {outer}) <body = b{level} "
            f"(int64 i{level}, bool c{level}, float[3] v{level}) => "
            f"(bool g{level}, float[3] {value}) {{ g{level} = Identity(c{level}) {body} }}>\n"
        )
        value = f"o{level}"
    text = f"""
        test (float[3] x) => (float {value}) {{
        yes = Constant<value = bool {{1}}>()
        trips = Constant<value_int = 23>()
        {body}
        }}"""
    x = floats(3)
    found = tilewright.compile(parsed(text), logs=()).run({"x": x})[value]
    np.testing.assert_array_equal(found, -x)  # 23 ** 5 is odd


def test_functions_that_multiply_are_refused():
    calls = "".join(
        f'<opset_import: ["" : 20, "local" : 1], domain: "local"> f{k} (a) => (b) '
        f"{{ c = local.f{k - 1}(a) d = Neg(c) b = local.f{k - 1}(d) }}\n"
        for k in range(1, 20)
    )
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "local" : 1]> '
        f"test (float[3] x) => (float[3] y) {{ y = local.f19(x) }}\n"
        f'<opset_import: ["" : 20], domain: "local"> f0 (a) => (b) {{ b = Abs(a) }}\n{calls}'
    )
    with pytest.raises(ModelError, match="unfolds to more than 50000 nodes"):
        import_onnx(model)


def test_control_flow_deeper_than_can_be_read_is_refused_by_name(tmp_path):
    def graph(depth):
        node = onnx.helper.make_node("Abs", ["x"], ["y"])
        info = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])
        for _ in range(depth):
            branch = onnx.helper.make_graph([node], "branch", [], [info])
            node = onnx.NodeProto(op_type="If", input=["flag"], output=["y"])
            for name in ("then_branch", "else_branch"):
                node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(branch)
        return node

    model = parsed("test (float[3] x, bool flag) => (float[3] y) { y = Abs(x) }")
    model.graph.node[0].CopyFrom(graph(5))
    assert import_onnx(model).inputs
    chain = model.graph.node[0]
    for _ in range(40):
        inner = onnx.NodeProto(op_type="If", input=["flag"], output=["y"])
        branch = inner.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
        branch.node.add().CopyFrom(chain)
        chain = inner
    model.graph.node[0].CopyFrom(chain)
    with pytest.raises(ModelError, match="nested more than 31 deep"):
        import_onnx(model)
    path = tmp_path / "deep.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="nested more than 31 deep"):
        import_onnx(path)
