"""A tiny model, its compiled module, and the command line in this process and in another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from tests.tiny_model import make_model
from tilewright.cli import app

Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny model as a file."""
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(make_model(), path)
    return path


@pytest.fixture(scope="session")
def module_path(model_path: Path) -> Path:
    """Return the tiny model compiled, by the command line."""
    path = model_path.with_suffix(".so")
    result = CliRunner().invoke(app, ["compile", str(model_path), "-o", str(path)])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Return a function that runs the command line in this process."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def process() -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs the command line in a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "tilewright", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run
