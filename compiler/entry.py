"""The generated C entry of a module: a flat sequence of kernel calls over static addresses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tilewright.compiler.codegen import KERNEL_PREFIX
from tilewright.compiler.entry_calls import calls, copies
from tilewright.compiler.entry_regions import region_functions
from tilewright.compiler.memory import MemoryPlan
from tilewright.compiler.program import Program, TensorSpec, item_bytes

# Calls of one C function.
_MOST_CALLS = 512


def generate_entry(program: Program, plan: MemoryPlan, cpu_features: tuple[str, ...]) -> str:
    """Return the C source that runs `program` and describes it to the C runtime.

    It expects the macro `TW_CODE_ID`, a number that tells this code from any other.
    """
    parts = [
        '#include <string.h>\n\n#include "tw_runtime.h"\n',
        _declarations(program),
        *region_functions(program, plan),
        _run_functions(program, plan),
        string_table("cpu_features", (*cpu_features, None)),
        string_table("call_labels", tuple(call.label for call in program.calls) or (None,)),
        tensor_table("inputs", program.input_specs),
        tensor_table("outputs", program.output_specs),
        _program_table(program, plan),
    ]
    return "\n".join(parts)


def _declarations(program: Program) -> str:
    lines = []
    for name, func in sorted(program.used_kernels().items()):
        pointers = ", ".join(["const void *"] * len(func.params))
        lines.append(f"extern int {KERNEL_PREFIX}{name}({pointers});")
    lines += [
        "",
        "#define CALL(index, call) \\",
        "  if (call) return index + 1; \\",
        "  if (frame->seconds) frame->seconds[index + 1] = tw_now();",
    ]
    return "\n".join(lines) + "\n"


def _run_functions(program: Program, plan: MemoryPlan) -> str:
    """Return the functions of all calls; `run` gives 0, or 1 + the index of the call that failed.

    C compilers take a time that grows faster than a function: 2400 calls in one took 7 s, 4800 took
    23 s. So many are spread over functions, which `run` calls one after the other.
    """
    lines = [f"  CALL({index}, {text})" for index, text in enumerate(calls(program, plan))]
    parts: list[str] = []
    if len(lines) > _MOST_CALLS:
        starts = range(0, len(lines), _MOST_CALLS)
        parts = [
            _function(f"__attribute__((noinline)) int run{start}", lines[start:][:_MOST_CALLS])
            for start in starts
        ]
        lines = [f"  if ((failed = run{start}(frame))) return failed;" for start in starts]
        lines.insert(0, "  int failed;")
    clock = "  if (frame->seconds) frame->seconds[0] = tw_now();"
    return "\n".join([*parts, _function("int run", [clock, *lines, *copies(program, plan)])])


def _function(head: str, statements: Sequence[str]) -> str:
    lines = [
        f"static {head}(const tw_frame *frame) {{",
        "  char *const arena = frame->arena;",
        "  const char *const weights = frame->weights;",
        "  void *const *const inputs = frame->inputs;",
        "  void *const *const outputs = frame->outputs;",
        "  (void)arena, (void)weights, (void)inputs, (void)outputs;",
        *statements,
        "  return 0;",
        "}\n",
    ]
    return "\n".join(lines)


def c_string(text: str | None) -> str:
    """Return a C literal; all but plain ASCII is written as octal escapes of its UTF-8 bytes."""
    if text is None:
        return "NULL"
    plain = set(range(32, 127)) - {ord('"'), ord("\\"), ord("?")}
    body = "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode())
    return f'"{body}"'


def string_table(name: str, texts: tuple[str | None, ...]) -> str:
    """Return a C table of strings."""
    items = ",\n".join(f"    {c_string(text)}" for text in texts)
    return f"static const char *const {name}[] = {{\n{items},\n}};\n"


def tensor_table(name: str, specs: tuple[TensorSpec, ...]) -> str:
    """Return the C table of a program's inputs or outputs, `<name>_table`."""
    shapes = []
    rows = []
    for index, spec in enumerate(specs):
        size_bytes = item_bytes(spec.dtype)
        for extent in spec.shape:
            size_bytes *= extent
        extents = ", ".join(str(extent) for extent in spec.shape) or "0"
        shapes.append(f"static const int64_t {name}_shape_{index}[] = {{{extents}}};\n")
        rows.append(
            f"    {{{c_string(spec.name)}, {c_string(spec.dtype)}, {name}_shape_{index}, "
            f"{len(spec.shape)}u, {size_bytes}u}},\n"
        )
    if not rows:
        rows = ["    {NULL, NULL, NULL, 0u, 0u},\n"]
    table = f"static const tilewright_tensor {name}_table[] = {{\n{''.join(rows)}}};\n"
    return "".join(shapes) + table


def _program_table(program: Program, plan: MemoryPlan) -> str:
    own = {"cpu_features": "cpu_features", "arena_bytes": f"{plan.arena_bytes}u", "run": "run"}
    return program_table(program, plan, own)


def program_table(program: Program, plan: MemoryPlan, own: Mapping[str, str]) -> str:
    """Return the C struct that the runtime starts from; `own` is what tells how to run it."""
    fields = {
        "code_id": "TW_CODE_ID",
        "num_inputs": f"{len(program.inputs)}u",
        "num_outputs": f"{len(program.outputs)}u",
        "num_calls": f"{len(program.calls)}u",
        "inputs": "inputs_table",
        "outputs": "outputs_table",
        "call_labels": "call_labels",
        "payload_bytes": f"{plan.weights_bytes}u",
        **own,
    }
    return c_struct("const tw_program tw_main_program", fields)


def c_struct(head: str, fields: Mapping[str, str]) -> str:
    """Return the definition of a C struct with named fields."""
    body = "".join(f"    .{field} = {value},\n" for field, value in fields.items())
    return f"{head} = {{\n{body}}};\n"


def describe(
    program: Program,
    plan: MemoryPlan,
    target: dict[str, object],
    cpu_features: tuple[str, ...],
    meta: dict[str, object],
) -> str:
    """Return the description of a module as JSON.

    `entries` is a list, so that one module can hold the same model for several input shapes.
    `meta["work"]`, where there is one, has further fields for each call.
    """
    work = meta.get("work") or [{}] * len(program.calls)
    assert isinstance(work, list)
    entry = {
        "name": "main",
        "inputs": [_spec_json(spec) for spec in program.input_specs],
        "outputs": [_spec_json(spec) for spec in program.output_specs],
        "calls": [
            {"label": call.label, "kernel": call.kernel, **extra}
            for call, extra in zip(program.calls, work, strict=True)
        ],
        "arena_bytes": plan.arena_bytes,
    }
    bounded = _bounded_outputs(program.output_specs)
    if bounded:
        entry["bounded_outputs"] = bounded
    description = {
        "format": "tilewright-module",
        **{key: value for key, value in meta.items() if key != "work"},
        "target": target,
        "cpu_features": list(cpu_features),
        "weights_bytes": plan.weights_bytes,
        "entries": [entry],
    }
    return json.dumps(description, indent=1, ensure_ascii=False)


def _bounded_outputs(specs: tuple[TensorSpec, ...]) -> list[str]:
    """Return the outputs whose shape is an upper bound: another one holds the actual extents."""
    names = {spec.name for spec in specs}
    return [spec.name for spec in specs if f"{spec.name}.extents" in names]


def _spec_json(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}
