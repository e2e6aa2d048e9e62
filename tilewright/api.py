"""The public API: compile a model, load a module, look into either."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import CompileError
from tilewright.runtime.module import Module

Shapes = Mapping[str, Sequence[int]]


class CompiledModule:
    """A compiled model: a deployable file in a temporary folder, until it is saved.

    Attributes:
        path: the file, valid as long as this object lives.
        report: what the compiler decided, for `inspect` and people.
    """

    def __init__(self, path: Path, folder: tempfile.TemporaryDirectory, report: dict[str, Any]):
        self.path, self.report = path, report
        self._folder = folder
        self._module: Module | None = None

    @property
    def module(self) -> Module:
        """The loaded module; loaded at the first use."""
        if self._module is None:
            self._module = Module(self.path)
        return self._module

    @property
    def description(self) -> dict[str, Any]:
        """Inputs, outputs, target, versions: what the file says of itself."""
        return self.module.description

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on named arrays; see `tilewright.runtime.Module.run`."""
        return self.module.run(inputs)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run on arrays in the order of the model's inputs."""
        return self.module(*arrays)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the deployable file, through a temporary file beside it.

        Raises:
            CompileError: the file cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(self.path, temporary)
            os.replace(temporary, target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CompileError(f"cannot write {target}: {error.strerror or error}") from error
        return target


def compile(
    model: str | os.PathLike[str] | Any,
    target: str = "native",
    shapes: Shapes | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    dump_ir: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> CompiledModule:
    """Compile an ONNX model into one deployable file.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: "native", or a name from `targets()`.
        shapes: shape per input, where the model leaves dimensions open.
        constants: values of inputs that never change; they leave the signature.
        dump_ir: folder for the stages of the compile as text.
        progress: called with the name of each stage.

    Raises:
        ModelError: the file is missing, damaged or uses what is not supported.
        TargetError: the target is unknown, or there is no C compiler.
        CompileError: a pass or the linker failed.
    """
    from tilewright.compiler.package import package
    from tilewright.compiler.pipeline import lower
    from tilewright.compiler.program import TensorSpec
    from tilewright.compiler.targets import parse_target
    from tilewright.frontends.onnx import import_onnx

    description = parse_target(target)
    progress("import")
    imported = import_onnx(model, shapes=shapes, constants=constants)
    lowered = lower(
        imported.module,
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.inputs],
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.outputs],
        description,
        dump_ir=None if dump_ir is None else Path(dump_ir),
        progress=progress,
    )
    progress("code generation")
    folder = tempfile.TemporaryDirectory(prefix="tilewright-")
    path = Path(folder.name) / "model.so"
    package(lowered.program, description, path, {"model_digest": imported.digest})
    return CompiledModule(path, folder, _report(lowered))


def load(path: str | os.PathLike[str], threads: int | None = None) -> Module:
    """Load a deployable module; needs no TVM. See `tilewright.runtime.Module`."""
    return Module(path, threads=threads)


def targets() -> list[dict[str, Any]]:
    """Return the known targets, "native" first, as plain data."""
    from dataclasses import asdict

    from tilewright.compiler.targets import list_targets

    return [asdict(target) for target in list_targets()]


def _report(lowered: Any) -> dict[str, Any]:
    """Return operators with their layouts, and the conversions between them, as plain data."""
    return {
        "operators": [
            {"label": call.label, "kernel": call.kernel} for call in lowered.program.calls
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
        "layouts_proven_optimal": lowered.plan.proven,
    }
