"""The boxes that a detector keeps: each class by a block, whose threads compare with those kept.

A box waits for all before it, so classes are all that runs at once otherwise.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tilewright.compiler.cuda.ctext import Printer, loaded
from tilewright.compiler.cuda.kernel import Kernel, block, head
from tilewright.compiler.cuda.selection import annotations_of
from tilewright.compiler.schedule.expressions import shape_of
from tilewright.frontends.onnx.ops.suppression import KEEP_ANNOTATION, overlap_of

_THREADS = 128


def suppression_kernel(func: tirx.PrimFunc, name: str, params: Any) -> Kernel | None:
    """Return the kernel of a function that keeps boxes; None for any other function.

    Args:
        func: (boxes [batch, box, 4], order [batch, class, box], overlap [1]) -> (kept
            [class, number], amounts [class], and what processors need).
        name: of the kernel.
        params: its parameters as they are stored.
    """
    annotations = annotations_of(func)
    if KEEP_ANNOTATION not in annotations:
        return None
    per_class, is_centred = (int(value) for value in annotations[KEEP_ANNOTATION])
    boxes = func.params[0]
    batches, classes, count = shape_of(func.params[1])
    corner_type, limit_type = str(params[0].dtype), str(params[2].dtype)
    corners = tirx.decl_buffer((batches * count * 4,), str(boxes.dtype), "boxes")
    names = {tirx.Var(key, "int64"): key for key in ("first", "box", "other")}
    first, box, other = names
    printer = Printer(
        (), names, {corners: "in0"}, lambda load: loaded(printer.place(load), corner_type)
    )
    shared = printer.text(overlap_of(corners, first, box, other, bool(is_centred)))
    lines = [
        f"{head(name, _THREADS, params[:3], params[3:])} {{",
        "TW_SHARED;",
        "int *const overlaps = (int *)tw_shared;",
        "const int group = blockIdx.x;",
        f"const long long first = (long long)(group / {classes}) * {count};",
        f"const float most = {loaded('in2[0]', limit_type)};",
        f"long long *const kept = out0 + (long long)group * {per_class};",
        "int amount = 0;",
        f"for (int place = 0; place < {count} && amount < {per_class}; ++place) {{",
        f"const long long box = in1[(long long)group * {count} + place];",
        "if (box < 0) break;",
        "if (threadIdx.x == 0) *overlaps = 0;",
        "TW_BARRIER();",
        f"for (int number = threadIdx.x; number < amount; number += {_THREADS}) {{",
        "const long long other = kept[number];",
        f"if ({shared} > most) *overlaps = 1;",
        "}",
        "TW_BARRIER();",
        "const bool is_kept = *overlaps == 0;",
        "if (is_kept && threadIdx.x == 0) kept[amount] = box;",
        "amount += is_kept;",
        "TW_BARRIER();",
        "}",
        "if (threadIdx.x == 0) out1[group] = amount;",
        "}",
    ]
    label = f"suppression, {_THREADS} threads for each of {batches * classes} classes"
    return Kernel(name, block(lines), (batches * classes, 1, 1), _THREADS, 16, label)
