"""Sizes that depend on data inside a model, against ONNX Runtime."""

import numpy as np
import onnx.parser
import pytest

import tilewright
from tests.frontends.onnx.oracle import compare, run_onnxruntime
from tilewright.errors import UnsupportedModelError

RNG = np.random.default_rng(5)


def parsed(text):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')


def check(text, *feeds, tolerance=1e-5):
    """Compile once, and run on every set of inputs."""
    model = parsed(text)
    for output in model.graph.output:
        output.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.UNDEFINED, []))
    compiled = tilewright.compile(model, logs=())
    for given in feeds:
        arrays = {name: np.asarray(array) for name, array in given.items()}
        found = compiled.run(arrays)
        compare(list(found.values()), run_onnxruntime(model, arrays), tolerance, tolerance)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def some(*shape):
    """Return tensors of which few, all and no elements are above zero."""
    few = floats(*shape)
    return few, np.abs(few) + 1, -np.abs(few)


# What follows y = x[x > 0], or the coordinates of those elements.
CHAINS = {
    "indices to rows": """
        c = Transpose(places)
        y = GatherND(x, c)""",
    "element-wise": """
        c = Transpose(places)
        g = GatherND(x, c)
        two = Constant<value_float = 2.0>()
        s = Mul(g, two)
        t = Add(s, g)
        y = Relu(t)""",
    "softmax": """
        c = Transpose(places)
        g = GatherND(x, c)
        y = Softmax<axis = 0>(g)""",
    "cast": """
        y = Cast<to = 1>(places)""",
    "slice from the end": """
        c = Transpose(places)
        start = Constant<value_ints = [-3]>()
        end = Constant<value_ints = [9223372036854775807]>()
        y = Slice(c, start, end)""",
    "slice from the start": """
        c = Transpose(places)
        start = Constant<value_ints = [1]>()
        end = Constant<value_ints = [-1]>()
        axes = Constant<value_ints = [0]>()
        steps = Constant<value_ints = [2]>()
        y = Slice(c, start, end, axes, steps)""",
    "concatenate": """
        c = Transpose(places)
        one = Constant<value = int64[1, 2] {7, 8}>()
        y = Concat<axis = 0>(c, one, c)""",
    "reshape": """
        c = Transpose(places)
        shape = Constant<value_ints = [-1]>()
        flat = Reshape(c, shape)
        pairs = Constant<value_ints = [-1, 1, 2]>()
        y = Reshape(flat, pairs)""",
    "row and column": """
        zero = Constant<value_int = 0>()
        y = Gather<axis = 0>(places, zero)""",
    "product": """
        c = Transpose(places)
        f = Cast<to = 1>(c)
        t = Transpose(f)
        m = MatMul(t, f)
        y = MatMul(f, m)""",
    "scatter": """
        c = Transpose(places)
        g = GatherND(x, c)
        n = Neg(g)
        y = ScatterND(x, c, n)""",
}


@pytest.mark.parametrize("name", CHAINS)
def test_chain_after_nonzero(name):
    text = f"""
        test (float[4, 5] x) => (float y) {{
        zero_f = Constant<value_float = 0.0>()
        mask = Greater(x, zero_f)
        places = NonZero(mask)
        {CHAINS[name]}
        }}"""
    sets = some(4, 5)
    if name == "softmax":
        sets = sets[:2]  # of nothing, there is none
    check(text, *({"x": x} for x in sets), tolerance=1e-3)


REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSumExp"),
)


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reduction_counts_what_exists(operator):
    text = f"""
        test (float[6, 3] x, bool[6] keep) => (float y, float z) {{
        axes = Constant<value_ints = [0]>()
        rows = Compress<axis = 0>(x, keep)
        y = {operator}<keepdims = 0>(rows, axes)
        last = Constant<value_ints = [1]>()
        z = {operator}<keepdims = 1>(rows, last)
        }}"""
    keeps = ([0, 1, 1, 0, 1, 0], [1] * 6, [0, 0, 0, 1, 0, 0])
    check(text, *({"x": floats(6, 3), "keep": np.array(keep, bool)} for keep in keeps))


def test_best_of_what_exists():
    text = """
        test (float[9] x, bool[9] keep) => (int64 best, float top, int64 at, float sums) {
        kept = Compress(x, keep)
        best = ArgMax<axis = 0>(kept)
        k = Constant<value_ints = [2]>()
        top, at = TopK(kept, k)
        zero = Constant<value_int = 0>()
        sums = CumSum(kept, zero)
        }"""
    keeps = ([0, 1, 1, 0, 1, 0, 0, 1, 0], [1] * 9, [0, 0, 1, 1, 0, 0, 0, 0, 0])
    for keep in keeps:
        check(text, {"x": -np.abs(floats(9)), "keep": np.array(keep, bool)})


def test_boxes_of_a_detector():
    """Suppression, then boxes, scores and classes of what is kept, as exporters write it."""
    text = """
        test (float[1, 12, 4] boxes, float[1, 3, 12] scores)
            => (float kept, float kept_scores, int64 kinds, float crop) {
        most = Constant<value_ints = [4]>()
        iou = Constant<value_floats = [0.5]>()
        least = Constant<value_floats = [0.3]>()
        chosen = NonMaxSuppression(boxes, scores, most, iou, least)
        one = Constant<value_int = 1>()
        two = Constant<value_ints = [2]>()
        axis1 = Constant<value_ints = [1]>()
        kinds = Gather<axis = 1>(chosen, one)
        column = Gather<axis = 1>(chosen, two)
        rows = Squeeze(column, axis1)
        axis0 = Constant<value_ints = [0]>()
        flat = Squeeze(boxes, axis0)
        kept = Gather<axis = 0>(flat, rows)
        kept_scores = GatherND(scores, chosen)
        size = Constant<value_floats = [8.0]>()
        big = Mul(kept, size)
        image = Unsqueeze(scores, axis0)
        batch = Gather<axis = 1>(chosen, zero)
        crop = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(image, big, batch)
        }""".replace("image = Unsqueeze", "zero = Constant<value_int = 0>()\nimage = Unsqueeze")
    sets = []
    for low in (0.0, 0.29, -1.0):
        boxes = RNG.uniform(0, 1, (1, 12, 4)).astype(np.float32)
        boxes[..., 2:] += boxes[..., :2]
        high = 0.2 if low < 0 else 1.0
        sets.append({"boxes": boxes, "scores": RNG.uniform(low, high, (1, 3, 12)).astype("f4")})
    check(text, *sets)


def test_the_same_mask_gives_the_same_size():
    text = """
        test (float[7] x, float[7] z, bool[7] mask) => (float y) {
        a = NonZero(mask)
        b = NonZero(mask)
        at = Transpose(a)
        bt = Transpose(b)
        left = GatherND(x, at)
        right = GatherND(z, bt)
        y = Sub(left, right)
        }"""
    mask = np.array([1, 0, 0, 1, 1, 0, 1], bool)
    check(text, {"x": floats(7), "z": floats(7), "mask": mask})


def test_sizes_of_different_data_do_not_meet():
    text = """
        test (float[7] x, bool[7] a, bool[7] b) => (float y) {
        left = Compress(x, a)
        right = Compress(x, b)
        y = Sub(left, right)
        }"""
    with pytest.raises(UnsupportedModelError, match="sizes that depend on different data"):
        tilewright.compile(parsed(text), logs=())
