"""The tables of the untuned benchmark and its verdict."""

from benchmarks.untuned import passes, render


def _row(ratio: float) -> dict:
    ours = {"median_s": 0.03, "quartiles_s": [0.029, 0.031], "ratio": 1, "interval": [1, 1]}
    theirs = {"median_s": 0.02, "quartiles_s": [0.019, 0.021], "ratio": ratio}
    theirs["interval"] = [ratio - 0.1, ratio + 0.1]
    timed = {"peak_gflops": 250.4, "read_gb_s": 27.6, "load": 2.2}
    timed["engines"] = {"tilewright": ours, "onnxruntime": theirs}
    row = {"model": "resnet18", "commit": "abc", "compile_s": 4.2, "compile_peak_mb": 900.0}
    memory = {"tilewright": 60.0, "onnxruntime": 110.0}
    return row | {"module_mb": 47.0, "peak_mb": memory, "times": {"1": timed, "2": timed}}


def test_model_passes_up_to_the_limit_on_one_thread():
    assert passes(_row(1.5))
    assert not passes(_row(1.51))
    assert not passes({"model": "resnet18", "commit": "abc", "error": "killed by signal 11"})


def test_page_shows_every_figure_and_failure():
    page = render([_row(1.25), {"model": "vgg16", "commit": "abc", "error": "out of memory"}], "x")
    line = "| resnet18 | 2 | onnxruntime | 20.00 | 19.00 .. 21.00 | 1.25 [1.15 .. 1.35] | 250 | 28 "
    assert line in page
    assert "| resnet18 | 4 | 900 | 47 | 60 | onnxruntime 110 | abc |" in page
    assert "| vgg16 | FAILS: out of memory |" in page
    assert "- processor: " in page
