"""Count in 32 bits where a processor has no 64-bit registers."""

from __future__ import annotations

from math import prod

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.access import shape_of
from tilewright.compiler.schedule.expressions import dtype_of

_LIMIT_BYTES = 1 << 31


@tirx.transform.prim_func_pass(opt_level=0)
class NarrowIndices:
    """Give loops and addresses int32 in place of int64.

        for i in range(int64(64)): y[i * int64(4)]  ->  for i in range(64): y[i * 4]

    Belongs before the lowering of TIR. Leaves alone a function that computes with int64 data, and
    one with a buffer that int32 cannot address.
    """

    def transform_function(
        self, func: tirx.PrimFunc, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrite one function."""
        if _has_wide_data(func) or not _is_small(func):
            return func
        narrow = tirx.transform.ForceNarrowIndexToInt32()
        return narrow(tvm.IRModule({"main": func}))["main"]


def _has_wide_data(func: tirx.PrimFunc) -> bool:
    """Tell whether 64-bit integers are more than indices."""
    dtypes = {str(buffer.dtype) for buffer in func.params}
    for kind, dtype in (
        (TensorLoad, lambda node: str(node.source.dtype)),
        ((tirx.BufferStore, tirx.AllocBuffer), lambda node: str(node.buffer.dtype)),
        (tirx.Cast, dtype_of),
    ):
        tvm_ffi.structural_walk(func.body, (kind, lambda node, d=dtype: dtypes.add(d(node))))
    return any("int64" in dtype for dtype in dtypes)


def _is_small(func: tirx.PrimFunc) -> bool:
    """Tell whether every tensor that a caller passes is below 2 GB."""
    return all(
        prod(shape_of(buffer)) * tvm.DataType(str(buffer.dtype)).itemsize < _LIMIT_BYTES
        for buffer in func.params
    )
