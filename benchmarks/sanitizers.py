"""A whole module under memory and thread checkers: `python -m benchmarks.sanitizers`.

The digit classifier is built with the address and undefined-behaviour sanitizers, with the thread
sanitizer, and plainly for valgrind, as a file to be loaded and linked into a program (`--format so`
and `static`); `tests/runtime/driver.c` then opens it, runs it from four threads on buffers of every
alignment, makes mistakes on purpose, forks (where the checker can), and closes it. Writes
benchmarks/results/sanitizers.json; exit code 1 after a finding.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from benchmarks.machine import commit, describe
from benchmarks.report import RESULTS, write_text
from tilewright.api import lower_model
from tilewright.compiler import package as packaging
from tilewright.compiler.targets import parse_target
from tilewright.compiler.toolchain import find_c_compiler

_ROOT = Path(__file__).resolve().parent.parent
_MODEL = _ROOT / "examples" / "digits_cnn.onnx"
_DRIVER = _ROOT / "tests" / "runtime" / "driver.c"
_TIMEOUT_S = 900
_CHECKED = ("-fno-sanitize-recover=all", "-g", "-O1")
_ADDRESS, _THREAD = "address,undefined", "thread"
# Threads cannot be started after a fork under the thread sanitizer; to valgrind, the stacks of the
# parent's threads count as lost in a forked child.
TOOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    _ADDRESS: ((f"-fsanitize={_ADDRESS}", *_CHECKED), (), ()),
    _THREAD: ((f"-fsanitize={_THREAD}", *_CHECKED), ("setarch", "-R"), ("no-fork",)),
    "valgrind": (
        ("-g",),
        ("valgrind", "-q", "--error-exitcode=9", "--leak-check=full"),
        ("no-fork",),
    ),
}


FORMATS = ("so", "static")


def check(tool: str, form: str, folder: Path) -> str:
    """Build and run in one format under one tool; return "clean", or what it said."""
    flags, prefix, arguments = TOOLS[tool]
    if prefix and shutil.which(prefix[0]) is None:
        return f"not run: needs {prefix[0]}"
    module, driver = folder / f"module.{'o' if form == 'static' else form}", folder / "driver"
    _build_module(module, form, (*flags, "-Wl,-z,undefs") if form == "so" else flags)
    command = [*find_c_compiler(), *flags, f"-I{_ROOT / 'runtime' / 'c'}", str(_DRIVER)]
    if form == "static":
        command += ["-DTILEWRIGHT_STATIC", str(module), "-lm"]
    subprocess.run([*command, "-o", str(driver), "-ldl", "-pthread"], check=True)
    opened = module if form == "so" else packaging.weights_path(module, form)
    done = subprocess.run(
        [*prefix, driver, opened, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if (done.returncode, done.stdout) == (0, "ok\n") and not done.stderr.strip():
        return "clean"
    return f"status {done.returncode}: {done.stderr[-500:].replace(str(folder), '.')}"


def _build_module(path: Path, form: str, flags: Sequence[str]) -> None:
    """Compile the model with further flags for its C parts; valgrind knows AVX2, not AVX-512."""
    target = parse_target("x86-64-v3")
    lowered, digest = lower_model(_MODEL, target)
    name = "link" if form == "so" else "link_relocatable"
    link = functools.partial(getattr(packaging, name), extra_flags=tuple(flags))
    with mock.patch.object(packaging, name, link):
        packaging.package(lowered.program, target, path, {"model_digest": digest}, form)


def main() -> int:
    """Run every tool and write what it found; return the exit code."""
    found = {}
    for tool, form in itertools.product(TOOLS, FORMATS):
        with tempfile.TemporaryDirectory(prefix="tilewright-checked-") as name:
            found[f"{tool}, {form}"] = check(tool, form, Path(name))
        print(f"{tool}, {form}: {found[f'{tool}, {form}']}", flush=True)
        content = {"model": _MODEL.name, "found": found, "commit": commit(), "machine": describe()}
        write_text(RESULTS / "sanitizers.json", json.dumps(content, indent=1) + "\n")
    return int(any(text != "clean" for text in found.values()))


if __name__ == "__main__":
    sys.exit(main())
