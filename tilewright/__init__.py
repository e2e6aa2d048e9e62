"""tilewright: compile an ONNX model into one deployable file.

    import tilewright as tw

    module = tw.compile("resnet18.onnx")
    module.save("resnet18.so")
    y = tw.load("resnet18.so")(x)

Names are imported when they are first used, so that loading a module needs no TVM.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.api import CompiledModule, compile, load, targets
    from tilewright.baselines.bench_models import bench
    from tilewright.debugging import debug_accuracy
    from tilewright.errors import TilewrightError
    from tilewright.explaining import explain
    from tilewright.inspection import inspect
    from tilewright.profiling import profile
    from tilewright.quantization import quantize
    from tilewright.report import write_report
    from tilewright.runtime.module import Module
    from tilewright.tuner.tune_model import tune
    from tilewright.verification import verify
    from tilewright.weight_quantization import quantize_weights

try:
    __version__ = version("tilewright")
except PackageNotFoundError:  # a source tree on PYTHONPATH, never installed
    __version__ = "0+unknown"

__all__ = [
    "CompiledModule",
    "Module",
    "TilewrightError",
    "bench",
    "compile",
    "debug_accuracy",
    "explain",
    "inspect",
    "load",
    "profile",
    "quantize",
    "quantize_weights",
    "targets",
    "tune",
    "verify",
    "write_report",
]

_HOME = {
    "CompiledModule": "tilewright.api",
    "Module": "tilewright.runtime.module",
    "TilewrightError": "tilewright.errors",
    "bench": "tilewright.baselines.bench_models",
    "compile": "tilewright.api",
    "debug_accuracy": "tilewright.debugging",
    "explain": "tilewright.explaining",
    "inspect": "tilewright.inspection",
    "load": "tilewright.api",
    "profile": "tilewright.profiling",
    "quantize": "tilewright.quantization",
    "quantize_weights": "tilewright.weight_quantization",
    "targets": "tilewright.api",
    "tune": "tilewright.tuner.tune_model",
    "verify": "tilewright.verification",
    "write_report": "tilewright.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tilewright' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
