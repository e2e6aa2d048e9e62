"""Compile the C runtime and link it with the kernels and the entry of a module."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from tilewright.compiler.toolchain import find_c_compiler, run_c_compiler, without_debug_info
from tilewright.errors import CompileError

_SOURCES = (
    "tw_module.c",
    "tw_threads.c",
    "tw_thread_state.c",
    "tw_memory.c",
    "tw_cpu.c",
    "tw_cpu_x86.c",
    "tw_cpu_arm.c",
)
_HEADERS = ("tilewright.h", "tw_runtime.h")
_EXPORTS = "{ global: tilewright_api; local: *; };\n"
# No -march: this code must run on any processor of the family, to refuse the wrong one politely.
_COMPILE_FLAGS = ("-std=gnu11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-pthread")
# Files may be larger than 2 GiB on 32-bit systems too.
_COMPILE_FLAGS_OF = {"armv7": ("-D_FILE_OFFSET_BITS=64",)}
_LINK_FLAGS = (
    *("-shared", "-Wl,-z,relro,-z,now,-z,noexecstack", "-Wl,--no-undefined"),
    "-Wl,--as-needed",
)
_BUILD_NOTE = """\
/* A model as C: compile with the sources beside it, link with kernels.o, -pthread and -lm. Define
 * TILEWRIGHT_STATIC before tilewright.h in the program that calls it, and open model.weights. */
"""


def link(
    kernels: bytes | None,
    entry: str,
    extra_flags: Sequence[str] = (),
    architecture: str | None = None,
    device_sources: tuple[str, ...] = (),
) -> bytes:
    """Compile the entry and the C runtime, link them with the kernels, return the shared object.

    Args:
        kernels: an ELF object, or None for a program without calls.
        entry: C source from `generate_entry`, with its `TW_CODE_ID`.
        extra_flags: for both compiling and linking, for instance a sanitizer.
        architecture: as in `Target.architecture`; by default that of this machine.
        device_sources: further files of the C runtime, for programs that a GPU runs.
    """
    flags = (*_COMPILE_FLAGS_OF.get(architecture or "", ()), *extra_flags)
    sources = resources.files("tilewright.runtime") / "c"
    with (
        resources.as_file(sources) as source_dir,
        tempfile.TemporaryDirectory(prefix="tilewright-") as folder,
    ):
        work = Path(folder)
        (work / "exports.map").write_text(_EXPORTS)
        objects = _write_objects(work, kernels, entry, flags, architecture, device_sources)
        run_c_compiler(
            [
                *_COMPILE_FLAGS,
                f"-I{source_dir}",
                *_LINK_FLAGS,
                without_debug_info(architecture),
                *flags,
                f"-Wl,--version-script={work / 'exports.map'}",
                work / "entry.c",
                *objects,
                "-lm",
                *(["-ldl"] if device_sources else []),
                "-o",
                work / "module.so",
            ],
            architecture,
        )
        return (work / "module.so").read_bytes()


def link_relocatable(
    kernels: bytes | None,
    entry: str,
    architecture: str | None = None,
    extra_flags: Sequence[str] = (),
) -> bytes:
    """Return one object file of entry, runtime and kernels, for linking into a program.

    Args:
        kernels, entry, architecture: as for `link`.
        extra_flags: for compiling, for instance a sanitizer.
    """
    flags = (*_COMPILE_FLAGS_OF.get(architecture or "", ()), *extra_flags)
    sources = resources.files("tilewright.runtime") / "c"
    with (
        resources.as_file(sources) as source_dir,
        tempfile.TemporaryDirectory(prefix="tilewright-") as folder,
    ):
        work = Path(folder)
        objects = _write_objects(work, kernels, entry, flags, architecture)
        compiled = work / "entry.o"
        run_c_compiler(
            [
                *(*_COMPILE_FLAGS, f"-I{source_dir}", *flags),
                *("-c", work / "entry.c", "-o", compiled),
            ],
            architecture,
        )
        module = work / "module.o"
        linking = ("-r", "-nostdlib", without_debug_info(architecture))
        run_c_compiler([*linking, compiled, *objects, "-o", module], architecture)
        return module.read_bytes()


def write_sources(folder: Path, kernels: bytes | None, entry: str) -> None:
    """Write everything that one's own build needs: kernels as an object file, the rest as C.

    Raises:
        CompileError: the folder cannot be written to.
    """
    try:
        (folder / "entry.c").write_text(f"{_BUILD_NOTE}{entry}")
        if kernels is not None:
            (folder / "kernels.o").write_bytes(kernels)
        for item in (resources.files("tilewright.runtime") / "c").iterdir():
            if item.name in (*_SOURCES, *_HEADERS):
                (folder / item.name).write_bytes(item.read_bytes())
    except OSError as error:
        raise CompileError(f"cannot write to '{folder}': {error.strerror}") from error


def _write_objects(
    work: Path,
    kernels: bytes | None,
    entry: str,
    flags: tuple[str, ...],
    architecture: str | None,
    device_sources: tuple[str, ...] = (),
) -> list[Path]:
    """Write the entry and all objects to a folder; return the paths of the objects."""
    (work / "entry.c").write_text(entry)
    compiler = (*find_c_compiler(architecture),)
    objects = dict(_runtime_objects(compiler, flags, architecture))
    if device_sources:
        objects |= dict(_runtime_objects(compiler, flags, architecture, device_sources))
    if kernels is not None:
        objects["kernels.o"] = kernels
    for name, content in objects.items():
        (work / name).write_bytes(content)
    return [work / name for name in objects]


def prepare_runtime() -> None:
    """Compile the C runtime now: processes that are forked afterwards need not."""
    _runtime_objects((*find_c_compiler(),), (), None)


@cache
def _runtime_objects(
    compiler: tuple[str, ...],
    extra_flags: tuple[str, ...],
    architecture: str | None,
    names: tuple[str, ...] = _SOURCES,
) -> tuple[tuple[str, bytes], ...]:
    """Compile the C runtime: once per process, as it is the same in every module.

    Args:
        compiler: the command that `run_c_compiler` calls; here so that another one is not mixed up.
        extra_flags, architecture: as for `link`.
        names: files of the C runtime.

    Returns:
        Pairs of file name and ELF object.
    """
    sources = resources.files("tilewright.runtime") / "c"
    with (
        resources.as_file(sources) as source_dir,
        tempfile.TemporaryDirectory(prefix="tilewright-") as folder,
    ):
        objects = []
        for name in names:
            out = Path(folder, name).with_suffix(".o")
            run_c_compiler(
                [
                    *(*_COMPILE_FLAGS, f"-I{source_dir}", *extra_flags),
                    *("-c", source_dir / name, "-o", out),
                ],
                architecture,
            )
            objects.append((out.name, out.read_bytes()))
        return tuple(objects)
