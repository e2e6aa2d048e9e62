"""Aligned numpy arrays, and their reuse: fresh memory costs a page fault for every 4 KiB."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

ALIGNMENT_BYTES = 64
_SLOTS = 2  # in `y = module(x)` the last result lives until the next one is assigned


def _aligned_bytes(size_bytes: int) -> np.ndarray:
    return np.empty(size_bytes + ALIGNMENT_BYTES, dtype=np.uint8)


def _view(raw: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    size_bytes = raw.size - ALIGNMENT_BYTES
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


def _size_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def empty_aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an uninitialised array whose data starts at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    return _view(_aligned_bytes(_size_bytes(shape, dtype)), shape, dtype)


def _references(slots: list[np.ndarray], index: int) -> int:
    return sys.getrefcount(slots[index])


# What an array counts that only the list refers to; it differs between versions of Python.
_IDLE_REFERENCES = _references([_aligned_bytes(0)], 0)


class ReusedBuffer:
    """Gives arrays of one shape, and takes memory back once nobody refers to the array any more.

    Every array that was given, and every view of it, refers to the bytes underneath; so the
    interpreter's reference count says whether they are free.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Remember the shape; memory is allocated by `take`."""
        self._shape = shape
        self._dtype = dtype
        self._slots: list[np.ndarray] = []

    def take(self, allocate: Callable[[int], np.ndarray] = _aligned_bytes) -> np.ndarray:
        """Return an uninitialised 64-byte aligned array that shares memory with no other."""
        for index in range(len(self._slots)):
            if _references(self._slots, index) == _IDLE_REFERENCES:
                return _view(self._slots[index], self._shape, self._dtype)
        raw = allocate(_size_bytes(self._shape, self._dtype))
        if len(self._slots) == _SLOTS:
            del self._slots[0]  # it belongs to the caller now
        self._slots.append(raw)
        return _view(raw, self._shape, self._dtype)
