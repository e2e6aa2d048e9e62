"""Which calls of a module belong to which layer, and where their times come from."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.compiler.quantize.test_bit_plan import network
from tilewright.compiler.quantize.bit_plan import BYTES, BitPlan
from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.errors import ModelError
from tilewright.mixed_precision.latency import LayerTime, _by_layer, product_order

_KERNELS = (
    "fused_requantize_pad_channels",  # rounds what the first layer reads
    "conv_int8",
    "winograd_input",
    "winograd_product",
    "conv_int81",
    "convert_1x8_uint8",  # a change of layout is no convolution
    "fused_matmul2_softmax",  # a product of two computed tensors is no layer
    "fused_matmul_int8_rescale_add",
    "mean",
)
_ORDER = ("first", "second", None, "last")


def _compiled(tuned=()):
    calls = [{"kernel": kernel, "label": f"{kernel}#{i}"} for i, kernel in enumerate(_KERNELS)]
    rows = [
        {"label": label, "origin": "tuned", "reason": reason, "expected_s": seconds}
        for label, reason, seconds in tuned
    ]
    description = {"entries": [{"calls": calls}]}
    return SimpleNamespace(
        module=SimpleNamespace(description=description), report={"tuning": {"operators": rows}}
    )


def _times(compiled, order=_ORDER):
    plan = BitPlan.uniform([name for name in order if name], BYTES)
    return _by_layer(plan, order, compiled, 2.0 ** np.arange(len(_KERNELS)))


def test_calls_before_a_layer_are_its_own_and_nothing_is_lost():
    times = _times(_compiled())
    assert times == {
        "first": LayerTime(1 + 2, "measured"),
        "second": LayerTime(4 + 8 + 16, "measured"),
        "last": LayerTime(32 + 64 + 128 + 256, "measured"),
    }


def test_exact_records_of_this_processor_are_taken_for_the_kernel():
    tuned = [("conv_int8#1", "", 0.5), ("conv_int81#4", "measured on a similar target", 0.5)]
    times = _times(_compiled(tuned))
    assert times["first"] == LayerTime(1 + 0.5, "record")
    assert times["second"].origin == "measured"


def test_a_module_whose_layers_cannot_be_told_apart_is_refused_with_a_way_out():
    with pytest.raises(ModelError, match="has 3 convolutions and products but its module 4"):
        _times(_compiled(), ("first", "second", "last"))


def test_layers_and_other_products_come_in_the_order_of_the_model():
    assert product_order(FloatModel(network())) == ["first", "second", "product", "last"]
