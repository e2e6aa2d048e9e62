"""Reports: every row is there, lost rows are lost, and the page needs nothing from a network."""

import json
import re
import xml.etree.ElementTree

import pytest

from tilewright.errors import MeasureError
from tilewright.report import write_report
from tilewright.report.charts import curve_chart
from tilewright.report.comparison import Figure, geometric_mean


def _result():
    operator = {
        **{"id": "C2D-1", "kind": "C2D", "source": "a <net>", "batch": 1, "in_channels": 8},
        **{"out_channels": 8, "size": [5, 5], "kernel": [3, 3], "stride": [2, 2]},
        **{"padding": [1, 1], "activation": "relu"},
    }
    ours = {"median_s": 1e-3, "peak_share": 0.5}

    def row(name, ratio, low, high, **extra):
        peer = {"median_s": ratio * 1e-3, "ratio": ratio, "interval": [low, high]}
        empty = {"failed": {}, "notes": {}}
        engines = {"tilewright": ours, "onnxruntime": peer}
        return {"operator": operator, "name": name, "engines": engines, **empty, **extra}

    curve = [[None, 3.0], [0.004, 2.0], [0.002, 2.5]]
    notes = {"ansor": {"curves": {"NHWC": curve}}}
    return {
        "kind": "operators",
        "machine": {"processor": "a chip"},
        "settings": {"threads": 1},
        "peers": {"onnxruntime": "a peer"},
        "left_out": {"torch": "not installed"},
        "rows": [
            row("won-1", 2.0, 1.9, 2.1),
            row("lost-1", 0.5, 0.4, 0.6, notes=notes, failed={"openvino": "no <kernel>"}),
            row("even-1", 1.0, 0.9, 1.1),
        ],
    }


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(_result()))
    return path


def test_page_is_self_contained_and_shows_every_row(result, tmp_path):
    page = write_report([result], tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=|https?://|<script|@import", page)
    for name in ("won-1", "lost-1", "even-1", "no &lt;kernel&gt;", "not installed", "a chip"):
        assert name in page
    assert "onnxruntime: 1 won, 1 even, 1 lost<" in page
    assert re.search(r'lost-cell">0\.50 lost</span><small>0\.40 \.\. 0\.60<', page)
    assert "prefers-color-scheme: dark" in page


def test_charts_are_well_formed(result, tmp_path):
    page = write_report([result], tmp_path / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 3  # ratios, and the curve against trials and against seconds
    for drawing in drawings:
        xml.etree.ElementTree.fromstring(drawing)


def test_curve_ends_with_the_last_trial_not_the_last_improvement():
    drawn = curve_chart({"a": [[0.004, 2.0], [0.002, 2.5], [0.003, 1.0], [None, 1.5]]}, False)
    assert "4 trials" in drawn
    assert "7 seconds" in curve_chart({"a": [[0.004, 2.0], [0.005, 5.0]]}, True)


def test_markdown_has_the_same_rows(result, tmp_path):
    text = write_report([result], tmp_path / "report.md").read_text()
    assert "| lost-1 |" in text
    assert "0.50 [0.40 .. 0.60] lost" in text
    assert "| all |" not in text  # one class only: its mean is the mean of all


def test_result_of_models_is_reported_and_shared_cores_are_flagged(tmp_path):
    content = _result() | {"kind": "models", "settings": {"threads": 2}}
    for row, peak in zip(content["rows"], (130.0, 170.0, 200.0), strict=True):
        row |= {"model": "net.onnx", "inputs": {"x": [1, 3, 8, 8]}}
        row["machine_now"] = {"peak_gflops": 100.0, "peak_threads_gflops": peak}
    path = tmp_path / "models.json"
    path.write_text(json.dumps(content))
    text = write_report([path], tmp_path / "report.md").read_text()
    assert "net.onnx, x 1x3x8x8" in text
    assert text.count("2 threads had 1.30 times the peak of one") == 1
    assert "times the peak of one" in write_report([path], tmp_path / "report.html").read_text()
    assert "2 threads had 1.70" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "nor a result .JSON.: Expecting property"),
        ("[]", "expected a JSON object"),
        ('{"a": 1}', "no known kind"),
        ('{"kind": "operators"}', "is damaged"),
    ],
)
def test_what_is_no_result_is_refused(content, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(MeasureError, match=message):
        write_report([path], tmp_path / "report.md")


def test_other_formats_and_missing_files_are_refused(tmp_path):
    with pytest.raises(MeasureError, match=r"must end in \.html or \.md"):
        write_report([], tmp_path / "report.pdf")
    with pytest.raises(MeasureError, match="cannot read"):
        write_report([tmp_path / "none.json"], tmp_path / "report.md")
    with pytest.raises(MeasureError, match="no such file"):
        write_report([tmp_path / "none.jsonl"], tmp_path / "report.md")


def test_verdict_follows_the_interval():
    assert Figure(1.0, 1.2, 1.1, 1.3).verdict == "won"
    assert Figure(1.0, 0.9, 0.8, 1.01).verdict == "even"
    assert Figure(1.0, 0.9, 0.8, 0.99).verdict == "lost"
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([]) is None
