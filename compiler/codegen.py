"""Machine code for kernels: scheduled PrimFuncs become one relocatable ELF object.

A kernel is emitted as a plain C function, `int tw_kernel_<name>(void *, ...)`, one pointer per
parameter, 0 on success. TVM's packed calling convention is left out: shapes and types are static
and checked when a `Program` is made, so checking them again in every call would only cost time.

The object needs `__TVMBackendParallelLaunch`, `__TVMBackendAllocWorkspace` and
`__TVMBackendFreeWorkspace`, which the C runtime of a module supplies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx import PrimFunc
from tvm.tirx.stmt import AllocBuffer, AttrStmt, DeclBuffer, Return, SeqStmt

from tilewright.compiler.passes.narrow_indices import NarrowIndices
from tilewright.compiler.passes.reversed_indices import HideReversedIndices, ShowReversedIndices
from tilewright.compiler.passes.store_bools_as_bytes import StoreBoolsAsBytes
from tilewright.compiler.passes.vector_math import LowerVectorMath
from tilewright.compiler.targets import Target
from tilewright.errors import CompileError

KERNEL_PREFIX = "tw_kernel_"

_CPU_DEVICE_TYPE = 1
# What TVM raises when a pass or LLVM cannot do something.
_REFUSALS = (tvm.error.InternalError, RuntimeError, ValueError, TypeError)


def build_object(kernels: Mapping[str, PrimFunc], target: Target) -> bytes:
    """Compile `kernels` for `target` and return one relocatable ELF object.

    Raises:
        CompileError: TVM or LLVM refused a kernel.
    """
    try:
        return _object_bytes(kernels, target)
    except _REFUSALS as error:
        raise CompileError(_explain(kernels, target, error)) from error


def _object_bytes(kernels: Mapping[str, PrimFunc], target: Target) -> bytes:
    module = _generate(kernels, target)
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        path = Path(folder, "kernels.o")
        module.write_to_file(str(path), "o")
        return path.read_bytes()


def _explain(kernels: Mapping[str, PrimFunc], target: Target, error: Exception) -> str:
    """Say which kernel it was: TVM's errors do not, and all are compiled together."""
    for name, func in kernels.items():
        try:
            _object_bytes({name: func}, target)
        except _REFUSALS as own_error:
            return f"code generation failed for kernel {name}: {own_error}"
    return f"code generation failed for kernels {', '.join(kernels)} together: {error}"


def assembly(kernels: Mapping[str, PrimFunc], target: Target) -> str:
    """Return the assembly text that `build_object` would assemble, for reading and for tests."""
    return str(_generate(kernels, target).inspect_source("asm"))


def _generate(kernels: Mapping[str, PrimFunc], target: Target) -> tvm.runtime.Module:
    tvm_target = target.tvm_target()
    functions = {name: _prepare(name, func) for name, func in kernels.items()}
    module = tirx.transform.BindTarget(tvm_target.with_host(tvm_target))(tvm.IRModule(functions))
    with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        blocks = tvm.ir.transform.Sequential([HideReversedIndices(), *_block_lowering(module)])
        for lowering in (blocks, _lowering(target)):
            module = lowering(module)
    build = tvm.get_global_func("target.build.llvm")
    return build(module, tvm_target)


def _prepare(name: str, func: PrimFunc) -> PrimFunc:
    """Give the kernel its symbol, and promise that buffers are distinct."""

    def without_scope(statement: AttrStmt) -> tirx.Stmt:
        # te.extern leaves it; LLVM's code generator prints a warning for it.
        return statement.body if statement.attr_key == "pragma_scope" else statement

    func = func.with_body(tvm_ffi.structural_map(func.body, (AttrStmt, without_scope)))
    return func.with_attr("global_symbol", KERNEL_PREFIX + name).with_attr("tirx.noalias", True)


def _block_lowering(module: tvm.IRModule) -> list[tvm.ir.transform.Pass]:
    """Return the passes that turn blocks into loops; none for kernels that are loops already.

    Our schedulers emit loops and flat buffers. On those the passes would change nothing, yet take
    40% of the compile time.
    """
    s = s_tir.transform
    if not any(isinstance(func.body, s_tir.SBlockRealize) for func in module.functions.values()):
        return []
    return [
        s.CanonicalizeLoop(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        s.CompactBufferAllocation(),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.AnnotateIrregularLoop(),
        s.LowerOpaqueBlock(),
    ]


def _lowering(target: Target) -> tvm.ir.transform.Sequential:
    """Return TVM's lowering of loops for CPUs, with our calling convention at its end."""
    s, t = s_tir.transform, tirx.transform
    return tvm.ir.transform.Sequential(
        [
            StoreBoolsAsBytes(),
            *([NarrowIndices()] if target.has_32_bit_addresses else []),
            t.FlattenBuffer(),
            ShowReversedIndices(),
            t.BF16ComputeLegalize(),
            t.NarrowDataType(32),
            t.VectorizeLoop(True),
            t.StorageRewrite(),
            t.UnrollLoop(),
            t.StmtSimplify(),
            t.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
            # functions
            t.FP8ComputeLegalize(),
            t.VerifyMemory(),
            MakePlainFunction(),
            t.SkipAssert(),
            t.FP8StorageLegalize(),
            t.BF16StorageLegalize(),
            KeepLocalBuffers(),
            t.LowerTVMBuiltin(),
            LowerVectorMath(),
            t.LowerIntrin(),
        ]
    )


@tirx.transform.prim_func_pass(opt_level=0)
class KeepLocalBuffers:
    """Leave buffers of scope "local" on the stack, where LLVM turns them into registers.

    LowerTVMBuiltin would take them from the heap, in every step of the loop around them.
    """

    def transform_function(
        self, func: PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> PrimFunc:
        """Rewrite one function."""

        def keep(statement: AllocBuffer) -> AllocBuffer:
            if statement.buffer.scope() != "local":
                return statement
            return AllocBuffer(statement.buffer, {"disable_lower_builtin": tirx.IntImm("bool", 1)})

        return func.with_body(tvm_ffi.structural_map(func.body, (AllocBuffer, keep)))


@tirx.transform.prim_func_pass(opt_level=0)
class MakePlainFunction:
    """Turn buffer parameters into pointers: f(A: Buffer, ...) -> int32 f(A_data: handle, ...)."""

    def transform_function(
        self, func: PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> PrimFunc:
        """Rewrite one function."""
        pointers = []
        declarations = []
        for param in func.params:
            if isinstance(param.elem_offset, tirx.Var):  # left open by te.extern
                declarations.append(tirx.Bind(param.elem_offset, tirx.const(0, "int64")))
            pointer_type = tvm.ir.PointerType(tvm.ir.PrimType(param.dtype), "global")
            pointer = tirx.Var(f"{param.name}_data", pointer_type)
            pointers.append(pointer)
            declarations.append(DeclBuffer(param, data=pointer))
        body = func.body
        # LowerTVMBuiltin needs to know where temporary buffers live.
        for key, value in (("device_id", 0), ("device_type", _CPU_DEVICE_TYPE)):
            body = AttrStmt("default", key, tirx.IntImm("int32", value), body)
        success = Return(tirx.IntImm("int32", 0))
        return PrimFunc(
            pointers,
            SeqStmt([*declarations, body, success]),
            ret_type=tvm.ir.PrimType("int32"),
            attrs=func.attrs,
        )
