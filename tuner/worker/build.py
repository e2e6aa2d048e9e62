"""The building process: everything that needs TVM, from layout choices to shared objects."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.tirx import PrimFunc

from tilewright.compiler.codegen import build_object
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout, pack_constant
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import decisions_from_json, default_decisions, schedule
from tilewright.compiler.schedule.integer import packed_weights
from tilewright.compiler.targets import Target
from tilewright.compiler.toolchain import shared_linker
from tilewright.errors import TilewrightError
from tilewright.tuner.layouts import layout_choices
from tilewright.tuner.worker.inputs import random_array
from tilewright.tuner.worker.narrow_inputs import narrowed
from tilewright.tuner.worker.static_check import rejection
from tilewright.tuner.workload import describe_loops

KERNEL = "candidate"


def handlers(config: Mapping[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands of this process."""
    return commands(Builder(config))


def commands(builder: Builder) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands that a builder answers."""
    return {
        "prepare": builder.prepare,
        "choices": builder.choices,
        "pack": builder.pack,
        "build": builder.build,
    }


class Builder:
    """State of the building process: tasks it has seen, by key."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.folder = Path(config["folder"])
        self.operators: dict[str, Operator] = {}
        self.rewritten: dict[tuple[str, str], PrimFunc] = {}

    def _operator(self, task: Mapping[str, Any]) -> Operator:
        if task["key"] not in self.operators:
            self.operators[task["key"]] = Operator(
                tvm.ir.load_json(task["func"]),
                frozenset(task["constants"]),
                frozenset(task["images"]),
                task["n_outputs"],
            )
        return self.operators[task["key"]]

    def _rewritten(self, task: Mapping[str, Any], layouts: list[Any]) -> PrimFunc:
        known = (task["key"], json.dumps(layouts))
        if known not in self.rewritten:
            parsed = [Layout.from_json(layout) for layout in layouts]
            changed = {p: layout for p, layout in enumerate(parsed) if layout.primitives}
            func = self._operator(task).func
            self.rewritten[known] = rewrite(func, changed) if changed else func
        return self.rewritten[known]

    def choices(self, task: Mapping[str, Any], target: str) -> dict[str, Any]:
        """Return the task's layout choices, each with what there is to decide about its loops."""
        description = Target.from_json(target)
        found = []
        for choice in layout_choices(self._operator(task), description):
            layouts = [layout.to_json() for layout in choice.layouts]
            try:
                func = self._rewritten(task, layouts)
                default = default_decisions(func, description)
                loops = describe_loops(func, description)
            except (TilewrightError, tvm.error.InternalError, ValueError):
                continue  # a layout that cannot be rewritten or scheduled is no choice
            found.append(
                {
                    "name": choice.name,
                    "layouts": layouts,
                    "estimate_s": choice.seconds,
                    "default": json.loads(default.to_json()),
                    "loops": loops,
                }
            )
        return {"choices": _worth_tuning(found)}

    def prepare(self, task: Mapping[str, Any], target: str, seed: int) -> dict[str, Any]:
        """Write random inputs and the unscheduled kernel that computes what is right."""
        func = self._operator(task).func
        folder = self.folder / task["key"]
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        operator = self._operator(task)
        shapes = operator.shapes
        for position in range(operator.output):
            param = func.params[position]
            array = random_array(rng, shapes[position], str(param.ty.dtype), shapes)
            array = narrowed(operator, position, array)
            np.save(folder / f"in{position:02d}.npy", array)
        library = folder / "reference.so"
        description = Target.from_json(target)
        self._link(build_object({KERNEL: func}, description), library, description)
        outputs = [(list(shapes[p]), _numpy_name(func, p)) for p in _outputs(operator)]
        results = [str(folder / f"ref{index:02d}.npy") for index in range(len(outputs))]
        return {
            "library": str(library),
            "folder": str(folder),
            "outputs": outputs,
            "results": results,
        }

    def pack(
        self, task: Mapping[str, Any], target: str, layouts: list[Any], name: str
    ) -> dict[str, Any]:
        """Write inputs and expected outputs in these layouts, weights of few bits packed."""
        source = self.folder / task["key"]
        folder = source / name
        operator = self._operator(task)
        folder.mkdir(exist_ok=True)
        parsed = [Layout.from_json(layout) for layout in layouts]
        outputs = []
        bits = packed_weights(self._rewritten(task, layouts), Target.from_json(target))
        for position, layout in enumerate(parsed):
            index = position - operator.output
            kind = f"in{position:02d}" if index < 0 else f"ref{index:02d}"
            array = pack_constant(layout, np.load(source / f"{kind}.npy"))
            if position in bits:
                array = bits[position].pack(array)
            name = f"in{position:02d}" if index < 0 else f"out{index:02d}"
            np.save(folder / f"{name}.npy", array)
            if index >= 0:
                outputs.append((list(array.shape), array.dtype.name))
        return {"folder": str(folder), "outputs": outputs}

    def build(
        self,
        task: Mapping[str, Any],
        target: str,
        layouts: list[Any],
        schedule_json: Any,
        out: str,
        trusted: bool = False,
    ) -> dict[str, Any]:
        """Rewrite, schedule and compile one candidate into a shared object.

        Unless it is trusted its code is looked at: "rejected" says why it is not worth timing.
        """
        start = time.perf_counter()
        description = Target.from_json(target)
        _, scheduled = self._scheduled(task, description, layouts, schedule_json)
        self._link(build_object({KERNEL: scheduled}, description), Path(out), description)
        rejected = ""
        kind = None if trusted or schedule_json is None else schedule_json.get("kind")
        if kind == "contraction":
            rejected = rejection(Path(out), KERNEL, description)
        return {"library": out, "rejected": rejected, "seconds": time.perf_counter() - start}

    def _scheduled(
        self, task: Mapping[str, Any], target: Target, layouts: list[Any], schedule_json: Any
    ) -> tuple[PrimFunc, PrimFunc]:
        """Return a candidate in its layouts, and its loops."""
        text = None if schedule_json is None else json.dumps(schedule_json)
        func = self._rewritten(task, layouts)
        return func, schedule(func, target, None if text is None else decisions_from_json(text))

    def _link(self, code: bytes, path: Path, target: Target) -> None:
        """Link one object."""
        object_path = path.with_suffix(".o")
        object_path.write_bytes(code)
        before, after = shared_linker(target.architecture)
        command = [*before, "-o", str(path), str(object_path), *after]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        object_path.unlink()
        if done.returncode:
            raise OSError(f"{before[0]} failed: {done.stderr.strip()[-300:]}")


def _worth_tuning(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop layouts, the first (all-logical) aside, in which the register kernels do not work."""
    kernels = ("contraction", "window")
    if not any(choice["loops"]["kind"] in kernels for choice in choices):
        return choices
    return [
        choice
        for index, choice in enumerate(choices)
        if index == 0 or choice["loops"]["kind"] in kernels
    ]


def _outputs(operator: Operator) -> range:
    return range(operator.output, len(operator.func.params))


def _numpy_name(func: PrimFunc, position: int) -> str:
    return str(func.params[position].ty.dtype)
