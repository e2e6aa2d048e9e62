"""The ONNX frontend: from a model file to a Relax module with static shapes."""

from tilewright.frontends.onnx.importer import ImportedModel, TensorSpec, import_onnx, read_inputs
from tilewright.frontends.onnx.specialize import shape_inputs

__all__ = ["ImportedModel", "TensorSpec", "import_onnx", "read_inputs", "shape_inputs"]
