"""Drawings of a model's layouts."""

from __future__ import annotations

import sys

import networkx as nx
import pytest

import tilewright as tw
from tests.relax_models import constant, module
from tilewright.compiler.pipeline import lower
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import parse_target
from tilewright.drawing import layout_graph
from tilewright.errors import MissingExtraError


def test_graph_has_every_call_and_marks_conversions():
    import numpy as np
    from tvm.relax import op

    rng = np.random.default_rng(0)

    def body(emit, x):
        return emit(op.nn.conv2d(x, constant(rng, 32, 32, 3, 3)))

    specs = [TensorSpec("x", (1, 32, 9, 9), "float32")], [TensorSpec("y", (1, 32, 7, 7), "float32")]
    lowered = lower(module([(1, 32, 9, 9)], body), *specs, parse_target("x86-64-v3"))
    graph = layout_graph(lowered)
    kinds = [data["kind"] for _, data in graph.nodes(data=True)]
    assert kinds.count("interface") == 2
    assert kinds.count("conversion") == len(lowered.conversions)
    assert kinds.count("operator") == len(lowered.plan.choices)
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.has_path(graph, "input x", "output y")


def test_inspect_writes_dot(cli, model_path, tmp_path):
    result = cli("inspect", model_path, "--dot", tmp_path / "model.dot")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "model.dot").read_text()
    assert text.startswith("digraph")
    assert '"input x"' in text


def test_unwritable_drawing_is_one_clear_error(cli, model_path, tmp_path):
    result = cli("inspect", model_path, "--dot", tmp_path / "missing" / "model.dot")
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr


def test_svg_without_matplotlib_names_the_extra(model_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"tilewright\[report\]"):
        tw.inspect(model_path, svg=tmp_path / "model.svg")


def test_svg_is_drawn(model_path, tmp_path):
    pytest.importorskip("matplotlib", reason="drawing SVG needs matplotlib (extra 'report')")
    tw.inspect(model_path, svg=tmp_path / "model.svg")
    assert "<svg" in (tmp_path / "model.svg").read_text()
