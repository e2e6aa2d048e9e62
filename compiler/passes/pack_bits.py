"""Pack the constants that scheduled kernels read as bits.

    call kernel(x, w: int8 [..])  ->  call kernel(x, w': int32 [..])     where the kernel says so

A constant that several calls pass is packed once for each way
of packing; what no call passes any more stays out of the module, as nothing refers to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tvm.tirx import PrimFunc

from tilewright.compiler.program import Call, Program, Region, Tensor
from tilewright.compiler.schedule.bit_packing import Packing, packings
from tilewright.errors import CompileError


def pack_bits(
    program: Program, kernels: Mapping[str, PrimFunc], regions: Mapping[str, Region]
) -> Program:
    """Return the program with scheduled kernels, and every constant as they read it.

    Args:
        program: its kernels are not scheduled.
        kernels: the scheduled ones, by the same names.
        regions: what the program's control flow became.

    Raises:
        CompileError: what a kernel wants packed is no constant.
    """
    wanted = {name: packings(func) for name, func in kernels.items()}
    tensors = list(program.tensors)
    known: dict[tuple[int, Packing], int] = {}

    def packed(index: int, packing: Packing) -> int:
        tensor = tensors[index]
        if tensor.data is None:
            raise CompileError(f"weights '{tensor.name}' are not known when compiling")
        # One array may be several tensors: the module stores it once.
        key = (id(tensor.data), packing)
        if key not in known:
            data = packing.pack(tensor.data)
            name = data.dtype.name
            known[key] = len(tensors)
            tensors.append(Tensor(tensor.name, data.shape, name, "constant", data))
        return known[key]

    def passed(call: Call) -> Call:
        ways = wanted.get(call.kernel, {})
        args = tuple(
            packed(index, ways[position]) if position in ways else index
            for position, index in enumerate(call.args)
        )
        return replace(call, args=args)

    calls = tuple(passed(call) for call in program.calls)
    return replace(
        program,
        tensors=tuple(tensors),
        calls=calls,
        kernels=dict(kernels),
        regions=dict(regions),
    )
