"""Write a program as one deployable file: code, weights, description.

    program -> kernels.o + entry.c + runtime/c  --link-->  ELF shared object
    ELF | zeros up to a page | weights | description (JSON) | trailer  --rename-->  model.so

The weights are not linked: the runtime maps them from the file, read-only and shared. The trailer
is described in runtime/c/tilewright.h.
"""

from __future__ import annotations

import json
import secrets
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tilewright.compiler.codegen import build_object
from tilewright.compiler.entry import describe, generate_entry
from tilewright.compiler.features import required_features
from tilewright.compiler.memory import MemoryPlan, plan_memory
from tilewright.compiler.program import Program
from tilewright.compiler.targets import Target
from tilewright.compiler.toolchain import find_c_compiler, run_c_compiler
from tilewright.errors import CompileError

FORMAT_VERSION = 1
_MAGIC = b"TWMODULE"
_TRAILER = struct.Struct("<8sIIQQQQQIII")
# A file offset must be a multiple of the page to be mapped; 64 KiB is the largest page in use.
_PAYLOAD_ALIGNMENT_BYTES = 1 << 16
_SOURCES = (
    "tw_module.c",
    "tw_threads.c",
    "tw_thread_state.c",
    "tw_memory.c",
    "tw_cpu.c",
    "tw_cpu_x86.c",
    "tw_cpu_arm.c",
)
_EXPORTS = "{ global: tilewright_api; local: *; };\n"
# No -march: this code must run on any processor of the family, to refuse the wrong one politely.
_COMPILE_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread")
# Files may be larger than 2 GiB on 32-bit systems too.
_COMPILE_FLAGS_OF = {"armv7": ("-D_FILE_OFFSET_BITS=64",)}
_LINK_FLAGS = (
    *("-shared", "-Wl,-z,relro,-z,now,-z,noexecstack", "-Wl,--no-undefined", "-Wl,--strip-debug"),
    "-Wl,--as-needed",
)


def package(
    program: Program,
    target: Target,
    path: str | Path,
    meta: Mapping[str, object] | None = None,
) -> None:
    """Compile `program` for `target` and write the module to `path`.

    Args:
        program: what to run.
        target: the processor to run it on.
        path: the file to write. It appears complete or not at all.
        meta: further entries of the description, for instance the digest of the model.

    Raises:
        CompileError: a kernel or the linker failed, or the file cannot be written.
        TargetError: there is no C compiler.
    """
    path = Path(path)
    check_writable(path)
    plan = plan_memory(program)
    features = required_features(target)
    used = {call.kernel for call in program.calls}
    kernels = {name: func for name, func in program.kernels.items() if name in used}
    objects = build_object(kernels, target) if kernels else None
    entry = generate_entry(program, plan, features)
    code_id = zlib.crc32(entry.encode(), zlib.crc32(objects or b""))
    source = f"#define TW_CODE_ID {code_id}u\n{entry}"
    code = link(objects, source, architecture=target.architecture)
    info = {"versions": _versions(), **(meta or {})}
    description = describe(program, plan, json.loads(target.to_json()), features, info)
    _write_file(path, code, code_id, plan, description)


def check_writable(path: Path) -> None:
    """Fail early if `path` cannot become a file.

    Raises:
        CompileError: the directory is missing or read-only, or `path` is a directory.
    """
    if path.is_dir():
        raise CompileError(f"cannot write '{path}': it is a directory")
    probe = _temporary_beside(path)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise CompileError(f"cannot write '{path}': {error.strerror}") from error


def link(
    kernels: bytes | None,
    entry: str,
    extra_flags: Sequence[str] = (),
    architecture: str | None = None,
) -> bytes:
    """Compile the entry and the C runtime, link them with the kernels, return the shared object.

    Args:
        kernels: an ELF object, or None for a program without calls.
        entry: C source from `generate_entry`, with its `TW_CODE_ID`.
        extra_flags: for both compiling and linking, for instance a sanitizer.
        architecture: as in `Target.architecture`; by default that of this machine.
    """
    flags = (*_COMPILE_FLAGS_OF.get(architecture or "", ()), *extra_flags)
    sources = resources.files("tilewright.runtime") / "c"
    with (
        resources.as_file(sources) as source_dir,
        tempfile.TemporaryDirectory(prefix="tilewright-") as folder,
    ):
        work = Path(folder)
        (work / "entry.c").write_text(entry)
        (work / "exports.map").write_text(_EXPORTS)
        objects = dict(_runtime_objects((*find_c_compiler(architecture),), (*flags,), architecture))
        if kernels is not None:
            objects["kernels.o"] = kernels
        for name, content in objects.items():
            (work / name).write_bytes(content)
        run_c_compiler(
            [
                *_COMPILE_FLAGS,
                f"-I{source_dir}",
                *_LINK_FLAGS,
                *flags,
                f"-Wl,--version-script={work / 'exports.map'}",
                work / "entry.c",
                *(work / name for name in objects),
                "-lm",
                "-o",
                work / "module.so",
            ],
            architecture,
        )
        return (work / "module.so").read_bytes()


def prepare_runtime() -> None:
    """Compile the C runtime now: processes that are forked afterwards need not."""
    _runtime_objects((*find_c_compiler(),), (), None)


@cache
def _runtime_objects(
    compiler: tuple[str, ...], extra_flags: tuple[str, ...], architecture: str | None
) -> tuple[tuple[str, bytes], ...]:
    """Compile the C runtime: once per process, as it is the same in every module.

    Args:
        compiler: the command that `run_c_compiler` calls; here so that another one is not mixed up.
        extra_flags, architecture: as for `link`.

    Returns:
        Pairs of file name and ELF object.
    """
    sources = resources.files("tilewright.runtime") / "c"
    with (
        resources.as_file(sources) as source_dir,
        tempfile.TemporaryDirectory(prefix="tilewright-") as folder,
    ):
        objects = []
        for name in _SOURCES:
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


def _versions() -> dict[str, str]:
    names = ("tilewright", "apache-tvm", "apache-tvm-ffi")
    return {name: metadata.version(name) for name in names}


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _write_file(
    path: Path,
    code: bytes,
    code_id: int,
    plan: MemoryPlan,
    description: str,
) -> None:
    """Write all parts to a temporary file in the same directory, then rename it."""
    temporary = _temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            _write_parts(file, code, code_id, plan, description.encode())
        temporary.replace(path)
    except OSError as error:
        raise CompileError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_parts(
    file: BinaryIO,
    code: bytes,
    code_id: int,
    plan: MemoryPlan,
    description: bytes,
) -> None:
    payload_offset = -(-len(code) // _PAYLOAD_ALIGNMENT_BYTES) * _PAYLOAD_ALIGNMENT_BYTES
    code += bytes(payload_offset - len(code))
    file.write(code)
    payload_crc, position = 0, 0
    for offset, data in plan.weights:
        gap = bytes(offset - position)
        raw = data.reshape(-1).view(np.uint8)
        file.write(gap)
        file.write(raw.data)
        payload_crc = zlib.crc32(raw.data, zlib.crc32(gap, payload_crc))
        position = offset + raw.size
    rest = bytes(plan.weights_bytes - position)
    file.write(rest)
    payload_crc = zlib.crc32(rest, payload_crc)
    file.write(description)
    description_offset = payload_offset + plan.weights_bytes
    trailer = _TRAILER.pack(
        *(_MAGIC, FORMAT_VERSION, code_id, payload_offset, plan.weights_bytes, description_offset),
        *(len(description), description_offset + len(description) + _TRAILER.size + 4),
        *(zlib.crc32(code), payload_crc, zlib.crc32(description)),
    )
    file.write(trailer + struct.pack("<I", zlib.crc32(trailer)))
