"""Attention as one kernel: its text run thread by thread against ONNX Runtime, and what is left."""

import numpy as np
import pytest
from onnx import helper

from tests.cuda.programs import lower, model_of
from tests.cuda.test_operators import check, normal
from tests.cuda.test_structure import needs_nvcc
from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.structure import read_code
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.compiler.memory import plan_memory

pytestmark = pytest.mark.filterwarnings("ignore")


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def layer(batch=1, heads=2, queries=40, depth=16, wide=16, mask=None):
    """Return a layer as transformers export it: heads split off and joined again, and its feeds."""
    feeds = {"x": normal(batch, queries, heads * depth), "z": normal(batch, queries, 24, seed=5)}
    split = {"hd": (heads, depth), "hw": (heads, wide)}
    weights = {name: np.array([batch, queries, *sizes]) for name, sizes in split.items()}
    weights["joined"] = np.array([batch, queries, heads * wide])
    weights["root"] = np.float32(depth**0.5)
    for seed, (name, rows, columns) in enumerate(
        [("wq", heads * depth, depth), ("wk", heads * depth, depth), ("wv", 24, wide)]
    ):
        weights[name] = normal(rows, heads * columns, seed=seed + 1) / np.float32(rows**0.5)
    nodes = [
        *(node("MatMul", "x wq", "q0"), node("MatMul", "x wk", "k0"), node("MatMul", "z wv", "v0")),
        *(node("Reshape", "q0 hd", "q1"), node("Reshape", "k0 hd", "k1")),
        node("Reshape", "v0 hw", "v1"),
        node("Transpose", "q1", "q", perm=[0, 2, 1, 3]),
        node("Transpose", "k1", "k", perm=[0, 2, 3, 1]),
        node("Transpose", "v1", "v", perm=[0, 2, 1, 3]),
        *(node("MatMul", "q k", "s0"), node("Div", "s0 root", "s1")),
    ]
    scores = "s1"
    if mask is not None:
        weights["mask"] = mask
        nodes.append(node("Add", "s1 mask", "s2"))
        scores = "s2"
    nodes += [
        *(node("Softmax", scores, "p", axis=-1), node("MatMul", "p v", "o")),
        *(node("Transpose", "o", "o1", perm=[0, 2, 1, 3]), node("Reshape", "o1 joined", "y")),
    ]
    return model_of(nodes, feeds, weights), feeds


def plain(nodes, shapes):
    """Return a model of `nodes` on normal inputs q, k, v, and its feeds."""
    feeds = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return model_of(nodes, feeds, {}), feeds


def kernels_of(schedules):
    """Return the distinct kernels that are attention."""
    return {name for name in schedules if name.startswith("attention")}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "tf32"])
def test_a_layer_is_one_kernel_between_its_projections(precision):
    schedules = check(*layer(), precision, "attention", (False, True))
    others = [name for name in schedules if not name.startswith(("attention", "gemm"))]
    assert others == []
    (name,) = kernels_of(schedules)
    assert name.endswith("copy/copy/copy")


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 2, "heads": 3, "queries": 70, "depth": 24, "wide": 40},
        {"heads": 1, "queries": 130, "depth": 64, "wide": 32},
        {"heads": 2, "queries": 9, "depth": 128, "wide": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "tf32"])
def test_sizes_that_fill_no_tile(precision, sizes):
    check(*layer(**sizes), precision, "attention")


def test_queries_and_keys_may_be_scaled_before():
    # As torch exports scaled_dot_product_attention.
    nodes = [
        *(node("Transpose", "q", "q1", perm=[1, 0, 2]), node("Mul", "q1 root", "q2")),
        *(node("Transpose", "k", "k1", perm=[1, 2, 0]), node("Mul", "k1 root", "k2")),
        *(node("MatMul", "q2 k2", "s"), node("Softmax", "s", "p", axis=-1)),
        node("MatMul", "p v", "y"),
    ]
    feeds = {name: normal(30, 3, 16, seed=i) for i, name in enumerate("qk")}
    feeds["v"] = normal(3, 30, 16, seed=2)
    model = model_of(nodes, feeds, {"root": np.array([0.5], np.float32)})
    assert len(set(check(model, feeds, "tf32", "attention"))) == 1


@pytest.mark.parametrize("hidden", [-np.inf, -3.4e38])
def test_scores_may_be_masked(hidden):
    # The first tile of keys is hidden for the last rows, later ones for the first.
    queries = 80
    row, key = np.mgrid[:queries, :queries]
    mask = np.where((key > row) | ((row > 70) & (key < 66)), np.float32(hidden), np.float32(0))
    for precision in ("fp16", "fp32"):
        check(*layer(queries=queries, mask=mask.astype(np.float32)), precision, "attention")


def test_scores_far_above_others_do_not_overflow():
    nodes = [
        *(node("Mul", "q q", "q2"), node("MatMul", "q2 k", "s")),
        *(node("Softmax", "s", "p", axis=-1), node("MatMul", "p v", "y")),
    ]
    shapes = {"q": (2, 33, 16), "k": (2, 16, 100), "v": (2, 100, 16)}
    model, feeds = plain(nodes, shapes)
    # Whole numbers, so that the scores are exact; exp of most of them is infinite.
    feeds["q"], feeds["k"] = np.rint(feeds["q"]), np.rint(30 * feeds["k"])
    check(model, feeds, "tf32", "attention")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Softmax", "s", "p", axis=1), node("MatMul", "p v", "y")],
        [
            *(node("Softmax", "s", "p", axis=-1), node("MatMul", "p v", "o")),
            *(node("ReduceMax", "p", "top"), node("Add", "o top", "y")),
        ],
        [node("Sigmoid", "s", "p"), node("MatMul", "p v", "y")],
    ],
    ids=["softmax along rows", "weights are read again", "no softmax"],
)
def test_what_is_no_attention_stays_apart(nodes):
    shapes = {"q": (2, 20, 16), "k": (2, 16, 24), "v": (2, 24, 16)}
    model, feeds = plain([node("MatMul", "q k", "s"), *nodes], shapes)
    assert not kernels_of(check(model, feeds, "tf32"))


def test_tensors_that_are_not_written_take_no_memory():
    program = lower(layer(queries=256)[0], "tf32").program
    written = {program.storage_of(index) for call in program.calls for index in call.writes}
    weights_bytes = 4 * 2 * 256 * 256
    assert plan_memory(program).arena_bytes < weights_bytes
    assert {program.storage_of(index) for index in program.outputs} <= written


def test_layers_that_are_alike_share_a_kernel():
    nodes = []
    for number, queries in enumerate(["q", "r0"]):
        nodes += [
            node("MatMul", f"{queries} k", f"s{number}"),
            node("Softmax", f"s{number}", f"p{number}", axis=-1),
            node("MatMul", f"p{number} v", f"o{number}"),
            node("Relu", f"o{number}", f"r{number}"),
        ]
    nodes.append(node("ReduceMax", "r1", "y"))
    model, feeds = plain(nodes, {"q": (2, 20, 16), "k": (2, 16, 24), "v": (2, 24, 16)})
    check(model, feeds, "tf32", "attention")
    lowered = lower(model, "tf32")
    called = [call.kernel for call in lowered.program.calls if "attention" in call.kernel]
    assert len(called) == 2
    assert len(set(called)) == 1


@needs_nvcc
@pytest.mark.parametrize(
    ("precision", "depth", "batch"),
    [("fp16", 128, 1), ("tf32", 64, 16), ("fp32", 64, 16), ("fp32", 128, 1)],
)
def test_its_machine_code_keeps_everything_in_registers(precision, depth, batch):
    model, _ = layer(batch=batch, heads=8, queries=512, depth=depth, wide=depth)
    kernels = lower(model, precision).kernels.values()
    (kernel,) = [kernel for kernel in kernels if kernel.schedule.startswith("attention")]
    code = compile_kernels({kernel.name: kernel}, parse_cuda_target("cuda:sm_90"))
    use = read_code(code)[kernel.name]
    assert (use.spills, use.stack_bytes, use.local_bytes) == (0, 0, 0)
    assert use.instructions["LDGSTS"] > 0
    if precision == "fp32":
        assert use.instructions["FFMA"] > 0
        assert use.instructions["LDS"] > 0
        return
    assert use.matrix_instructions(precision) > 0
    assert use.instructions["LDSM"] > 0
