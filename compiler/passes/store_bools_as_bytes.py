"""Hold intermediate truth values in bytes."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx.stmt import AllocBuffer

from tilewright.compiler.schedule.expressions import dtype_of


@tirx.transform.prim_func_pass(opt_level=0)
class StoreBoolsAsBytes:
    """Give scratch buffers of bool the type int8.

        a = alloc((8,), "bool"); a[i] = x < y; z = a[i]
        -> a = alloc((8,), "int8"); a[i] = int8(x < y); z = a[i] != 0

    Belongs before the lowering of TIR: StorageRewrite turns a buffer that is accessed by whole
    vectors into one of vectors, where bool becomes int8 but what is stored stays bool. Leaves
    parameters alone.
    """

    def transform_function(
        self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrite one function."""
        bytes_of: dict[Any, Any] = {}

        def note(statement: AllocBuffer) -> None:
            buffer = statement.buffer
            if str(buffer.dtype) == "bool":
                bytes_of[buffer] = tirx.decl_buffer(
                    list(buffer.shape), "int8", buffer.name, scope=buffer.scope(), layout=None
                )

        tvm_ffi.structural_walk(func.body, (AllocBuffer, note))
        if not bytes_of:
            return func

        def store(node: tirx.BufferStore) -> tirx.BufferStore:
            if node.buffer not in bytes_of:
                return node
            lanes = tvm.DataType(dtype_of(node.value)).lanes
            value = tirx.Cast("int8" if lanes == 1 else f"int8x{lanes}", node.value)
            return tirx.BufferStore(bytes_of[node.buffer], value, list(node.indices))

        def load(node: TensorLoad) -> Any:
            if node.source not in bytes_of:
                return node
            byte = tirx.BufferLoad(bytes_of[node.source], list(node.indices))
            return tirx.NE(byte, tirx.const(0, dtype_of(byte)))

        def allocate(node: AllocBuffer) -> AllocBuffer:
            return AllocBuffer(bytes_of.get(node.buffer, node.buffer), node.annotations)

        body = tvm_ffi.structural_map(func.body, (tirx.BufferStore, store))
        body = tvm_ffi.structural_map(body, (TensorLoad, load))
        return func.with_body(tvm_ffi.structural_map(body, (AllocBuffer, allocate)))
