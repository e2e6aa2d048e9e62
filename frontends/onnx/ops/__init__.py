"""Converters by theme; importing the package registers them."""

from tilewright.frontends.onnx.ops import (  # noqa: F401
    activations,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    reduction,
    reshaping,
    resize,
    sources,
)
