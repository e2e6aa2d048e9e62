"""Machine code that is clearly bad is found before it runs."""

import shutil
import subprocess

import pytest

from tilewright.compiler.targets import parse_target
from tilewright.tuner.worker.static_check import rejection

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("objdump") is None, reason="needs gcc and objdump"
)

_LOOP = """
.globl tw_kernel_k
tw_kernel_k:
1:
{body}
  dec %rcx
  jnz 1b
  ret
"""
_MULTIPLY = "  vfmadd231ps {0}1, {0}2, {0}3\n"
_SPILL = "  vmovups %ymm{0}, 64(%rsp)\n"


def _reason(tmp_path, body):
    source, library = tmp_path / "k.s", tmp_path / "k.so"
    source.write_text(_LOOP.format(body=body))
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", library, source], check=True)
    return rejection(library, "k", parse_target("x86-64-v3"))


def test_accumulators_in_registers_are_fine(tmp_path):
    assert _reason(tmp_path, _MULTIPLY.format("%ymm") * 4 + _SPILL.format(1) * 4) == ""


def test_more_spills_than_multiply_adds_are_rejected(tmp_path):
    reason = _reason(tmp_path, _MULTIPLY.format("%ymm") * 4 + _SPILL.format(1) * 5)
    assert reason.startswith("spills registers: 5 accesses of the stack for 4 multiply-adds")


def test_narrow_vectors_are_rejected(tmp_path):
    reason = _reason(tmp_path, _MULTIPLY.format("%xmm") * 4)
    assert reason == "its inner loop multiplies no 256-bit vectors"


def test_code_without_such_a_loop_is_not_judged(tmp_path):
    assert _reason(tmp_path, "  nop\n") == ""
