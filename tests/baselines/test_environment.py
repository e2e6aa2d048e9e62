"""Ansor's environment, and Ansor itself where it is installed."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tilewright.baselines import Budget, Case, ansor, environment, load_suite, parse_peers
from tilewright.errors import MeasureError

_TWO_PRODUCTS = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[48, 48] x) => (float[96, 48] y)
{
    squared = MatMul (x, x)
    high = Relu (squared)
    both = Concat <axis = 0> (x, high)
    y = MatMul (both, high)
}
"""


def test_missing_environment_says_how_to_install(tmp_path):
    place = environment.ansor_environment(tmp_path)
    assert "tilewright baseline install ansor" in place.missing()
    assert environment.remove(place) is False


def test_default_place_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.ansor_environment().folder == tmp_path / "tilewright/baselines/ansor"


def test_python_that_the_wheels_lack_is_refused(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda _name: None)
    with pytest.raises(MeasureError, match=r"need Python 3\.11 or 3\.10"):
        environment.find_python()


def test_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "find_python", lambda: "python3")
    monkeypatch.setattr(environment.shutil, "which", lambda _name: None)
    with pytest.raises(MeasureError, match="gcc is not on the PATH"):
        environment.install(environment.ansor_environment(tmp_path))


def test_only_ansor_is_ours_to_install():
    with pytest.raises(MeasureError, match="unknown baseline 'tensorrt'"):
        environment.check_name("tensorrt")


def test_peer_names_are_read_once_each():
    assert parse_peers("openvino, ansor,openvino") == ("openvino", "ansor")
    with pytest.raises(MeasureError, match="unknown peer 'mkl'"):
        parse_peers("mkl")


def test_ansor_without_log_or_trials_says_so(tmp_path):
    (operator,) = load_suite("alt", ["GMM-4"])
    with pytest.raises(MeasureError, match="no trials to spend"):
        ansor.start(Case(tmp_path / "op.onnx", {}, 1, operator, logs=tmp_path))


@pytest.mark.slow
def test_ansor_tunes_and_resumes_from_its_log(tmp_path):
    reason = environment.ansor_environment().missing()
    if reason is not None:
        pytest.skip(f"ansor is {reason}")
    (operator,) = load_suite("alt", ["GMM-4"])
    data = np.random.default_rng(0).standard_normal(operator.data_shape, np.float32)
    for trials in (4, 0):
        contender = ansor.start(
            Case(tmp_path / "op.onnx", {"data": data}, 1, operator, Budget(trials), tmp_path)
        )
        try:
            assert contender.outputs["output"].shape == operator.output_shape
            assert contender.sample(2, "cpu") > 0
            assert contender.notes["trials"] == 4
        finally:
            contender.close()


@pytest.mark.slow
def test_ansor_tunes_every_operator_of_a_model_and_resumes_from_its_log(tmp_path):
    reason = environment.ansor_environment().missing()
    if reason is not None:
        pytest.skip(f"ansor is {reason}")
    model = onnx.parser.parse_model(_TWO_PRODUCTS)
    onnx.save(model, tmp_path / "two.onnx")
    x = np.random.default_rng(0).standard_normal((48, 48), np.float32)
    log = ansor.log_path(tmp_path, "two", "NHWC")
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    # The second goes on from the log of the first, the last takes all that it holds: the last round
    # may be longer than what was left.
    for trials in (8, 12, 0):
        case = Case(tmp_path / "two.onnx", {"x": x}, 1, None, Budget(trials), tmp_path)
        contender = ansor.start(case)
        try:
            np.testing.assert_allclose(contender.outputs["y"], wanted, rtol=1e-4, atol=1e-4)
            held = len(log.read_text().splitlines())
            assert contender.notes["trials"] == (trials or held)
            assert held >= trials
        finally:
            contender.close()
