"""Find out what a PrimFunc computes: its stages, its anchor, and the role of each axis."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from tvm import DataType, sym, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.expressions import (
    Expr,
    Linear,
    children,
    conjuncts,
    dtype_of,
    flat_index,
    linear_form,
    loads_in,
    range_from_zero,
    rebuild,
    substitute,
    without_range,
)
from tilewright.compiler.schedule.planar_access import read_planar

Kind = Literal["contraction", "window", "reduction", "elementwise"]
_COMBINERS = {tirx.Add: "add", tirx.Max: "max", tirx.Min: "min"}


@dataclass(frozen=True, eq=False)
class Axis:
    """One block axis: its variable and extent."""

    var: Any
    extent: int

    @property
    def name(self) -> str:
        """Name of the variable."""
        return str(self.var.name)


@dataclass(frozen=True, eq=False)
class Stage:
    """One block: `buffer[indices] = value` over its axes; `init` is None unless it reduces."""

    name: str
    spatial: tuple[Axis, ...]
    reduction: tuple[Axis, ...]
    buffer: Any
    indices: tuple[Expr, ...]
    value: Expr
    init: Expr | None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Spatial axes, then reduction axes."""
        return self.spatial + self.reduction

    @property
    def work(self) -> int:
        """Number of times that the value is evaluated."""
        return prod(axis.extent for axis in self.axes)

    def at(self, values: dict[Any, Expr], expr: Expr | None = None) -> Expr:
        """Return the value (or `expr`) with axis variables replaced."""
        return substitute(self.value if expr is None else expr, values)


def read_stages(func: tirx.PrimFunc) -> tuple[Stage, ...] | None:
    """Return the blocks of an unscheduled function in order.

    Returns:
        None where the function is not a sequence of blocks that each store one element of one
        buffer (an argmax with two results, an opaque block).
    """
    blocks = read_blocks(func)
    if blocks is None:
        return None
    stages = [stage for stage in map(read_block, blocks) if stage is not None]
    return tuple(stages) if len(stages) == len(blocks) else None


def read_blocks(func: tirx.PrimFunc) -> tuple[Any, ...] | None:
    """Return the innermost blocks of an unscheduled function, or None where it has other parts."""
    body = func.body
    if not hasattr(body, "block"):
        return None
    root = body.block.body
    blocks = []
    for nest in root.seq if isinstance(root, tirx.SeqStmt) else (root,):
        inner = nest
        while isinstance(inner, tirx.For):
            inner = inner.body
        if not hasattr(inner, "block"):
            return None
        blocks.append(inner.block)
    return tuple(blocks)


def read_block(block: Any) -> Stage | None:
    """Return a block that stores one element of one buffer as a stage, else None."""
    if not isinstance(block.body, tirx.BufferStore):
        return None
    spatial, reduction = [], []
    for iter_var in block.iter_vars:
        if not isinstance(iter_var.dom.extent, tirx.IntImm) or int(iter_var.dom.min) != 0:
            return None
        axis = Axis(iter_var.var, int(iter_var.dom.extent))
        if iter_var.iter_type == tirx.IterVar.CommReduce:
            reduction.append(axis)
        else:
            spatial.append(axis)
    store = block.body
    return Stage(
        name=str(block.name_hint),
        spatial=tuple(spatial),
        reduction=tuple(reduction),
        buffer=store.buffer,
        indices=tuple(store.indices),
        value=store.value,
        init=None if block.init is None else block.init.value,
    )


@dataclass(frozen=True, eq=False)
class PadStage:
    """A stage that copies `source` where its index is inside bounds and is `fill` elsewhere.

    Attributes:
        bounds: spatial axis position -> (first, end) of the indices that hold data.
    """

    stage: Stage
    source: TensorLoad
    fill: Expr
    bounds: dict[int, tuple[int, int]]


def read_pad(stage: Stage) -> PadStage | None:
    """Return the stage as a pad (a copy is one without bounds), or None if it is not one."""
    value = stage.value
    if isinstance(value, TensorLoad) and not stage.reduction:
        return PadStage(stage, value, tirx.const(0, dtype_of(value)), {})
    if getattr(getattr(value, "op", None), "name", "").endswith("if_then_else"):
        condition, inside, outside = value.args
    elif isinstance(value, tirx.Select):
        condition, inside, outside = value.condition, value.true_value, value.false_value
    else:
        return None
    if not isinstance(inside, TensorLoad) or not isinstance(outside, tirx.FloatImm | tirx.IntImm):
        return None
    bounds = {i: (0, axis.extent) for i, axis in enumerate(stage.spatial)}
    for term in conjuncts(condition):
        bound = _read_bound(term, stage.spatial)
        if bound is None:
            return None
        position, first, end = bound
        bounds[position] = (max(bounds[position][0], first), min(bounds[position][1], end))
    full = {i: (0, axis.extent) for i, axis in enumerate(stage.spatial)}
    return PadStage(stage, inside, outside, {i: b for i, b in bounds.items() if b != full[i]})


def _read_bound(term: Expr, axes: tuple[Axis, ...]) -> tuple[int, int, int] | None:
    """Read a comparison of one axis with a constant as (axis position, first, end)."""
    if not isinstance(term, tirx.LT | tirx.LE | tirx.GT | tirx.GE):
        return None
    variables = [axis.var for axis in axes]
    form = linear_form(term.a - term.b, variables, sym.Analyzer())
    if form is None or len(form.coefficients) != 1:
        return None
    ((variable, coefficient),) = form.coefficients.items()
    if abs(coefficient) != 1:
        return None
    position = next(i for i, var in enumerate(variables) if var.same_as(variable))
    # The comparison is coefficient * axis + constant (op) 0.
    upper = isinstance(term, tirx.LT | tirx.LE) == (coefficient == 1)
    strict = isinstance(term, tirx.LT | tirx.GT)
    limit = -form.constant * coefficient
    if upper:
        return position, 0, limit + (0 if strict else 1)
    return position, limit + (1 if strict else 0), axes[position].extent


@dataclass(frozen=True, eq=False)
class Access:
    """A load of the anchor as a flat offset: linear in the axes, `jo` and `lane`.

    The last spatial axis j is written as j = jo * lanes + lane; `offset.of(vector_var)` is the
    coefficient of jo.
    """

    load: TensorLoad
    buffer: Any
    offset: Linear
    vector: int
    pad: PadStage | None = None


@dataclass(frozen=True, eq=False)
class Anchor:
    """The reduction that a kernel is built around, and what each of its axes does.

    The last spatial axis is the vector axis: `lanes` neighbouring outputs are one vector.

    Attributes:
        combine: how a term joins the accumulator: "add", "max" or "min".
        term: what joins it, an expression over the loads of `accesses`.
        accesses: the loads of the term, in the order of `loads_in`.
        rows: positions of spatial axes that only the data has (tile rows).
        columns: positions of spatial axes that only the weight has, and the vector axis.
        batch: positions of all other spatial axes.
        lanes: elements in one vector.
    """

    stage: Stage
    combine: str
    term: Expr
    accesses: tuple[Access, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    batch: tuple[int, ...]
    lanes: int
    kind: Kind

    @property
    def vector_axis(self) -> Axis:
        """The axis whose neighbours form a vector."""
        return self.stage.spatial[-1]

    @property
    def depth(self) -> int:
        """Steps of the whole reduction."""
        return prod(axis.extent for axis in self.stage.reduction)

    @property
    def reduces_one_axis(self) -> bool:
        """Whether no more than one axis of the reduction is longer than a step."""
        return self.depth == max(axis.extent for axis in self.stage.reduction)

    @property
    def dtype(self) -> str:
        """Dtype of the accumulators."""
        return str(self.stage.buffer.dtype)


def split_update(stage: Stage) -> tuple[str, Expr] | None:
    """Return (combiner, term) of a reduction `out = combine(out, term)`, or None."""
    combine = _COMBINERS.get(type(stage.value))
    if combine is None or not stage.reduction or stage.init is None:
        return None
    left, right = stage.value.a, stage.value.b
    if _is_self(right, stage):
        left, right = right, left
    return (combine, right) if _is_self(left, stage) else None


def _is_self(expr: Expr, stage: Stage) -> bool:
    return isinstance(expr, TensorLoad) and expr.source.same_as(stage.buffer)


def find_anchor(stages: tuple[Stage, ...], max_lanes: int) -> Anchor | None:
    """Return the anchor of a function that is a contraction or a window, else None.

    Args:
        stages: the blocks of the function.
        max_lanes: 32-bit elements that one vector register holds.
    """
    reductions = [stage for stage in stages if stage.reduction]
    if len(reductions) != 1:
        return None
    stage = split_grouped_axes(reductions[0])
    update = split_update(stage)
    if update is None or not stage.spatial or not _is_product(update[1]):
        return None
    pads = {s.buffer: read_pad(s) for s in stages if not s.reduction}
    lanes = max(1, max_lanes * 32 // max(32, DataType(stage.buffer.dtype).bits))
    lanes = min(lanes, stage.spatial[-1].extent)
    accesses = []
    for load in loads_in(update[1]):
        access = _read_access(load, stage, lanes, pads.get(load.source))
        if access is None:
            return None
        accesses.append(access)
    return _assign_roles(stage, update, tuple(accesses), lanes)


def split_grouped_axes(stage: Stage, include_last: bool = False) -> Stage:
    """Split spatial axes v that loads use as v // c (groups), so that all offsets are linear.

    The vector axis, which is the last, stays whole unless asked for; it is cut into vectors anyway.
    """
    for position, axis in enumerate(stage.spatial if include_last else stage.spatial[:-1]):
        group = _divisor(stage.value, axis.var)
        if group is None or axis.extent % group or not 1 < group < axis.extent:
            continue
        outer = Axis(tirx.Var(f"{axis.name}_group", dtype_of(axis.var)), axis.extent // group)
        inner = Axis(tirx.Var(f"{axis.name}_member", dtype_of(axis.var)), group)
        at = {axis.var: outer.var * group + inner.var}
        analyzer = sym.Analyzer()
        for new in (*stage.axes, outer, inner):
            analyzer.bind(new.var, range_from_zero(new.extent))

        def simpler(expr: Expr, at: dict = at, analyzer: sym.Analyzer = analyzer) -> Expr:
            return _simplify_indices(substitute(expr, at), analyzer)

        return split_grouped_axes(
            Stage(
                stage.name,
                (*stage.spatial[:position], outer, inner, *stage.spatial[position + 1 :]),
                stage.reduction,
                stage.buffer,
                tuple(simpler(index) for index in stage.indices),
                simpler(stage.value),
                stage.init,
            ),
            include_last,
        )
    return stage


def _divisor(expr: Expr, variable: Any) -> int | None:
    """Return c if `variable // c` occurs in an expression."""
    if isinstance(expr, tirx.FloorDiv) and isinstance(expr.b, tirx.IntImm):
        form = linear_form(expr.a, [variable], sym.Analyzer())
        if form is not None and form.of(variable) == 1 and len(form.coefficients) == 1:
            return int(expr.b)
    for part in children(expr):
        found = _divisor(part, variable)
        if found is not None:
            return found
    return None


def _simplify_indices(expr: Expr, analyzer: sym.Analyzer) -> Expr:
    def leaf(node: Expr) -> Expr | None:
        if not isinstance(node, TensorLoad):
            return None
        return tirx.BufferLoad(node.source, [analyzer.simplify(i) for i in node.indices])

    return rebuild(expr, leaf) if loads_in(expr) else analyzer.simplify(expr)


def _is_product(term: Expr) -> bool:
    """Tell whether a term is a load, or a product of two loads, up to casts and bounds."""
    term = without_range(term)
    if isinstance(term, tirx.Mul):
        return _is_product(term.a) and _is_product(term.b) and len(loads_in(term)) == 2
    return isinstance(term, TensorLoad)


def _read_access(load: TensorLoad, stage: Stage, lanes: int, pad: PadStage | None) -> Access | None:
    vector = stage.spatial[-1].var
    lane = tirx.Var("lane", dtype_of(vector))
    analyzer = sym.Analyzer()
    for axis in stage.axes:
        analyzer.bind(axis.var, range_from_zero(axis.extent))
    analyzer.bind(lane, range_from_zero(lanes), True)
    analyzer.bind(vector, range_from_zero(-(-stage.spatial[-1].extent // lanes)), True)
    flat = substitute(flat_index(load.source, load.indices), {vector: vector * lanes + lane})
    variables = [axis.var for axis in stage.axes]
    offset = linear_form(flat, [*variables, lane], analyzer)
    if offset is None:
        return None
    return Access(load, load.source, offset, offset.of(lane), pad)


def _assign_roles(
    stage: Stage, update: tuple[str, Expr], accesses: tuple[Access, ...], lanes: int
) -> Anchor | None:
    if _mixes_packed(stage, accesses, lanes):
        return None
    vectors = [access for access in accesses if access.vector]
    others = [access for access in accesses if not access.vector]
    weight: Access | None
    if len(vectors) == 1 and len(others) == 1 and _is_depthwise(vectors[0], others[0], stage):
        kind: Kind = "window"
        data, weight = vectors[0], others[0]
    elif len(vectors) == 1 and len(others) == 1:
        kind = "contraction"
        data, weight = others[0], vectors[0]
    elif not others and (len(accesses) == 2 or _slides(accesses[0], stage)):
        kind = "window"
        data = max(accesses, key=lambda access: len(access.offset.coefficients))
        weight = next((access for access in accesses if access is not data), None)
    else:
        return None
    rows, columns, batch = [], [], []
    last = len(stage.spatial) - 1
    for position, axis in enumerate(stage.spatial):
        in_data = axis.var in data.offset.coefficients
        in_weight = weight is not None and axis.var in weight.offset.coefficients
        if position == last or (in_weight and not in_data):
            columns.append(position)
        elif in_data and not in_weight:
            rows.append(position)
        else:
            batch.append(position)
    return Anchor(stage, *update, accesses, tuple(rows), tuple(columns), tuple(batch), lanes, kind)


def _is_depthwise(image: Access, filter_: Access, stage: Stage) -> bool:
    """Tell whether each plane of an image is multiplied by a small filter of its own."""
    if str(stage.buffer.dtype) != "float32" or read_planar(image, stage) is None:
        return False
    axes = [axis.var for axis in stage.spatial[:-1] if axis.extent > 1]
    mine, others = image.offset.coefficients, filter_.offset.coefficients
    return all(var in mine for var in axes) and any(var in others for var in axes)


def _mixes_packed(stage: Stage, accesses: tuple[Access, ...], lanes: int) -> bool:
    """Tell whether a partial last vector is packed in one operand and not in another.

    The packed one holds a whole vector, of the other one would read too far or has to be moved.
    """
    axis = stage.spatial[-1]
    packed = {a.offset.of(axis.var) != a.vector * lanes for a in accesses if a.vector}
    return axis.extent % lanes != 0 and len(packed) > 1


def _slides(access: Access, stage: Stage) -> bool:
    """Tell whether some index of a load mixes a spatial and a reduction axis (a window)."""
    spatial = [axis.var for axis in stage.spatial]
    reduction = [axis.var for axis in stage.reduction]
    for index in access.load.indices:
        form = linear_form(index, spatial + reduction, sym.Analyzer())
        if form is None:
            continue
        if any(v in form.coefficients for v in spatial) and any(
            v in form.coefficients for v in reduction
        ):
            return True
    return False


def classify(func: tirx.PrimFunc, max_lanes: int = 16) -> Kind:
    """Return the class of operator that decides which scheduler handles a function."""
    stages = read_stages(func)
    if stages is None:
        return "reduction" if _has_reduction(func) else "elementwise"
    anchor = find_anchor(stages, max_lanes)
    if anchor is not None:
        return anchor.kind
    return "reduction" if any(stage.reduction for stage in stages) else "elementwise"


def _has_reduction(func: tirx.PrimFunc) -> bool:
    body = func.body
    if not hasattr(body, "block"):
        return False
    root = body.block.body
    for nest in root.seq if isinstance(root, tirx.SeqStmt) else (root,):
        inner = nest
        while isinstance(inner, tirx.For):
            inner = inner.body
        if hasattr(inner, "block") and inner.block.init is not None:
            return True
    return False


def inline_loads(expr: Expr, producers: dict[Any, Stage]) -> Expr:
    """Replace loads of buffers that `producers` compute by what they compute."""

    def leaf(node: Expr) -> Expr | None:
        if not isinstance(node, TensorLoad) or node.source not in producers:
            return None
        stage = producers[node.source]
        indices = [inline_loads(index, producers) for index in node.indices]
        # A stage that computes a scalar has one axis of extent 1 all the same.
        indices += [tirx.const(0, "int64")] * (len(stage.spatial) - len(indices))
        values = dict(zip((axis.var for axis in stage.spatial), indices, strict=True))
        return inline_loads(substitute(stage.value, values), producers)

    return rebuild(expr, leaf)
