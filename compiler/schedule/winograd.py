"""Schedule Winograd's transforms: one tile and one vector of channels at a time, written out.

A transform multiplies a small square of vectors by a constant matrix from both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from tilewright.compiler.schedule.analysis import Stage, read_stages
from tilewright.compiler.schedule.decision_json import from_line, to_line
from tilewright.compiler.schedule.micro_kernel import sequence
from tilewright.compiler.schedule.winograd_input import input_loops
from tilewright.compiler.schedule.winograd_output import output_loops
from tilewright.compiler.schedule.winograd_square import Builder
from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import INPUT_BLOCK, OUTPUT_BLOCK


def find_transform(func: tirx.PrimFunc) -> Stage | None:
    """Return the stage of a Winograd transform in an unscheduled function, if there is one."""
    return find_stage(read_stages(func) or ())


def find_stage(stages: Sequence[Stage]) -> Stage | None:
    """Return the stage of a Winograd transform, if there is one."""
    return next((s for s in stages if s.name.startswith((INPUT_BLOCK, OUTPUT_BLOCK))), None)


@dataclass(frozen=True, slots=True)
class WinogradDecisions:
    """There is one way to write a transform out; nothing is left to decide."""

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return to_line("winograd", self)

    @classmethod
    def from_json(cls, text: str) -> WinogradDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds another kind or other fields.
        """
        return from_line(cls, "winograd", text)


def schedule_winograd(
    func: tirx.PrimFunc, target: Target, _decisions: WinogradDecisions | None = None
) -> tirx.PrimFunc:
    """Return the loops of a transform and of what was fused around it.

    Raises:
        InvalidScheduleError: the function has another form than `LowerWinograd` gives it.
    """
    stages = read_stages(func) or ()
    stage = find_stage(stages)
    assert stage is not None
    builder = Builder(func.params, target.lanes(str(stage.buffer.dtype)))
    if stage.name.startswith(INPUT_BLOCK):
        body = input_loops(builder, stages, stage)
    else:
        body = output_loops(builder, stages, stage)
    return tirx.PrimFunc(list(func.params), sequence([*builder.declared, body]), attrs=func.attrs)
