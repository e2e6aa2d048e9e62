"""Load, run and time a deployable module: ctypes and numpy, no TVM."""

from tilewright.runtime.benchmark import compare, interleave, summarize
from tilewright.runtime.library import read_description
from tilewright.runtime.module import CallTime, Module, TensorSpec

__all__ = [
    "CallTime",
    "Module",
    "TensorSpec",
    "compare",
    "interleave",
    "read_description",
    "summarize",
]
