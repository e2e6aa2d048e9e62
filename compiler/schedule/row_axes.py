"""Find the axes that all stages of a row operator share: softmax, normalisation, mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.compiler.schedule.analysis import Axis, Stage
from tilewright.compiler.schedule.expressions import loads_in, shape_of


@dataclass(frozen=True, eq=False)
class Rows:
    """The axes that every stage walks in step; one assignment of them is a row.

    Attributes:
        axes: one axis of each class, in the order of the first reduction's output.
        of_stage: for each stage, class position -> its own axis of that class.
        dims: intermediate buffer -> its dimensions that are not row axes.
    """

    axes: tuple[Axis, ...]
    of_stage: tuple[dict[int, Axis], ...]
    dims: dict[Any, tuple[int, ...]]

    def inner_axes(self, number: int, stage: Stage) -> tuple[list[Axis], list[Axis]]:
        """Return a stage's (spatial, reduction) axes that are not row axes, extent 1 left out."""
        row_vars = [axis.var for axis in self.of_stage[number].values()]
        spatial = [
            axis
            for axis in stage.spatial
            if axis.extent > 1 and not any(axis.var.same_as(var) for var in row_vars)
        ]
        return spatial, [axis for axis in stage.reduction if axis.extent > 1]


class _Classes:
    """Union-find over hashable keys."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def find(self, key: Any) -> Any:
        """Return the representative of a key."""
        parent = self._parent.setdefault(key, key)
        if parent == key:
            return key
        root = self.find(parent)
        self._parent[key] = root
        return root

    def join(self, a: Any, b: Any) -> None:
        """Put two keys into one class."""
        self._parent[self.find(a)] = self.find(b)


def find_rows(stages: Sequence[Stage], intermediates: Sequence[Any]) -> Rows | None:
    """Return the common row axes of stages that hand intermediates to each other row by row.

    Args:
        stages: in order; every load of an intermediate must be a plain index of its dimensions.
        intermediates: buffers written by one of the stages and not visible outside.

    Returns:
        None where some intermediate is read at another place than the row that wrote it.
    """
    numbers = {buffer: i for i, buffer in enumerate(intermediates)}
    classes = _Classes()
    for number, stage in enumerate(stages):
        if stage.buffer in numbers and not _join(classes, numbers, number, stage, *_target(stage)):
            return None
        for load in loads_in(stage.value):
            if load.source in numbers and not _join(
                classes, numbers, number, stage, load.source, load.indices
            ):
                return None
    return _assemble(stages, numbers, classes)


def _target(stage: Stage) -> tuple[Any, Sequence[Any]]:
    return stage.buffer, stage.indices


def _join(
    classes: _Classes,
    numbers: dict[Any, int],
    number: int,
    stage: Stage,
    buffer: Any,
    indices: Sequence[Any],
) -> bool:
    shape = shape_of(buffer)
    for dim, index in enumerate(indices):
        if shape[dim] == 1:
            continue
        axis = next((i for i, a in enumerate(stage.axes) if a.var.same_as(index)), None)
        if axis is None or stage.axes[axis].extent != shape[dim]:
            return False
        classes.join(("buffer", numbers[buffer], dim), ("axis", number, axis))
    return True


def _assemble(stages: Sequence[Stage], numbers: dict[Any, int], classes: _Classes) -> Rows | None:
    def spatial_classes(number: int) -> dict[Any, Axis]:
        return {
            classes.find(("axis", number, i)): axis
            for i, axis in enumerate(stages[number].spatial)
            if axis.extent > 1
        }

    def reduced_classes(number: int) -> set[Any]:
        count, stage = len(stages[number].spatial), stages[number]
        return {classes.find(("axis", number, count + i)) for i in range(len(stage.reduction))}

    by_stage = [spatial_classes(number) for number in range(len(stages))]
    reducing = [number for number, stage in enumerate(stages) if stage.reduction]
    reduced = set().union(*(reduced_classes(number) for number in reducing))
    first = by_stage[reducing[0]]
    common = [
        key
        for key in first
        if key not in reduced and all(key in by_stage[number] for number in range(len(stages)))
    ]
    for number, axes in enumerate(by_stage):
        # An outer product of a row with itself reads two rows at once.
        if sum(axis.extent > 1 for axis in stages[number].spatial) != len(axes):
            return None
    dims = {}
    for buffer, number in numbers.items():
        shape = shape_of(buffer)
        dims[buffer] = tuple(
            dim
            for dim, extent in enumerate(shape)
            if extent > 1 and classes.find(("buffer", number, dim)) not in common
        )
    return Rows(
        tuple(first[key] for key in common),
        tuple({i: axes[key] for i, key in enumerate(common)} for axes in by_stage),
        dims,
    )
