"""Values that flow between nodes during import: constants and Relax expressions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from tvm import relax

from tilewright.errors import ModelError

if TYPE_CHECKING:
    from tilewright.frontends.onnx.blocked import BlockedConstant


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and numpy dtype name of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(slots=True, eq=False)
class Value:
    """One tensor: known when compiling (``data``), computed at run time (``expr``), or both.

    ``expr`` of a constant is made when a Relax operator first needs it, so that shape arithmetic
    leaves nothing behind in the module.

    ``sizes``, if there are any, has one entry per dimension: None, or the size that the tensor has
    there at run time, as int64 [1]; ``shape`` is then an upper bound. Two dimensions with the same
    entry have the same size. Elements beyond may hold anything that the type can hold.

    ``blocks`` is what a constant was dequantized from in blocks, if it was.
    """

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    expr: relax.Expr | None = None
    sizes: tuple[Value | None, ...] | None = None
    blocks: BlockedConstant | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the content is known when compiling."""
        return self.data is not None

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def constant(array: np.ndarray | np.generic | int | float, dtype: str | None = None) -> Value:
    """Wrap an array as a value known when compiling."""
    data = np.asarray(array, dtype=None if dtype is None else numpy_dtype(dtype))
    return Value(tuple(data.shape), str(data.dtype), data=data)


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy dtype of a name, those of ``ml_dtypes`` (``bfloat16``...) included."""
    return _BY_NAME[name] if name in _BY_NAME else np.dtype(name)


def dtype_of_onnx(elem_type: int) -> str:
    """Return the numpy dtype name of an ONNX ``TensorProto.DataType``.

    Raises:
        ModelError: ONNX does not define the number.
    """
    if elem_type not in onnx.TensorProto.DataType.values() or not elem_type:
        raise ModelError(f"the model names element type {elem_type}, which ONNX does not define")
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))


def is_small(dtype: str) -> bool:
    """Tell whether a type has no arithmetic of its own (int4, float8...): it is only converted.

    Elements are stored one per byte, in the low bits, as ``ml_dtypes`` does.
    """
    return dtype in SMALL_DTYPES


def onnx_of_dtype(name: str) -> int:
    """Return the ONNX ``TensorProto.DataType`` of a numpy dtype name."""
    return onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(name))


def _dtypes_by_name() -> dict[str, np.dtype]:
    """Map names to dtypes for every tensor type of ONNX."""
    skipped = {onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING}
    types = [value for value in onnx.TensorProto.DataType.values() if value not in skipped]
    dtypes = [np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value)) for value in types]
    return {str(dtype): dtype for dtype in dtypes}


_BY_NAME = _dtypes_by_name()
SMALL_DTYPES = frozenset(
    name
    for name in _BY_NAME
    if name.startswith(("int2", "int4", "uint2", "uint4", "float4", "float6_", "float8"))
)
STORAGE_DTYPE = "uint8"  # what holds the elements of a small type
