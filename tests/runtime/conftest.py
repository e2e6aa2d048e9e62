"""Compiled modules that the runtime tests share."""

import pytest

from tests.programs import copy_program, mlp_program
from tilewright.compiler.package import package
from tilewright.compiler.targets import parse_target


@pytest.fixture(scope="session")
def native():
    """The processor that the tests run on."""
    return parse_target("native")


@pytest.fixture(scope="session")
def mlp(tmp_path_factory, native):
    """Path of a compiled multi-layer perceptron, and its weights."""
    program, weights = mlp_program()
    path = tmp_path_factory.mktemp("mlp") / "mlp.so"
    package(program, native, path, {"model_digest": "sha256:0123"})
    return path, weights


@pytest.fixture(scope="session")
def plus_one(tmp_path_factory, native):
    """Path of the smallest module: y = x + 1 on float32 [5, 7]."""
    path = tmp_path_factory.mktemp("plus_one") / "plus_one.so"
    package(copy_program(), native, path)
    return path
