"""From Relax operators to a `Program` of fused TensorIR functions on logical shapes.

Each operator becomes a PrimFunc (legalisation), neighbours are fused around their anchor (TVM's
FuseOps and FuseTIR: an anchor takes its element-wise epilogue, a residual addition included), and
the flat list of `call_tir` that remains is read off as plain data. A reshape that was not fused
with a neighbour becomes a view: no kernel runs for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax import transform

from tilewright.compiler.legalize import LEGALIZATIONS, VIEW_ATTRIBUTE
from tilewright.compiler.passes.limit_fusion import LimitFusion
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec, storage_dtype
from tilewright.compiler.relax_utils import bindings, constant_array, is_constant, op_name
from tilewright.errors import CompileError

# Operators in one kernel. What several read is written out for each, so that the expression may
# grow exponentially; and deep ones are more than the recursion of passes and LLVM bear.
_MOST_FUSED = 20
# Loops count in 32 bits; beyond, TVM's passes take all memory before they fail.
_LONGEST = 2**31 - 1


def legalize_and_fuse(mod: tvm.IRModule) -> tvm.IRModule:
    """Turn Relax operators into fused PrimFuncs."""
    limits = {"relax.FuseOps.max_depth": _MOST_FUSED}
    with tvm.target.Target({"kind": "llvm"}), tvm.transform.PassContext(config=limits):
        return tvm.ir.transform.Sequential(
            [
                transform.LegalizeOps(LEGALIZATIONS),
                transform.AnnotateTIROpPattern(),
                LimitFusion(),
                transform.FuseOps(),
                transform.FuseTIR(),
                transform.DeadCodeElimination(["main"]),
                transform.CanonicalizeBindings(),
            ]
        )(mod)


def read_program(
    mod: tvm.IRModule, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Program:
    """Read the flat Relax main off as a `Program`; its kernels are not scheduled yet.

    Args:
        mod: result of `legalize_and_fuse`.
        inputs: what the caller passes, in the order of main's parameters.
        outputs: what the caller gets, in the order of main's result tuple.

    Raises:
        CompileError: an operator has no TensorIR form.
    """
    return _Reader(mod, inputs, outputs).read()


class _Reader:
    def __init__(
        self, mod: tvm.IRModule, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.mod, self.inputs, self.outputs = mod, tuple(inputs), tuple(outputs)
        self.tensors: list[Tensor] = []
        self.calls: list[Call] = []
        self.kernels: dict[str, tvm.tirx.PrimFunc] = {}
        self.names: dict[tvm_ffi.StructuralKey, str] = {}
        self.ids: dict[relax.Var, int | tuple[int, ...]] = {}
        self.constants: list[tuple[tvm.ir.Expr, int]] = []

    def read(self) -> Program:
        main = self.mod["main"]
        for var, spec in zip(main.params, self.inputs, strict=True):
            dtype = storage_dtype(spec.dtype)
            self.ids[var] = self._add(Tensor(spec.name, spec.shape, dtype, "input"))
        for binding in bindings(main):
            self._read_binding(binding)
        result = self._resolve(main.body.body)
        if isinstance(result, int):
            result = (result,)
        return Program(
            tuple(self.tensors),
            tuple(self.calls),
            tuple(range(len(self.inputs))),
            result,
            self.kernels,
            self.inputs,
            self.outputs,
        )

    def _add(self, tensor: Tensor) -> int:
        if any(extent > _LONGEST for extent in tensor.shape):
            raise CompileError(
                f"tensor '{tensor.name}' has shape {list(tensor.shape)}; a dimension may have at "
                f"most {_LONGEST} elements"
            )
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _read_binding(self, binding: relax.VarBinding) -> None:
        value, var = binding.value, binding.var
        name = op_name(value)
        if name == "relax.call_tir":
            self.ids[var] = self._read_call(var, value)
        elif isinstance(value, (relax.Var, relax.Tuple, relax.TupleGetItem)) or is_constant(value):
            self.ids[var] = self._resolve(value)
        else:
            raise CompileError(
                f"operator {name or type(value).__name__} (value '{var.name}') has no TensorIR form"
            )

    def _kernel(self, name: str, func: tvm.tirx.PrimFunc) -> str:
        """Return the name under which the kernel, or an equal one, is known."""
        key = tvm_ffi.StructuralKey(func)
        known = self.names.setdefault(key, name)
        self.kernels[known] = func
        return known

    def _view(self, var: relax.Var, source: int) -> int:
        shape, dtype = _tensor_type(var.ty)
        owner = self.tensors[source]
        if owner.data is not None:  # a view of a constant; numpy shares the bytes
            return self._add(Tensor(var.name, shape, dtype, "constant", owner.data.reshape(shape)))
        return self._add(Tensor(var.name, shape, dtype, owner.kind, alias_of=source))

    def _resolve(self, expr: relax.Expr) -> int | tuple[int, ...]:
        if isinstance(expr, relax.Var):
            return self.ids[expr]
        if isinstance(expr, relax.Tuple):
            fields = [self._resolve(field) for field in expr.fields]
            return tuple(fields)  # type: ignore[arg-type]
        if isinstance(expr, relax.TupleGetItem):
            owner = self._resolve(expr.tuple_value)
            assert isinstance(owner, tuple)
            return owner[int(expr.index)]
        if is_constant(expr):
            return self._constant(expr)
        raise CompileError(f"a value of kind {type(expr).__name__} cannot be compiled: {expr}")

    def _constant(self, expr: tvm.ir.Expr) -> int:
        for known, index in self.constants:
            if known.same_as(expr):
                return index
        data = constant_array(expr)
        index = self._add(
            Tensor(f"constant{len(self.constants)}", data.shape, data.dtype.name, "constant", data)
        )
        self.constants.append((expr, index))
        return index

    def _read_call(self, var: relax.Var, value: relax.Call) -> int | tuple[int, ...]:
        func = self.mod[value.args[0]]
        name = value.args[0].name_hint
        if func.attrs is not None and VIEW_ATTRIBUTE in func.attrs:
            source = self._resolve(value.args[1].fields[0])
            assert isinstance(source, int)
            return self._view(var, source)
        name = self._kernel(name, func)
        reads = []
        for field in value.args[1].fields:
            index = self._resolve(field)
            assert isinstance(index, int)
            reads.append(index)
        is_tuple = isinstance(var.ty, relax.TupleType)
        types = list(var.ty.fields) if is_tuple else [var.ty]
        writes = [
            self._add(Tensor(var.name, *_tensor_type(type_), "intermediate")) for type_ in types
        ]
        self.calls.append(Call(name, (*reads, *writes), f"{name}#{len(self.calls)}", len(writes)))
        return tuple(writes) if is_tuple else writes[0]


def _tensor_type(type_: relax.TensorType) -> tuple[tuple[int, ...], str]:
    return tuple(int(extent) for extent in type_.shape), str(type_.dtype)
