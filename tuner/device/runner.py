"""Build the small program that runs candidates on a board; see `runtime/c/tw_board.c`."""

from __future__ import annotations

import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from tilewright.compiler.toolchain import find_c_compiler, run_c_compiler

_SOURCES = (
    "tw_board.c",
    "tw_board_elf.c",
    "tw_board_measure.c",
    "tw_threads.c",
    "tw_thread_state.c",
    "tw_memory.c",
)
_FLAGS = ("-std=gnu11", "-O2", "-static", "-s", "-pthread")
# The vectors of the runner's own measure of the processor.
_FLAGS_OF = {"armv7": ("-mfpu=neon", "-D_FILE_OFFSET_BITS=64")}


def board_runner(architecture: str) -> bytes:
    """Return the runner for a family of processors: a static program.

    Raises:
        TargetError: there is no C compiler for it.
        CompileError: it failed.
    """
    return _build(tuple(find_c_compiler(architecture)), architecture)


@cache
def _build(compiler: tuple[str, ...], architecture: str) -> bytes:
    """Compile once per process; `compiler` is here so that another one is not mixed up."""
    flags = _FLAGS_OF.get(architecture, ())
    if "ziglang" in compiler:
        flags = ()  # zig's target says which vectors there are
    with (
        resources.as_file(resources.files("tilewright.runtime") / "c") as sources,
        tempfile.TemporaryDirectory(prefix="tilewright-") as folder,
    ):
        program = Path(folder, "board")
        run_c_compiler(
            [
                *(*_FLAGS, *flags, f"-I{sources}"),
                *(sources / name for name in _SOURCES),
                *("-lm", "-o", program),
            ],
            architecture,
        )
        return program.read_bytes()
