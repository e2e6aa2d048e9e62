"""Real topologies with signal-preserving random weights, exported to ONNX on demand."""

from benchmarks.zoo.catalog import EXPORTERS, NAMES, inputs, model_path
from benchmarks.zoo.export import load

__all__ = ["EXPORTERS", "NAMES", "inputs", "load", "model_path"]
