"""From one fused PrimFunc to its launches, and from launches to machine code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from tvm import tirx

from tilewright.compiler.codegen import KERNEL_PREFIX
from tilewright.compiler.cuda.elementwise import elementwise_kernel
from tilewright.compiler.cuda.estimate import choose_tile
from tilewright.compiler.cuda.fallback import fallback_kernels
from tilewright.compiler.cuda.gemm import gemm_kernel, operand_buffers, split_depth
from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.nvcc import compile_cuda
from tilewright.compiler.cuda.parts import Part, check_sizes, split
from tilewright.compiler.cuda.product import Product, read_product
from tilewright.compiler.cuda.reduction import default_shape, reduction_kernel
from tilewright.compiler.cuda.rows import rows_kernel
from tilewright.compiler.cuda.storage import in_memory, restore
from tilewright.compiler.cuda.suppression import suppression_kernel
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.cuda.tile import GemmTile
from tilewright.errors import CompileError


@dataclass(frozen=True)
class Launch:
    """A kernel and the buffers that it is started on: what it reads, then what it writes."""

    kernel: Kernel
    buffers: tuple[Any, ...]
    n_outputs: int


@dataclass(frozen=True)
class Launches:
    """What computes one PrimFunc.

    Attributes:
        launches: in order.
        params: the function's parameters, as they are stored.
        temporaries: buffers that are neither parameters of the function nor anything else's.
        product: the product that the function is built around, if there is one.
        tile: of that product.
    """

    launches: tuple[Launch, ...]
    params: tuple[Any, ...]
    temporaries: tuple[Any, ...]
    product: Product | None = None
    tile: GemmTile | None = None


def build_launches(
    func: tirx.PrimFunc,
    name: str,
    target: CudaTarget,
    precision: str,
    tile: GemmTile | None = None,
    storage: Mapping[int, str] | None = None,
) -> Launches:
    """Return the launches that compute a fused function.

    Args:
        func: unscheduled, with static shapes.
        name: prefix of the kernels' names.
        target: the GPU.
        precision: of products of floats; see `targets.PRECISIONS`.
        tile: decisions for its product; None lets the estimate choose.
        storage: parameter position -> dtype in memory where it is not the function's; values are
            converted where they are read and written.

    Raises:
        CompileError: there is no schedule for what the function computes.
        InvalidScheduleError: the tile does not fit.
    """
    check_sizes(func)
    try:
        own = split(func)
    except CompileError:
        return _not_split(func, name, target, storage or {})
    parts, params = restore(own, func, storage or {})
    launches: list[Launch] = []
    found: Product | None = None
    chosen: GemmTile | None = None
    for number, part in enumerate(parts):
        # With the prefix no name is a keyword of C++ or a function of CUDA.
        prefix = f"{KERNEL_PREFIX}{name}" + ("" if len(parts) == 1 else f"_{number}")
        product = read_product(part)
        if product is None:
            launches.append(_launch(part, _plain_kernel(part, prefix, target)))
            continue
        wanted = tile if tile is not None else choose_tile(product, precision, target)
        kernel = gemm_kernel(part, product, wanted, precision, target, prefix)
        found, chosen = product, wanted
        if wanted.split == 1:
            launches.append(_launch(part, kernel))
            continue
        partial, sums = split_depth(part, product, wanted)
        used = [*operand_buffers(product, part), partial]
        launches.append(Launch(kernel, tuple(used), 1))
        shape = default_shape(sums, target)
        launches.append(_launch(sums, reduction_kernel(sums, f"{prefix}_sum", shape)))
    return Launches(tuple(launches), tuple(params), temporaries_of(launches, params), found, chosen)


def _not_split(
    func: tirx.PrimFunc, name: str, target: CudaTarget, storage: Mapping[int, str]
) -> Launches:
    """Return the launches of a function that is not made of blocks of one tensor each."""
    prefix = f"{KERNEL_PREFIX}{name}"
    params, stored_as = in_memory(func, storage)
    suppression = suppression_kernel(func, prefix, params)
    if suppression is not None:
        return Launches((Launch(suppression, tuple(params), len(params) - 3),), tuple(params), ())
    launches = [
        Launch(kernel, (*reads, *writes), len(writes))
        for kernel, reads, writes in fallback_kernels(func, prefix, target, stored_as)
    ]
    return Launches(tuple(launches), tuple(params), temporaries_of(launches, params))


def temporaries_of(launches: Sequence[Launch], params: Sequence[Any]) -> tuple[Any, ...]:
    """Return the buffers of launches that are no parameters, each once."""
    found: list[Any] = []
    for buffer in (buffer for launch in launches for buffer in launch.buffers):
        if not any(buffer.same_as(known) for known in (*params, *found)):
            found.append(buffer)
    return tuple(found)


def _plain_kernel(part: Part, name: str, target: CudaTarget) -> Kernel:
    if part.kind == "elementwise":
        return elementwise_kernel(part, name)
    if part.kind == "rows":
        return rows_kernel(part, name)
    return reduction_kernel(part, name, default_shape(part, target))


def _launch(part: Part, kernel: Kernel) -> Launch:
    return Launch(kernel, (*part.reads, *part.writes), len(part.writes))


@cache
def prelude() -> str:
    """Return what all kernels use."""
    return (resources.files("tilewright.compiler") / "cuda" / "prelude.cuh").read_text()


def source_of(kernels: Sequence[Kernel]) -> str:
    """Return the CUDA C of kernels, complete."""
    return "\n".join([prelude(), *(kernel.source for kernel in kernels)])


def compile_kernels(kernels: Mapping[str, Kernel], target: CudaTarget) -> bytes:
    """Compile kernels for the target; return a fat binary.

    Raises:
        TargetError: there is no nvcc.
        CompileError: nvcc refused them; the message says which kernel it was.
    """
    try:
        return compile_cuda(source_of(list(kernels.values())), target)
    except CompileError as error:
        for name, kernel in kernels.items():
            try:
                compile_cuda(source_of([kernel]), target)
            except CompileError as own:
                raise CompileError(f"code generation failed for kernel {name}: {own}") from own
        raise error
