"""The page about a module: every part is there, well-formed, and says what was measured."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.report.graph import _edges, _layers, graph_chart
from tilewright.report.module import Call, read_module, short_layout
from tilewright.report.operators import error_chart, roofline, time_chart

_DIGITS = Path(__file__).parents[2] / "examples" / "digits_cnn.onnx"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Return the digit classifier in bytes: the module, and what quantizing it printed."""
    from typer.testing import CliRunner

    from tilewright.cli import app

    folder = tmp_path_factory.mktemp("report")
    np.savez(folder / "samples.npz", image=np.full((4, 1, 1, 8, 8), 0.5, np.float32))
    model = folder / "q.onnx"
    arguments = ["--calibration", folder / "samples.npz", "-o", model, "--json"]
    found = CliRunner().invoke(app, ["quantize", str(_DIGITS), *map(str, arguments)])
    assert found.exit_code == 0, found.output
    (folder / "q.json").write_text(found.stdout)
    tw.compile(model).save(folder / "q.so")
    return folder / "q.so", folder / "q.json"


def test_page_has_every_part_of_a_module_and_of_its_quantization(cli, quantized, tmp_path):
    page = tmp_path / "report.html"
    result = cli("report", *quantized, "-o", page)
    assert result.exit_code == 0, result.output
    content = page.read_text()
    assert not re.search(r"(src|href)=|https?://|<script|@import", content)
    for part in (
        *("Time by operator", "Roofline", "Operators and their layouts", "Every operator"),
        *("Integers and floats", "Quantization of", "GOP/s of bytes", "conv_int8"),
    ):
        assert part in content
    drawings = re.findall(r"<svg.*?</svg>", content, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        xml.etree.ElementTree.fromstring(drawing)
    assert "prefers-color-scheme: dark" in content


def test_the_same_as_markdown(cli, quantized, tmp_path):
    cli("report", *quantized, "-o", tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "| in floats | why |" in text
    assert "| tensor | dB |" in text
    assert text.count("conv_int8") >= 3


def test_a_module_for_another_processor_is_described_but_not_measured(tmp_path):
    tw.compile(_DIGITS, target="aarch64:cortex-a72").save(tmp_path / "pi.so")
    report = read_module(tmp_path / "pi.so")
    assert report.measured is None
    assert report.why_not
    assert time_chart(report) == roofline(report) == ""
    assert "max_pool2d" in graph_chart(report)


def test_quantization_error_chart_names_every_layer(quantized):
    layers = json.loads(quantized[1].read_text())["layers"]
    drawn = error_chart([(layer["tensor"], layer["snr_db"]) for layer in layers])
    assert drawn.count("<title>") == len(layers)


def _call(label, reads, writes):
    return Call(label, label, (), tuple(reads), tuple(writes), ("float32",), "", "", {})


def test_graph_follows_storage_that_is_used_again():
    calls = (_call("a", [0], [1]), _call("b", [1], [2]), _call("c", [1], [3]),
             _call("d", [2, 3], [1]), _call("e", [1], [4]))  # fmt: skip
    assert _edges(calls) == [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]
    assert _layers(calls) == [[0], [1, 2], [3], [4]]


def test_graph_draws_each_call_once(quantized):
    report = read_module(quantized[0])
    drawn = graph_chart(report)
    assert drawn.count('class="name"') == len(report.calls)
    bare = replace(report, calls=tuple(replace(call, reads=()) for call in report.calls))
    assert graph_chart(bare) == ""


@pytest.mark.parametrize(
    ("layout", "short"),
    [
        ("d0 d1 d2 d3 -> d0 d1/8 d2 d3 8d1", "N C/8 H W 8c"),
        ("d0 d1 d2 d3 -> d0 d2 d3 d1", "N H W C"),
        ("d0 d1 -> d0 d1", ""),
        ("d0 d1 -> d0 (d1+6)/8 8d1", "d0 (d1+6)/8 8d1"),
    ],
)
def test_layouts_are_short_on_the_graph(layout, short):
    assert short_layout(layout) == short
