"""Choose one precision for every layer by an integer program (HAWQ-V3, arXiv 2011.10680).

    minimise    sum of cost[layer, option] * x[layer, option]
    subject to  sum over options of x[layer, option] = 1         for every layer
                sum of amount[layer, option] * x <= limit        for every limit
                x is 0 or 1

Errors, seconds and bytes of layers are taken to add up; the program is solved by HiGHS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.compiler.quantize.bit_plan import BitPlan, LayerBits
from tilewright.errors import ModelError

# Of what is minimised: how much the other two count, so that ties go to the better.
_TIE = 1e-4
# Limits are met up to rounding of sums.
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Choice:
    """One precision of one layer, and what it costs.

    Attributes:
        bits: the precision.
        error: that it adds to the output: squared error over squared sum.
        seconds: of the layer, what lies between it and the layer before included.
        size_bytes: of its weights and scales.
    """

    bits: LayerBits
    error: float
    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a plan costs: the sums of its choices."""

    error: float
    seconds: float
    size_bytes: int


Choices = Mapping[str, Sequence[Choice]]
QUANTITIES = ("error", "seconds", "size_bytes")


def totals(choices: Choices, plan: BitPlan) -> Totals:
    """Return the sums of a plan's choices."""
    picked = [
        next(choice for choice in choices[name] if choice.bits == bits)
        for name, bits in plan.layers
    ]
    return Totals(
        sum(choice.error for choice in picked),
        sum(choice.seconds for choice in picked),
        sum(choice.size_bytes for choice in picked),
    )


def least(choices: Choices, quantity: str) -> float:
    """Return the least total of a quantity that any plan has."""
    return float(sum(min(getattr(c, quantity) for c in options) for options in choices.values()))


def solve(choices: Choices, minimise: str, limits: Mapping[str, float]) -> BitPlan | None:
    """Return the plan with the least total of one quantity within limits of the others.

    Args:
        choices: for every layer, in order.
        minimise: one of `QUANTITIES`.
        limits: quantity -> greatest total.

    Returns:
        The plan, or None where no plan keeps the limits.

    Raises:
        ModelError: the solver gives up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    flat = [(name, choice) for name, options in choices.items() for choice in options]
    values = {q: np.array([float(getattr(c, q)) for _, c in flat]) for q in QUANTITIES}
    names = list(choices)
    rows = np.array([names.index(name) for name, _ in flat])
    once = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))), (len(names), len(flat)))
    constraints = [LinearConstraint(once, 1, 1)]
    for quantity, limit in limits.items():
        # In units of the limit: HiGHS works with absolute tolerances.
        unit = max(abs(limit), float(values[quantity].max(initial=0)), 1e-300)
        row = (values[quantity] / unit)[np.newaxis]
        constraints.append(LinearConstraint(row, -np.inf, limit / unit + _SLACK))
    cost = sum(
        (1.0 if quantity == minimise else _TIE) * array / _scale(array, len(names))
        for quantity, array in values.items()
    )
    found = milp(
        cost,
        constraints=constraints,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.status == 2:  # infeasible
        return None
    if found.x is None:
        raise ModelError(
            f"the integer program of {len(names)} layers was not solved: {found.message}"
        )
    picked = {flat[i][0]: flat[i][1].bits for i in np.flatnonzero(found.x > 0.5)}
    return BitPlan(tuple((name, picked[name]) for name in names))


def _scale(array: np.ndarray, layers: int) -> float:
    """Return what makes a plan's total about 1."""
    return max(float(array.mean()) * layers, 1e-300)
