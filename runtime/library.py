"""A module file seen through ctypes: its trailer, its description, its C functions.

Mirrors runtime/c/tilewright.h. Reading the description needs no matching CPU: nothing is loaded.
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
import mmap
import platform
import struct
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.errors import ModuleError

_MAGIC = b"TWMODULE"
_FORMAT_VERSION = 1
_ABI_VERSION = 1
_TRAILER = struct.Struct("<8sIIQQQQQIIII")
_CHECKED_PAYLOAD_BYTES = 64 << 20  # larger weights are checked when asked


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last bytes of a module file; see tilewright_trailer in tilewright.h."""

    code_id: int
    payload_offset: int
    payload_bytes: int
    description_offset: int
    description_bytes: int
    file_bytes: int
    code_crc32: int
    payload_crc32: int
    description_crc32: int


def read_description(path: str | Path, verify_weights: bool | None = None) -> dict[str, Any]:
    """Check a module file and return its description.

    Args:
        path: the module.
        verify_weights: check the checksum of the weights too; None checks weights below 64 MiB.
            Those of code and description are always checked.

    Raises:
        ModuleError: not a module, cut short, or damaged.
    """
    try:
        with open(path, "rb") as file:
            trailer = _read_trailer(file, str(path))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                view = memoryview(content)
                try:
                    return _check_content(view, trailer, str(path), verify_weights)
                finally:
                    view.release()
    except OSError as error:
        raise ModuleError(f"cannot read module '{path}': {error.strerror or error}") from error


def _read_trailer(file: Any, path: str) -> Trailer:
    size_bytes = file.seek(0, 2)
    file.seek(max(0, size_bytes - _TRAILER.size))
    raw = file.read()
    if len(raw) < _TRAILER.size or not raw.startswith(_MAGIC):
        hint = "; it must be compiled first" if str(path).endswith(".onnx") else ""
        raise ModuleError(
            f"'{path}' is not a tilewright module, or is cut short: the trailer is missing{hint}"
        )
    _magic, version, *fields, trailer_crc32 = _TRAILER.unpack(raw)
    trailer = Trailer(*fields)
    if trailer_crc32 != zlib.crc32(raw[:-4]):
        raise ModuleError(f"'{path}' is damaged: the checksum of the trailer is wrong")
    if version != _FORMAT_VERSION:
        raise ModuleError(
            f"'{path}' has file format {version}, but this tilewright reads {_FORMAT_VERSION}; "
            "compile the model again"
        )
    if trailer.file_bytes != size_bytes:
        raise ModuleError(
            f"'{path}' is damaged: it has {size_bytes} bytes, its trailer says {trailer.file_bytes}"
        )
    return trailer


def _check_content(
    content: memoryview, trailer: Trailer, path: str, verify_weights: bool | None
) -> dict[str, Any]:
    if verify_weights is None:
        verify_weights = trailer.payload_bytes < _CHECKED_PAYLOAD_BYTES
    at = trailer.payload_offset, trailer.description_offset
    parts = [("code", 0, at[0], trailer.code_crc32)]
    if verify_weights:
        parts.append(("weights", at[0], trailer.payload_bytes, trailer.payload_crc32))
    parts.append(("description", at[1], trailer.description_bytes, trailer.description_crc32))
    for name, start, size_bytes, expected in parts:
        if zlib.crc32(content[start : start + size_bytes]) != expected:
            raise ModuleError(f"'{path}' is damaged: the checksum of the {name} is wrong")
    return json.loads(bytes(content[at[1] : at[1] + trailer.description_bytes]))


_P = ctypes.c_void_p
_PP = ctypes.POINTER(ctypes.c_void_p)


class _Api(ctypes.Structure):
    """The table of functions, tilewright_api in tilewright.h."""

    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("size_bytes", ctypes.c_uint32),
        ("error", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("open", ctypes.CFUNCTYPE(_P, ctypes.c_char_p, ctypes.c_uint32)),
        ("close", ctypes.CFUNCTYPE(ctypes.c_int, _P)),
        ("describe", ctypes.CFUNCTYPE(ctypes.c_char_p, _P)),
        ("num_inputs", ctypes.CFUNCTYPE(ctypes.c_uint32, _P)),
        ("num_outputs", ctypes.CFUNCTYPE(ctypes.c_uint32, _P)),
        ("input", ctypes.CFUNCTYPE(_P, _P, ctypes.c_uint32)),
        ("output", ctypes.CFUNCTYPE(_P, _P, ctypes.c_uint32)),
        ("context_create", ctypes.CFUNCTYPE(_P, _P, ctypes.c_int)),
        ("context_destroy", ctypes.CFUNCTYPE(ctypes.c_int, _P)),
        ("context_threads", ctypes.CFUNCTYPE(ctypes.c_int, _P)),
        ("run", ctypes.CFUNCTYPE(ctypes.c_int, _P, _PP, _PP)),
        ("num_calls", ctypes.CFUNCTYPE(ctypes.c_uint32, _P)),
        (
            "run_timed",
            ctypes.CFUNCTYPE(ctypes.c_int, _P, _PP, _PP, ctypes.POINTER(ctypes.c_double)),
        ),
    )


# The field e_machine of an ELF file, by what Python calls the machine.
_MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l"}


def _check_machine(file: Any, path: str | Path) -> None:
    """Raise for a module of another kind of processor; dlopen says that there is no such file."""
    file.seek(18)
    wanted = _MACHINES.get(int.from_bytes(file.read(2), "little"))
    here = platform.machine()
    if wanted is not None and here in _MACHINES.values() and wanted != here:
        raise ModuleError(
            f"module '{path}' is for {wanted} processors, this is {here}; run it there, or compile "
            "the model for this one"
        )


_SKIP_WEIGHTS_CHECK = 2  # done by read_description


def _spelled(path: Path, code_id: int) -> str:
    """Return the path with "./" repeated before the file name, depending on the code.

    dlopen takes a file for loaded already if the spelling is the same, even if the file was
    replaced since.
    """
    return f"{path.parent}/{'./' * (1 + code_id % 256)}{path.name}"


class Library:
    """A loaded module: the code in this process and the mapped weights."""

    def __init__(self, path: str | Path) -> None:
        """Load the module; the caller has checked the file with `read_description`.

        Raises:
            ModuleError: the CPU lacks a feature, or the file cannot be loaded.
        """
        try:
            with open(path, "rb") as file:
                _check_machine(file, path)
                spelled = _spelled(Path(path).resolve(), _read_trailer(file, str(path)).code_id)
            self._library = ctypes.CDLL(spelled)
            self.api = _Api.in_dll(self._library, "tilewright_api")
        except (OSError, ValueError) as error:
            raise ModuleError(f"cannot load module '{path}': {error}") from error
        if self.api.abi_version != _ABI_VERSION:
            raise ModuleError(
                f"module '{path}' has ABI {self.api.abi_version}, but this tilewright knows "
                f"{_ABI_VERSION}; compile the model again"
            )
        self.model = self.api.open(spelled.encode(), _SKIP_WEIGHTS_CHECK)
        if not self.model:
            raise ModuleError(f"cannot load module '{path}': {self.error()}")
        weakref.finalize(self, _unload, self.api, self.model, self._library._handle)

    def error(self) -> str:
        """Return the text of the last failure in this thread."""
        return self.api.error().decode(errors="replace")


def _unload(api: _Api, model: int, handle: int) -> None:
    """Close the model and unload its code, unless a context is still running."""
    if api.close(model) == 0:
        _ctypes.dlclose(handle)


class Context:
    """Working memory and threads of one module for one thread at a time."""

    def __init__(self, library: Library, threads: int) -> None:
        """Create the context; `threads` counts the calling thread.

        Raises:
            ModuleError: out of memory, or the threads cannot be started.
        """
        self._library = library  # keeps it loaded
        self._handle = library.api.context_create(library.model, threads)
        if not self._handle:
            raise ModuleError(f"cannot make a context of {threads} threads: {library.error()}")
        weakref.finalize(self, library.api.context_destroy, self._handle)

    def run(self, inputs: list[int], outputs: list[int], seconds: Any = None) -> None:
        """Run once on buffers given by address; `seconds` takes the clock after each call.

        Raises:
            ModuleError: a kernel failed.
        """
        api = self._library.api
        input_pointers = (ctypes.c_void_p * max(1, len(inputs)))(*inputs)
        output_pointers = (ctypes.c_void_p * max(1, len(outputs)))(*outputs)
        if seconds is None:
            failed = api.run(self._handle, input_pointers, output_pointers)
        else:
            failed = api.run_timed(self._handle, input_pointers, output_pointers, seconds)
        if failed:
            raise ModuleError(self._library.error())
