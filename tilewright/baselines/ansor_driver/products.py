"""Products of Relay, as Ansor can rewrite the layout of their right sides.

It writes a layout as extents and names of axes ("4j16k"), and reads that again. TVM 0.17 made
`topi.nn.matmul` one for any rank, whose axes are "i0" and "i1": every program of a dense layer
fails to build ("name_it != name_to_arg.end()"). For matrices this is the definition of TVM 0.12
again (python/tvm/topi/nn/dense.py). Batches that ONNX's shapes make 64-bit print as
"T.int64(2)b", which fails, too ("Invalid layout"). Runs inside the baseline's own environment.
"""

import sys

from tvm import auto_scheduler, te, topi

_original = topi.nn.matmul
_original_batch = topi.nn.batch_matmul


def matmul(
    tensor_a,
    tensor_b,
    bias=None,
    out_dtype=None,
    transpose_a=False,
    transpose_b=False,
    auto_scheduler_rewritten_layout="",
    meta_schedule_original_shape=None,
):
    """Return the product of two matrices; the arguments are topi's."""
    layout = auto_scheduler_rewritten_layout
    if len(tensor_a.shape) != 2 or (len(tensor_b.shape) != 2 and not layout):
        return _original(
            tensor_a,
            tensor_b,
            bias,
            out_dtype,
            transpose_a,
            transpose_b,
            layout,
            meta_schedule_original_shape,
        )
    rows, depth = tensor_a.shape[::-1] if transpose_a else tensor_a.shape
    if layout:
        columns, _ = auto_scheduler.get_shape_from_rewritten_layout(layout, ["j", "k"])
        auto_scheduler.remove_index_check(tensor_b)
    else:
        columns = tensor_b.shape[0 if transpose_b else 1]
    out_dtype = out_dtype or tensor_a.dtype
    k = te.reduce_axis((0, depth), name="k")

    def element(i, j):
        left = tensor_a[(k, i) if transpose_a else (i, k)].astype(out_dtype)
        right = tensor_b[(j, k) if transpose_b else (k, j)].astype(out_dtype)
        return te.sum(left * right, axis=k)

    name = f"T_matmul_{'NT'[transpose_a]}{'NT'[transpose_b]}"
    tag = "dense" if name.endswith("NT") else "matmul"
    attrs = {"layout_free_placeholders": [tensor_b]}
    product = te.compute((rows, columns), element, name=name, tag=tag, attrs=attrs)
    if bias is not None:
        product = topi.add(product, bias.astype(out_dtype))
    return auto_scheduler.rewrite_compute_body(product, layout) if layout else product


def batch_matmul(tensor_a, tensor_b, oshape=None, *arguments, **options):
    """Return the products of a batch; the arguments are topi's."""
    shape = None if oshape is None else tuple(int(extent) for extent in oshape)
    return _original_batch(tensor_a, tensor_b, shape, *arguments, **options)


def install():
    """Let Relay use them."""
    topi.nn.matmul = sys.modules["tvm.topi.nn.dense"].matmul = matmul
    topi.nn.batch_matmul = batch_matmul
