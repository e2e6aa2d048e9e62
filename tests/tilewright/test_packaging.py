"""What is installed is what is in the tree, and loading a module needs no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tilewright as tw

_ROOT = Path(__file__).parents[2]
_LINKED = ("compiler", "frontends", "runtime", "tuner")


def test_linked_folders_are_relative_and_in_place() -> None:
    for name in _LINKED:
        link = _ROOT / "tilewright" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_every_folder_with_code_is_a_package() -> None:
    for name in _LINKED:
        for source in (_ROOT / name).rglob("*.py"):
            assert (source.parent / "__init__.py").exists(), f"{source.parent} is not installed"


def test_importing_the_package_loads_neither_tvm_nor_onnx() -> None:
    code = (
        "import sys, tilewright, tilewright.runtime.module as m; tilewright.load;"
        "print([n for n in ('tvm', 'onnx', 'scipy', 'typer') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_public_names_exist_and_others_do_not() -> None:
    for name in tw.__all__:
        assert getattr(tw, name) is not None
    for _ in range(2):  # the second time after the module of the same topic was imported
        assert callable(tw.bench)
        assert callable(tw.inspect)
    assert not hasattr(tw, "frobnicate")
