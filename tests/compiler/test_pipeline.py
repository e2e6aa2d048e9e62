"""Small networks through the whole pipeline: every stage computes what plain TVM computes."""

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op

from tests.program_runner import run_program
from tests.relax_models import constant, module, run
from tilewright.compiler.layout.propagation import apply_layouts, choose_layouts
from tilewright.compiler.lower import legalize_and_fuse, read_program
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import graph_passes, lower
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.relax_utils import static_shape
from tilewright.compiler.targets import parse_target
from tilewright.errors import CompileError
from tilewright.runtime.module import Module

TARGETS = ["native", "x86-64-v3"]


def _conv(emit, x, rng, outputs, kernel, *, stride=1, padding=None, groups=1, dilation=1):
    inputs = static_shape(x)[1]
    pads = (kernel - 1) * dilation // 2 if padding is None else padding
    y = emit(
        op.nn.conv2d(
            x,
            constant(rng, outputs, inputs // groups, kernel, kernel),
            strides=[stride] * 2,
            padding=[pads] * 4 if isinstance(pads, int) else pads,
            groups=groups,
            dilation=[dilation] * 2,
        )
    )
    return emit(op.add(y, constant(rng, outputs, 1, 1)))


def _residual(emit, x):
    rng = np.random.default_rng(1)
    y = emit(op.nn.relu(_conv(emit, x, rng, 20, 3, stride=2)))
    z = emit(op.nn.relu(_conv(emit, y, rng, 20, 3)))
    z = emit(op.add(_conv(emit, z, rng, 20, 1), y))
    z = emit(op.nn.max_pool2d(emit(op.nn.relu(z)), (3, 3), (2, 2), (1, 1, 1, 1)))
    pooled = emit(op.reshape(emit(op.mean(z, [2, 3])), (1, 20)))
    return emit(op.add(emit(op.matmul(pooled, constant(rng, 20, 37))), constant(rng, 37)))


def _squeeze_and_excite(emit, x):
    rng = np.random.default_rng(2)
    y = _conv(emit, x, rng, 24, 3, stride=2)
    y = emit(op.multiply(y, emit(op.sigmoid(y))))
    y = _conv(emit, y, rng, 24, 5, groups=24)
    s = emit(op.mean(y, [2, 3], keepdims=True))
    s = emit(op.nn.relu(_conv(emit, s, rng, 6, 1)))
    s = emit(op.sigmoid(_conv(emit, s, rng, 24, 1)))
    return _conv(emit, emit(op.multiply(y, s)), rng, 40, 1)


def _dense_block(emit, x):
    rng = np.random.default_rng(3)
    y = _conv(emit, x, rng, 16, 7, stride=2)
    for _ in range(2):
        z = emit(op.nn.relu(emit(op.multiply(y, constant(rng, static_shape(y)[1], 1, 1)))))
        y = emit(op.concat([y, _conv(emit, z, rng, 12, 3, dilation=2)], axis=1))
    return emit(op.nn.avg_pool2d(y, (2, 2), (2, 2)))


def _grouped(emit, x):
    rng = np.random.default_rng(4)
    y = _conv(emit, x, rng, 32, 3, padding=[0, 1, 2, 0])
    y = _conv(emit, y, rng, 64, 3, groups=4)
    y = _conv(emit, y, rng, 15, 3, groups=1, stride=3)
    return emit(op.permute_dims(emit(op.reshape(y, (1, 15, -1))), [0, 2, 1]))


def _upsampling(emit, x):
    rng = np.random.default_rng(5)
    y = emit(op.nn.relu(_conv(emit, x, rng, 16, 3)))
    up = emit(op.nn.conv2d_transpose(y, constant(rng, 16, 9, 2, 2), strides=[2, 2]))
    up = emit(op.nn.relu(emit(op.add(up, constant(rng, 9, 1, 1)))))
    return _conv(emit, up, rng, 2, 1)


def _attention(emit, x):
    rng = np.random.default_rng(6)
    tokens = emit(op.permute_dims(emit(op.reshape(x, (1, 3, 17 * 13))), [0, 2, 1]))
    tokens = emit(op.matmul(tokens, constant(rng, 3, 24)))
    normal = emit(op.nn.layer_norm(tokens, constant(rng, 24), constant(rng, 24), axes=[-1]))
    packed = emit(op.reshape(emit(op.matmul(normal, constant(rng, 24, 72))), (1, 221, 3, 2, 12)))
    parts = emit(op.split(emit(op.permute_dims(packed, [2, 0, 3, 1, 4])), 3, axis=0))
    q, k, v = (emit(op.squeeze(emit(parts[i]), [0])) for i in range(3))
    scores = emit(op.matmul(q, emit(op.permute_dims(k, [0, 1, 3, 2]))))
    scores = emit(op.nn.softmax(emit(op.divide(scores, relax.const(3.0, "float32"))), axis=-1))
    mixed = emit(op.permute_dims(emit(op.matmul(scores, v)), [0, 2, 1, 3]))
    mixed = emit(op.matmul(emit(op.reshape(mixed, (1, 221, 24))), constant(rng, 24, 24)))
    return emit(op.nn.gelu(emit(op.add(mixed, tokens))))


NETWORKS = {
    "residual": _residual,
    "squeeze_and_excite": _squeeze_and_excite,
    "dense_block": _dense_block,
    "grouped": _grouped,
    "upsampling": _upsampling,
    "attention": _attention,
}
SHAPE = (1, 3, 17, 13)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    mod = module([SHAPE], NETWORKS[request.param])
    x = np.random.default_rng(0).standard_normal(SHAPE).astype("float32")
    return mod, x, run(mod, x)


def _specs(mod, expected):
    return [TensorSpec("x", SHAPE, "float32")], [TensorSpec("y", expected.shape, "float32")]


def _close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * expected.std())


def test_graph_passes_and_fusion_keep_the_numbers(network):
    mod, x, expected = network
    for graph_pass in graph_passes(parse_target("native")):
        mod = graph_pass(mod)
    program = read_program(legalize_and_fuse(mod), *_specs(mod, expected))
    _close(run_program(program, [x], "llvm")[0], expected)


@pytest.mark.parametrize("target", TARGETS)
def test_scheduled_program_on_physical_layouts_keeps_the_numbers(network, target, tmp_path):
    mod, x, expected = network
    description = parse_target(target)
    lowered = lower(mod, *_specs(mod, expected), description)
    package(lowered.program, description, tmp_path / "model.so", {})
    _close(Module(tmp_path / "model.so")(x), expected)
    assert lowered.plan.proven


def test_a_wrong_layout_is_noticed():
    """The comparison bites: weights packed for another layout give other numbers."""
    mod = module([SHAPE], _residual)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype("float32")
    expected = run(mod, x)
    target = parse_target("native")
    for graph_pass in graph_passes(target):
        mod = graph_pass(mod)
    program = read_program(legalize_and_fuse(mod), *_specs(mod, expected))
    physical, _ = apply_layouts(program, choose_layouts(program, target))
    tensors = list(physical.tensors)
    index = next(i for i, t in enumerate(tensors) if t.data is not None and t.data.ndim > 4)
    tensors[index].data[...] = np.flip(tensors[index].data, -1)
    (actual,) = run_program(physical, [x], "llvm")
    assert np.abs(actual - expected).max() > 1e-2 * expected.std()


def test_a_dimension_beyond_32_bits_is_refused():
    mod = module([(2**31, 6)], lambda emit, x: emit(op.nn.relu(x)))
    specs = [TensorSpec("x", (2**31, 6), "float32")]
    with pytest.raises(CompileError, match=r"'x' has shape .*at most 2147483647"):
        lower(mod, specs, [TensorSpec("y", (2**31, 6), "float32")], parse_target("native"))
