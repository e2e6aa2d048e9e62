"""Converters by theme; importing the package registers them."""

from tilewright.frontends.onnx.ops import (  # noqa: F401
    activations,
    control,
    convolution,
    einsum,
    elementwise,
    indexing,
    linear,
    microsoft,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    reshaping,
    resize,
    sampling,
    selection,
    sequences,
    signal,
    sources,
)
