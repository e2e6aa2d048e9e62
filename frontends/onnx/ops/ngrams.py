"""TfIdfVectorizer: counts how often n-grams of a pool occur in rows of numbers."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import cast
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@register("TfIdfVectorizer", 9)
def tf_idf(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html (pools of integers)."""
    data, mode = op.input(0), op.attr("mode")
    pool, starts = op.attr("pool_int64s"), [*op.attr("ngram_counts")]
    shortest, longest = op.attr("min_gram_length"), op.attr("max_gram_length")
    places, skips = np.array(op.attr("ngram_indexes")), op.attr("max_skip_count") + 1
    weights = op.attr("weights")
    if op.attr("pool_strings", None) or not pool:
        op.fail("its pool holds strings")
    if data.rank > 2 or not data.size or data.dtype not in ("int32", "int64"):
        op.fail(f"its input is {data.dtype} {list(data.shape)}; accepted are rows of integers")
    rows = reshape_to(op, data, (data.size // data.shape[-1], data.shape[-1]))
    columns: dict[int, Value] = {}
    for length, (start, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
        grams = np.array(pool[start:end], data.dtype).reshape(-1, length)
        if len(grams) and shortest <= length <= longest:
            times = 1 if length == 1 else skips
            columns[length] = op.te(_counts, rows, constant(grams), times, name="count_ngrams")
        else:
            columns[length] = constant(np.zeros((rows.shape[0], len(grams)), np.float32))
    counts = op.call(R.concat, [item for item in columns.values() if item.size], 1)
    # Column `places[g]` of the output belongs to n-gram g; one that no n-gram has stays zero.
    order = np.full(places.max() + 1, len(places))
    order[places] = np.arange(len(places))
    table = constant(np.zeros((rows.shape[0], 1), np.float32))
    counts = op.call(R.concat, [counts, table], 1)
    result = op.call(R.take, counts, constant(order.astype(np.int64)), axis=1, mode="wrap")
    if mode != "TF":
        factors = np.zeros(len(order), np.float32)
        factors[places] = np.ones(len(places)) if weights is None else weights
        if mode == "IDF":
            occurs = op.call(R.greater, result, op.scalar(0, "float32"))
            result = cast(op, occurs, "float32")
        result = op.call(R.multiply, result, constant(factors))
    return reshape_to(op, result, (*data.shape[:-1], len(order)))


def _counts(rows: te.Tensor, grams: te.Tensor, skips: int) -> te.Tensor:
    """Count matches whose elements lie 1, 2, ... or `skips` places apart."""
    count, extent = (int(size) for size in rows.shape)
    number, length = (int(size) for size in grams.shape)
    start, skip = te.reduce_axis((0, extent), "start"), te.reduce_axis((0, skips), "skip")

    def term(row: tirx.Var, gram: tirx.Var) -> tirx.PrimExpr:
        matches = [start + (length - 1) * (skip + 1) < extent]
        for place in range(length):
            at = tirx.min(start + place * (skip + 1), extent - 1)
            matches.append(rows(row, at) == grams(gram, place))
        found = tirx.Select(tirx.all(*matches), 1.0, 0.0).astype("float32")
        return te.sum(found, [start, skip])

    return te.compute((count, number), term, name="count_ngrams")
