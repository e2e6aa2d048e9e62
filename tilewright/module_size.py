"""What the bytes of a module are: kernels, runtime, weights, and the rest."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.compiler.codegen import KERNEL_PREFIX
from tilewright.compiler.cuda.entry import IMAGE_SYMBOL
from tilewright.errors import ModuleError
from tilewright.runtime.library import read_description

_SYMTAB, _NOBITS = 2, 8
_ALLOCATED, _EXECUTABLE = 2, 4
_OBJECT, _FUNCTION = 1, 2
_CLASS_64 = 2
_ELF_TYPE = 16
PARALLEL_LOOPS = "bodies of parallel loops"
GPU_CODE = "cubin and PTX of all kernels"
# Of the end of a module file; see runtime/c/tilewright.h.
_TRAILER = struct.Struct("<8sIIQQQQQIIII")


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    address: int
    size: int


class _Elf:
    """Sections and functions of a little-endian ELF file of 32 or 64 bits."""

    def __init__(self, content: bytes, path: str) -> None:
        if content[:4] != b"\x7fELF":
            raise ModuleError(f"'{path}' holds no code: it is not a module of the format 'so'")
        self.content, self.wide = content, content[4] == _CLASS_64
        at = 0x28 if self.wide else 0x20
        (table,) = struct.unpack_from("<Q" if self.wide else "<I", content, at)
        size, count, _ = struct.unpack_from("<HHH", content, 0x3A if self.wide else 0x2E)
        self.sections = tuple(self._section(table + i * size) for i in range(count))

    def _section(self, at: int) -> _Section:
        form = "<IIQQQQI" if self.wide else "<IIIIIII"
        _, kind, flags, address, offset, size, link = struct.unpack_from(form, self.content, at)
        return _Section(kind, flags, address, offset, size, link)

    def symbols(self, wanted: int = _FUNCTION) -> Iterator[_Symbol]:
        """Yield the named functions, or what else is of the kind that is wanted."""
        form = struct.Struct("<IBBHQQ" if self.wide else "<IIIBBH")
        for table in self.sections:
            if table.kind != _SYMTAB:
                continue
            names = self.sections[table.link].offset
            for at in range(table.offset, table.offset + table.size, form.size):
                fields = form.unpack_from(self.content, at)
                if self.wide:
                    name, info, _, section, address, size = fields
                else:
                    name, address, size, info, _, section = fields
                if info & 15 == wanted and section:
                    start = names + name
                    text = self.content[start : self.content.index(b"\0", start)].decode()
                    # The lowest bit of an address marks Thumb code.
                    yield _Symbol(text, address if self.wide else address & ~1, size)


def module_size(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the bytes of each part of a module file.

    Keys: file, kernels, runtime, data (constants and tables of the code), elf (headers, symbols,
    padding), weights, description, trailer; by_kernel: bytes of each kernel, largest first. All but
    the last add up to the file. Of a module of the format static, the object is given, and the
    file of its weights counts with it.

    Raises:
        ModuleError: the file is no module, damaged, or holds no code.
    """
    content, beside = _read(Path(path)), b""
    if _is_object(content):
        beside = _read(Path(path).with_suffix(".weights"))
        read_description(Path(path).with_suffix(".weights"))
    else:
        read_description(Path(path))
    content += beside
    trailer = _TRAILER.unpack_from(content, len(content) - _TRAILER.size)
    payload, weights, _, description = trailer[3:7]
    payload += len(content) - len(beside) if beside else 0
    elf = _Elf(content[:payload], os.fspath(path))
    by_kernel = _kernel_bytes(elf)
    image = next((s.size for s in elf.symbols(_OBJECT) if s.name == IMAGE_SYMBOL), 0)
    kernels = sum(by_kernel.values())
    stored = [s for s in elf.sections if s.kind != _NOBITS and s.flags & _ALLOCATED]
    code = sum(s.size for s in stored if s.flags & _EXECUTABLE)
    data = sum(s.size for s in stored if not s.flags & _EXECUTABLE)
    return {
        "file": len(content),
        "kernels": kernels + image,
        "runtime": code - kernels,
        "data": data - image,
        "elf": payload - code - data,
        "weights": weights,
        "description": description,
        "trailer": _TRAILER.size,
        "by_kernel": dict(
            sorted(({GPU_CODE: image} if image else by_kernel).items(), key=lambda item: -item[1])
        ),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModuleError(f"cannot read '{path}': {error.strerror}") from error


def _is_object(content: bytes) -> bool:
    """Tell whether it is an ELF file that is to be linked: a module of the format static."""
    return content[:4] == b"\x7fELF" and content[_ELF_TYPE : _ELF_TYPE + 2] == b"\1\0"


def _kernel_bytes(elf: _Elf) -> dict[str, int]:
    """Return the bytes of each kernel; bodies of parallel loops have no name, so they are one."""
    sizes: dict[str, int] = {}
    named = 0
    for symbol in elf.symbols():
        named += symbol.size
        if symbol.name.startswith(KERNEL_PREFIX):
            sizes[symbol.name.removeprefix(KERNEL_PREFIX)] = symbol.size
    text = max((s.size for s in elf.sections if s.flags & _EXECUTABLE), default=0)
    if sizes:
        sizes[PARALLEL_LOOPS] = max(0, text - named)
    return sizes
