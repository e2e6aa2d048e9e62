"""The fuzzer: what it draws is valid, it sees wrong results, and a spread of it passes."""

import os
import signal

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies
from onnx import TensorProto, helper

from benchmarks.fuzz import __main__ as command
from benchmarks.fuzz import session
from benchmarks.fuzz.check import (
    Mismatch,
    check,
    difference,
    merged,
    node_by_node,
    part,
    random_feed,
)
from benchmarks.fuzz.graph import Graph, small_enough
from benchmarks.fuzz.models import models
from benchmarks.fuzz.moves import MOVES, windows
from benchmarks.fuzz.session import run_batch
from benchmarks.fuzz.ways import ORDER, WAYS, Way
from tilewright.errors import MeasureError
from tilewright.reference import reference_outputs


@pytest.mark.parametrize("way", WAYS)
def test_compiled_graphs_compute_what_the_reference_computes(way):
    @settings(
        max_examples=2,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategies.lists(models(), min_size=WAYS[way].graphs // 4, max_size=WAYS[way].graphs))
    def examine(drawn):
        if drawn:
            check(drawn, way, len(drawn))

    examine()


def test_batches_take_every_way():
    assert set(ORDER) == set(WAYS)


def _relu() -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 5]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_inputs_larger_than_any_result_may_be_are_drawn_from():
    graph = Graph(lambda integers: integers.wrapped_strategy.start)
    x = graph.add_input((3, 48, 17, 17))
    assert not small_enough(x.shape)
    assert all(move(graph, x) or True for move in MOVES)


@pytest.mark.parametrize(("extent", "pads", "outside"), [(8, [0, 0], True), (7, [0, 0], False)])
def test_windows_that_onnx_counts_wrongly_are_known(extent, pads, outside):
    window = {"kernel_shape": [1], "strides": [3], "dilations": [1], "pads": pads}
    assert windows._begins_outside((extent,), window) is outside


def test_merged_graphs_come_apart_again():
    together = merged([_relu(), _relu()])
    for index in range(2):
        alone = part(together, index).graph
        assert [node.op_type for node in alone.node] == ["Relu"]
        assert [info.name for info in alone.input] == [f"g{index}_x"]
        assert [info.name for info in alone.output] == [f"g{index}_y"]


def test_counts_of_runs_side_by_side_are_added(tmp_path, monkeypatch, capsys):
    totals = {
        **{"next_seed": 3, "graphs": 5, "ways": {"untuned": 5}, "commits": {"abc": 5}},
        **{"operators": {"Relu": 7}, "failures": []},
    }
    failed = {"seed": 9, "what": "wrong", "commit": "def"}
    paths = [tmp_path / name for name in ("results.json", "more.json")]
    command._write(totals, paths[0])
    command._write(
        totals | {"next_seed": 99, "commits": {"def": 5}, "failures": [failed]}, paths[1]
    )
    monkeypatch.setattr("sys.argv", ["fuzz", "--results", str(paths[0]), "--merge", str(paths[1])])
    assert command.main() == 0
    assert "10 graphs clean" in capsys.readouterr().out
    assert command._read(paths[0]) == {
        **{"next_seed": 3, "graphs": 10, "ways": {"untuned": 10}, "operators": {"Relu": 14}},
        **{"commits": {"abc": 5, "def": 5}, "failures": [failed]},
    }


def test_nodes_are_referred_to_whoever_can_run_them():
    """ONNX's reference fails for the second node, ONNX Runtime for the first."""
    weights = {
        "w": np.ones((3, 1, 2, 2), np.float32),
        "v": np.ones((3, 2, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node(
            "Conv", ["x", "w"], ["m"], auto_pad="SAME_UPPER", dilations=[2, 2], group=3
        ),
        helper.make_node("ConvTranspose", ["m", "v"], ["y"], group=3),
    ]
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])]
    graph = helper.make_graph(
        nodes,
        "g",
        info,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 4, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feed = random_feed(model, 0)
    for one in ("onnx", "onnxruntime"):
        with pytest.raises(MeasureError):
            reference_outputs(model, feed, ["y"], one)
    check([model], "untuned")


def test_a_shape_that_the_reference_loses_is_not_handed_on():
    """GlobalMaxPool of one point loses a dimension in ONNX's reference; the next node fails."""
    nodes = [
        helper.make_node("GlobalMaxPool", ["x"], ["m"]),
        helper.make_node("MaxPool", ["m"], ["y"], kernel_shape=[1, 1]),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3, 1, 1]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feed = random_feed(model, 0)
    found = node_by_node(model, feed)
    np.testing.assert_array_equal(found["y"], feed["x"])


def test_a_wrong_result_is_a_mismatch(monkeypatch):
    wrong = Way(lambda *_: {"g0_y": np.zeros((4, 5), np.float32)})
    monkeypatch.setitem(WAYS, "untuned", wrong)
    with pytest.raises(Mismatch, match="output g0_y"):
        check([_relu()], "untuned")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.ones(3), "shape"),
        (np.array([1.0, 2.0]), None),
        (np.array([1.0, 2.01]), "error"),
        (np.array([1.0, np.nan]), "not finite"),
    ],
)
def test_difference_says_what_is_wrong(found, message):
    expected = np.array([1.0, 2.0])
    result = difference(found, expected, expected, steps=False)
    assert result is None if message is None else message in result


def test_a_step_of_quantization_may_flip_but_not_everything():
    expected = np.linspace(-1, 1, 50)
    flipped = expected.copy()
    flipped[7] += 0.03
    assert difference(flipped, expected, expected, steps=True) is None
    assert difference(-expected, expected, expected, steps=True)


def test_a_batch_in_a_child_counts_its_graphs_and_leaves_nothing_behind(tmp_path):
    batch = run_batch(0, 1, tmp_path)
    assert batch.failure is None
    assert batch.graphs >= 1
    assert sum(batch.operators.values()) >= 1
    assert not list(tmp_path.iterdir())


def test_a_batch_that_crashes_is_said_and_its_model_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "check", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    batch = run_batch(0, 3, tmp_path)
    assert batch.failure == "untuned: crash: the process ended with status -9"
    (kept,) = tmp_path.iterdir()
    onnx.checker.check_model(onnx.load(kept))


def test_a_wrong_result_is_shrunk_and_kept(tmp_path, monkeypatch):
    def fail(_model, _variant, _seed):
        raise Mismatch("output y: error 1")

    monkeypatch.setattr(session, "check", fail)
    batch = run_batch(0, 20, tmp_path)
    assert batch.failure.startswith("untuned: Mismatch: output y: error 1")
    assert batch.graphs == 1
    (kept,) = tmp_path.iterdir()
    assert len(onnx.load(kept).graph.node) <= 2
