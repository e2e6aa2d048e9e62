"""Differential fuzzing: random valid graphs, compiled in several ways, against ONNX's reference."""
