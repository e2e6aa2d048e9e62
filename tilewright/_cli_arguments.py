"""What the commands share: options, and arguments that are more than a word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tilewright.errors import CompileError

Errors = Callable[[bool], AbstractContextManager[None]]
"""Turns errors meant for a person into a line and an exit status; True shows the traceback."""

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Read NAME=1,3,224,224; the name may hold '=' itself."""
    shapes = {}
    for text in texts or ():
        name, extents = _split(text, "--shape", "NAME=1,3,224,224")
        try:
            shape = tuple(int(extent) for extent in extents.strip("[]() ").split(",") if extent)
        except ValueError:
            shape = (-1,)
        if any(extent < 0 for extent in shape):
            raise typer.BadParameter(f"--shape {text}: expected whole numbers, as in 1,3,224,224")
        shapes[name] = shape
    return shapes


def parse_constants(texts: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Read NAME=5, NAME=[1.0, 2.0] or NAME=@file.npy; whole numbers are int64, others float32."""
    constants = {}
    for text in texts or ():
        name, value = _split(text, "--constant", "NAME=VALUE")
        try:
            if value.startswith("@"):
                constants[name] = np.load(value[1:], allow_pickle=False)
                continue
            array = np.array(json.loads(value))
        except (OSError, ValueError, EOFError) as error:
            raise typer.BadParameter(f"--constant {text}: {error}") from None
        if array.dtype.kind not in "bif":
            raise typer.BadParameter(f"--constant {text}: expected numbers, true or false")
        constants[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    return constants


def check_writable(path: Path) -> None:
    """Fail now rather than after the compile, if a file cannot be written.

    Raises:
        CompileError: the folder is missing or closed, or the path is a folder.
    """
    folder = path.parent
    if path.is_dir():
        raise CompileError(f"cannot write {path}: it is a folder; name a file")
    if not folder.is_dir():
        raise CompileError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CompileError(f"cannot write {path}: no permission to write in {folder}")


def _split(text: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = text.rpartition("=")
    if not separator or not name:
        raise typer.BadParameter(f"{option} {text}: expected {form}")
    return name, value
