"""Every operator of ONNX from opset 7 on has a converter or a function body, but those named."""

import onnx
import pytest

import tilewright.frontends.onnx.walk  # noqa: F401  registers the converters
from tilewright.frontends.onnx.registry import find_converter

# Text and image files are not tensors of numbers.
_LEFT_OUT = {"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"}
NEWEST = onnx.defs.onnx_opset_version()
NAMES = sorted({item.name for item in onnx.defs.get_all_schemas_with_history() if not item.domain})


def current(name, opset):
    """Return the schema of an operator in an opset; None where there is none."""
    try:
        schema = onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_operator_is_converted_or_has_a_body(opset):
    missing = {
        name
        for name in NAMES
        if (schema := current(name, opset)) is not None
        and find_converter("", name, opset) is None
        and not schema.has_function
        and not schema.has_context_dependent_function
    }
    assert missing <= _LEFT_OUT
