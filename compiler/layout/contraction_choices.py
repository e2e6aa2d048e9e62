"""Layout choices of convolutions and matrix products: images by format, weights packed to match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from tvm import sym, tirx
from tvm.tirx import PrimFunc

from tilewright.compiler.access import BlockAccess, Load, variables
from tilewright.compiler.layout import costs
from tilewright.compiler.layout.formats import (
    CHANNEL,
    FORMATS,
    follow,
    image_layout,
    is_image_shape,
    packed_weight,
)
from tilewright.compiler.layout.integer_choices import channels_last, grouped_weight, is_integer
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.layout.primitives import Layout, Reorder, blocked
from tilewright.compiler.schedule.dot_groups import (
    dot_group,
    dot_groups,
    dot_lanes,
    packing_instructions,
    products_in_a_cell,
    weight_share,
)
from tilewright.compiler.schedule.expressions import linear_form
from tilewright.compiler.schedule.low_bit import read_low_bit
from tilewright.compiler.targets import Target

# Of weights whose windows walk over planes.
_PLANAR_RANK = 4
# Vectors in a row of an image, from which on planes waste little of the last one.
_LONG_ROW = 3
# Steps of a depthwise window along a row whose pixels can be brought side by side.
_SIDE_BY_SIDE = (1, 2)


@dataclass(frozen=True)
class _Product:
    """A contraction's operands: positions of data and weight, and their loads."""

    data: int | None
    weight: int | None
    data_load: Load
    weight_load: Load


def contraction_choices(
    operator: Operator, accesses: Sequence[BlockAccess], anchor: BlockAccess, target: Target
) -> list[Choice]:
    """Return the choices of an operator around the contraction `anchor`, all-logical first."""
    operands = _operands(operator, accesses, anchor)
    logical = operator.logical()
    columns = _columns(anchor, operands)
    share = _planar_share(operator, anchor, operands, columns, target)
    seconds = costs.seconds(operator, logical, target, anchor.points, share)
    plain = Choice("L", tuple(logical), seconds)
    if operands.weight is None or operands.weight not in operator.constants:
        return [plain]
    if len(columns) == 1 and is_integer(anchor, operands.data_load, operands.weight_load):
        return [plain, *_integer(operator, anchor, operands, columns[0], target)]
    if _is_convolution(operator, anchor, operands, columns):
        if columns:
            return [plain, *_dense(operator, anchor, operands, columns[0], target)]
        return [plain, *_grouped(operator, anchor, operands, target)]
    if len(columns) == 1:
        return [plain, *_matmul(operator, anchor, operands, columns[0], target)]
    return [plain]


def _planar_share(
    operator: Operator,
    anchor: BlockAccess,
    operands: _Product,
    columns: list[tirx.Var],
    target: Target,
) -> float:
    """Return the share of peak that the kernel on planes or plain matrices reaches."""
    if not _is_convolution(operator, anchor, operands, columns):
        return costs.PLANAR_SHARE
    assert operands.weight is not None
    out, weight = operator.shapes[operator.output], operator.shapes[operands.weight]
    if columns and _is_pointwise(operator, operands, target):
        return costs.PLANAR_STAGED_SHARE
    if columns:
        is_long = out[-1] >= _LONG_ROW * target.lanes("float32")
        is_window = len(weight) >= _PLANAR_RANK and min(weight[-2:]) > 1
        fast = is_long and is_window and _row_step(anchor, operands) == 1
        return costs.PLANAR_IMAGE_SHARE if fast else costs.PLANAR_SHARE
    wide = out[-1] >= target.lanes("float32")
    if weight[1] == 1:  # one step for each load: depthwise
        is_plane = len(weight) == _PLANAR_RANK and min(weight[2:]) > 1
        is_float = str(operands.data_load.buffer.dtype) == "float32"
        is_fast = wide and is_plane and is_float and _row_step(anchor, operands) in _SIDE_BY_SIDE
        return costs.PLANAR_DEPTHWISE_SHARE if is_fast else costs.PLANAR_WINDOW_SHARE
    return costs.PLANAR_GROUPED_SHARE if wide else costs.PLANAR_WINDOW_SHARE


def _row_step(anchor: BlockAccess, operands: _Product) -> int | None:
    """Return how many pixels lie between those that neighbouring outputs of a row read."""
    axes = [*anchor.spatial, *anchor.reduction]
    found = linear_form(operands.data_load.indices[-1], axes, sym.Analyzer())
    return None if found is None else found.of(anchor.index[-1])


def _is_pointwise(operator: Operator, operands: _Product, target: Target) -> bool:
    """Say whether a convolution multiplies whole vectors of pixels alone, as a matrix of planes."""
    assert operands.data is not None
    assert operands.weight is not None
    data, out = operator.shapes[operands.data], operator.shapes[operator.output]
    is_whole = out[-1] % target.lanes("float32") == 0 and data[2:] == out[2:]
    is_float = str(operands.data_load.buffer.dtype) == "float32"
    is_alone = prod(operator.shapes[operands.weight][2:]) == 1
    return is_whole and is_float and is_alone and not target.multiplies_by_lane


def _columns(anchor: BlockAccess, operands: _Product) -> list[tirx.Var]:
    in_data, in_weight = operands.data_load.variables(), operands.weight_load.variables()
    return [v for v in anchor.spatial if v in in_weight and v not in in_data]


def is_convolution(
    operator: Operator, accesses: Sequence[BlockAccess], anchor: BlockAccess
) -> bool:
    """Say whether the contraction is a convolution with constant weights."""
    operands = _operands(operator, accesses, anchor)
    columns = _columns(anchor, operands)
    return operands.weight in operator.constants and _is_convolution(
        operator, anchor, operands, columns
    )


def source_param(func: PrimFunc, accesses: Sequence[BlockAccess], buffer: tirx.Var) -> int | None:
    """Return the parameter that `buffer` is, or is made from by blocks with one input."""
    params = list(func.params)
    for _ in range(len(accesses) + 1):
        for position, param in enumerate(params):
            if param.same_as(buffer):
                return position
        makers = [access for access in accesses if access.output.same_as(buffer)]
        if len(makers) != 1 or len(makers[0].loads) != 1:
            return None
        buffer = makers[0].loads[0].buffer
    return None


def _operands(operator: Operator, accesses: Sequence[BlockAccess], anchor: BlockAccess) -> _Product:
    first, second = anchor.loads
    positions = [source_param(operator.func, accesses, load.buffer) for load in (first, second)]
    if positions[0] in operator.constants and positions[1] not in operator.constants:
        return _Product(positions[1], positions[0], second, first)
    return _Product(positions[0], positions[1], first, second)


def _is_var(expr: tirx.Expr, var: tirx.Var) -> bool:
    return isinstance(expr, tirx.Var) and expr.same_as(var)


def _is_convolution(
    operator: Operator, anchor: BlockAccess, operands: _Product, columns: list[tirx.Var]
) -> bool:
    """Tell a convolution on more than one pixel, whose columns are channels, from a product."""
    if operands.data is None or operands.weight is None:
        return False
    if not is_image_shape(operator.shapes[operator.output]):
        return False
    if len(operator.shapes[operands.weight]) != len(anchor.index):
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


def _matmul(
    operator: Operator, anchor: BlockAccess, operands: _Product, column: tirx.Var, target: Target
) -> list[Choice]:
    lanes = target.lanes("float32")
    dim = _dim_indexed_by(operands.weight_load, column)
    assert operands.weight is not None
    if dim is None or anchor.extents[column] < lanes:
        return []
    shape = operator.shapes[operands.weight]
    # The right operand of a stacked product is [.., K, N]: its stack stays in front.
    batches = len(shape) - 2 if dim == len(shape) - 1 else 0
    layouts = operator.logical()
    layouts[operands.weight] = packed_weight(shape, dim, lanes, batches=batches)
    seconds = costs.seconds(operator, layouts, target, anchor.points, costs.CONTRACTION_SHARE)
    return [Choice("packed", tuple(layouts), seconds)]


def _dense(
    operator: Operator, anchor: BlockAccess, operands: _Product, column: tirx.Var, target: Target
) -> list[Choice]:
    lanes = target.lanes("float32")
    dim, reduction = (
        _dim_indexed_by(operands.weight_load, column),
        _channel_reduction(anchor, operands),
    )
    assert operands.weight is not None
    assert operands.data is not None
    if dim is None or reduction is None:
        return []
    data_shape, weight_shape = operator.shapes[operands.data], operator.shapes[operands.weight]
    found = []
    for source, result in product(FORMATS, FORMATS[1:]):
        data = image_layout(data_shape, source, target)
        out = image_layout(operator.shapes[operator.output], result, target)
        if data is None or out is None:
            continue
        weight = (
            packed_weight(weight_shape, dim, lanes, reduction, lanes)
            if source == "B"
            else packed_weight(weight_shape, dim, lanes)
        )
        layouts = _around(operator, operands, data, weight, out)
        waste = prod(weight.physical_shape) / prod(weight_shape)
        share = _data_share(source, weight_shape)
        seconds = costs.seconds(operator, layouts, target, anchor.points * waste, share)
        found.append(Choice(f"{source} -> {result}", tuple(layouts), seconds))
    return found


def _data_share(source: str, weight_shape: tuple[int, ...]) -> float:
    if source == "L":
        return costs.PLANAR_DATA_SHARE
    is_window = prod(weight_shape[2:]) > 1
    return costs.WINDOWED_LAST_SHARE if source == "C" and is_window else costs.CONTRACTION_SHARE


def _integer(
    operator: Operator, anchor: BlockAccess, operands: _Product, column: tirx.Var, target: Target
) -> list[Choice]:
    """Bytes by the dot instructions: images channels last, matrices as they are."""
    assert operands.weight is not None
    assert operands.data is not None
    shape = operator.shapes[operands.weight]
    dim = _dim_indexed_by(operands.weight_load, column)
    is_image = _is_convolution(operator, anchor, operands, [column])
    data_shape = operator.shapes[operands.data]
    depth_dim = CHANNEL if is_image else len(data_shape) - 1
    in_depth = variables(operands.data_load.indices[depth_dim])
    reduction = next((v for v in anchor.reduction if v in in_depth), None)
    along = None if reduction is None else _dim_indexed_by(operands.weight_load, reduction)
    if dim is None or along is None:
        return []
    low_bit = read_low_bit(anchor.value.b)
    found = []
    dtype = str(operands.data_load.buffer.dtype)
    # The right operand of a stacked product is [.., K, N]: its stack stays in front.
    batches = len(shape) - 2 if not is_image and dim == len(shape) - 1 else 0
    products = prod(anchor.extents[axis] for axis in anchor.reduction)
    lanes = dot_lanes(target, anchor.extents[column])
    for group in dot_groups(target, data_shape[depth_dim], low_bit, dtype, products):
        usual = group == dot_group(target, data_shape[depth_dim])
        if data_shape[depth_dim] % group:
            continue
        if not usual and (products == group or not low_bit.is_narrow):
            continue
        if not usual and lanes < target.lanes("int32"):
            continue
        weight = grouped_weight(shape, dim, along, lanes, group, batches)
        if is_image:
            out = channels_last(operator.shapes[operator.output])
            layouts = _around(operator, operands, channels_last(data_shape), weight, out)
        else:
            layouts = operator.logical()
            layouts[operands.weight] = weight
        macs = anchor.points * prod(weight.physical_shape) / prod(shape)
        rows = anchor.points // products // anchor.extents[column]
        share = costs.CONTRACTION_SHARE * products_in_a_cell(target, group, low_bit, rows)
        cells = prod(data_shape) // group
        packing = packing_instructions(group, low_bit) * cells * target.lanes("int32") / 2
        seconds = costs.seconds(operator, layouts, target, macs + packing * share, share)
        unread = weight.size_bytes("int8") * (1 - weight_share(group, low_bit))
        seconds -= costs.read_seconds(unread)
        name = "C -> C" if is_image else "packed"
        name += "" if usual else f" by {group}"
        found.append(Choice(name, tuple(layouts), seconds))
    return found


def _grouped(
    operator: Operator, anchor: BlockAccess, operands: _Product, target: Target
) -> list[Choice]:
    """Depthwise: channels are vectors; other groups: blocked by what divides a group's channels."""
    assert operands.weight is not None
    assert operands.data is not None
    data_shape, weight_shape = operator.shapes[operands.data], operator.shapes[operands.weight]
    out_shape = operator.shapes[operator.output]
    if data_shape[CHANNEL] == out_shape[CHANNEL] == weight_shape[0] and weight_shape[1] == 1:
        return _depthwise(operator, anchor, operands, target)
    groups = data_shape[CHANNEL] // weight_shape[1]
    block = _common_block(weight_shape[1], out_shape[CHANNEL] // groups, target)
    if block is None:
        return []
    data, out = blocked(data_shape, CHANNEL, block), blocked(out_shape, CHANNEL, block)
    weight = packed_weight(weight_shape, 0, block, 1, block)
    layouts = _around(operator, operands, data, weight, out)
    share = costs.CONTRACTION_SHARE * block / target.lanes("float32")
    seconds = costs.seconds(operator, layouts, target, anchor.points, share)
    return [Choice("B -> B", tuple(layouts), seconds)]


def _depthwise(
    operator: Operator, anchor: BlockAccess, operands: _Product, target: Target
) -> list[Choice]:
    assert operands.weight is not None
    assert operands.data is not None
    shape = operator.shapes[operands.weight]
    weights = {
        "B": blocked(shape, 0, target.lanes("float32")),
        "C": Layout(shape, (Reorder((*range(1, len(shape)), 0)),)),
    }
    found = []
    for image_format, weight in weights.items():
        data = image_layout(operator.shapes[operands.data], image_format, target)
        out = image_layout(operator.shapes[operator.output], image_format, target)
        if data is None or out is None:
            continue
        layouts = _around(operator, operands, data, weight, out)
        waste = prod(out.physical_shape) / prod(out.shape)
        share = costs.WINDOW_SHARE if image_format == "B" else costs.WINDOW_LAST_SHARE
        seconds = costs.seconds(operator, layouts, target, anchor.points * waste, share)
        found.append(Choice(f"{image_format} -> {image_format}", tuple(layouts), seconds))
    return found


def _common_block(inputs: int, outputs: int, target: Target) -> int | None:
    block = target.lanes("float32")
    while block >= 4:
        if inputs % block == 0 and outputs % block == 0:
            return block
        block //= 2
    return None


def _around(
    operator: Operator, operands: _Product, data: Layout, weight: Layout, out: Layout
) -> list[Layout]:
    """Return the anchor's layouts with every operand of the epilogue following the output."""
    layouts = [
        follow(
            shape,
            out,
            is_constant=position in operator.constants,
            is_image=position in operator.images,
        )
        for position, shape in enumerate(operator.shapes)
    ]
    assert operands.data is not None
    assert operands.weight is not None
    layouts[operands.data], layouts[operands.weight] = data, weight
    return layouts
