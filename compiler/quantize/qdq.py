"""Rewrite a graph of quantize and dequantize operators to integer operators.

    conv(dequantize(x), dequantize(W)) + b, relu, .., quantize
        ->  requantize(sum(x * W))         one kernel: int32 sums, bytes out
    quantize(max_pool(dequantize(x)))      ->  max_pool(x), likewise for reshape, concat, ..

Between the integer operators flow unsigned bytes; signed ones are moved up by 128. What does not
match keeps its dequantize operators and runs in floats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx, topi

from tilewright.compiler.quantize.affine import (
    BITS,
    RANGES,
    Affine,
    saturated,
    storage,
    unsigned_zero,
)
from tilewright.compiler.quantize.epilogue import EpilogueBuilder, Load, Operands
from tilewright.compiler.quantize.fixed_epilogue import FixedEpilogueBuilder, NotIntegerError
from tilewright.compiler.quantize.fixed_point import Precision, limited, shifted
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.integer_tensors import IntegerTensors
from tilewright.compiler.quantize.linear import Linear, accumulate, read_linear
from tilewright.compiler.quantize.lookup import Lookup, find_lookup
from tilewright.compiler.quantize.movement import move_bytes
from tilewright.compiler.quantize.pooling import Average, read_average
from tilewright.compiler.quantize.region import Region, find_regions, is_movement
from tilewright.compiler.quantize.winograd_sums import WinogradSums, winograd_sums
from tilewright.compiler.relax_utils import OP_PATTERN, call_marked, static_shape
from tilewright.compiler.winograd import INPUT_BLOCK, PRODUCT
from tilewright.compiler.winograd_tensors import whole_product
from tilewright.errors import CompileError

# What FuseOps knows as an epilogue, as an anchor that takes one, and as complete.
_ELEMENTWISE, _ANCHOR, _OPAQUE = 0, 4, 8
_FAILURES = "tilewright.not_integer"
_NO_SCALES = (
    "it has no QuantizeLinear with a constant scale; quantize it with `tilewright quantize`"
)


@tvm.ir.transform.module_pass(opt_level=0, name="QuantizedOperators")
class QuantizedOperators:
    """Module pass; see the module's docstring.

    Args:
        integer_only: nothing between the first quantize and the last dequantize operator may run
            in floats; `check_integer_only` says what does.
        tables: a curve of a byte (sigmoid, SiLU, GELU) behind a convolution is looked up in a
            kernel of its own, rather than computed in that of the convolution.
        winograd: let convolutions use Winograd's algorithm; see `winograd_sums`.
    """

    def __init__(
        self, integer_only: bool = False, tables: bool = False, winograd: bool = False
    ) -> None:
        self.integer_only, self.tables = integer_only, tables or integer_only
        self.winograd = winograd

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        mod = move_bytes(mod)
        graph = Graph(mod)
        quantizes = any(affine.kind == "quantize" for affine in graph.affines.values())
        if self.integer_only and not quantizes:
            return mod.with_attr(_FAILURES, [_NO_SCALES])
        if not graph.affines:
            return mod
        rewriter = _Rewriter(mod, graph, self.integer_only, self.tables, self.winograd)
        main = rewriter.visit_expr(mod["main"])
        if rewriter.failures:
            return mod.with_attr(_FAILURES, rewriter.failures)
        mod = rewriter.builder_.get()
        mod["main"] = main
        return tvm.ir.transform.Sequential(
            [
                relax.transform.CanonicalizeBindings(),
                relax.transform.DeadCodeElimination(["main"]),
            ]
        )(mod)


def check_integer_only(mod: tvm.IRModule) -> None:
    """Check what `QuantizedOperators(integer_only=True)` left; TVM lets no pass raise this error.

    Raises:
        CompileError: some operator has no integer form; the message names all of them.
    """
    if mod.attrs is not None and _FAILURES in mod.attrs:
        failures = "; ".join(str(failure) for failure in mod.attrs[_FAILURES])
        raise CompileError(f"integer-only is not possible for this model: {failures}")


@relax.expr_functor.mutator
class _Rewriter(relax.expr_functor.PyExprMutator):
    def __init__(
        self, mod: tvm.IRModule, graph: Graph, integer_only: bool, tables: bool, winograd: bool
    ) -> None:
        super().__init__(mod)
        self.graph, self.integer_only, self.tables = graph, integer_only, tables
        self.winograd = winograd
        self.linear = lru_cache(maxsize=None)(lambda var: read_anchor(graph, var))
        # What comes from floats is quantized by itself: the rest of a kernel is not in floats.
        first = [
            var
            for var in graph.affines
            if integer_only and graph.of_kind(var, "quantize") and not graph.follows_bytes(var)
        ]
        self.regions = find_regions(graph, self.linear, first)
        self.anchors = {region.anchor for region in self.regions.values()}
        self.bytes: dict[relax.Var, relax.Expr] = {}
        self.integers = IntegerTensors(
            graph,
            self._bytes,
            lambda name, compute, given: self._te(name, compute, given, None),
            self._taken,
        )
        # What an integer-only model needs, and cannot have.
        self.failures: list[str] = []

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        var = binding.var
        region = self.regions.get(var)
        if region is not None:
            self._quantized(region)
        elif self.integer_only and self._stays_float(var):
            kind = self.graph.affines[var].dtype
            self.failures.append(f"'{var.name}' quantizes to {kind}, or by channel")
        elif var not in self.anchors and self.linear(var) is not None:
            self.set_var_remap(var, self._float_result(var))
        elif self._is_needed_constant(var):
            self.set_var_remap(var, self.builder_.emit(relax.const(self.graph.constant(var))))
        else:
            super().visit_var_binding_(binding)

    def _is_needed_constant(self, var: relax.Var) -> bool:
        """Say whether a dequantized constant has users that stay in floats."""
        if self.graph.quantized_constant(var) is None:
            return False
        return any(
            user is None or self.linear(user) is None for user in self.graph.users.get(var, ())
        )

    # -- results ---------------------------------------------------------------------------

    def _quantized(self, region: Region) -> None:
        """Emit a region, or a movement of bytes, in place of a quantize operator."""
        root = region.root
        affine = self.graph.affines[root]
        result = self._movement(affine)
        if result is None:
            lookup = find_lookup(self.graph, region)
            if lookup is not None and (self.tables or region.anchor is None):
                result = self._looked_up(region, lookup)
            else:
                result = self._region(region)
        self.bytes[root] = result
        if not affine.dtype.startswith("u"):
            flip = _flip(affine.dtype, storage(affine.dtype))
            result = self._te("to_signed", flip, [result], None)
        self.set_var_remap(root, result)

    def _region(self, region: Region) -> relax.Expr:
        linear = None if region.anchor is None else self.linear(region.anchor)
        shape = self.graph.shape(region.root)
        builder: EpilogueBuilder
        if self.integer_only and self.graph.follows_bytes(region.root):
            builder = FixedEpilogueBuilder(
                *(self.graph, region, linear, self._bytes, self._remapped), self.integers.of
            )
            try:
                element = builder.root()
            except NotIntegerError as error:
                self.failures.append(f"'{region.root.name}': {error}")
                return self.builder_.emit(relax.const(np.zeros(shape, "uint8")))
        else:
            builder = EpilogueBuilder(self.graph, region, linear, self._bytes, self._remapped)
            element = builder.root()
        if builder.linear is None:
            return self._elementwise("requantize", builder, element, None, shape)
        return self._whole(builder, builder.linear, element, shape)

    def _stays_float(self, var: relax.Var) -> bool:
        """Say whether a quantize operator behind the first one has no integer form."""
        affine = self.graph.of_kind(var, "quantize")
        if affine is None or (affine.in_bytes):
            return False
        return self.graph.follows_bytes(var)

    def _looked_up(self, region: Region, lookup: Lookup) -> relax.Expr:
        """Emit the part of a region before its curve, then a table for the rest."""
        if lookup.source in region.members and lookup.source not in self.bytes:
            members = region.members & self.graph.before(lookup.source)
            anchor = region.anchor if region.anchor in members else None
            self.bytes[lookup.source] = self._region(Region(lookup.source, members, anchor))
        given = [self._bytes(lookup.source), relax.const(lookup.table)]

        def compute(x: te.Tensor, table: te.Tensor) -> te.Tensor:
            return te.compute(x.shape, lambda *at: table(x(*at).astype("int32")), name="looked_up")

        return self._te("lookup", compute, given, _ELEMENTWISE)

    def _whole(
        self,
        builder: EpilogueBuilder,
        linear: Linear | Average,
        element: Load,
        shape: tuple[int, ...],
    ) -> relax.Expr:
        """Emit the sums and the region as one PrimFunc: FuseOps would not always join them."""
        operands = builder.operands
        summed, accumulated = self._anchor(linear, shape)

        def compute(*tensors: te.Tensor) -> te.Tensor:
            builder.sums = accumulated(*tensors[: len(summed)])
            operands.tensors = tensors[len(summed) :]
            return te.compute(shape, lambda *at: element(at), name="requantize")

        return self._te(_name(linear), compute, [*summed, *operands.exprs], _OPAQUE)

    def _float_result(self, var: relax.Var) -> relax.Expr:
        """Emit an integer operator whose result is needed in floats."""
        linear = self.linear(var)
        assert linear is not None
        region = Region(var, frozenset([var]), var)
        builder = EpilogueBuilder(self.graph, region, linear, self._bytes, self._remapped)
        element = builder.value(var, 1.0)
        shape = self.graph.shape(var)
        summed, accumulated = self._anchor(linear, shape)
        sums = self._te(_name(linear), accumulated, summed, _ANCHOR)
        return self._elementwise("rescale", builder, element, sums, shape)

    def _elementwise(
        self,
        name: str,
        builder: EpilogueBuilder,
        element: Load,
        sums: relax.Expr | None,
        shape: tuple[int, ...],
    ) -> relax.Expr:
        operands: Operands = builder.operands
        given = operands.exprs if sums is None else [sums, *operands.exprs]

        def compute(*tensors: te.Tensor) -> te.Tensor:
            if sums is None:
                operands.tensors = tensors
            else:
                builder.sums, operands.tensors = tensors[0], tensors[1:]
            return te.compute(shape, lambda *at: element(at), name=name)

        floats = builder.__class__ is EpilogueBuilder and sums is None
        # In integer-only models a kernel that quantizes floats is one of its own.
        return self._te(
            name, compute, given, _OPAQUE if self.integer_only and floats else _ELEMENTWISE
        )

    def _anchor(
        self, linear: Linear | Average, shape: tuple[int, ...]
    ) -> tuple[list[relax.Expr], Callable[..., te.Tensor]]:
        """Return what sums of a shape are made from, and the tensor expression that makes them."""
        if isinstance(linear, Average):
            return [self._data(linear)], linear.sums
        fast = winograd_sums(linear, shape) if self.winograd else None
        if fast is not None:
            return [self._products(fast)], fast.sums
        operands = [self._data(linear), relax.const(linear.weight)]
        return operands, lambda data, weight: accumulate(linear, data, weight)

    def _products(self, fast: WinogradSums) -> relax.Expr:
        """Emit what Winograd's output transform sums: the transformed data times the weights."""

        def reshape(expr: relax.Expr, *shape: int) -> relax.Expr:
            return self.builder_.emit(relax.op.reshape(expr, shape))

        side, _, inputs, outputs = fast.weight.shape
        data = self._te(INPUT_BLOCK, fast.transformed, [self._data(fast.linear)], _ANCHOR)
        rows = reshape(data, side, side, fast.rows, inputs)
        result = self._te(PRODUCT, whole_product, [rows, relax.const(fast.weight)], _ANCHOR)
        return reshape(result, side, side, fast.out[0], *fast.tiles, outputs)

    def _data(self, linear: Linear | Average) -> relax.Expr:
        """Return the bytes that an operator reads, with channels in whole groups."""
        data = self._bytes(self.graph.affines[linear.data].source)
        columns = linear.columns if isinstance(linear, Linear) else None
        if columns is not None:
            zero = int(linear.affine.zero)
            data = self._te("columns", lambda x: columns.side_by_side(x, zero), [data], None)
        if linear.pad_channels:
            axis = 1 if linear.window is not None else len(static_shape(data)) - 1
            after = [0] * len(static_shape(data))
            after[axis] = linear.pad_channels
            before = [0] * len(after)
            data = self._te(
                "pad_channels",
                lambda x: topi.nn.pad(x, before, after, tirx.const(0, "uint8")),
                [data],
                None,
            )
        return data

    # -- movements of bytes -------------------------------------------------------------------

    def _movement(self, affine: Affine) -> relax.Expr | None:
        """Emit a movement on bytes, if what is quantized is one of dequantized tensors."""
        if not is_movement(self.graph, affine.source):
            return None
        call = self.graph.value[affine.source]
        first, *rest = call.args
        sources = list(first.fields) if isinstance(first, relax.Tuple) else [first]
        inputs = [self.graph.affines[source] for source in sources]
        moved = [self._requantized(found, affine) for found in inputs]
        argument = relax.Tuple(moved) if isinstance(first, relax.Tuple) else moved[0]
        return self.builder_.emit(relax.Call(call.op, [argument, *rest], call.attrs, call.ty_args))

    def _requantized(self, found: Affine, wanted: Affine) -> relax.Expr:
        """Return the bytes of a dequantize's source, in the scale of another quantize."""
        source = self._bytes(found.source)
        same = found.scale == wanted.scale and unsigned_zero(found) == unsigned_zero(wanted)
        if same and BITS[found.dtype] <= BITS[wanted.dtype]:
            return source
        factor = float(found.scale) / float(wanted.scale)
        zero, new = unsigned_zero(found), unsigned_zero(wanted)

        def element(x: te.Tensor) -> Callable[..., Any]:
            def requantized(*at: Any) -> Any:
                if self.integer_only:
                    return _rescaled(x(*at).astype("int32") - zero, factor, new, wanted.unsigned)
                centred = (x(*at).astype("int32") - tirx.const(zero, "int32")).astype("float32")
                value = centred * tirx.const(np.float32(factor), "float32")
                return saturated(value, tirx.const(new, "int32"), wanted.unsigned)

            return requantized

        return self._te(
            "requantize",
            lambda x: te.compute(x.shape, element(x), name="requantize"),
            [source],
            _ELEMENTWISE,
        )

    def _taken(self, call: relax.Call, table: relax.Expr) -> relax.Expr:
        """Emit a call of `relax.take` on another table."""
        index = self.visit_expr(call.args[1])
        return self.builder_.emit(
            relax.Call(call.op, [table, index, *call.args[2:]], call.attrs, call.ty_args)
        )

    # -- operands -----------------------------------------------------------------------------

    def _remapped(self, expr: relax.Expr) -> relax.Expr:
        return self.visit_expr(expr)

    def _bytes(self, var: relax.Expr) -> relax.Expr:
        """Return unsigned bytes of a quantized tensor; int8 ones are moved up by 128."""
        if var in self.bytes:
            return self.bytes[var]
        expr = self.visit_expr(var)
        dtype = self.graph.dtype_read(var) or str(expr.ty.dtype)
        if not dtype.startswith("u"):
            expr = self._te("to_unsigned", _flip(dtype, "uint8"), [expr], None)
        self.bytes[var] = expr
        return expr

    def _te(
        self,
        name: str,
        function: Callable[..., te.Tensor],
        operands: list[relax.Expr],
        pattern: int | None,
    ) -> relax.Var:
        marks = {} if pattern is None else {OP_PATTERN: pattern}
        return self.builder_.emit(call_marked(self.builder_, name, function, operands, marks))


def read_anchor(graph: Graph, var: relax.Var) -> Linear | Average | None:
    """Return the integer sums that compute a variable, or None."""
    return read_linear(graph, var) or read_average(graph, var)


def _rescaled(value: Any, factor: float, zero: int, dtype: str) -> Any:
    """Return int32 times a factor, by a dyadic number, in bytes of an unsigned type."""
    precision = Precision()
    precision.note(factor, 255)
    multiplier = tirx.const(round(factor * 2.0**precision.shift), "int64")
    whole = shifted(value.astype("int64") * multiplier, precision.shift) + zero
    return limited(whole, *RANGES[dtype]).astype("uint8")


def _name(linear: Linear | Average) -> str:
    if isinstance(linear, Average):
        return "average_int8"
    return "matmul_int8" if linear.window is None else "conv_int8"


def _flip(signed: str, dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """Return what moves integers of a signed type up until the least is 0, or down again.

    Args:
        signed: the type, for instance "int8" for 128 up or down.
        dtype: that the result is stored as.
    """

    def compute(x: te.Tensor) -> te.Tensor:
        top = tirx.const(RANGES[signed][0] if x.dtype == "int8" else -RANGES[signed][0], x.dtype)
        return te.compute(
            x.shape, lambda *at: tirx.reinterpret(dtype, x(*at) ^ top), name="flip_sign"
        )

    return compute
