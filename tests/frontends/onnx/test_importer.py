"""The importer: signature, symbolic dimensions, folding, functions and every error message."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.frontends.onnx.oracle import check, make_model, operators, run
from tilewright.errors import ModelError, ShapeError, UnsupportedModelError
from tilewright.frontends.onnx import TensorSpec, import_onnx

X = np.arange(42, dtype=np.float32).reshape(2, 3, 7) / 10


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, **attributes)


def relu_model(opset=17):
    return make_model([node("Relu", ["x"], ["y"], name="act")], {"x": X}, ["y"], opset)


def symbolic_model(*dims):
    """Two inputs whose dimensions are given by name or number."""
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        for name, shape in zip("ab", dims, strict=True)
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])
    graph = helper.make_graph([node("Add", ["a", "b"], ["y"])], "g", infos, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_inputs_and_outputs_keep_onnx_names_that_are_not_identifiers():
    nodes = [node("Relu", ["in/0:x"], ["3.out"])]
    model = make_model(nodes, {"in/0:x": X}, ["3.out"], 17)
    imported = import_onnx(model)
    assert imported.inputs == (TensorSpec("in/0:x", (2, 3, 7), "float32"),)
    assert imported.outputs == (TensorSpec("3.out", (2, 3, 7), "float32"),)
    assert imported.module["main"].params[0].name == "in_0_x"
    assert len(imported.digest) == 64


def test_unused_input_stays_and_initialiser_that_is_an_input_goes():
    model = make_model(
        [node("Add", ["x", "w"], ["y"])], {"x": X, "unused": X, "w": X}, ["y"], 17, {"w": X}
    )
    imported = check(model, {"x": X, "unused": X, "w": X})
    assert [item.name for item in imported.inputs] == ["x", "unused"]


def test_output_may_be_an_input_a_constant_or_repeated():
    model = make_model([node("Identity", ["x"], ["y"])], {"x": X}, ["y", "x", "w"], 17, {"w": X})
    found = run(import_onnx(model), {"x": X})
    assert all(np.array_equal(item, X) for item in found)


def test_main_is_one_dataflow_block_that_returns_a_tuple():
    main = import_onnx(relu_model()).module["main"]
    assert len(main.body.blocks) == 1
    assert len(main.ret_ty.fields) == 1


def test_shape_arithmetic_leaves_nothing_behind():
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {
        "zero": np.array(0, np.int64),
        "axes": np.array([0], np.int64),
        "minus": np.array([-1], np.int64),
    }
    model = make_model(nodes, {"x": X}, ["y"], 17, weights)
    assert operators(check(model, {"x": X})) == ["relax.reshape"]


def test_nodes_that_no_output_needs_are_dropped():
    nodes = [node("NoSuchThing", ["x"], ["dead"], domain="x.y"), node("Relu", ["x"], ["y"])]
    model = make_model(nodes, {"x": X}, ["y"], 17, domains={"x.y": 1})
    assert operators(import_onnx(model)) == ["relax.nn.relu"]


@pytest.mark.parametrize("kind", ["HardSwish", "Mish", "Gelu", "Celu"])
def test_operators_that_are_functions_are_computed_of_constants(kind):
    nodes = [node(kind, ["w"], ["c"]), node("Add", ["x", "c"], ["y"])]
    model = make_model(nodes, {"x": X}, ["y"], 20, {"w": X[0, 0] - 2})
    check(model, {"x": X})


def test_large_expansion_of_a_small_constant_is_not_folded():
    nodes = [node("Expand", ["w", "shape"], ["big"]), node("ReduceMax", ["big"], ["y"])]
    weights = {"w": np.ones((1, 1), np.float32), "shape": np.array([8192, 4096], np.int64)}
    model = make_model(nodes, {}, ["y"], 17, weights)
    assert "relax.broadcast_to" in operators(import_onnx(model))


def test_symbol_given_for_one_input_binds_the_other():
    model = symbolic_model(["n", 3], ["n", 3])
    imported = import_onnx(model, shapes={"b": (5, 3)})
    assert [item.shape for item in imported.inputs] == [(5, 3), (5, 3)]


def test_unknown_dimension_names_it_and_shows_the_option():
    model = symbolic_model(["batch", 3, 8, 8], [1])
    with pytest.raises(
        ShapeError, match=r"dimension 0 \('batch'\) of input 'a'.*--shape a=1,3,8,8"
    ):
        import_onnx(model)


def test_unnamed_dimension_is_reported_too():
    with pytest.raises(ShapeError, match=r"dimension 1 of input 'a' is unknown"):
        import_onnx(symbolic_model([2, None], [1]))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"nope": (1,)}, r"no input 'nope'.*'a', 'b'"),
        ({"a": (2, 4)}, r"4 in dimension 1, where the model declares 3"),
        ({"a": (2,)}, r"has 1 dimensions; the model declares 2"),
        ({"a": (2, 3), "b": (4, 3)}, r"'n' is 2 in input 'a', but 4 in input 'b'"),
        ({"a": (-2, 3)}, r"negative size"),
    ],
)
def test_shapes_that_contradict_the_model_raise(shapes, message):
    with pytest.raises(ShapeError, match=message):
        import_onnx(symbolic_model(["n", 3], ["n", 3]), shapes=shapes)


@pytest.mark.parametrize("declared", ["no shape", "no type"])
def test_outputs_need_no_declaration(declared):
    model = relu_model()
    output = model.graph.output[0]
    output.ClearField("type")
    if declared == "no shape":
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    assert import_onnx(model).outputs == (TensorSpec("y", (2, 3, 7), "float32"),)
    assert not output.type.tensor_type.HasField("shape")  # the caller's model is left alone


def test_input_without_a_shape_takes_the_one_given():
    model = relu_model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ShapeError, match=r"how many dimensions input 'x' has.*--shape x="):
        import_onnx(model)
    assert import_onnx(model, shapes={"x": (4, 5)}).outputs[0].shape == (4, 5)


def test_constants_bind_inputs_and_vanish_from_the_signature():
    shape = np.array([7, 6], np.int64)
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    model = make_model(nodes, {"x": X, "shape": shape}, ["y"], 17)
    imported = check(model, {"x": X, "shape": shape}, constants=["shape"])
    assert [item.name for item in imported.inputs] == ["x"]


def test_shape_input_known_only_at_run_time_says_how_to_bind_it():
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    model = make_model(nodes, {"x": X, "shape": np.array([7, 6], np.int64)}, ["y"], 17)
    with pytest.raises(UnsupportedModelError, match=r"--constant shape=VALUE"):
        import_onnx(model)


@pytest.mark.parametrize(
    ("constants", "error", "message"),
    [
        ({"nope": np.zeros(1)}, ShapeError, r"no input 'nope'"),
        ({"x": np.zeros((2, 3, 7))}, ModelError, r"float64, the model wants float32"),
        ({"x": np.zeros((2, 3), np.float32)}, ShapeError, r"has shape \(2, 3\)"),
    ],
)
def test_constants_that_do_not_fit_raise(constants, error, message):
    with pytest.raises(error, match=message):
        import_onnx(relu_model(), constants=constants)


def test_all_unsupported_things_are_listed_at_once():
    nodes = [
        node("Foo", ["x"], ["a"], domain="my.ops", name="first"),
        node("Foo", ["a"], ["b"], domain="my.ops", name="second"),
        node("Bar", ["b"], ["c"], domain="my.ops", name="third"),
        node("ConvTranspose", ["z", "w"], ["d"], name="deep"),
        node("Concat", ["c", "d"], ["y"], axis=0),
    ]
    z = np.zeros((1, 1, 2, 2, 2, 2), np.float32)
    model = make_model(nodes, {"x": X, "z": z}, ["y"], 17, {"w": z}, {"my.ops": 1})
    with pytest.raises(UnsupportedModelError) as caught:
        import_onnx(model)
    text = str(caught.value)
    assert "my.ops.Foo (opset 1) x2: no converter for node 'first', 'second'" in text
    assert "my.ops.Bar (opset 1) x1" in text
    assert "ConvTranspose node 'deep': 4 spatial dimensions" in text


def test_attribute_that_no_converter_reads_raises():
    nodes = [node("Gelu", ["x"], ["y"], domain="com.microsoft", surprise=3)]
    model = make_model(nodes, {"x": X}, ["y"], 17, domains={"com.microsoft": 1})
    with pytest.raises(UnsupportedModelError, match=r"attribute 'surprise' is not supported"):
        import_onnx(model)


def test_node_that_does_not_fit_its_inputs_names_the_node():
    nodes = [node("MatMul", ["x", "x"], ["y"], name="product")]
    with pytest.raises(ModelError, match=r"MatMul node 'product' does not fit its inputs"):
        import_onnx(make_model(nodes, {"x": X}, ["y"], 17))


def test_missing_tensor_is_found_by_the_checker():
    model = relu_model()
    model.graph.node[0].input[0] = "ghost"
    with pytest.raises(ModelError, match=r"not a valid ONNX model: .*ghost"):
        import_onnx(model)


def test_missing_file_text_file_and_truncated_file_raise(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read .*nothing.onnx.*No such file"):
        import_onnx(tmp_path / "nothing.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("this is not a model, but a text that says so")
    with pytest.raises(ModelError, match=r"text.onnx"):
        import_onnx(text)
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    with pytest.raises(ModelError, match=r"not an ONNX model: it has no graph"):
        import_onnx(empty)
    data = relu_model().SerializeToString()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(data[: len(data) - 9])
    with pytest.raises(ModelError, match=r"cut.onnx"):
        import_onnx(cut)


def save_external(folder):
    weight = np.arange(600, dtype=np.float32).reshape(3, 200)
    model = make_model(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": np.ones((2, 3), np.float32)},
        ["y"],
        17,
        {"w": weight},
    )
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path, weight


def test_external_weights_are_read(tmp_path):
    path, weight = save_external(tmp_path)
    x = np.ones((2, 3), np.float32)
    (found,) = run(import_onnx(path), {"x": x})
    np.testing.assert_allclose(found, x @ weight)


def test_missing_and_short_external_weights_raise(tmp_path):
    path, _ = save_external(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:100])
    with pytest.raises(ModelError, match=r"weight 'w' cannot be read: it needs bytes 0 to 2400"):
        import_onnx(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weight 'w' is in the external file.*does not exist"):
        import_onnx(path)


def test_external_weights_of_another_length_raise(tmp_path):
    path, _ = save_external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    weight = model.graph.initializer[0]
    next(item for item in weight.external_data if item.key == "length").value = "4"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"weight 'w' cannot be read: .* data has 4"):
        import_onnx(path)


def test_external_weights_outside_the_folder_raise(tmp_path):
    path, _ = save_external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"only files in the folder of the model"):
        import_onnx(path)
    with pytest.raises(ModelError, match=r"was given in memory"):
        import_onnx(model)


def test_model_local_function_with_attribute_is_expanded():
    body = helper.make_function(
        "local",
        "Scale",
        ["a"],
        ["b"],
        [
            node("Constant", [], ["factor"]),
            node("Mul", ["a", "factor"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
        ["by"],
    )
    reference = body.node[0].attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT)
    reference.ref_attr_name = "by"
    call = node("Scale", ["x"], ["y"], domain="local", by=2.5)
    model = make_model([call], {"x": X}, ["y"], 17, domains={"local": 1}, functions=[body])
    (found,) = run(import_onnx(model), {"x": X})
    np.testing.assert_allclose(found, X * 2.5)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [(["x", "x"], ["y"], "has 2 inputs"), (["x"], ["y", "z"], "has 2 outputs")],
)
def test_a_call_of_a_function_with_too_many_values_is_refused(inputs, outputs, message):
    opsets = [helper.make_opsetid("", 17)]
    body = helper.make_function("local", "Same", ["a"], ["b"], [node("Relu", ["a"], ["b"])], opsets)
    call = node("Same", inputs, outputs, domain="local")
    model = make_model([call], {"x": X}, outputs, 17, domains={"local": 1}, functions=[body])
    with pytest.raises(ModelError, match=f"{message}, but its function has 1"):
        import_onnx(model)


def test_digest_depends_on_the_file_and_not_on_the_path(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(relu_model().SerializeToString())
    (tmp_path / "c.onnx").write_bytes(relu_model(18).SerializeToString())
    first, second, third = (import_onnx(tmp_path / f"{name}.onnx").digest for name in "abc")
    assert first == second != third


@pytest.mark.parametrize(("hidden", "rows"), [(4, 3), (1 << 40, 4), (4, 5)])
def test_recurrent_weights_that_do_not_fit_are_refused(hidden, rows):
    weights = {
        "w": np.zeros((1, 4 * rows, 3), np.float32),
        "r": np.zeros((1, 4 * rows, 4), np.float32),
    }
    nodes = [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden)]
    model = make_model(nodes, {"x": np.zeros((2, 1, 3), np.float32)}, ["y"], 17, weights)
    with pytest.raises(ModelError, match=r"LSTM node 'y' does not fit its inputs: input 1 has"):
        import_onnx(model)
