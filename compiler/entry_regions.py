"""C functions for control flow: one per region and one per body.

A body runs like a program of its own: its inputs and outputs are pointers that the region sets, its
intermediates lie in the region's workspace, its constants among the weights of the module.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.compiler.entry_calls import REGION_PREFIX, calls, copies
from tilewright.compiler.memory import MemoryPlan, RegionPlan
from tilewright.compiler.program import Program, Region


def region_functions(program: Program, plan: MemoryPlan) -> Iterator[str]:
    """Yield the functions of all regions of a program, innermost first."""
    for name, region in sorted(program.regions.items()):
        planned = plan.regions[name]
        for index, (body, body_plan) in enumerate(zip(region.bodies, planned.bodies, strict=True)):
            yield from region_functions(body, body_plan)
            yield _body_function(f"{REGION_PREFIX}{name}_body{index}", body, body_plan)
        write = _if_function if region.kind == "if" else _loop_function
        yield write(f"{REGION_PREFIX}{name}", region, planned)


def _body_function(name: str, body: Program, plan: MemoryPlan) -> str:
    lines = [
        f"static int {name}(const tw_frame *frame, char *const arena,",
        "    void *const *const inputs, void *const *const outputs) {",
        "  const char *const weights = frame->weights;",
        "  (void)arena, (void)weights, (void)inputs, (void)outputs;",
        *(f"  if ({text}) return 1;" for text in calls(body, plan)),
        *copies(body, plan),
        "  return 0;",
        "}\n",
    ]
    return "\n".join(lines)


def _head(name: str) -> list[str]:
    return [f"static int {name}(const tw_frame *frame, char *const work, void *const *args) {{"]


def _if_function(name: str, region: Region, plan: RegionPlan) -> str:
    """Arguments: condition, what the bodies take, results."""
    first_result = 1 + len({index for taken in region.takes for index in taken})
    lines = _head(name)
    lines.append(f"  void *const *const outputs = args + {first_result};")
    for index, taken in enumerate(region.takes):
        pointers = ", ".join(f"args[{1 + place}]" for place in taken) or "NULL"
        lines.append(f"  void *const inputs{index}[] = {{{pointers}}};")
    arena = f"work + {plan.arena}u"
    lines += [
        "  if (*(const unsigned char *)args[0])",
        f"    return {name}_body0(frame, {arena}, inputs0, outputs);",
        f"  return {name}_body1(frame, {arena}, inputs1, outputs);",
        "}\n",
    ]
    return "\n".join(lines)


def _loop_function(name: str, region: Region, plan: RegionPlan) -> str:
    """Arguments: iterations, condition, carried, captured; carried, scan outputs, count.

    A carried tensor is read where the last iteration wrote it: the first time in the caller's
    buffer, then in two buffers by turns.
    """
    body, carried = region.bodies[0], region.carried
    captured = len(body.inputs) - 2 - carried
    first_result = 2 + carried + captured
    sizes = [body.tensors[index].size_bytes for index in body.outputs[1:]]
    rows = len(sizes) - carried
    step, before, after = (f"work + {offset}u" for offset in plan.buffers[:3])
    lines = [
        *_head(name),
        "  const int64_t trips = *(const int64_t *)args[0];",
        "  int alive = *(const unsigned char *)args[1] != 0;",
        f"  void *inputs[{len(body.inputs)}], *outputs[{len(body.outputs)}];",
        "  int64_t count = 0;",
        f"  inputs[0] = {step};",
        f"  inputs[1] = {before};",
        f"  outputs[0] = {after};",
    ]
    lines += [f"  inputs[{2 + i}] = args[{2 + i}];" for i in range(carried + captured)]
    row_buffers = plan.buffers[3 + 2 * carried :]
    lines += [f"  outputs[{1 + carried + i}] = work + {at}u;" for i, at in enumerate(row_buffers)]
    lines += [
        "  for (; alive && count < trips; ++count) {",
        "    *(int64_t *)inputs[0] = count;",
        "    *(unsigned char *)inputs[1] = 1;",
    ]
    for i in range(carried):
        pair = plan.buffers[3 + 2 * i : 5 + 2 * i]
        lines.append(f"    outputs[{1 + i}] = work + (count % 2 ? {pair[1]}u : {pair[0]}u);")
    lines += [
        f"    if ({name}_body0(frame, work + {plan.arena}u, inputs, outputs)) return 1;",
        "    alive = *(const unsigned char *)outputs[0] != 0;",
        *(f"    inputs[{2 + i}] = outputs[{1 + i}];" for i in range(carried)),
    ]
    for i in range(rows):
        target = f"(char *)args[{first_result + carried + i}] + count * {sizes[carried + i]}"
        lines.append(f"    memcpy({target}, outputs[{1 + carried + i}], {sizes[carried + i]}u);")
    lines.append("  }")
    lines += [
        f"  memcpy(args[{first_result + i}], inputs[{2 + i}], {sizes[i]}u);" for i in range(carried)
    ]
    for i in range(rows):
        size = f"{sizes[carried + i]}u"
        rest = f"(char *)args[{first_result + carried + i}] + count * {size}"
        lines.append(f"  if (count < trips) memset({rest}, 0, (size_t)(trips - count) * {size});")
    count = f"args[{first_result + carried + rows}]"
    lines += [f"  *(int64_t *){count} = count;", "  return 0;", "}\n"]
    return "\n".join(lines)
