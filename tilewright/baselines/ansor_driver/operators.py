"""The operators of the suite as TE compute definitions for Ansor, channels first or last.

Runs inside the baseline's own virtual environment: imports nothing of tilewright.
"""

import json

import numpy as np
from tvm import auto_scheduler, te, topi

LAYOUTS = ("NCHW", "NHWC")


@auto_scheduler.register_workload
def tilewright_operator(text, layout):
    """Return [data, weight, bias, output] of the operator that the JSON `text` describes."""
    spec = json.loads(text)
    if "rows" in spec:
        return _matmul(spec)
    return _convolution(spec, layout)


def canonical(spec):
    """Return the JSON of an operator's meaning, without its name: the workload's key."""
    names = ("id", "kind", "source")
    return json.dumps({k: v for k, v in spec.items() if k not in names}, sort_keys=True)


def arguments(spec, layout, data, weight, bias):
    """Bring ONNX's arrays into the order that `tilewright_operator` takes them in."""
    if "rows" in spec:
        return [data, weight, bias]
    rank = len(spec["size"])
    if spec.get("transposed"):
        # A transposed convolution is a convolution of the dilated data by the mirrored kernel.
        weight = np.flip(weight.swapaxes(0, 1), tuple(range(2, rank + 2)))
    if layout == "NHWC":
        data = np.moveaxis(data, 1, -1)
        depthwise = _is_depthwise(spec) and rank == 2
        weight = np.moveaxis(weight, (0, 1), (-2, -1) if depthwise else (-1, -2))
    return [np.ascontiguousarray(array) for array in (data, weight, bias)]


def output(spec, layout, array):
    """Bring the output into ONNX's order."""
    if "rows" not in spec and layout == "NHWC":
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return array


def _matmul(spec):
    rows, depth, columns = spec["rows"] * spec["batch"], spec["in_channels"], spec["out_channels"]
    data = te.placeholder((rows, depth), name="data")
    weight = te.placeholder((depth, columns), name="weight")
    bias = te.placeholder((columns,), name="bias")
    k = te.reduce_axis((0, depth), name="k")
    product = te.compute(
        (rows, columns),
        lambda i, j: te.sum(data[i, k] * weight[k, j], axis=k),
        name="matmul",
        attrs={"layout_free_placeholders": [weight]},
    )
    return [data, weight, bias, _epilogue(spec, product, bias, 1)]


def _convolution(spec, layout):
    rank, groups = len(spec["size"]), spec.get("groups", 1)
    channels = (spec["in_channels"], spec["out_channels"])
    spatial = "DHW"[-rank:]
    last = layout == "NHWC"
    shape = [spec["batch"], *spec["size"]]
    shape.insert(len(shape) if last else 1, channels[0])
    data = te.placeholder(shape, name="data")
    bias = te.placeholder((channels[1],), name="bias")
    stride, padding = spec["stride"], spec["padding"]
    dilation = spec.get("dilation", [1] * rank)
    source = data
    if spec.get("transposed"):
        ones = [1] * rank
        factors = [1, *stride, 1] if last else [1, 1, *stride]
        source = topi.nn.dilate(data, factors)
        padding = [k - 1 - p for k, p in zip(spec["kernel"], padding, strict=True)]
        stride = ones
    # The "same" amounts at both ends; topi wants begins, then ends.
    padding = [*padding, *padding]
    if _is_depthwise(spec) and rank == 2:
        kernel = [*spec["kernel"], channels[0], 1] if last else [channels[0], 1, *spec["kernel"]]
        weight = te.placeholder(kernel, name="weight")
        compute = topi.nn.depthwise_conv2d_nhwc if last else topi.nn.depthwise_conv2d_nchw
        result = compute(source, weight, stride, padding, dilation, "float32")
    else:
        inner = channels[0] // groups
        kernel = [*spec["kernel"], inner, channels[1]]
        weight = te.placeholder(
            kernel if last else [channels[1], inner, *spec["kernel"]], name="weight"
        )
        result = topi.nn.conv(
            source,
            weight,
            stride,
            padding,
            dilation,
            groups,
            f"N{spatial}C" if last else f"NC{spatial}",
            f"{spatial}IO" if last else f"OI{spatial}",
            "float32",
            auto_scheduler_should_rewrite_layout=groups == 1,
        )
    return [data, weight, bias, _epilogue(spec, result, bias, rank + 1 if last else 1)]


def _is_depthwise(spec):
    return spec.get("groups", 1) == spec["in_channels"] == spec["out_channels"]


def _epilogue(spec, result, bias, axis):
    """Add the bias along `axis`, then the activation, approximated where TVM can do that."""
    biased = te.compute(result.shape, lambda *i: result(*i) + bias[i[axis]], name="biased")
    name = spec["activation"]
    if name == "none":
        return biased
    if name == "relu":
        return topi.nn.relu(biased)
    if name == "relu6":
        return topi.clip(biased, 0.0, 6.0)
    if name == "tanh":
        return topi.fast_tanh(biased)
    if name == "sigmoid":
        return _sigmoid(biased)
    if name == "silu":
        return topi.multiply(biased, _sigmoid(biased))
    if name == "gelu":
        half = topi.multiply(biased, 0.5)
        return topi.multiply(half, topi.add(topi.fast_erf(topi.multiply(biased, 2**-0.5)), 1.0))
    raise ValueError(f"unknown activation '{name}'")


def _sigmoid(x):
    return topi.divide(1.0, topi.add(topi.fast_exp(topi.negative(x)), 1.0))
