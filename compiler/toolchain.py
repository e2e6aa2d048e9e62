"""The C compiler that builds and links a module: found once, called with plain messages."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import CompileError, TargetError

_NAMES = ("cc", "gcc", "clang")
_SHOWN_ERROR_CHARS = 2000


@dataclass(frozen=True)
class _Cross:
    """How to compile for another family of processors.

    Attributes:
        gcc: Debian's compiler, and the package that holds it.
        zig: the target in zig's words, with the oldest C library that modules then run on.
        variable: environment variable that names another compiler.
        machines: what `platform.machine` says on such a processor.
    """

    gcc: str
    package: str
    zig: tuple[str, ...]
    variable: str
    machines: tuple[str, ...]


_CROSS = {
    "x86_64": _Cross(
        "x86_64-linux-gnu-gcc",
        "gcc-x86-64-linux-gnu",
        ("-target", "x86_64-linux-gnu.2.27"),
        "CC_X86_64",
        ("x86_64", "AMD64"),
    ),
    "aarch64": _Cross(
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu",
        ("-target", "aarch64-linux-gnu.2.27"),
        "CC_AARCH64",
        ("aarch64", "arm64"),
    ),
    "armv7": _Cross(
        "arm-linux-gnueabihf-gcc",
        "gcc-arm-linux-gnueabihf",
        ("-target", "arm-linux-gnueabihf.2.27", "-mcpu=generic+v7a+vfp3d16"),
        "CC_ARMV7",
        ("armv7l",),
    ),
}


def find_c_compiler(architecture: str | None = None) -> list[str]:
    """Return the command of a C compiler.

    For this machine `CC` if set, else cc, gcc, clang, else zig's wheel. For another family of
    processors `CC_AARCH64` or `CC_ARMV7` if set, else Debian's cross compiler, else zig's wheel.

    Args:
        architecture: as in `Target.architecture`; by default that of this machine.

    Raises:
        TargetError: there is none, or the variable names one that is not there.
    """
    cross = _CROSS.get(architecture or "")
    if cross is None or platform.machine() in cross.machines:
        names: tuple[str, ...] = _NAMES
        zig: tuple[str, ...] = ()
        variable = "CC"
        looked_for, package = "cc, gcc, clang", "gcc or clang"
        extra = "ziglang"
    else:
        names, variable, zig = (cross.gcc,), cross.variable, cross.zig
        looked_for, package = cross.gcc, cross.package
        extra = "'tilewright[cross]'"
    chosen = os.environ.get(variable, "").strip()
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]) is None:
            raise TargetError(f"the C compiler that {variable} names, '{chosen}', is not installed")
        return command
    for name in names:
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", *zig]
    purpose = "" if names is _NAMES else f" for {architecture}"
    raise TargetError(
        f"no C compiler{purpose} found (looked for ${variable}, {looked_for} and the Python "
        f"package ziglang); install {package}, or run: pip install {extra}"
    )


def is_foreign(architecture: str) -> bool:
    """Tell whether code for a family of processors does not run on this machine."""
    return platform.machine() not in _CROSS[architecture].machines


def shared_linker(architecture: str) -> tuple[list[str], list[str]]:
    """Return the words before and after the object files that link them into a shared object.

    For this machine plain ld, because a compiler driver takes five times as long; for another the
    driver, which knows where the helper functions of its processors are.

    Raises:
        TargetError: there is no C compiler for it.
    """
    if not is_foreign(architecture):
        return ["ld", "-shared", "-Bsymbolic"], []
    command = find_c_compiler(architecture)
    helpers = [] if "ziglang" in command else ["-lgcc"]
    return [*command, "-shared", "-nostdlib", "-Wl,-Bsymbolic"], helpers


def without_debug_info(architecture: str | None = None) -> str:
    """Return the flag of linking that leaves out debug information, and keeps names of functions.

    zig takes --strip-debug for leaving out names too, and adds debug information of its own.

    Raises:
        TargetError: there is no C compiler.
    """
    return "-g0" if "ziglang" in find_c_compiler(architecture) else "-Wl,--strip-debug"


def run_c_compiler(arguments: Sequence[str | Path], architecture: str | None = None) -> None:
    """Run the C compiler.

    Raises:
        TargetError: there is no C compiler.
        CompileError: it failed; the message holds what it printed.
    """
    command = [*find_c_compiler(architecture), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = (done.stderr or done.stdout).strip()[-_SHOWN_ERROR_CHARS:]
        raise CompileError(f"{command[0]} failed with status {done.returncode}: {shown}")
