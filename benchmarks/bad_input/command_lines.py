"""Command lines that nobody would type: every one ends in 0, 1 or 2, without a traceback.

One that is refused leaves no file behind.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import typer.core
import typer.main
from typer.testing import CliRunner

import tilewright
from benchmarks.bad_input.damage import Random, attempt
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.trial import RAN, REFUSED, TRACEBACK, Trial
from tilewright.cli import app

# They install from a network, or serve until they are stopped.
_LEFT_OUT = {"baseline install", "baseline rm", "device serve"}
# Each takes minutes whatever it is given.
_SLOW = {"bench-ops"}
_WORDS = (
    *("", " ", "-1", "0", "1", "2", "3.5", "nan", "inf", "1e309", "99999999999999999999", "x"),
    *("x=1,3,12,10", "x=", "=1", "x=1,,2", "x=-1", "x=1,3,a", "native", "x86-64-v3", "pdp11"),
    *("aarch64", "so", "static", "c", "minmax", "dobi", "onnx", "onnxruntime", "onnxruntime,x"),
    *("conv2d", "matmul", "1,8,9,9", "8,8,3,3", "4,5", "5,6", "\u00e9\u2603", "--", "-", "a\nb"),
    *("2s", "1h", "../x", "/", "/dev/null", "/proc/self/mem", ".", "no/such/folder/f", "%s{}[/]"),
)
_OK, _MISTAKE, _USAGE = 0, 1, 2
_FRAME = re.compile("[\u2500-\u257f]+")  # of messages about usage
# Logs are appended to as trials end, so a search that fails later has written one.
_APPENDS = ("tune", "tune-op", "tune-gpu", "logs", "baseline")


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command of the program with the words that lead to it."""

    def visit(words: tuple[str, ...], command: Any) -> Iterator[Any]:
        children = getattr(command, "commands", None)
        if not children:
            yield words, command
        for name, child in (children or {}).items():
            yield from visit((*words, name), child)

    yield from visit((), typer.main.get_command(app))


@functools.cache
def _files() -> dict[str, bytes]:
    """Return files that some of the words name."""
    model = MODELS["convolution"]()
    compiled = tilewright.compile(model, logs=())
    module = compiled.path.read_bytes()
    return {
        "model.onnx": model.SerializeToString(),
        "model.so": module,
        "cut.so": module[: len(module) // 2],
        "cut.onnx": model.SerializeToString()[:900],
        "log.jsonl": b'{"schema_version": 1}\nnonsense\n',
        "empty": b"",
    }


def prepare() -> None:
    """Make what every trial needs."""
    _files()


def drawn(number: int) -> list[str]:
    """Return the command line of a number."""
    random = np.random.default_rng(number)
    known = [c for c in commands() if " ".join(c[0]) not in _LEFT_OUT | _SLOW]
    words, command = known[int(random.integers(len(known)))]
    line = list(words)
    for parameter in command.params:
        is_argument = isinstance(parameter, typer.core.TyperArgument)
        if is_argument or random.random() < (0.9 if parameter.required else 0.15):
            if is_argument and random.random() < 0.05:
                continue
            if not is_argument:
                line.append(max(parameter.opts, key=len))
            if is_argument or not getattr(parameter, "is_flag", False):
                line.append(_value(parameter, random))
    if words[-1] in ("tune", "tune-op"):  # a search of its own accord takes minutes
        line += ["--trials", "1"]
    if random.random() < 0.1:
        line.insert(int(random.integers(len(line) + 1)), _pick(_WORDS, random))
    return line


def _value(parameter: Any, random: Random) -> str:
    """Return a word, a file, or what the parameter may really mean."""
    if random.random() < 0.7:
        kind = str(parameter.type_descriptor.annotation)
        if "int" in kind:
            return str(int(random.integers(1, 4)))
        if "float" in kind:
            return "0.5"
        if "Path" in kind:
            return _pick(("model.onnx", "model.so", "log.jsonl", "out", "quantized.onnx"), random)
        if parameter.default is not None and isinstance(parameter.default, str):
            return parameter.default
    return _pick((*_WORDS, *_files()), random)


def _pick(options: Any, random: Random) -> str:
    return options[int(random.integers(len(options)))]


def run_trial(number: int) -> Trial:
    """Run a command line in this process, in an empty folder with a few files."""
    return attempt(lambda folder: _run(folder, drawn(number)))


def _run(folder: Path, line: list[str]) -> Trial:
    for name, content in _files().items():
        (folder / name).write_bytes(content)
    before = os.getcwd()
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = os.environ["XDG_DATA_HOME"] = str(folder / "home")
    try:
        result = CliRunner().invoke(app, line)
    finally:
        os.chdir(before)
    words = _FRAME.sub(" ", result.output).replace(f"{folder}/", "").replace(str(folder), ".")
    said = " ".join(words.split())[-200:]
    shown = " ".join(line)
    error = result.exception
    if error is not None and not isinstance(error, SystemExit) and not _asked_for_it(line):
        return Trial(TRACEBACK, f"{shown}: {type(error).__name__}: {error}"[:300])
    if result.exit_code not in (_OK, _MISTAKE, _USAGE) and not _asked_for_it(line):
        return Trial(TRACEBACK, f"{shown}: status {result.exit_code}")
    if result.exit_code == _OK:
        return Trial(RAN, shown[:120])
    for name in ("model.onnx", "model.so"):  # a file that was there may be replaced, never harmed
        if name in line and (folder / name).exists() and name.endswith(".onnx"):
            onnx.load(folder / name)
    left = {path.name for path in folder.iterdir()} - {*_files(), "home"}
    if left and not line[0].startswith(_APPENDS):
        return Trial(TRACEBACK, f"{shown}: status {result.exit_code}, but left {sorted(left)}")
    return Trial(REFUSED, f"{shown[:120]}: {said}")


def _asked_for_it(line: list[str]) -> bool:
    return "--debug" in line
