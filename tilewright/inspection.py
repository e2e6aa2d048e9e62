"""Say what an ONNX model or a compiled module is, as plain data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import ModelError

if TYPE_CHECKING:
    from tilewright.compiler.pipeline import Lowered

_QUANTIZED = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"),
        *("QLinearMatMul", "QLinearAdd", "QGemm", "ConvInteger", "MatMulInteger", "MatMulNBits"),
    )
)
_ELF_MAGIC = b"\x7fELF"


def inspect(
    path: str | os.PathLike[str],
    *,
    layouts: bool = False,
    target: str = "native",
    shapes: Mapping[str, Sequence[int]] | None = None,
    dot: str | os.PathLike[str] | None = None,
    svg: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Describe an ONNX model or a compiled module.

    Args:
        path: the file; which of the two it is, its first bytes say.
        layouts: also choose the layouts of the model for `target`, and describe them.
        target: as for `compile`; only for `layouts`.
        shapes: as for `compile`; only for `layouts`.
        dot, svg: also draw the operators, their layouts and the conversions into these files;
            implies `layouts`.

    Returns:
        For a model: "kind" ("model"), "inputs", "outputs", "opsets", "operators" (name -> count),
        "unsupported" (operators without a converter), "parameters", for a quantized model
        "quantized" (see `describe_quantized`), and with `layouts` also
        "layouts" (see `describe_layouts`). For a module: "kind" ("module") and its description.

    Raises:
        ModelError: the file cannot be read, or is neither.
        ModuleError: the module is damaged.
        CompileError: a drawing cannot be written.
        MissingExtraError: SVG is asked for, and matplotlib is not installed.
    """
    path = Path(path)
    drawings = {"dot": dot, "svg": svg}
    layouts = layouts or dot is not None or svg is not None
    if is_module(path):
        return _inspect_module(path, layouts)
    return _inspect_model(path, layouts, target, shapes, drawings)


def is_module(path: Path) -> bool:
    """Say whether a file is a compiled module, by its first bytes.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_ELF_MAGIC)) == _ELF_MAGIC
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror or error}") from error


def describe_layouts(lowered: Lowered) -> dict[str, Any]:
    """Describe what the compiler chose: each operator's layouts, each executed conversion."""
    program = lowered.program
    # Conversions are calls too, but nothing was chosen for them.
    calls = [call for call in program.calls if not call.label.startswith("convert ")]
    chosen = zip(calls, lowered.plan.choices, strict=True)
    return {
        "operators": [
            {
                "label": call.label,
                "kernel": call.kernel,
                "layouts": [str(layout) for layout in choice.layouts],
                "estimated_s": choice.seconds,
            }
            for call, choice in chosen
        ],
        "conversions": [
            {
                "tensor": conversion.tensor,
                "from": str(conversion.before),
                "to": str(conversion.after),
                "estimated_s": conversion.seconds,
            }
            for conversion in lowered.conversions
        ],
        "estimated_s": lowered.plan.seconds,
        "proven_optimal": lowered.plan.proven,
    }


def _inspect_module(path: Path, layouts: bool) -> dict[str, Any]:
    from tilewright.runtime.library import read_description

    if layouts:
        raise ModelError(f"'{path}' is compiled already; ask for the layouts of its .onnx model")
    return {"kind": "module", "size_bytes": path.stat().st_size, **read_description(path)}


def _inspect_model(
    path: Path,
    layouts: bool,
    target: str,
    shapes: Mapping[str, Sequence[int]] | None,
    drawings: Mapping[str, str | os.PathLike[str] | None],
) -> dict[str, Any]:
    from tilewright.frontends.onnx.loading import load_model

    proto, _, digest = load_model(path)
    graph = proto.graph
    opsets = {item.domain or "ai.onnx": item.version for item in proto.opset_import}
    local = {(item.domain, item.name) for item in proto.functions}
    nodes = list(_nodes(graph))
    unsupported = Counter(
        node.op_type
        for node in nodes
        if (node.domain, node.op_type) not in local
        and not _is_supported(node, opsets.get(node.domain or "ai.onnx", 1))
    )
    weights = {item.name for item in graph.initializer}
    described: dict[str, Any] = {
        "kind": "model",
        "size_bytes": path.stat().st_size,
        "digest": digest,
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "opsets": opsets,
        "inputs": [_value(item) for item in graph.input if item.name not in weights],
        "outputs": [_value(item) for item in graph.output],
        "operators": dict(Counter(node.op_type for node in nodes).most_common()),
        "unsupported": dict(unsupported),
        "parameters": sum(_elements(item.dims) for item in graph.initializer),
    }
    if not unsupported and _QUANTIZED & set(described["operators"]):
        described["quantized"] = describe_quantized(path, shapes)
    if layouts:
        described["layouts"] = _layouts(path, target, shapes, drawings)
    return described


def describe_quantized(
    path: Path, shapes: Mapping[str, Sequence[int]] | None
) -> list[dict[str, Any]]:
    """Return for every operator of a quantized model whether it runs on integers.

    Returns:
        By operator "name", "operator", "integer", "reason", which says why not, and "form", the
        bits of its weights and data ("W4A8").
    """
    from dataclasses import asdict

    from tilewright.compiler.quantize.explain import explain_quantized
    from tilewright.frontends.onnx import import_onnx

    return [asdict(item) for item in explain_quantized(import_onnx(path, shapes=shapes).module)]


def _is_supported(node: Any, opset: int) -> bool:
    """Return whether the operator has a converter, or a function body that may have them."""
    from tilewright.frontends.onnx.functions import schema_of
    from tilewright.frontends.onnx.registry import find_converter

    domain = "" if node.domain == "ai.onnx" else node.domain
    if find_converter(domain, node.op_type, opset) is not None:
        return True
    schema = schema_of(node, opset)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _layouts(
    path: Path,
    target: str,
    shapes: Mapping[str, Sequence[int]] | None,
    drawings: Mapping[str, str | os.PathLike[str] | None],
) -> dict[str, Any]:
    from tilewright.api import lower_model
    from tilewright.compiler.targets import parse_target
    from tilewright.drawing import write_dot, write_svg

    lowered, _ = lower_model(path, parse_target(target), shapes)
    for kind, write in (("dot", write_dot), ("svg", write_svg)):
        out = drawings[kind]
        if out is not None:
            write(lowered, Path(out))
    return describe_layouts(lowered)


def _nodes(graph: Any) -> Any:
    """Yield all nodes of a graph, those of its subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _value(item: Any) -> dict[str, Any]:
    from tilewright.frontends.onnx.values import dtype_of_onnx

    tensor = item.type.tensor_type
    dims = tensor.shape.dim
    return {
        "name": item.name,
        "dtype": dtype_of_onnx(tensor.elem_type),
        "shape": [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims],
    }


def _elements(dims: Sequence[int]) -> int:
    count = 1
    for dim in dims:
        count *= dim
    return count
