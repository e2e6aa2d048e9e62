"""The Python API: the same compile, on models in memory, with files that go with their objects."""

from __future__ import annotations

import gc
import inspect
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.tiny_model import expected, make_model
from tilewright import cli
from tilewright.errors import ModuleError

X = np.random.default_rng(5).standard_normal((2, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled() -> tw.CompiledModule:
    return tw.compile(make_model())


def test_compiled_module_runs_by_name_and_by_position(compiled) -> None:
    wanted = expected(make_model(), X)
    np.testing.assert_allclose(compiled.run({"x": X})["y"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(compiled(X), wanted, rtol=1e-5, atol=1e-6)
    assert compiled.description["entries"][0]["inputs"][0]["name"] == "x"


def test_saved_module_gives_the_same_bits(compiled, tmp_path) -> None:
    module = tw.load(compiled.save(tmp_path / "tiny.so"), threads=1)
    assert module.threads == 1
    np.testing.assert_array_equal(module(X), compiled(X))


def test_save_replaces_a_module_that_is_loaded(compiled, tmp_path) -> None:
    path = compiled.save(tmp_path / "tiny.so")
    before = tw.load(path)
    compiled.save(path)
    np.testing.assert_array_equal(before(X), tw.load(path)(X))


def test_unsaved_file_vanishes_with_the_object() -> None:
    module = tw.compile(make_model())
    path = module.path
    assert path.exists()
    del module
    gc.collect()
    assert not path.parent.exists()


@pytest.mark.parametrize("target", ["x86-64-v3", "native"])
def test_named_targets_compute_the_same(target) -> None:
    module = tw.compile(make_model(), target)
    np.testing.assert_allclose(module(X), expected(make_model(), X), rtol=1e-5, atol=1e-6)


def test_wrong_number_of_inputs(compiled) -> None:
    with pytest.raises(ModuleError, match="2 inputs given"):
        compiled(X, X)


@pytest.mark.parametrize("name", ["compile", "bench", "inspect"])
def test_command_line_has_the_defaults_of_the_api(name) -> None:
    commands = {command.name: command.callback for command in cli.app.registered_commands}
    ours = inspect.signature(commands[name]).parameters
    function = getattr(tw, name)
    theirs = inspect.signature(function).parameters
    shared = [name for name in ours if name in theirs]
    assert "target" in shared
    for name in shared:
        default = theirs[name].default
        plain = ",".join(default) if isinstance(default, tuple) else default
        default = ours[name].default
        assert (str(default) if isinstance(default, Path) else default) == plain, name
