"""The page on boards, word for word: zig alone, no other cross compiler, results under qemu."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw

pytestmark = [pytest.mark.arm, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
# What a PC has, and a board or its C library would have to be there for the rest.
_HERE = ("tilewright compile", "tilewright size", "python -c", "python -m ziglang", "qemu-")
_TOOLS = ("sh", "env", "qemu-aarch64", "qemu-arm")
_PROGRAMS = ("run_digits digits.weights", "run_digits digits_c/model.weights")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return the commands of the page; PATH has no compiler but Python's packages."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs ziglang")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in _TOOLS:
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"needs {tool}")
        (tools / tool).symlink_to(found)
    for name in ("python", "tilewright"):
        (tools / name).write_text(f'#!/bin/sh\nexec {_command(name)} "$@"\n')
        (tools / name).chmod(0o755)
    for folder in ("examples", "runtime"):
        shutil.copytree(_ROOT / folder, tmp_path / folder)
    monkeypatch.setenv("PATH", str(tools))
    for variable in ("CC", "CC_AARCH64", "CC_ARMV7", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    page = (_ROOT / "docs" / "raspberry-pi.md").read_text()
    walk = page[page.index("## 3. Compile") : page.index("## One program")]
    lines = "".join(_BLOCK.findall(walk)).replace("\\\n", " ")
    joined = re.sub(r"\n    (?=np\.)", "\n", lines)
    return [c.strip() for c in re.split(r"\n    |^    ", joined) if c.strip().startswith(_HERE)]


def _command(name):
    return sys.executable if name == "python" else f"{sys.executable} -m tilewright"


def test_page_can_be_followed_without_a_board(commands, tmp_path):
    ran = 0
    for command in commands:
        if "output0.bin" in command:
            continue  # comes from the board
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if any(program in command for program in _PROGRAMS):
            ran += 1
            _compare(tmp_path)
    assert ran == len(_PROGRAMS)


def _compare(folder):
    """Compare what the emulated board wrote with this machine."""
    x = np.fromfile(folder / "input0.bin", "float32").reshape(1, 1, 8, 8)
    expected = tw.compile(_ROOT / "examples" / "digits_cnn.onnx", logs=()).run({"image": x})
    found = np.fromfile(folder / "output0.bin", "float32")
    (folder / "output0.bin").unlink()
    np.testing.assert_allclose(found, expected["logits"].ravel(), rtol=1e-4, atol=1e-5)
