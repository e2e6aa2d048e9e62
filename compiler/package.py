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
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tilewright.compiler.codegen import build_object
from tilewright.compiler.entry import describe, generate_entry
from tilewright.compiler.features import required_features
from tilewright.compiler.link import link, link_relocatable, prepare_runtime, write_sources
from tilewright.compiler.memory import MemoryPlan, plan_memory
from tilewright.compiler.program import Program
from tilewright.compiler.targets import Target
from tilewright.errors import CompileError

__all__ = ["FORMATS", "check_writable", "package", "prepare_runtime", "weights_path"]

FORMAT_VERSION = 1
FORMATS = ("so", "static", "c")
_MAGIC = b"TWMODULE"
_TRAILER = struct.Struct("<8sIIQQQQQIII")
# A file offset must be a multiple of the page to be mapped; 64 KiB is the largest page in use.
_PAYLOAD_ALIGNMENT_BYTES = 1 << 16


def package(
    program: Program,
    target: Target,
    path: str | Path,
    meta: Mapping[str, object] | None = None,
    form: str = "so",
) -> None:
    """Compile `program` for `target` and write the module to `path`.

    Formats: "so" is one file to be loaded. "static" is an object file with the runtime inside, to
    be linked into a program, and a file with the weights beside it. "c" is a folder with the object
    file of the kernels, the C sources of the rest, and the weights.

    Args:
        program: what to run.
        target: the processor to run it on.
        path: the file to write. It appears complete or not at all.
        meta: further entries of the description, for instance the digest of the model.
        form: one of FORMATS.

    Raises:
        CompileError: a kernel or the linker failed, or the file cannot be written.
        TargetError: there is no C compiler.
    """
    path = Path(path)
    if form not in FORMATS:
        raise CompileError(f"unknown format '{form}'; known formats: {', '.join(FORMATS)}")
    if form == "c":
        _make_folder(path)
    else:
        check_writable(path)
    parts = _build(program, target, meta or {})
    if form == "so":
        code = link(parts.kernels, parts.entry, architecture=target.architecture)
        write_module(path, code, parts)
        return
    if form == "static":
        code = link_relocatable(parts.kernels, parts.entry, target.architecture)
        try:
            path.write_bytes(code)
        except OSError as error:
            raise CompileError(f"cannot write '{path}': {error.strerror}") from error
    else:
        write_sources(path, parts.kernels, parts.entry)
    write_module(weights_path(path, form), b"", parts)


def weights_path(path: Path, form: str) -> Path:
    """Return where the weights and the description of a module of format static or c lie."""
    return path / "model.weights" if form == "c" else path.with_suffix(".weights")


@dataclass(frozen=True)
class Parts:
    """What a module is made of: an ELF object of kernels, C source, and what is not code."""

    kernels: bytes | None
    entry: str
    code_id: int
    plan: MemoryPlan
    description: str


def _build(program: Program, target: Target, meta: Mapping[str, object]) -> Parts:
    plan = plan_memory(program)
    features = required_features(target)
    kernels = program.used_kernels()
    objects = build_object(kernels, target) if kernels else None
    entry = generate_entry(program, plan, features)
    code_id = zlib.crc32(entry.encode(), zlib.crc32(objects or b""))
    info = {"versions": versions(), **meta}
    description = describe(program, plan, json.loads(target.to_json()), features, info)
    return Parts(objects, f"#define TW_CODE_ID {code_id}u\n{entry}", code_id, plan, description)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise CompileError(f"cannot write '{path}': {error.strerror}") from error


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


def versions() -> dict[str, str]:
    """Return the versions that a module's description names."""
    names = ("tilewright", "apache-tvm", "apache-tvm-ffi")
    return {name: metadata.version(name) for name in names}


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_module(path: Path, code: bytes, parts: Parts) -> None:
    """Write all parts to a temporary file in the same directory, then rename it."""
    temporary = _temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            _write_parts(file, code, parts.code_id, parts.plan, parts.description.encode())
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
