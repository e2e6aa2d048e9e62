"""The C interface: the example in an empty directory, and the runtime under memory checkers."""

import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.programs import copy_program, mlp_program, mlp_reference
from tilewright.compiler import package as packaging
from tilewright.compiler.targets import parse_target
from tilewright.compiler.toolchain import find_c_compiler

_ROOT = Path(__file__).parents[2]
_HEADER_DIR = _ROOT / "runtime" / "c"
_STRICT = ("-Wall", "-Wextra", "-Werror")


def _build(source, output, *flags):
    subprocess.run(
        [*find_c_compiler(), *flags, f"-I{_HEADER_DIR}", source, "-o", output, "-ldl", "-pthread"],
        check=True,
        capture_output=True,
    )


def _run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    program = tmp_path_factory.mktemp("example") / "run_model"
    _build(_ROOT / "examples" / "c" / "run_model.c", program, "-std=c11", "-O1", *_STRICT)
    return program


def test_example_runs_beside_nothing_but_module_and_input(tmp_path, example, mlp):
    path, weights = mlp
    x = np.random.default_rng(3).standard_normal((6, 32), dtype=np.float32)
    shutil.copy(path, tmp_path / "model.so")
    x.tofile(tmp_path / "input0.bin")
    code, out, err = _run(example, "model.so", "input0.bin", cwd=tmp_path, env={"LC_ALL": "C"})
    assert (code, err) == (0, "")
    assert "input  x: float32 [6, 32]" in out
    y = np.fromfile(tmp_path / "output0.bin", np.float32).reshape(6, 32)
    np.testing.assert_allclose(y, mlp_reference(x, weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:200] + b"?" + data[201:], "checksum of the code"),
        (lambda data: data[:70000] + b"???" + data[70003:], "checksum of the weights"),
        (lambda data: b"", "not a tilewright module"),
    ],
)
def test_damaged_modules_are_refused(tmp_path, example, mlp, damage, message):
    (tmp_path / "model.so").write_bytes(damage(mlp[0].read_bytes()))
    code, _, err = _run(example, "model.so", "input0.bin", cwd=tmp_path)
    assert code == 1
    assert err.startswith("model.so: ") or err.startswith(str(tmp_path))
    assert message in err


def test_missing_cpu_feature_is_refused(tmp_path, example, native, monkeypatch):
    monkeypatch.setattr(packaging, "required_features", lambda _: ("sse3", "xop", "amx-int8"))
    packaging.package(copy_program(), native, tmp_path / "model.so")
    code, _, err = _run(example, "model.so", cwd=tmp_path)
    assert code == 1
    assert "this CPU lacks what the module was compiled for" in err
    assert "amx-int8" in err or "xop" in err


def test_header_is_valid_cpp(tmp_path):
    cpp = shutil.which("c++")
    if cpp is None:
        pytest.skip("needs a C++ compiler")
    (tmp_path / "a.cc").write_text(
        '#include "tilewright.h"\nint main() { return tilewright_open("none", 0) != nullptr; }\n'
    )
    flags = ("-std=c++11", "-Wall", "-Wextra", "-Werror", f"-I{_HEADER_DIR}")
    subprocess.run([cpp, *flags, "a.cc", "-o", "a", "-ldl"], cwd=tmp_path, check=True)
    assert _run(tmp_path / "a")[0] == 0


def _module(path, target, monkeypatch, *flags):
    link = functools.partial(packaging.link, extra_flags=(*flags, *_STRICT))
    monkeypatch.setattr(packaging, "link", link)
    packaging.package(mlp_program()[0], target, path)


def test_driver_passes_and_sources_compile_without_warnings(tmp_path, native, monkeypatch):
    _module(tmp_path / "m.so", native, monkeypatch)
    _build(Path(__file__).with_name("driver.c"), tmp_path / "driver", "-O1", *_STRICT)
    assert _run(tmp_path / "driver", tmp_path / "m.so")[:2] == (0, "ok\n")


def test_nothing_is_allocated_after_the_first_runs(tmp_path, mlp):
    _build(Path(__file__).with_name("no_malloc.c"), tmp_path / "no_malloc", "-rdynamic", *_STRICT)
    assert _run(tmp_path / "no_malloc", mlp[0])[:2] == (0, "1 then 0\n")


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_runtime_is_clean_under_sanitizers(tmp_path, native, monkeypatch, sanitizer):
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g", "-O1")
    try:
        _build(Path(__file__).with_name("driver.c"), tmp_path / "driver", *flags)
    except subprocess.CalledProcessError:
        pytest.skip(f"needs a C compiler with -fsanitize={sanitizer}")
    _module(tmp_path / "m.so", native, monkeypatch, *flags, "-Wl,-z,undefs")
    # Threads cannot be started after a fork under the thread sanitizer.
    extra = ["no-fork"] if sanitizer == "thread" else []
    # Its shadow memory needs addresses that randomisation may have given away.
    prefix = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    code, out, err = _run(*prefix, tmp_path / "driver", tmp_path / "m.so", *extra)
    assert (code, out) == (0, "ok\n"), err
    assert "runtime error" not in err
    assert "WARNING" not in err


def test_runtime_is_clean_under_valgrind(tmp_path, monkeypatch):
    if shutil.which("valgrind") is None:
        pytest.skip("needs valgrind")
    # valgrind knows AVX2, not AVX-512.
    _module(tmp_path / "m.so", parse_target("x86-64-v3"), monkeypatch, "-g")
    _build(Path(__file__).with_name("driver.c"), tmp_path / "driver", "-g", "-O1")
    command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full"]
    # In a forked child, the stacks of the parent's threads count as lost.
    code, out, err = _run(*command, tmp_path / "driver", tmp_path / "m.so", "no-fork")
    assert (code, out) == (0, "ok\n"), err
    assert "lost" not in err
