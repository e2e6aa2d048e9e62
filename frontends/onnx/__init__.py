"""The ONNX frontend: from a model file to a Relax module with static shapes."""

from tilewright.frontends.onnx.importer import ImportedModel, TensorSpec, import_onnx

__all__ = ["ImportedModel", "TensorSpec", "import_onnx"]
