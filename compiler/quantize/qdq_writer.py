"""Writes pairs of QuantizeLinear and DequantizeLinear, and constants behind DequantizeLinear."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from tilewright.errors import ModelError

_UNSIGNED = {8: np.dtype(np.uint8), 4: np.dtype(ml_dtypes.uint4), 2: np.dtype(ml_dtypes.uint2)}
_SIGNED = {8: np.dtype(np.int8), 4: np.dtype(ml_dtypes.int4), 2: np.dtype(ml_dtypes.int2)}
# The opset from which QuantizeLinear and DequantizeLinear take integers of so many bits.
_OPSETS = {8: 13, 4: 21, 2: 25}
BLOCKED_OPSET = 21
"""The opset from which DequantizeLinear takes scales of blocks."""


def stored_bits(bits: int) -> int:
    """Return the width of the ONNX type that integers of so many bits are stored in."""
    return next(width for width in sorted(_SIGNED) if bits <= width)


def opset_for(bits: int) -> int:
    """Return the opset that integers of so many bits need."""
    return _OPSETS[stored_bits(bits)]


def at_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a model of at least an opset.

    Raises:
        ModelError: onnx cannot convert it.
    """
    version = next((i.version for i in proto.opset_import if i.domain in ("", "ai.onnx")), 0)
    if version < opset:
        try:
            proto = onnx.version_converter.convert_version(proto, opset)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the model of opset {version} cannot be brought to opset {opset}, which integers "
                f"of fewer than 8 bits need: {str(error).splitlines()[0]}; export it with opset "
                f"{opset}"
            ) from error
    proto.ir_version = max(proto.ir_version, helper.find_min_ir_version_for(proto.opset_import))
    return proto


class QdqWriter:
    """Makes the nodes, and keeps their constants.

    Attributes:
        constants: made so far, by name.
    """

    def __init__(self) -> None:
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, array: np.ndarray | np.generic) -> str:
        """Add a constant and return its name."""
        self.constants[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def activation(
        self, name: str, scale: np.float32, zero: int, bits: int = 8
    ) -> list[onnx.NodeProto]:
        """Return the pair of nodes that round a tensor and bring it back; see `dequantized`."""
        stem = name if bits == 8 else f"{name}_u{bits}"
        given = [
            self.constant(f"{stem}_scale", scale),
            self.constant(f"{stem}_zero_point", np.asarray(zero).astype(_UNSIGNED[bits])),
        ]
        integers, floats = f"{stem}_quantized", dequantized(name, bits)
        return [
            helper.make_node("QuantizeLinear", [name, *given], [integers], name=integers),
            helper.make_node("DequantizeLinear", [integers, *given], [floats], name=floats),
        ]

    def weights(
        self,
        name: str,
        integers: np.ndarray,
        scale: np.ndarray,
        axis: int,
        bits: int = 8,
        block: int = 0,
    ) -> onnx.NodeProto:
        """Return the node that dequantizes constant weights.

        Args:
            name: that other names begin with.
            integers: in the range of `bits`.
            scale: one for each position of `axis`, or with blocks one for each block of it and
                every position of the other dimensions.
            axis: dimension of the integers.
            bits: of a weight; they are stored in the next wider type of ONNX.
            block: positions of the axis that share a scale; 0: no blocks.
        """
        stored = integers.astype(_SIGNED[stored_bits(bits)])
        return self._pair(name, stored, scale, axis, block)

    def bias(self, name: str, integers: np.ndarray, scale: np.ndarray) -> onnx.NodeProto:
        """Return the node that dequantizes a constant bias of 32 bits."""
        return self._pair(name, integers.astype(np.int32), scale, 0, 0)

    def _pair(
        self, name: str, integers: np.ndarray, scale: np.ndarray, axis: int, block: int
    ) -> onnx.NodeProto:
        inputs = [
            self.constant(f"{name}_quantized", integers),
            self.constant(f"{name}_scale", scale.astype(np.float32)),
            self.constant(f"{name}_zero_point", np.zeros(scale.shape, integers.dtype)),
        ]
        said = {"axis": axis} | ({"block_size": block} if block else {})
        result = f"{name}_dequantized"
        return helper.make_node("DequantizeLinear", inputs, [result], name=result, **said)


def dequantized(name: str, bits: int = 8) -> str:
    """Return what a tensor is called after it was rounded."""
    return f"{name}_dequantized" if bits == 8 else f"{name}_u{bits}_dequantized"


def whole_bias(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return a bias as int32 in units of the products' scale."""
    whole = np.rint(bias / scale.astype(np.float64))
    return np.clip(whole, -(2**31), 2**31 - 1).astype(np.int32)
