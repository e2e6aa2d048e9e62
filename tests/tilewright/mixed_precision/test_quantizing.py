"""`tilewright quantize --bits`, on the digits network and in small."""

import json

import numpy as np
import onnx
import pytest

import tilewright
from benchmarks.quantized_accuracy import digits
from tests.compiler.quantize.test_bit_plan import network
from tilewright.compiler.quantize.bit_plan import FLOAT, BitPlan, parse_bits
from tilewright.errors import ModelError
from tilewright.mixed_precision.quantizing import quantize_uniformly
from tilewright.mixed_precision.rounding import plain_moments
from tilewright.mixed_precision.sensitivity import by_hessian, by_output, round_each
from tilewright.mixed_precision.subject import Settings, Subject
from tilewright.quantization import quantize


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    onnx.save(network(), folder / "model.onnx")
    rng = np.random.default_rng(4)
    data = rng.standard_normal((16, 1, 3, 12, 12)).astype("float32")
    np.savez(folder / "samples.npz", x=data)
    return folder


def _command(files, *options):
    model, samples = files / "model.onnx", files / "samples.npz"
    return ["quantize", str(model), "--calibration", str(samples), "-o", *options]


@pytest.fixture(scope="module")
def subject(files):
    data = np.load(files / "samples.npz")["x"]
    return Subject(network(), [{"x": x} for x in data], Settings())


@pytest.mark.parametrize(("bits", "most"), [("w4a8", 8), ("w2a8", 8)])
def test_digits_lose_at_most_eight_images(tmp_path, bits, most):
    model, samples, judge = digits()
    out = tmp_path / "q.onnx"
    result = quantize(model, samples[:60], out, bits=bits)
    found = judge(tilewright.compile(out, logs=()).run)
    assert found["of"] == 540
    assert found["right"] >= 538 - most
    assert result["bits"] == {bits: 4}
    assert result["size_bytes"] < 0.14 * result["float_bytes"]


def test_samples_that_judge_are_left_out_of_fitting(subject):
    assert len(subject.fitted) == 12
    assert len(subject.judged) == 4
    assert not {id(s) for s in subject.judged} & {id(s) for s in subject.fitted}


def test_the_evaluator_computes_the_model_and_what_the_written_model_does(subject):
    from tests.compiler.quantize.models import run_onnxruntime

    for sample, found in zip(subject.judged, subject.judge.wanted, strict=True):
        (wanted,) = run_onnxruntime(network(), sample)
        np.testing.assert_allclose(found["y"], wanted, atol=1e-5)
    outcome = quantize_uniformly(subject, parse_bits("w4a8"))
    plan = BitPlan.uniform(subject.layers, parse_bits("w4a8"))
    assert BitPlan.from_json(
        {r["layer"]: r["bits"] for r in outcome.report["layers"]}
    ).counts() == (plan.counts())
    assert 0 < outcome.report["drop"]["error"] < 0.05


def test_corrections_in_order_of_what_they_know(files, tmp_path):
    drops = {}
    for correction in ("nearest", "clipped", "compensated"):
        result = quantize(
            files / "model.onnx", files / "samples.npz", tmp_path / "q.onnx", bits="w3a8",
            correction=correction,
        )  # fmt: skip
        drops[correction] = result["drop"]["error"]
    assert drops["compensated"] < drops["clipped"] < drops["nearest"]


def test_sensitivity_is_none_in_floats_greater_for_fewer_bits_and_estimated_alike(subject):
    names = ("w8a8", "w4a8", "w2a8")
    options = dict.fromkeys(subject.layers, (FLOAT, *map(parse_bits, names)))
    quiet = lambda _stage: None  # noqa: E731
    moments = plain_moments(subject.evaluator, quiet)
    rounded = round_each(subject.evaluator, options, moments, "clipped", subject.has_bias, quiet)
    measured = by_output(subject.judge, rounded, subject.roundings, quiet)
    estimated = by_hessian(subject.judge, rounded, subject.roundings, moments, 0, quiet)
    for layer in subject.layers:
        assert measured[layer, FLOAT] == estimated[layer, FLOAT] == 0
        for errors in (measured, estimated):
            few, some, many = (errors[layer, parse_bits(name)] for name in reversed(names))
            assert few > some > many
        ratio = estimated[layer, parse_bits("w4a8")] / measured[layer, parse_bits("w4a8")]
        assert 0.2 < ratio < 5


def test_auto_keeps_the_drop_prints_the_trade_off_and_draws_it(cli, files, tmp_path):
    out, curve = tmp_path / "q.onnx", tmp_path / "curve.svg"
    options = ["--bits", "auto", "--max-drop", "0.01", "--curve", str(curve)]
    result = cli(*_command(files, str(out), *options))
    assert result.exit_code == 0, result.output
    assert "chosen" in result.stdout
    assert "measured now" in result.stdout
    assert curve.read_text().startswith("<svg xmlns")
    onnx.checker.check_model(onnx.load(out), full_check=True)
    result = cli(*_command(files, str(out), *options[:4], "--prefer", "bytes", "--json"))
    content = json.loads(result.stdout)
    assert content["drop"]["error"] <= 0.01
    assert content["predicted_s"] is None
    sizes = [point["size_bytes"] for point in content["curve"]]
    assert sizes == sorted(sizes)
    assert {row["layer"] for row in content["layers"]} == {"first", "second", "product", "last"}


def test_a_budget_out_of_reach_is_one_line_that_says_what_is_reachable(cli, files, tmp_path):
    out = tmp_path / "q.onnx"
    result = cli(
        *_command(files, str(out), "--bits", "auto", "--max-bytes", "10", "--prefer", "bytes")
    )
    assert result.exit_code == 1
    assert "cannot be made smaller than" in result.stderr
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-drop", "0.1"], "belong to --bits auto"),
        (["--bits", "w4a8", "--curve", "c.svg"], "belong to --bits auto"),
        (["--bits", "auto"], "needs something to keep"),
        (["--bits", "int4"], "unknown precision 'int4'"),
        (["--bits", "auto", "--max-drop", "1", "--metric", "psnr"], "unknown metric 'psnr'"),
        (["--bits", "auto", "--max-drop", "1", "--candidates", "w8a8"], "two candidates"),
        (["--bits", "4", "--weights", "int4"], "give one"),
        (["--bits", "4", "--bias-correction"], "part of --correction compensated"),
    ],
)
def test_options_that_do_not_belong_together_are_usage_errors(cli, files, options, said):
    result = cli(*_command(files, "q.onnx", *options))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_wrong_corrections_and_goals_without_auto_are_refused(files, tmp_path):
    given = (files / "model.onnx", files / "samples.npz", tmp_path / "q.onnx")
    with pytest.raises(ModelError, match="unknown correction 'gptq'"):
        quantize(*given, bits="4", correction="gptq")
    with pytest.raises(ModelError, match="belong together"):
        quantize(*given, bits="auto")
    with pytest.raises(ModelError, match="trade-off to draw"):
        quantize(*given, bits="4", drawing=tmp_path / "c.svg")
