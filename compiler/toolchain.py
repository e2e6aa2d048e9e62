"""The C compiler that builds and links a module: found once, called with plain messages."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tilewright.errors import CompileError, TargetError

_NAMES = ("cc", "gcc", "clang")
_SHOWN_ERROR_CHARS = 2000


def find_c_compiler() -> list[str]:
    """Return the command of a C compiler: `CC` if set, else cc, gcc, clang, else zig's wheel.

    Raises:
        TargetError: there is none, or `CC` names one that is not there.
    """
    chosen = os.environ.get("CC", "").strip()
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]) is None:
            raise TargetError(f"the C compiler that CC names, '{chosen}', is not installed")
        return command
    for name in _NAMES:
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise TargetError(
        "no C compiler found (looked for $CC, cc, gcc, clang and the Python package ziglang); "
        "install gcc or clang, or run: pip install ziglang"
    )


def run_c_compiler(arguments: Sequence[str | Path]) -> None:
    """Run the C compiler.

    Raises:
        TargetError: there is no C compiler.
        CompileError: it failed; the message holds what it printed.
    """
    command = [*find_c_compiler(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = (done.stderr or done.stdout).strip()[-_SHOWN_ERROR_CHARS:]
        raise CompileError(f"{command[0]} failed with status {done.returncode}: {shown}")
