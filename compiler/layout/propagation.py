"""Give every tensor of a program a layout, and rewrite its kernels to match.

Each operator has its table of layout choices; a strategy picks one per operator for the whole
graph. What then still disagrees becomes an explicit conversion, one per tensor and layout. Weights
are packed here, in numpy; nothing is packed at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import te
from tvm.tirx import PrimFunc

from tilewright.compiler.layout.choices import Choice, Operator, operator_choices, works_on_images
from tilewright.compiler.layout.costs import conversion_seconds
from tilewright.compiler.layout.formats import image_layout
from tilewright.compiler.layout.primitives import Layout, pack_constant
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.layout.strategies import LayoutProblem, Strategy, assign_globally
from tilewright.compiler.program import Call, Program, Tensor
from tilewright.compiler.targets import Target

DECISIONS_ATTRIBUTE = "tilewright.decisions"
"""Attribute of a rewritten PrimFunc: JSON of the decisions that its schedule is to follow."""


@dataclass(frozen=True)
class Conversion:
    """A layout conversion that is executed: of which tensor, between which layouts."""

    tensor: str
    before: Layout
    after: Layout
    seconds: float


@dataclass(frozen=True)
class LayoutPlan:
    """What was chosen: one choice per call, in the order of `Program.calls`."""

    choices: tuple[Choice, ...]
    seconds: float
    proven: bool


def choose_layouts(
    program: Program,
    target: Target,
    choices_of: Callable[[Operator, Target], tuple[Choice, ...]] = operator_choices,
    strategy: Strategy = assign_globally,
) -> LayoutPlan:
    """Choose one layout choice per call so that the time of the whole graph is least.

    Args:
        program: unscheduled, on logical shapes.
        target: the processor to choose for.
        choices_of: gives an operator's choices with their estimated or measured seconds.
        strategy: how to choose; the others are for comparison.
    """
    operators = operators_of(program, target)
    known: dict[tuple, tuple[Choice, ...]] = {}
    tables: list[tuple[Choice, ...]] = []
    for call, operator in zip(program.calls, operators, strict=True):
        key = (call.kernel, operator.constants, operator.images)
        if key not in known:
            known[key] = choices_of(operator, target)
        tables.append(known[key])
    problem = LayoutProblem(program, tuple(operators), tuple(tables))
    indices, proven = strategy(problem)
    chosen = tuple(table[index] for table, index in zip(tables, indices, strict=True))
    return LayoutPlan(chosen, problem.cost(indices), proven)


def operators_of(program: Program, target: Target) -> list[Operator]:
    """Return the operator of every call, in the order of `Program.calls`."""
    images = _image_tensors(program, target)
    return [
        Operator(
            program.kernels[call.kernel],
            frozenset(p for p, t in enumerate(call.args) if program.tensors[t].kind == "constant"),
            frozenset(p for p, t in enumerate(call.args) if t in images),
            call.n_outputs,
        )
        for call in program.calls
    ]


def _image_tensors(program: Program, target: Target) -> frozenset[int]:
    """Return the tensors that a convolution reads or writes, and all of that kind beside them."""
    images: set[int] = set()
    candidates = {
        index
        for index, tensor in enumerate(program.tensors)
        if tensor.kind != "constant" and image_layout(tensor.shape, "B", target) is not None
    }
    for call in program.calls:
        constants = frozenset(
            p for p, t in enumerate(call.args) if program.tensors[t].kind == "constant"
        )
        operator = Operator(program.kernels[call.kernel], constants, frozenset(), call.n_outputs)
        if works_on_images(operator):
            images |= {t for t in call.args if t in candidates}
    changed = True
    while changed:
        changed = False
        for call in program.calls:
            here = {t for t in call.args if t in candidates}
            rank_matches = {len(program.tensors[t].shape) for t in here & images}
            spread = {t for t in here if len(program.tensors[t].shape) in rank_matches}
            if spread - images:
                images |= spread
                changed = True
    # The caller's own tensors stay logical; an operator may still read them so.
    return frozenset(images)


def apply_layouts(program: Program, plan: LayoutPlan) -> tuple[Program, tuple[Conversion, ...]]:
    """Rewrite every kernel for its chosen layouts, pack constants, insert conversions."""
    return _Applier(program, plan).apply()


class _Applier:
    def __init__(self, program: Program, plan: LayoutPlan) -> None:
        self.program, self.plan = program, plan
        self.tensors: list[Tensor] = []
        self.calls: list[Call] = []
        self.kernels: dict[str, PrimFunc] = {}
        self.made: dict[tuple[int, Layout], int] = {}
        self.has: dict[int, Layout] = {}
        self.rewritten: dict[tuple, str] = {}
        self.conversions: list[Conversion] = []
        self.views: dict[int, list[int]] = {}

    def apply(self) -> tuple[Program, tuple[Conversion, ...]]:
        for index, tensor in enumerate(self.program.tensors):
            if tensor.kind == "input":
                self._define(index, Layout(tensor.shape), tensor)
        for call, choice in zip(self.program.calls, self.plan.choices, strict=True):
            self._call(call, choice)
        outputs = tuple(
            self._want(t, Layout(self.program.tensors[t].shape)) for t in self.program.outputs
        )
        inputs = tuple(
            self.made[(t, Layout(self.program.tensors[t].shape))] for t in self.program.inputs
        )
        program = replace(
            self.program,
            tensors=tuple(self.tensors),
            calls=tuple(self.calls),
            inputs=inputs,
            outputs=outputs,
            kernels=self.kernels,
        )
        return program, tuple(self.conversions)

    def _define(self, index: int, layout: Layout, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        self.made[(index, layout)] = len(self.tensors) - 1
        self.has.setdefault(index, layout)
        return len(self.tensors) - 1

    def _want(self, index: int, layout: Layout) -> int:
        """Return the new id of a tensor in a layout, converting, packing or viewing as needed."""
        if (index, layout) in self.made:
            return self.made[(index, layout)]
        tensor = self.program.tensors[index]
        if tensor.kind == "constant":
            assert tensor.data is not None
            data = pack_constant(layout, tensor.data)
            packed = replace(tensor, shape=layout.physical_shape, data=data)
            return self._define(index, layout, packed)
        if tensor.alias_of is not None and index not in self.has:
            owner = self._want(tensor.alias_of, Layout(self.program.tensors[tensor.alias_of].shape))
            view = replace(tensor, alias_of=owner, kind=self.tensors[owner].kind)
            made = self._define(index, Layout(tensor.shape), view)
            return made if not layout.primitives else self._convert(index, layout)
        return self._convert(index, layout)

    def _convert(self, index: int, layout: Layout) -> int:
        tensor, before = self.program.tensors[index], self.has[index]
        source = self.made[(index, before)]
        kernel = self._kernel(
            f"convert_{'x'.join(map(str, tensor.shape))}_{tensor.dtype}",
            _copy_function(tensor.shape, tensor.dtype),
            (before, layout),
        )
        target = self._define(
            index,
            layout,
            replace(tensor, shape=layout.physical_shape, kind="intermediate", alias_of=None),
        )
        self.calls.append(Call(kernel, (source, target), f"convert {tensor.name}"))
        seconds = conversion_seconds(tensor.shape, tensor.dtype)
        self.conversions.append(Conversion(tensor.name, before, layout, seconds))
        return target

    def _kernel(
        self,
        name: str,
        func: PrimFunc,
        layouts: tuple[Layout, ...],
        decisions: str | None = None,
    ) -> str:
        key = (name, layouts)
        if key not in self.rewritten:
            taken = sum(1 for known, _ in self.rewritten if known == name)
            unique = f"{name}_v{taken}" if taken else name
            changed = {p: layout for p, layout in enumerate(layouts) if layout.primitives}
            func = rewrite(func, changed) if changed else func
            if decisions is not None:
                func = func.with_attr(DECISIONS_ATTRIBUTE, decisions)
            self.kernels[unique] = func
            self.rewritten[key] = unique
        return self.rewritten[key]

    def _call(self, call: Call, choice: Choice) -> None:
        reads = [
            self._want(tensor, layout)
            for tensor, layout in zip(call.reads, choice.layouts, strict=False)
        ]
        writes = []
        for tensor, layout in zip(call.writes, choice.layouts[len(reads) :], strict=True):
            old = self.program.tensors[tensor]
            new = replace(old, shape=layout.physical_shape)
            writes.append(self._define(tensor, layout, new))
        kernel = self._kernel(
            call.kernel,
            self.program.kernels[call.kernel],
            choice.layouts,
            choice.decisions,
        )
        self.calls.append(replace(call, kernel=kernel, args=(*reads, *writes)))


def _copy_function(shape: tuple[int, ...], dtype: str) -> PrimFunc:
    source = te.placeholder(shape, dtype, name="source")
    copy = te.compute(shape, lambda *index: source[index], name="copy")
    return te.create_prim_func([source, copy])
