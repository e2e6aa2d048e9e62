"""The benchmark of what operators wait for: its models are valid, its table says what was found."""

import onnx
import pytest

from benchmarks import waits


@pytest.mark.parametrize("make", [waits.softmax, waits.layer_norm, waits.depthwise, waits.gather])
@pytest.mark.parametrize("rows", [56, 112])
def test_models_are_valid_and_grow_with_their_rows(make, rows):
    model = make(rows)
    onnx.checker.check_model(model, full_check=True)
    (output,) = model.graph.output
    extents = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    assert rows in (extents[0], extents[0] * extents[-1])


def test_a_row_of_the_table():
    row = {
        "operator": "softmax", "rows": 64, "bytes": 65536, "row_ns": 85.8,
        "peak_share": 0.36, "bandwidth_share": 0.55, "waits_for": "other instructions",
    }  # fmt: skip
    text = waits.summary([row], {"processor": "one"})
    assert "| softmax | 64 | 0.07 | 85.8 | 36% | 55% | other instructions |" in text
    assert "- processor: one" in text
