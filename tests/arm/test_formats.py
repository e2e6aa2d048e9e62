"""Modules that are linked into a program for a board, and what their bytes are."""

import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.arm.board import HEADERS, RUNNER, Board, board_for
from tests.programs import mlp_program
from tilewright.cli import app
from tilewright.compiler.package import package
from tilewright.compiler.targets import parse_target
from tilewright.compiler.toolchain import find_c_compiler
from tilewright.module_size import module_size

pytestmark = pytest.mark.arm

_MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).standard_normal((6, 32)).astype("float32")


def _expected(x):
    _, (w1, w2) = mlp_program()
    return np.maximum(x @ w1, 0) @ w2 + x


def _run_static(board: Board, folder, objects, weights, x):
    """Link a static program for the board with the runner, and return its output."""
    program = folder / "program"
    subprocess.run(
        [
            *find_c_compiler(board.architecture),
            *("-static", "-O1", "-s", "-D_GNU_SOURCE", "-DTILEWRIGHT_STATIC", f"-I{HEADERS}"),
            *(RUNNER, *objects, "-o", program, "-pthread", "-lm"),
        ],
        check=True,
        capture_output=True,
    )
    x.tofile(folder / "x.bin")
    done = board.execute([program, weights, "x.bin"], folder)
    assert done.returncode == 0, done.stderr
    return np.fromfile(folder / "output0.bin", "float32").reshape(6, 32), program


@pytest.mark.parametrize("target", ["aarch64", "armv7:cortex-a7"])
def test_static_program_needs_nothing_but_the_weights(target, inputs, tmp_path):
    board = board_for(target)
    package(mlp_program()[0], parse_target(target), tmp_path / "mlp.o", form="static")
    got, program = _run_static(
        board, tmp_path, [tmp_path / "mlp.o"], tmp_path / "mlp.weights", inputs
    )
    np.testing.assert_allclose(got, _expected(inputs), atol=1e-4)
    assert program.stat().st_size < _MEGABYTE


def test_sources_build_on_their_own(inputs, tmp_path):
    board = board_for("aarch64")
    folder = tmp_path / "mlp"
    package(mlp_program()[0], parse_target("aarch64"), folder, form="c")
    objects = [*sorted(folder.glob("*.c")), folder / "kernels.o"]
    got, _ = _run_static(board, tmp_path, objects, folder / "model.weights", inputs)
    np.testing.assert_allclose(got, _expected(inputs), atol=1e-4)


def test_weights_of_another_model_are_refused(inputs, tmp_path):
    board = board_for("aarch64")
    target = parse_target("aarch64")
    package(mlp_program()[0], target, tmp_path / "mlp.o", form="static")
    package(mlp_program(batch=7)[0], target, tmp_path / "other.o", form="static")
    with pytest.raises(AssertionError, match="load it again"):
        _run_static(board, tmp_path, [tmp_path / "mlp.o"], tmp_path / "other.weights", inputs)


@pytest.mark.parametrize("target", ["native", "aarch64", "armv7:cortex-a7"])
def test_parts_add_up_to_the_file(target, tmp_path):
    if target != "native":
        board_for(target)
    path = tmp_path / "mlp.so"
    package(mlp_program()[0], parse_target(target), path)
    sizes = module_size(path)
    by_kernel = sizes.pop("by_kernel")
    assert sizes.pop("file") == sum(sizes.values()) == path.stat().st_size
    assert sizes["weights"] == 2 * (32 * 48 * 4 + 64)
    assert {"up", "relu", "down", "add"} <= set(by_kernel)
    assert sum(by_kernel.values()) == sizes["kernels"] > 0
    shown = CliRunner().invoke(app, ["size", str(path)]).output
    assert "packed weights" in shown
    assert f"{path.stat().st_size:,}" in shown


def test_parts_of_a_static_module_add_up_to_both_files(tmp_path):
    board_for("aarch64")
    path = tmp_path / "mlp.o"
    package(mlp_program()[0], parse_target("aarch64"), path, form="static")
    sizes = module_size(path)
    by_kernel = sizes.pop("by_kernel")
    weights = tmp_path / "mlp.weights"
    assert sizes.pop("file") == sum(sizes.values()) == path.stat().st_size + weights.stat().st_size
    assert sizes["weights"] == 2 * (32 * 48 * 4 + 64)
    assert {"up", "relu", "down", "add"} <= set(by_kernel)


def test_size_of_weights_alone_is_refused(tmp_path):
    board_for("aarch64")
    package(mlp_program()[0], parse_target("aarch64"), tmp_path / "mlp.o", form="static")
    result = CliRunner().invoke(app, ["size", str(tmp_path / "mlp.weights")])
    assert result.exit_code == 1
