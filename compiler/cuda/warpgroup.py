"""Products by warpgroups: Hopper's wgmma, which reads both factors from shared memory.

Four warps issue one instruction of 64 rows; its sums lie in their registers as those of four
mma.sync of 16 rows. Where the rows of a tile in shared memory are 32, 64 or 128 bytes long, the
places of `tw_swizzle` are those that the instruction knows as its swizzling modes. (PTX ISA,
"Asynchronous Warpgroup Level Matrix Instructions".)
"""

from __future__ import annotations

WARPS = 4
ROWS = 64
MAX_COLUMNS = 256
CHUNKS = (2, 4, 8)
"""16-byte chunks of a row that are a swizzling mode: 32, 64 and 128 bytes."""

MARK = "TW_WGMMA_"
"""What only the text of kernels with these instructions contains."""

_MODES = {8: 1, 4: 2, 2: 3}
_SHAPES = {"half": "k16.f32.f16.f16", "bfloat": "k16.f32.bf16.bf16"}
_NAMES = {"float16": "half", "bfloat16": "bfloat", "int8": "s8", "uint8": "u8"}


def instruction(dtypes: tuple[str, str]) -> str:
    """Return the name of the function that multiplies tiles of these dtypes."""
    names = [_NAMES[dtype] for dtype in dtypes]
    return names[0] if names[0] in _SHAPES else "".join(names)


def supports(dtypes: tuple[str, str]) -> bool:
    """Say whether there is an instruction whose rounding is that of mma.sync.

    float32 is read with its last 13 bits cut off, not rounded to tf32, and stays with mma.sync.
    """
    return all(dtype in _NAMES for dtype in dtypes)


def descriptor_bits(chunks: int) -> int:
    """Return the bits of a matrix descriptor besides its address ("Matrix Descriptor Format").

    Args:
        chunks: of 16 bytes in a row of the tile.
    """
    stride = 8 * 16 * chunks  # bytes from eight rows to the next eight
    return _MODES[chunks] << 62 | (stride >> 4) << 32 | 1 << 16


def define(dtypes: tuple[str, str], columns: int) -> str:
    """Return CUDA C of `tw_wgmma_NAME(sums, a, b)` for tiles of `columns` columns.

    The emulation has it for all.
    """
    name = instruction(dtypes)
    count = columns // 8
    if name in _SHAPES:
        kind, letter, shape, last = "float", "f", _SHAPES[name], ", 1, 1, 0, 0"
    else:
        left, right = (_NAMES[dtype] for dtype in dtypes)
        kind, letter, shape, last = "int", "r", f"k32.s32.{left}.{right}", ""
    registers = ", ".join(f"%{i}" for i in range(4 * count))
    sums = ", ".join(f'"+{letter}"(d[{i // 4}][{i % 4}])' for i in range(4 * count))
    guard = f"{MARK}{name}_{columns}"
    return f"""\
#if defined(TW_WARPGROUPS) && !defined(TW_EMULATE) && !defined({guard})
#define {guard}
static __device__ __forceinline__ void tw_wgmma_{name}(
    {kind} (&d)[{count}][4], unsigned long long a, unsigned long long b) {{
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, 1, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{columns}{shape} {{{registers}}}, "
               "%{4 * count}, %{4 * count + 1}, p{last};\\n}}"
               : {sums}
               : "l"(a), "l"(b));
}}
#endif
"""
