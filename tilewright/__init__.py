"""tilewright: compile an ONNX model into one deployable file."""
