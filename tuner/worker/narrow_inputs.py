"""Inputs of contractions as a model's graph would pass them: within the ranges that it says."""

from __future__ import annotations

import numpy as np

from tilewright.compiler.access import blocks, find_contraction
from tilewright.compiler.layout.contraction_choices import source_param
from tilewright.compiler.layout.integer_choices import is_integer
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.schedule.analysis import read_stages
from tilewright.compiler.schedule.low_bit import read_low_bit
from tilewright.compiler.schedule.weight_only import find_weight_only
from tilewright.compiler.weight_only import with_plain_heads


def narrowed(operator: Operator, position: int, array: np.ndarray) -> np.ndarray:
    """Return an array within the range that an operator's contraction says its parameter has.

    Args:
        operator: what is computed.
        position: of the parameter.
        array: any values of its dtype.
    """
    if array.dtype == np.int32 and array.ndim == 4:
        weight_only = find_weight_only(read_stages(operator.func) or ())
        return array if weight_only is None else with_plain_heads(weight_only.words, array)
    accesses = blocks(operator.func)
    anchor = find_contraction(accesses)
    if anchor is None or array.dtype not in (np.uint8, np.int8):
        return array
    load = next(
        (o for o in anchor.loads if source_param(operator.func, accesses, o.buffer) == position),
        None,
    )
    others = [o for o in anchor.loads if o is not load]
    if load is None or len(others) != 1:
        return array
    is_weight = array.dtype == np.int8
    data, weight = (others[0], load) if is_weight else (load, others[0])
    if not is_integer(anchor, data, weight):
        return array
    low_bit = read_low_bit(anchor.value.b)
    if not is_weight:
        return array & np.uint8(low_bit.mask)
    if low_bit.is_sign:
        return np.where(array > 0, low_bit.high, low_bit.low).astype(np.int8)
    return np.clip(array, low_bit.low, low_bit.high).astype(np.int8)
