"""Engines that benchmark scripts compare, by name: those of the package."""

from pathlib import Path

from tilewright.baselines import onnxruntime, openvino
from tilewright.baselines.engine import Engine, Feed

__all__ = ["ENGINES", "Engine", "Feed", "open_onnxruntime", "open_tilewright"]

open_onnxruntime = onnxruntime.open_model


def open_tilewright(module: Path, threads: int = 1) -> Engine:
    """Return a module that `tilewright.compile` made and saved; loads no compiler."""
    from tilewright.runtime import Module

    return Module(module, threads=threads).run


ENGINES = {"onnxruntime": open_onnxruntime, "openvino": openvino.open_model}
"""Engines that open an ONNX file, by name; `open_tilewright` opens a compiled module."""
