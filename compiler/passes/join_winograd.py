"""Join the three kernels of a Winograd convolution into one where its image is large.

    V = winograd_input(x); M = matmul(V, U); y = winograd_output(M, ..)  ->  y = winograd(x, U, ..)

The joined kernel works strip by strip (`compiler/schedule/winograd_strips.py`); V and M then need
neither memory in the arena nor a way through it. Layouts were chosen for the three: this runs on
the program after them.

Preconditions: nobody else reads V and M, no layout conversion came between, the weights are packed
by vectors, and the strips are estimated to pay (see `strips_pay`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tvm import tirx
from tvm.tirx import PrimFunc

from tilewright.compiler.layout.operator import Choice
from tilewright.compiler.layout.propagation import DECISIONS_ATTRIBUTE, LayoutPlan
from tilewright.compiler.program import Call, Program
from tilewright.compiler.schedule.contraction import ContractionDecisions
from tilewright.compiler.schedule.expressions import shape_of
from tilewright.compiler.schedule.winograd import find_transform
from tilewright.compiler.schedule.winograd_strips import (
    StripShape,
    product_parameter,
    schedule_strips,
)
from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import INPUT_BLOCK
from tilewright.errors import InvalidScheduleError

# In multiples of the second cache level: the weights, which every strip reads again, and V with M.
_MOST_WEIGHTS = 3
_LEAST_PRODUCTS = 4
# Of its slices, as V and M of a strip then outgrow the second level.
_SLICE_SHARE = 0.25
# Of transformed images without and with a depth; there are more axes where there is a dilation.
_RANKS = (6, 7)
# How the labels of layout conversions begin; nothing was chosen for those.
_CONVERSION = "convert "

Chooser = Callable[[StripShape, Target], bool]


def strips_pay(shape: StripShape, target: Target) -> bool:
    """Say whether a convolution is estimated to run faster in strips.

    Measured on one core with 1 MiB of second level cache, time / time of three kernels: 64 channels
    of 224 x 224 0.70, 128 of 112 x 112 0.86, 64 of 56 x 56 (V and M 3.6 MB) 0.90 alone but 1.02 as
    part of ResNet-18, 128 of 28 x 28 1.03 (1.8 MB), 128 to 256 of 56 x 56 1.02 (weights 4.7 MB),
    256 of 56 x 56 1.09. Over a depth (AVX2, 512 KiB): 64 channels of 16 x 56 x 56 (weights 1.8 MB)
    0.94, 128 of 8 x 28 x 28 (7.1 MB) 1.11.
    """
    is_large = shape.product_bytes > _LEAST_PRODUCTS * target.l2_bytes
    # Over a depth, weights that were read serve all its slices.
    most = _MOST_WEIGHTS * max(1.0, shape.slices[1] * _SLICE_SHARE) * target.l2_bytes
    return is_large and shape.weight_bytes <= most


@dataclass(frozen=True)
class Joined:
    """A program with joined kernels.

    Attributes:
        program: with the joined kernels among the others.
        plan: the layout choices of its calls.
        kernels: the joined ones by name; they are scheduled already.
        parts: label of a joined call -> labels of the calls that it replaces.
    """

    program: Program
    plan: LayoutPlan
    kernels: dict[str, PrimFunc] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def join_winograd(
    program: Program, plan: LayoutPlan, target: Target, choose: Chooser = strips_pay
) -> Joined:
    """Join what can be joined.

    Args:
        program: after layout choice, its kernels not scheduled yet.
        plan: the layout choice of each of its calls, conversions left out.
        target: what to schedule for.
        choose: says by its sizes whether a convolution is to run in strips.
    """
    return _Joiner(program, plan, target, choose).run()


def _product_decisions(product: PrimFunc) -> ContractionDecisions | None:
    """Return the tuned decisions that a product carries, if they are those of a contraction."""
    text = product.attrs.get(DECISIONS_ATTRIBUTE) if product.attrs else None
    if text is None:
        return None
    try:
        return ContractionDecisions.from_json(str(text))
    except InvalidScheduleError:
        return None


@dataclass(frozen=True)
class _Convolution:
    """Positions of the three calls of a convolution, and of the product in the last one's."""

    first: int
    product: int
    last: int
    product_argument: int


class _Joiner:
    def __init__(self, program: Program, plan: LayoutPlan, target: Target, choose: Chooser) -> None:
        self.program, self.plan = program, plan
        self.target, self.choose = target, choose
        choices = iter(plan.choices)
        self.choices: dict[int, Choice] = {
            number: next(choices)
            for number, call in enumerate(program.calls)
            if not call.label.startswith(_CONVERSION)
        }
        self.joined: dict[str, PrimFunc] = {}
        self.names: dict[tuple[str, str, str], str] = {}
        self.readers: dict[int, list[int]] = {}
        for number, call in enumerate(program.calls):
            for tensor in dict.fromkeys(program.storage_of(t) for t in call.reads):
                self.readers.setdefault(tensor, []).append(number)
        for tensor in program.outputs:
            self.readers.setdefault(program.storage_of(tensor), []).append(-1)

    def run(self) -> Joined:
        dropped: set[int] = set()
        replaced: dict[int, Call] = {}
        parts: dict[str, tuple[str, ...]] = {}
        for number in range(len(self.program.calls)):
            found = self._find(number)
            if found is not None:
                replaced[found.last] = self._join(found)
                self.choices[found.last] = self._choice(found)
                dropped |= {found.first, found.product}
                three = (found.first, found.product, found.last)
                parts[replaced[found.last].label] = tuple(
                    self.program.calls[part].label for part in three
                )
        if not replaced:
            return Joined(self.program, self.plan)
        calls = tuple(
            replaced.get(number, call)
            for number, call in enumerate(self.program.calls)
            if number not in dropped
        )
        used = Counter(call.kernel for call in calls)
        kernels = {n: f for n, f in self.program.kernels.items() if used[n]} | self.joined
        choices = tuple(c for n, c in sorted(self.choices.items()) if n not in dropped)
        program = replace(self.program, calls=calls, kernels=kernels)
        return Joined(program, replace(self.plan, choices=choices), self.joined, parts)

    def _find(self, first: int) -> _Convolution | None:
        """Return the convolution that begins with call `first`, if there is one to join."""
        calls = self.program.calls
        func = self.program.kernels[calls[first].kernel]
        stage = find_transform(func)
        if stage is None or not stage.name.startswith(INPUT_BLOCK):
            return None
        product = self._only_reader(first)
        last = None if product is None else self._only_reader(product)
        if product is None or last is None:
            return None
        argument = product_parameter(self.program.kernels[calls[last].kernel])
        if argument is None:
            return None
        shape = self._shape(func, calls[product], calls[last].args[argument])
        if shape is None or not self.choose(shape, self.target):
            return None
        return _Convolution(first, product, last, argument)

    def _only_reader(self, number: int) -> int | None:
        call = self.program.calls[number]
        if call.n_outputs != 1:
            return None
        readers = self.readers.get(self.program.storage_of(call.args[-1]), [])
        return readers[0] if len(readers) == 1 and readers[0] >= 0 else None

    def _shape(self, transform_in: PrimFunc, product: Call, result: int) -> StripShape | None:
        """Return the sizes of a convolution, or None where the product has another form."""
        transformed = shape_of(transform_in.params[-1])
        if len(product.args) != 3 or len(transformed) not in _RANKS:
            return None
        shape = StripShape.read(transformed, self.program.tensors[result].shape)
        taps = () if len(transformed) == min(_RANKS) else (shape.taps,)
        lanes = self.target.lanes("float32")
        packed = (*transformed[:2], *taps, shape.outputs // lanes, shape.inputs, lanes)
        # With a stride of the depth, or other weights, a strip would be another product.
        return shape if self.program.tensors[product.args[1]].shape == packed else None

    def _join(self, found: _Convolution) -> Call:
        calls, tensors = self.program.calls, self.program.tensors
        first, product, last = (calls[n] for n in (found.first, found.product, found.last))
        weight = product.args[1]
        key = (first.kernel, product.kernel, last.kernel)
        if key not in self.names:
            name = self._fresh(last.kernel.replace("winograd_output", "winograd"))
            self.names[key] = name
            param = tirx.decl_buffer(tensors[weight].shape, tensors[weight].dtype, "weights")
            self.joined[name] = schedule_strips(
                self.program.kernels[first.kernel],
                param,
                self.program.kernels[last.kernel],
                self.target,
                decisions=_product_decisions(self.program.kernels[product.kernel]),
            )
        rest = [arg for i, arg in enumerate(last.args) if i != found.product_argument]
        args = (*first.reads, weight, *rest)
        return Call(self.names[key], args, last.label, last.n_outputs)

    def _choice(self, found: _Convolution) -> Choice:
        """Return the layouts of the joined call's arguments, and the time of all three."""
        first, product, last = (self.choices[n] for n in (found.first, found.product, found.last))
        rest = [at for i, at in enumerate(last.layouts) if i != found.product_argument]
        return Choice(
            last.name,
            (*first.layouts[:-1], product.layouts[1], *rest),
            first.seconds + product.seconds + last.seconds,
            origin=product.origin,
            task_key=product.task_key,
        )

    def _fresh(self, name: str) -> str:
        taken = {*self.program.kernels, *self.joined}
        number, fresh = 0, name
        while fresh in taken:
            number += 1
            fresh = f"{name}_strips{number}"
        return fresh
