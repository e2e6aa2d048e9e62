"""The integer tasks of a quantized model are tuned, and a compile uses what was found."""

import numpy as np
import onnx
import pytest

import tilewright
from tests.compiler.quantize.models import Builder
from tilewright.tuner import Log, MeasureOptions, TuneOptions, tune

_TRIALS = 12


def _model() -> onnx.ModelProto:
    """Return two quantized convolutions in QDQ form: 1x1 with stride 2, and 1x1."""
    builder = Builder()
    data = builder.qdq("x", 0.05, 128)
    inside = builder.qdq(builder.conv(data, 0.05, (512, 64, 1, 1), strides=[2, 2]), 0.1, 128)
    result = builder.qdq(builder.conv(inside, 0.1, (64, 512, 1, 1)), 0.2, 128)
    return builder.model({"x": ((1, 64, 16, 16), "float32")}, [result])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    options = TuneOptions(batch=3, measure=MeasureOptions(builders=1, budget_s=0.002))
    tune(_model(), trials=_TRIALS, log=log, options=options)
    return log


def test_records_of_integer_tasks_are_logged(tuned):
    records = [r for r in Log(tuned).read().records if "int8" in r.task["dtypes"]]
    assert len({record.task_key for record in records}) == 2
    assert {record.status for record in records} <= {"ok", "rejected"}
    assert all(record.task["macs"] for record in records)


def test_a_compile_of_the_quantized_model_uses_them(tuned):
    with_log = tilewright.compile(_model(), logs=[tuned], require_tuned=0.5)
    without = tilewright.compile(_model(), logs=())
    rows = with_log.report["tuning"]["operators"]
    assert [row["origin"] for row in rows if "onv" in row["label"]] == ["tuned", "tuned"], rows
    x = np.random.default_rng(1).standard_normal((1, 64, 16, 16)).astype(np.float32)
    (tuned_y,), (plain_y,) = (module.run({"x": x}).values() for module in (with_log, without))
    np.testing.assert_array_equal(tuned_y, plain_y)
