"""Kernel, strides, dilations and padding of a sliding window, as ONNX attributes give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.frontends.onnx.node import NodeContext


@dataclass(frozen=True, slots=True)
class Window:
    """A window over the spatial dimensions.

    Attributes:
        kernel: Extent of the window along each dimension, before dilation.
        strides: Step of the window.
        dilations: Distance between the taps.
        padding: Elements added before every dimension, then after every dimension.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def begin(self) -> tuple[int, ...]:
        """Padding before every dimension."""
        return self.padding[: self.rank]

    @property
    def end(self) -> tuple[int, ...]:
        """Padding after every dimension."""
        return self.padding[self.rank :]

    def reach(self, axis: int) -> int:
        """Extent of the window along a dimension, dilation included."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def output(self, extents: Sequence[int], ceil_mode: bool = False) -> tuple[int, ...]:
        """Number of window positions along each dimension.

        With ``ceil_mode`` the last window may leave the data, but must start inside the data or
        the padding before it.
        """
        counts = []
        for axis, extent in enumerate(extents):
            room = extent + self.begin[axis] + self.end[axis] - self.reach(axis)
            stride = self.strides[axis]
            count = (room + stride - 1 if ceil_mode else room) // stride + 1
            if ceil_mode and (count - 1) * stride >= extent + self.begin[axis]:
                count -= 1
            counts.append(count)
        return tuple(counts)


def read_window(
    op: NodeContext, extents: Sequence[int], kernel: Sequence[int] | None = None
) -> Window:
    """Read the window attributes of a convolution or pooling node.

    Args:
        op: The node.
        extents: Spatial extents of its data, which automatic padding depends on.
        kernel: Spatial extents of the weight; None where only ``kernel_shape`` says it.
    """
    rank = len(extents)
    given = op.attr("kernel_shape")
    shape = tuple(given if given is not None else kernel or ())
    if kernel is not None and shape != tuple(kernel):
        raise ValueError(f"kernel_shape {shape} differs from the weight's {tuple(kernel)}")
    strides = op.attr("strides") or (1,) * rank
    dilations = op.attr("dilations") or (1,) * rank
    pads = op.attr("pads") or (0,) * (2 * rank)
    if not len(shape) == len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise ValueError(f"window attributes do not have {rank} dimensions")
    if min(*strides, *dilations) < 1:
        raise ValueError(f"strides {strides} and dilations {dilations} must be positive")
    window = Window(shape, tuple(strides), tuple(dilations), tuple(pads))
    auto_pad = op.attr("auto_pad")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return _same(window, extents, auto_pad == "SAME_UPPER")
    if auto_pad == "VALID":
        return Window(shape, window.strides, window.dilations, (0,) * (2 * rank))
    return window


def _same(window: Window, extents: Sequence[int], upper: bool) -> Window:
    """Pad so that the output has ceil(extent / stride) elements; the odd one goes last if upper."""
    begin, end = [], []
    for axis, extent in enumerate(extents):
        stride = window.strides[axis]
        count = -(-extent // stride)
        total = max(0, (count - 1) * stride + window.reach(axis) - extent)
        begin.append(total // 2 if upper else total - total // 2)
        end.append(total - begin[-1])
    return Window(window.kernel, window.strides, window.dilations, (*begin, *end))
