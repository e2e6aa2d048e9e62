"""Measuring operators: real rows, peers that are missing, peers that are wrong."""

import numpy as np
import pytest

from tilewright.baselines import Options, bench_operators, load_suite, peers
from tilewright.baselines.engine import Contender
from tilewright.errors import MeasureError

SMALL = load_suite("alt", ["GMM-4"])


def _peer(outputs=None, missing=None, error=None):
    def start(case):
        if error is not None:
            raise error
        return Contender(outputs(case), lambda calls, clock: 1e-3)

    return peers.Peer(start, lambda: missing, "a test")


def _run(monkeypatch, **extra):
    monkeypatch.setattr("tilewright.baselines.contest.PEERS", extra)
    options = Options(tuple(extra), rounds=3)
    return bench_operators(SMALL, options)


def test_row_holds_times_ratios_and_what_the_machine_gave():
    pytest.importorskip("onnxruntime")
    seen = []
    options = Options(("onnxruntime",), rounds=3)
    result = bench_operators(SMALL, options, finished=lambda r: seen.append(len(r)))
    (row,) = result["rows"]
    assert row["failed"] == {}
    assert seen
    low, high = row["engines"]["onnxruntime"]["interval"]
    assert low <= row["engines"]["onnxruntime"]["ratio"] <= high
    assert row["engines"]["tilewright"]["gflops"] > 0
    assert row["machine_now"]["peak_gflops"] > 0
    assert row["largest_error"]["onnxruntime"] < 1e-3
    assert result["settings"]["threads"] == 1


def test_peer_that_is_not_installed_is_left_out_by_name(monkeypatch):
    result = _run(monkeypatch, absent=_peer(missing="not installed"))
    assert result["left_out"] == {"absent": "not installed"}
    assert list(result["rows"][0]["engines"]) == ["tilewright"]


def test_wrong_output_is_not_timed(monkeypatch):
    shape = SMALL[0].output_shape
    noise = np.random.default_rng(1).standard_normal(shape, np.float32)
    wrong = _peer(lambda _case: {"output": noise})
    bent = _peer(lambda _case: {"output": noise.T})
    result = _run(monkeypatch, wrong=wrong, bent=bent)
    (row,) = result["rows"]
    assert list(row["engines"]) == ["tilewright"]
    assert "differs" in row["failed"]["wrong"]
    assert "differs" in row["failed"]["bent"]


def test_failure_of_a_peer_is_named_and_the_others_are_timed(monkeypatch):
    result = _run(monkeypatch, broken=_peer(error=RuntimeError("no such kernel\nat line 3")))
    (row,) = result["rows"]
    assert row["failed"] == {"broken": "no such kernel"}
    assert "tilewright" in row["engines"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"against": ("tensorrt",)}, "unknown peer 'tensorrt'"),
        ({"rounds": 0}, "at least 1"),
        ({"clock": "sun"}, "unknown clock"),
        ({"clock": "cpu", "threads": 2}, "one thread only"),
        ({"cpu": 0, "threads": 2}, "one processor is for one thread"),
    ],
)
def test_options_are_checked(arguments, message):
    with pytest.raises(MeasureError, match=message):
        Options(**arguments)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_library_peer_computes_what_we_compute(name):
    reason = peers.PEERS[name].missing()
    if reason is not None:
        pytest.skip(f"{name} is {reason}")
    options = Options((name,), rounds=1)
    (row,) = bench_operators(load_suite("alt", ["GMM-4"]), options)["rows"]
    assert row["failed"] == {}
