"""Tensors on a GPU, of torch, CuPy or anything else that speaks DLPack, as addresses: ctypes only.

Structures are those of dlpack.h, version 0, which every producer still gives when not asked for
another: https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from tilewright.errors import ModuleError

_CUDA = 2
_CUDA_MANAGED = 13
# The stream that a producer makes its data ready for: the legacy default stream, which the stream
# of a module waits for.
_LEGACY_STREAM = 1
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Dtype(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Dtype),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceArray:
    """A compact row-major tensor on a GPU.

    Attributes:
        address: of its first element, on the device.
        shape: extents.
        dtype: numpy dtype name.
        owner: keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any


def is_on_gpu(value: Any) -> bool:
    """Say whether a value is a tensor on a CUDA GPU."""
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in (_CUDA, _CUDA_MANAGED)


def as_device_array(value: Any, name: str) -> DeviceArray:
    """Return a tensor on a GPU as an address; its data are ready for the legacy stream.

    Args:
        value: has `__dlpack__`, as tensors of torch and CuPy do.
        name: of the input or output, for messages.

    Raises:
        ModuleError: the tensor is not compact and row-major.
    """
    capsule = value.__dlpack__(stream=_LEGACY_STREAM)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        _check_compact([tensor.strides[i] for i in range(tensor.ndim)], shape, name)
    kind = _KINDS.get(tensor.dtype.code, "unknown")
    dtype = kind if kind == "bool" else f"{kind}{tensor.dtype.bits}"
    address = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(address, shape, dtype, capsule)


def _check_compact(strides: list[int], shape: tuple[int, ...], name: str) -> None:
    expected = 1
    for stride, extent in zip(reversed(strides), reversed(shape), strict=True):
        if extent != 1 and stride != expected:
            raise ModuleError(
                f"'{name}' is a tensor of shape {list(shape)} and strides {strides}, which is not "
                "compact; make it so, for instance with .contiguous()"
            )
        expected *= extent
