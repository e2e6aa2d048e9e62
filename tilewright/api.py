"""The public API: compile a model, load a module, look into either."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import CompileError, TargetError
from tilewright.inspection import describe_layouts
from tilewright.runtime.module import Module

if TYPE_CHECKING:
    from tilewright.compiler.algorithms import Chooser
    from tilewright.compiler.pipeline import Lowered
    from tilewright.compiler.program import Program
    from tilewright.compiler.targets import Target
    from tilewright.compiler.tasks import Tuned
    from tilewright.tuning import Logs

FAULT = "the compiler failed, which is a fault of tilewright and not of the model,"
# What TVM and Python raise where a pass meets what it did not expect.
_FAULTS = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    AssertionError, MemoryError,
)  # fmt: skip

Shapes = Mapping[str, Sequence[int]]


class CompiledModule:
    """A compiled model: a deployable file in a temporary folder, until it is saved.

    Attributes:
        path: the file, valid as long as this object lives.
        report: what the compiler decided, for `inspect` and people.
        form: as `format` of `compile`; only "so" can be run from here.
    """

    def __init__(
        self,
        path: Path,
        folder: tempfile.TemporaryDirectory,
        report: dict[str, Any],
        form: str = "so",
    ) -> None:
        self.path, self.report, self.form = path, report, form
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
        from tilewright.compiler.package import weights_path
        from tilewright.runtime.library import read_description

        described = self.path if self.form == "so" else weights_path(self.path, self.form)
        return read_description(described)

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
        if self.form != "so":
            return self._save_parts(target)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(self.path, temporary)
            os.replace(temporary, target)
        except OSError as error:
            raise CompileError(f"cannot write {target}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def _save_parts(self, target: Path) -> Path:
        """Save a module that is more than one file."""
        from tilewright.compiler.package import weights_path

        try:
            if self.form == "c":
                shutil.copytree(self.path, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(self.path, target)
                weights = weights_path(target, self.form)
                shutil.copyfile(weights_path(self.path, self.form), weights)
        except OSError as error:
            raise CompileError(f"cannot write {target}: {error.strerror or error}") from error
        return target


def compile(
    model: str | os.PathLike[str] | Any,
    target: str = "native",
    shapes: Shapes | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    logs: Logs | None = None,
    require_tuned: float | None = None,
    integer_only: bool = False,
    dump_ir: str | os.PathLike[str] | None = None,
    format: str = "so",
    precision: str = "fp32",
    progress: Callable[[str], None] = lambda _stage: None,
) -> CompiledModule:
    """Compile an ONNX model into one deployable file.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: "native", or a name from `targets()`.
        shapes: shape per input, where the model leaves dimensions open.
        constants: values of inputs that never change; they leave the signature.
        logs: tuning logs; None: those of the package and of the user, (): none.
        require_tuned: least share of the expected time that must be tuned, 0 to 1.
        integer_only: no floating-point operation between the first quantize and the last
            dequantize operator of a quantized model, whose scales must be fixed.
        dump_ir: folder for the stages of the compile as text.
        format: "so", one file to be loaded; "static", an object file with the runtime inside, and
            the weights beside it; "c", a folder for one's own build.
        precision: of products of floats on a GPU: "fp32", or by tensor cores "tf32", "fp16" or
            "bf16"; "int8" asks for a quantized model. Processors have "fp32" only.
        progress: called with the name of each stage.

    Raises:
        ModelError: the file is missing, damaged or uses what is not supported.
        TargetError: the target is unknown, or there is no C compiler.
        CompileError: a pass or the linker failed, or too little is tuned.
        LogError: a log that was named cannot be read.
    """
    from dataclasses import asdict

    from tilewright.compiler.cuda.targets import is_cuda
    from tilewright.compiler.package import package
    from tilewright.compiler.targets import parse_target
    from tilewright.compiler.work import describe_work
    from tilewright.tuning import check_required, describe_tuning, find_tuned

    if is_cuda(target):
        from tilewright.gpu import CudaOptions, compile_for_gpu

        options = CudaOptions(target, precision, logs, require_tuned, integer_only, dump_ir, format)
        return compile_for_gpu(model, options, shapes, constants, progress)
    if precision != "fp32":
        raise TargetError(f"precision {precision!r} is for CUDA targets; {target} computes in fp32")
    description = parse_target(target)
    lookup = find_tuned(description, logs)
    lowered, digest = lower_model(
        *(model, description, shapes, constants),
        tuned=lookup,
        winograd=True if lookup is None else lookup.algorithm,
        integer_only=integer_only,
        dump_ir=dump_ir,
        progress=progress,
    )
    tuning = describe_tuning(lowered, lookup)
    check_required(tuning, require_tuned)
    progress("code generation")
    folder = tempfile.TemporaryDirectory(prefix="tilewright-")
    path = Path(folder.name) / {"so": "model.so", "static": "model.o"}.get(format, "model")
    report = {**describe_layouts(lowered), "tuning": tuning}
    work = describe_work(lowered.program, lowered.operations, lowered.scattered)
    calls = [
        {**numbers, **reasons}
        for numbers, reasons in zip(work, _reasons(lowered.program, report), strict=True)
    ]
    meta: dict[str, Any] = {"model_digest": digest, "work": calls}
    if lowered.quantized:
        meta["quantized"] = [asdict(item) for item in lowered.quantized]
    package(lowered.program, description, path, meta, format)
    return CompiledModule(path, folder, report, format)


def _reasons(program: Program, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each call, its layouts and whether it is tuned: what `explain` reads."""
    layouts = {row["label"]: row["layouts"] for row in report["operators"]}
    tuning = {row["label"]: row for row in report["tuning"]["operators"]}
    reasons: list[dict[str, Any]] = []
    for call in program.calls:
        found = {}
        if call.label in layouts:
            row = tuning[call.label]
            found = {
                "layouts": layouts[call.label],
                "tuning": row["origin"],
                "reason": row["reason"],
            }
        reasons.append(found)
    return reasons


def lower_model(
    model: str | os.PathLike[str] | Any,
    target: Target,
    shapes: Shapes | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    tuned: Tuned | None = None,
    winograd: bool | Chooser = True,
    integer_only: bool = False,
    dump_ir: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> tuple[Lowered, str]:
    """Import a model and lower it; return the program with its layouts, and the model's digest.

    This is `compile` without code generation; arguments and errors are the same, but `tuned` are
    the decisions themselves, and `winograd` is as for `compiler.pipeline.lower`.
    """
    from functools import partial

    from tilewright.compiler.pipeline import lower

    lowering = partial(
        lower,
        target=target,
        tuned=tuned,
        winograd=winograd,
        integer_only=integer_only,
        dump_ir=None if dump_ir is None else Path(dump_ir),
    )
    return lower_by(lowering, model, shapes, constants, progress)


def lower_by(
    lowering: Callable[..., Any],
    model: str | os.PathLike[str] | Any,
    shapes: Shapes | None,
    constants: Mapping[str, np.ndarray] | None,
    progress: Callable[[str], None],
) -> tuple[Any, str]:
    """Import a model and give it to `lowering`; return what that gives, and the model's digest.

    Args:
        lowering: takes a Relax module, inputs, outputs, and by name `regions` and `progress`.
        model, shapes, constants, progress: as for `compile`.
    """
    from tilewright.compiler.program import TensorSpec
    from tilewright.compiler.regions import BodySource, RegionSource
    from tilewright.frontends.onnx import import_onnx

    def specs(items: Sequence[Any]) -> list[TensorSpec]:
        return [TensorSpec(item.name, item.shape, item.dtype) for item in items]

    stage = "import"

    def note(name: str) -> None:
        nonlocal stage
        stage = name
        progress(name)

    note("import")
    imported = import_onnx(model, shapes=shapes, constants=constants)
    regions = []
    for region in imported.regions:
        bodies = [BodySource(b.module, specs(b.inputs), specs(b.outputs)) for b in region.bodies]
        regions.append(RegionSource(region.kind, bodies, region.carried, region.takes))
    try:
        lowered = lowering(
            imported.module,
            specs(imported.inputs),
            specs(imported.outputs),
            regions=regions,
            progress=note,
        )
    except _FAULTS as error:
        reason = str(error).strip().split("\n")[-1] or type(error).__name__
        raise CompileError(
            f"{FAULT} in stage '{stage}': {reason}. Please report it with the model; --debug shows "
            "where it is."
        ) from error
    return lowered, imported.digest


def load(path: str | os.PathLike[str], threads: int | None = None) -> Module:
    """Load a deployable module; needs no TVM. See `tilewright.runtime.Module`."""
    return Module(Path(path), threads=threads)


def targets() -> list[dict[str, Any]]:
    """Return the known targets, "native" first and GPUs last, as plain data."""
    from dataclasses import asdict

    from tilewright.compiler.cuda.targets import list_cuda_targets, parse_cuda_target
    from tilewright.compiler.targets import list_targets, parse_target
    from tilewright.errors import TargetError

    described = []
    for name in list_targets():
        try:
            described.append({**asdict(parse_target(name)), "name": name})
        except TargetError as error:  # "native", on a machine that cannot be built for
            described.append({"name": name, "unavailable": str(error)})
    return described + [asdict(parse_cuda_target(name)) for name in list_cuda_targets()]
