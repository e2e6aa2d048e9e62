"""Which layouts an operator can work in, and what each would cost.

An operator's class decides: a convolution reads and writes channel-blocked images and gets its
weights packed to match; a matrix product gets packed weights; pooling, element-wise operators and
concatenations work in the layout of what they read. Costs are analytical estimates (bytes over
bandwidth, arithmetic over peak times the share of peak that such a kernel reaches), in seconds;
measured times replace them where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from tvm import tirx
from tvm.tirx import PrimFunc

from tilewright.compiler.access import (
    BlockAccess,
    Load,
    blocks,
    find_contraction,
    shape_of,
    variables,
)
from tilewright.compiler.layout.primitives import (
    Layout,
    Pad,
    Primitive,
    Reorder,
    Split,
    blocked,
)
from tilewright.compiler.targets import Target

CHANNEL = 1
"""Dimension of the channels in an ONNX image tensor [N, C, ...spatial]."""

# Estimates for one core; only their ratios matter for choosing.
_BANDWIDTH_BYTES_S = 20e9
_CLOCK_HZ = 3e9

# Share of the FMA peak by kind of kernel, from benchmarks on the reference machine.
_BLOCKED_SHARE = 0.8
_FEW_CHANNELS_SHARE = 0.5
_LOGICAL_SHARE = 0.1
# How many times longer a kernel takes that reads or writes with a stride instead of in vectors.
_STRIDED_PENALTY = 4.0


@dataclass(frozen=True)
class Choice:
    """One way to lay out an operator's tensors.

    Attributes:
        name: for people, as in "B -> B".
        layouts: one per parameter of the PrimFunc, constants included.
        seconds: estimated or measured time of the operator.
    """

    name: str
    layouts: tuple[Layout, ...]
    seconds: float


@dataclass(frozen=True)
class Operator:
    """What choosing needs to know of one fused operator.

    Attributes:
        func: the PrimFunc on logical shapes.
        constants: positions of the parameters that are constants.
        images: positions of the parameters that are [N, C, ...spatial] tensors of a convolutional
            part of the graph.
    """

    func: PrimFunc
    constants: frozenset[int]
    images: frozenset[int]
    n_outputs: int = 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(shape_of(param) for param in self.func.params)

    @property
    def output(self) -> int:
        """Position of the first output among the parameters."""
        return len(self.func.params) - self.n_outputs


def image_layout(shape: tuple[int, ...], target: Target, dtype: str = "float32") -> Layout | None:
    """Return the channel-blocked layout of an image, or None where blocking cannot pay."""
    lanes = target.lanes(dtype)
    if not 3 <= len(shape) <= 5 or prod(shape[2:]) == 1 or 2 * shape[CHANNEL] < lanes:
        return None
    return blocked(shape, CHANNEL, lanes)


def packed_weight(
    shape: tuple[int, ...],
    column: int,
    lanes: int,
    reduction: int | None = None,
    block: int = 1,
    batches: int = 0,
) -> Layout:
    """Return weights with `lanes` output columns innermost.

    [batches.., column / lanes, reduction / block, rest.., block, lanes]; extents that do not divide
    are padded.

    Args:
        shape: logical shape of the weights.
        column: dimension of the output columns (O of OIHW, N of KN).
        reduction: dimension that is split to match the data's channel blocks, if any.
        block: size of those blocks.
        batches: how many leading dimensions stay in front.
    """
    factors = {column: lanes} if reduction is None else {column: lanes, reduction: block}
    padding = [(dim, -shape[dim] % factor) for dim, factor in factors.items()]
    steps: list[Primitive] = [Pad(dim, 0, after) for dim, after in padding if after]
    # Split from the right, so that dimensions further left keep their numbers.
    for dim in sorted(factors, reverse=True):
        steps.append(Split(dim, (-(-shape[dim] // factors[dim]), factors[dim])))

    def place(dim: int) -> int:
        return dim + sum(1 for split in factors if split < dim)

    rest = [dim for dim in range(batches, len(shape)) if dim not in factors]
    outer = [column] if reduction is None else [column, reduction]
    perm = [place(dim) for dim in [*range(batches), *outer, *rest]]
    perm += [place(dim) + 1 for dim in reversed(outer)]
    return Layout(shape, (*steps, Reorder(tuple(perm))))


def operator_choices(operator: Operator, target: Target) -> tuple[Choice, ...]:
    """Return the layouts that the operator can work in; the first is always all-logical."""
    accesses = blocks(operator.func)
    anchor = find_contraction(accesses)
    if anchor is not None:
        found = _contraction_choices(operator, accesses, anchor, target)
    elif any(access.reduction for access in accesses):
        found = _reduction_choices(operator, accesses, target)
    else:
        found = _injective_choices(operator, accesses, target)
    unique: dict[tuple[Layout, ...], Choice] = {}
    for choice in found:
        unique.setdefault(choice.layouts, choice)
    return tuple(unique.values())


def _identity(operator: Operator) -> list[Layout]:
    return [Layout(shape) for shape in operator.shapes]


def _moved_bytes(operator: Operator, layouts: Sequence[Layout]) -> int:
    params = operator.func.params
    return sum(
        layout.size_bytes(str(param.ty.dtype))
        for layout, param in zip(layouts, params, strict=True)
    )


def _seconds(
    operator: Operator, layouts: Sequence[Layout], target: Target, macs: int, share: float
) -> float:
    peak = 4 * target.lanes("float32") * _CLOCK_HZ
    return 2 * macs / (peak * share) + _moved_bytes(operator, layouts) / _BANDWIDTH_BYTES_S


def source_param(
    operator_func: PrimFunc, accesses: Sequence[BlockAccess], buffer: tirx.Var
) -> int | None:
    """Return the parameter that `buffer` is, or is made from by blocks with one input."""
    params = list(operator_func.params)
    for _ in range(len(accesses) + 1):
        for position, param in enumerate(params):
            if param.same_as(buffer):
                return position
        makers = [a for a in accesses if a.output.same_as(buffer)]
        if len(makers) != 1 or len(makers[0].loads) != 1:
            return None
        buffer = makers[0].loads[0].buffer
    return None


def _is_var(expr: tirx.Expr, var: tirx.Var) -> bool:
    return isinstance(expr, tirx.Var) and expr.same_as(var)


@dataclass(frozen=True)
class _Product:
    """A contraction's operands: positions of data and weight, and their loads."""

    data: int | None
    weight: int | None
    data_load: Load
    weight_load: Load


def _operands(operator: Operator, accesses: Sequence[BlockAccess], anchor: BlockAccess) -> _Product:
    first, second = anchor.loads
    positions = [source_param(operator.func, accesses, load.buffer) for load in (first, second)]
    if positions[0] in operator.constants and positions[1] not in operator.constants:
        return _Product(positions[1], positions[0], second, first)
    return _Product(positions[0], positions[1], first, second)


def _contraction_choices(
    operator: Operator,
    accesses: Sequence[BlockAccess],
    anchor: BlockAccess,
    target: Target,
) -> list[Choice]:
    operands = _operands(operator, accesses, anchor)
    in_data, in_weight = operands.data_load.variables(), operands.weight_load.variables()
    columns = [v for v in anchor.spatial if v in in_weight and v not in in_data]
    shared = [v for v in anchor.spatial if v in in_weight and v in in_data]
    logical = _identity(operator)
    plain = Choice(
        "L", tuple(logical), _seconds(operator, logical, target, anchor.points, _LOGICAL_SHARE)
    )
    if operands.weight is None or operands.weight not in operator.constants:
        return [plain]
    out_shape = operator.shapes[operator.output]
    if _is_convolution(operator, anchor, operands, columns) and prod(out_shape[2:]) > 1:
        if len(columns) == 1 and not shared:
            return [plain, *_convolution_choices(operator, anchor, operands, columns[0], target)]
        if not columns:
            return [plain, *_grouped_choices(operator, anchor, operands, target)]
        return [plain]
    if len(columns) == 1:
        return [plain, *_matmul_choices(operator, anchor, operands, columns[0], target)]
    return [plain]


def _is_convolution(
    operator: Operator, anchor: BlockAccess, operands: _Product, columns: list[tirx.Var]
) -> bool:
    """Tell a convolution, whose columns are channels, from a product with stacked matrices."""
    if operands.data is None or operands.weight is None:
        return False
    rank = len(anchor.index)
    if rank < 3 or len(operator.shapes[operands.weight]) != rank:
        return False
    return not columns or (len(columns) == 1 and _is_var(anchor.index[CHANNEL], columns[0]))


def _dim_indexed_by(load: Load, var: tirx.Var) -> int | None:
    dims = [dim for dim, index in enumerate(load.indices) if _is_var(index, var)]
    return dims[0] if len(dims) == 1 and load.dims_of(var) == dims else None


def _channel_reduction(anchor: BlockAccess, operands: _Product) -> int | None:
    """Return the weights' dimension that is summed along the data's channels."""
    channel = variables(operands.data_load.indices[CHANNEL])
    for var in anchor.reduction:
        if var in channel:
            return _dim_indexed_by(operands.weight_load, var)
    return None


def _matmul_choices(
    operator: Operator,
    anchor: BlockAccess,
    operands: _Product,
    column: tirx.Var,
    target: Target,
) -> list[Choice]:
    lanes = target.lanes("float32")
    dim = _dim_indexed_by(operands.weight_load, column)
    assert operands.weight is not None
    if dim is None or anchor.extents[column] < lanes:
        return []
    layouts = _identity(operator)
    shape = operator.shapes[operands.weight]
    layouts[operands.weight] = packed_weight(
        shape, dim, lanes, batches=_leading_batches(shape, dim)
    )
    return [
        Choice(
            "W", tuple(layouts), _seconds(operator, layouts, target, anchor.points, _BLOCKED_SHARE)
        )
    ]


def _leading_batches(shape: tuple[int, ...], column: int) -> int:
    """Count the batch dimensions of a matrix product's right operand [.., K, N]."""
    return len(shape) - 2 if column == len(shape) - 1 else 0


def _convolution_choices(
    operator: Operator,
    anchor: BlockAccess,
    operands: _Product,
    column: tirx.Var,
    target: Target,
) -> list[Choice]:
    lanes = target.lanes("float32")
    dim = _dim_indexed_by(operands.weight_load, column)
    reduction = _channel_reduction(anchor, operands)
    out_layout = image_layout(operator.shapes[operator.output], target)
    assert operands.weight is not None
    assert operands.data is not None
    if dim is None or reduction is None or out_layout is None:
        return []
    weight_shape = operator.shapes[operands.weight]
    data_layout = image_layout(operator.shapes[operands.data], target)
    found = []
    for data, block, share in (
        (data_layout, lanes, _BLOCKED_SHARE),
        (Layout(operator.shapes[operands.data]), None, _FEW_CHANNELS_SHARE),
    ):
        if data is None:
            continue
        layouts = _epilogue_layouts(operator, out_layout, skip={operands.data, operands.weight})
        layouts[operands.data] = data
        layouts[operands.weight] = (
            packed_weight(weight_shape, dim, lanes)
            if block is None
            else packed_weight(weight_shape, dim, lanes, reduction, block)
        )
        waste = prod(layouts[operands.weight].physical_shape) / prod(weight_shape)
        name = "L -> B" if block is None else "B -> B"
        macs = int(anchor.points * waste)
        seconds = _seconds(operator, layouts, target, macs, share)
        found.append(Choice(name, tuple(layouts), seconds))
    return found


def _grouped_choices(
    operator: Operator, anchor: BlockAccess, operands: _Product, target: Target
) -> list[Choice]:
    """Depthwise: everything blocked by lanes; other groups: by what divides a group's channels."""
    assert operands.weight is not None
    assert operands.data is not None
    data_shape, weight_shape = operator.shapes[operands.data], operator.shapes[operands.weight]
    out_shape = operator.shapes[operator.output]
    if data_shape[CHANNEL] == out_shape[CHANNEL] == weight_shape[0] and weight_shape[1] == 1:
        data, out = image_layout(data_shape, target), image_layout(out_shape, target)
        if data is None or out is None:
            return []
        weight = blocked(weight_shape, 0, target.lanes("float32"))
        share = _BLOCKED_SHARE / 2
    else:
        groups = data_shape[CHANNEL] // weight_shape[1]
        block = _common_block(weight_shape[1], out_shape[CHANNEL] // groups, target)
        if block is None:
            return []
        data, out = blocked(data_shape, CHANNEL, block), blocked(out_shape, CHANNEL, block)
        weight = packed_weight(weight_shape, 0, block, 1, block)
        share = _BLOCKED_SHARE * block / target.lanes("float32")
    layouts = _epilogue_layouts(operator, out, skip={operands.data, operands.weight})
    layouts[operands.data], layouts[operands.weight] = data, weight
    seconds = _seconds(operator, layouts, target, anchor.points, share)
    return [Choice("B -> B", tuple(layouts), seconds)]


def _common_block(inputs: int, outputs: int, target: Target) -> int | None:
    block = target.lanes("float32")
    while block >= 4:
        if inputs % block == 0 and outputs % block == 0:
            return block
        block //= 2
    return None


def _epilogue_layouts(operator: Operator, out: Layout, skip: set[int]) -> list[Layout]:
    """Return layouts in which every operand that is aligned with the output follows it."""
    layouts = _identity(operator)
    for position, shape in enumerate(operator.shapes):
        if position not in skip:
            layouts[position] = _follow(operator, position, shape, out)
    return layouts


def _block_of(layout: Layout) -> int:
    """Return the channel block of an image layout."""
    return layout.physical_shape[-1]


def _follow(operator: Operator, position: int, shape: tuple[int, ...], out: Layout) -> Layout:
    if shape == out.shape:
        return out
    channel = CHANNEL - (len(out.shape) - len(shape))
    if not 0 <= channel < len(shape) or shape[channel] != out.shape[CHANNEL]:
        return Layout(shape)
    if position in operator.constants or prod(shape[channel + 1 :]) > 1:
        return blocked(shape, channel, _block_of(out))
    return Layout(shape)


def _reduction_choices(
    operator: Operator, accesses: Sequence[BlockAccess], target: Target
) -> list[Choice]:
    """Pooling and sums over the spatial dimensions keep the channels, so blocks stay whole."""
    logical = _identity(operator)
    points = max(access.points for access in accesses)
    plain = Choice("L", tuple(logical), _seconds(operator, logical, target, points, _LOGICAL_SHARE))
    if not operator.images or any(
        not _keeps_channels(access, operator.shapes[operator.output]) for access in accesses
    ):
        return [plain]
    layouts = _identity(operator)
    for position in operator.images:
        layout = image_layout(operator.shapes[position], target)
        if layout is not None:
            layouts[position] = layout
    seconds = _seconds(operator, layouts, target, points, _BLOCKED_SHARE / 2)
    return [plain, Choice("B -> B", tuple(layouts), seconds)]


def _keeps_channels(access: BlockAccess, out_shape: tuple[int, ...]) -> bool:
    """Say whether the block reads channel c of everything to make channel c of its output."""
    if len(access.index) <= CHANNEL:
        return False
    var = access.index[CHANNEL]
    if not isinstance(var, tirx.Var):
        return False
    return all(
        len(load.indices) != len(out_shape)
        or _is_var(load.indices[CHANNEL], var)
        or shape_of(load.buffer)[CHANNEL] == 1
        for load in access.loads
    )


def _injective_choices(
    operator: Operator, accesses: Sequence[BlockAccess], target: Target
) -> list[Choice]:
    logical = _identity(operator)
    plain_seconds = _moved_bytes(operator, logical) / _BANDWIDTH_BYTES_S
    found = [Choice("L", tuple(logical), plain_seconds)]
    if not operator.images:
        return found
    aligned = all(_keeps_channels(access, operator.shapes[operator.output]) for access in accesses)
    inputs = [p for p in operator.images if p < operator.output]
    outputs = [p for p in operator.images if p >= operator.output]
    for in_blocked, out_blocked in product((False, True), repeat=2):
        layouts = _injective_layouts(operator, inputs, outputs, in_blocked, out_blocked, target)
        mixed = in_blocked != out_blocked or not aligned
        penalty = _STRIDED_PENALTY if mixed and (in_blocked or out_blocked) else 1.0
        if not aligned and in_blocked and out_blocked and _blocks_divide(operator, layouts):
            penalty = 1.0  # a concatenation or slice of whole blocks, a resize
        seconds = penalty * _moved_bytes(operator, layouts) / _BANDWIDTH_BYTES_S
        name = f"{'B' if in_blocked else 'L'} -> {'B' if out_blocked else 'L'}"
        found.append(Choice(name, tuple(layouts), seconds))
    return found


def _injective_layouts(
    operator: Operator,
    inputs: Sequence[int],
    outputs: Sequence[int],
    in_blocked: bool,
    out_blocked: bool,
    target: Target,
) -> list[Layout]:
    layouts = _identity(operator)
    for positions, wanted in ((inputs, in_blocked), (outputs, out_blocked)):
        for position in positions if wanted else ():
            layout = image_layout(operator.shapes[position], target)
            if layout is not None:
                layouts[position] = layout
    out = layouts[operator.output]
    if out.primitives:
        for position in operator.constants:
            layouts[position] = _follow(operator, position, operator.shapes[position], out)
    return layouts


def _blocks_divide(operator: Operator, layouts: Sequence[Layout]) -> bool:
    return all(
        not layout.primitives or layout.shape[CHANNEL] % _block_of(layout) == 0
        for position, layout in enumerate(layouts)
        if position not in operator.constants
    )


def conversion_seconds(shape: tuple[int, ...], dtype: str) -> float:
    """Estimate the time of copying a tensor from one layout to another."""
    moved = 2 * prod(shape) * np.dtype(dtype).itemsize
    return 2 * moved / _BANDWIDTH_BYTES_S + 1e-6
