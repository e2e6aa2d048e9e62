"""Descriptions of CUDA GPUs: what choosing tiles and checking resources need to know.

Limits per multiprocessor are those of the CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability"; rates are of one common chip of each capability, from NVIDIA's data sheets.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from tilewright.errors import TargetError

PREFIX = "cuda:"
WARP = 32

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
"""What products of floats are computed in. int8 asks for a model that is quantized already."""


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """A GPU to build for. Sizes are bytes or 32-bit registers of one multiprocessor (SM).

    Attributes:
        name: as the user gives it, "cuda:sm_90".
        arch: as nvcc names it, "sm_90".
        chip: the chip whose rates are used; the code runs on all of the architecture.
        sms: multiprocessors of that chip.
        registers: of one SM.
        registers_per_thread: at most.
        shared_bytes: shared memory of one SM.
        block_shared_bytes: the most that one block may ask for.
        warps: resident on one SM at most.
        blocks: resident on one SM at most.
        clock_hz: boost clock.
        bandwidth_bytes_s: of device memory.
        fp32_per_clock: multiply-adds of float32 on one SM and clock, without tensor cores.
        tensor_per_clock: multiply-adds of float16 on one SM and clock, dense.
    """

    name: str
    arch: str
    chip: str
    sms: int
    registers: int
    registers_per_thread: int
    shared_bytes: int
    block_shared_bytes: int
    warps: int
    blocks: int
    clock_hz: float
    bandwidth_bytes_s: float
    fp32_per_clock: int
    tensor_per_clock: int

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, for instance (9, 0)."""
        digits = self.arch.partition("_")[2]
        return int(digits[:-1]), int(digits[-1])

    @property
    def has_warpgroups(self) -> bool:
        """Whether the chip has the instructions that four warps issue together (wgmma)."""
        return self.capability == (9, 0)

    def macs_per_second(self, precision: str) -> float:
        """Return multiply-adds a second of the whole chip in a precision."""
        share = {"fp32": None, "tf32": 0.5, "fp16": 1.0, "bf16": 1.0, "int8": 2.0}[precision]
        rate = self.fp32_per_clock if share is None else self.tensor_per_clock * share
        return rate * self.sms * self.clock_hz

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))


def _gpu(
    arch: str,
    chip: str,
    sms: int,
    shared_kib: tuple[int, int],
    resident: tuple[int, int],
    clock_ghz: float,
    bandwidth_gb_s: float,
    rates: tuple[int, int],
) -> CudaTarget:
    return CudaTarget(
        name=PREFIX + arch,
        arch=arch,
        chip=chip,
        sms=sms,
        registers=65536,
        registers_per_thread=255,
        shared_bytes=shared_kib[0] << 10,
        block_shared_bytes=shared_kib[1] << 10,
        warps=resident[0],
        blocks=resident[1],
        clock_hz=clock_ghz * 1e9,
        bandwidth_bytes_s=bandwidth_gb_s * 1e9,
        fp32_per_clock=rates[0],
        tensor_per_clock=rates[1],
    )


_NAMED = {
    target.name: target
    for target in (
        _gpu("sm_80", "A100", 108, (164, 163), (64, 32), 1.41, 1555, (64, 1024)),
        _gpu("sm_86", "GeForce RTX 3090", 82, (100, 99), (48, 16), 1.70, 936, (128, 512)),
        _gpu("sm_89", "GeForce RTX 4090", 128, (100, 99), (48, 24), 2.52, 1008, (128, 512)),
        _gpu("sm_90", "H100 SXM", 132, (228, 227), (64, 32), 1.83, 3350, (128, 2048)),
    )
}


def list_cuda_targets() -> tuple[str, ...]:
    """Return the names that `parse_cuda_target` accepts."""
    return tuple(_NAMED)


def is_cuda(name: str) -> bool:
    """Say whether a target's name is that of a GPU."""
    return name == PREFIX[:-1] or name.startswith(PREFIX)


def parse_cuda_target(name: str) -> CudaTarget:
    """Return the description of a GPU by name.

    Raises:
        TargetError: the name is unknown.
    """
    if name not in _NAMED:
        raise TargetError(
            f"unknown target {name!r}; known CUDA targets: {', '.join(list_cuda_targets())}"
        )
    return _NAMED[name]


def check_precision(precision: str) -> None:
    """Refuse a precision that is not known.

    Raises:
        TargetError: it is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise TargetError(
            f"unknown precision {precision!r}; known precisions: {', '.join(PRECISIONS)}"
        )
