"""Transposed convolutions, lowered, compute what the definition says."""

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tilewright.compiler.passes.lower_conv_transpose import LowerConvTranspose
from tilewright.compiler.relax_utils import bindings, op_name

OPS = {1: relax.op.nn.conv1d_transpose, 2: relax.op.nn.conv2d_transpose}


def _module(data_shape, weight, *, stride, padding, output_padding, dilation, groups):
    rank = len(data_shape) - 2
    x = relax.Var("x", relax.TensorType(data_shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(
                OPS[rank](
                    x,
                    relax.const(weight),
                    strides=[stride] * rank,
                    padding=[padding[0]] * rank + [padding[1]] * rank,
                    output_padding=[output_padding] * rank,
                    dilation=[dilation] * rank,
                    groups=groups,
                )
            )
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    return builder.get()


def _reference(x, weight, *, stride, padding, output_padding, dilation, groups):
    """Scatter every input element through the kernel (ONNX ConvTranspose, opset 11)."""
    rank, kernel = x.ndim - 2, weight.shape[2:]
    full = [
        (s - 1) * stride + (k - 1) * dilation + 1 for s, k in zip(x.shape[2:], kernel, strict=True)
    ]
    per_in, per_out = x.shape[1] // groups, weight.shape[1]
    out = np.zeros((x.shape[0], groups * per_out, *(f + output_padding for f in full)))
    for group in range(groups):
        for tap in np.ndindex(*kernel):
            part = np.einsum(
                "ni...,io->no...",
                x[:, group * per_in : (group + 1) * per_in],
                weight[(slice(group * per_in, (group + 1) * per_in), slice(None), *tap)],
            )
            where = tuple(
                slice(t * dilation, t * dilation + (s - 1) * stride + 1, stride)
                for t, s in zip(tap, x.shape[2:], strict=True)
            )
            out[(slice(None), slice(group * per_out, (group + 1) * per_out), *where)] += part
    keep = tuple(slice(padding[0], o - padding[1]) for o in out.shape[2:])
    assert len(keep) == rank
    return out[(slice(None), slice(None), *keep)]


def _run(mod, x):
    vm = relax.VirtualMachine(relax.build(mod, "llvm"), tvm.cpu())
    return vm["main"](tvm.runtime.tensor(x)).numpy()


@settings(max_examples=15, deadline=None)
@given(
    rank=st.integers(1, 2),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    extra=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
)
def test_lowered_equals_definition(rank, kernel, stride, before, after, extra, dilation, groups):
    rng = np.random.default_rng(0)
    attrs = {
        "stride": stride,
        "padding": (before, after),
        "output_padding": min(extra, stride - 1),
        "dilation": dilation,
        "groups": groups,
    }
    x = rng.standard_normal((2, 2 * groups, 5, 4)[: 2 + rank]).astype("float32")
    weight = rng.standard_normal((2 * groups, 3, kernel, kernel)[: 2 + rank]).astype("float32")
    expected = _reference(x, weight, **attrs)
    if min(expected.shape) < 1 or any(
        (s - 1) * stride + (kernel - 1) * dilation + 1 <= before + after for s in x.shape[2:]
    ):
        return
    mod = _module(x.shape, weight, **attrs)
    lowered = LowerConvTranspose()(mod)
    names = [op_name(binding.value) for binding in bindings(lowered["main"])]
    assert not any(name and name.endswith("_transpose") for name in names)
    np.testing.assert_allclose(_run(lowered, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra", "dilation"),
    [(4, 1, (0, 0), 0, 1), (4, 2, (1, 1), 1, 1), (2, 3, (0, 0), 2, 1), (3, 2, (2, 1), 0, 2)],
)
def test_one_pixel_is_a_product(kernel, stride, padding, extra, dilation):
    rng = np.random.default_rng(0)
    attrs = {
        "stride": stride,
        "padding": padding,
        "output_padding": extra,
        "dilation": dilation,
        "groups": 1,
    }
    x = rng.standard_normal((2, 5, 1, 1)).astype("float32")
    weight = rng.standard_normal((5, 3, kernel, kernel)).astype("float32")
    lowered = LowerConvTranspose()(_module(x.shape, weight, **attrs))
    names = [op_name(binding.value) for binding in bindings(lowered["main"])]
    assert "relax.matmul" in names
    assert not any(name and "conv" in name for name in names)
    expected = _reference(x, weight, **attrs)
    np.testing.assert_allclose(_run(lowered, x), expected, rtol=1e-4, atol=1e-4)


def test_run_time_weights_are_left_alone():
    x = relax.Var("x", relax.TensorType((1, 2, 5), "float32"))
    w = relax.Var("w", relax.TensorType((2, 3, 2), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, w]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.conv1d_transpose(x, w))
        builder.emit_func_output(out)
    mod = builder.get()
    tvm.ir.assert_structural_equal(LowerConvTranspose()(mod), mod)


@settings(max_examples=12, deadline=None)
@given(
    rank=st.integers(1, 2),
    stride=st.integers(2, 3),
    longer=st.integers(0, 3),
    before=st.integers(0, 3),
    sizes=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    groups=st.integers(1, 2),
)
def test_phases_apart_equal_definition(rank, stride, longer, before, sizes, groups):
    """Channels enough for a vector: phases are convolutions of their own where they are equal."""
    rng = np.random.default_rng(0)
    kernel = stride + longer
    # The result is a multiple of the stride long: (s - 1) * stride + kernel - before - after.
    after = (longer - before) % stride
    if before > kernel - 1 or min(sizes[:rank]) * stride + longer - before - after < 1:
        return
    attrs = {
        "stride": stride,
        "padding": (before, after),
        "output_padding": 0,
        "dilation": 1,
        "groups": groups,
    }
    x = rng.standard_normal((1, 2 * groups, *sizes[:rank])).astype("float32")
    weight = rng.standard_normal((2 * groups, 16, *(kernel,) * rank)).astype("float32")
    lowered = LowerConvTranspose()(_module(x.shape, weight, **attrs))
    expected = _reference(x, weight, **attrs)
    np.testing.assert_allclose(_run(lowered, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "padding", "taps"), [(4, 1, (2, 2)), (3, 1, (1, 2))])
def test_phases_apart_have_their_own_taps(kernel, padding, taps):
    weight = np.ones((8, 16, kernel), "float32")
    attrs = {"padding": (padding, padding), "output_padding": kernel % 2, "dilation": 1}
    mod = _module((1, 8, 6), weight, stride=2, groups=1, **attrs)
    lowered = LowerConvTranspose()(mod)
    convolutions = [
        b.value for b in bindings(lowered["main"]) if op_name(b.value) == "relax.nn.conv1d"
    ]
    assert sorted(int(c.args[1].ty.shape[2]) for c in convolutions) == list(taps)


def test_few_channels_share_one_convolution():
    weight = np.ones((8, 3, 4), "float32")
    attrs = {"padding": (1, 1), "output_padding": 0, "dilation": 1}
    lowered = LowerConvTranspose()(_module((1, 8, 6), weight, stride=2, groups=1, **attrs))
    names = [op_name(binding.value) for binding in bindings(lowered["main"])]
    assert names.count("relax.nn.conv1d") == 1


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (4, 2)])
def test_no_multiplication_by_inserted_zeros(kernel, stride):
    """A kernel that the stride divides costs exactly kernel^2 multiply-adds an input element."""
    weight = np.ones((2, 3, kernel, kernel), "float32")
    mod = _module(
        (1, 2, 5, 4), weight, stride=stride, padding=(0, 0), output_padding=0, dilation=1, groups=1
    )
    lowered = LowerConvTranspose()(mod)
    conv = next(b.value for b in bindings(lowered["main"]) if op_name(b.value) == "relax.nn.conv2d")
    assert np.prod([int(v) for v in conv.args[1].ty.shape]) == weight.size
