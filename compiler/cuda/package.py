"""Write a program for a GPU as one deployable file: host code, fat binary, weights, description."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.entry import IMAGE_SYMBOL, generate_cuda_entry
from tilewright.compiler.cuda.lower import HOST, CudaLowered
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.entry import describe
from tilewright.compiler.link import link
from tilewright.compiler.memory import plan_memory
from tilewright.compiler.package import Parts, check_writable, versions, write_module
from tilewright.compiler.targets import parse_target
from tilewright.compiler.toolchain import run_c_compiler

_DEVICE_SOURCES = ("tw_cuda.c", "tw_cuda_driver.c")
_IMAGE = """\
  .section .rodata
  .balign 64
  .globl {symbol}
  .hidden {symbol}
  .type {symbol}, %object
{symbol}:
  .incbin "{file}"
  .size {symbol}, . - {symbol}
  .section .note.GNU-stack,"",%progbits
"""


def package_for_cuda(
    lowered: CudaLowered,
    target: CudaTarget,
    precision: str,
    path: str | Path,
    meta: Mapping[str, object] | None = None,
) -> None:
    """Compile the kernels and write the module to `path`.

    Args:
        lowered: what to run.
        target: the GPU.
        precision: what it was lowered with, for the description.
        path: the file to write. It appears complete or not at all.
        meta: as for `compiler.package.package`.

    Raises:
        CompileError: nvcc or the linker failed, or the file cannot be written.
        TargetError: there is no nvcc, or no C compiler.
    """
    path = Path(path)
    check_writable(path)
    program = lowered.program
    plan = plan_memory(program)
    image = compile_kernels(lowered.kernels, target)
    entry = generate_cuda_entry(program, plan, lowered.kernels, target)
    code_id = zlib.crc32(entry.encode(), zlib.crc32(image))
    device = {**asdict(target), "precision": precision}
    info = {"versions": versions(), **(meta or {})}
    description = json.loads(describe(program, plan, device, (), info))
    for call, row in zip(program.calls, description["entries"][0]["calls"], strict=True):
        row["schedule"] = lowered.kernels[call.kernel].schedule
    source = f"#define TW_CODE_ID {code_id}u\n{entry}"
    host = parse_target(HOST)
    code = link(
        _image_object(image, host.architecture),
        source,
        architecture=host.architecture,
        device_sources=_DEVICE_SOURCES,
    )
    text = json.dumps(description, indent=1, ensure_ascii=False)
    write_module(path, code, Parts(None, source, code_id, plan, text))


def _image_object(image: bytes, architecture: str) -> bytes:
    """Return an ELF object that holds the fat binary as `IMAGE_SYMBOL`."""
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        work = Path(folder)
        (work / "image").write_bytes(image)
        (work / "image.S").write_text(_IMAGE.format(symbol=IMAGE_SYMBOL, file=work / "image"))
        run_c_compiler(["-c", work / "image.S", "-o", work / "image.o"], architecture)
        return (work / "image.o").read_bytes()
