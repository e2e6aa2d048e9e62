"""The two products of attention in one warp: on tensor cores, or thread by thread in fp32.

A warp has 16 rows of queries. Its scores are `scores[j][4]`, j below keys / 8, and what it sums is
`sums[j][4]`, j below depth / 8; which row and column an element is of is what the two ways differ
in. The right and left factors lie in shared memory in 16-byte chunks that `tw_swizzle` places.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.compiler.cuda.gemm import INSTRUCTIONS
from tilewright.compiler.cuda.tile import VECTOR_BYTES
from tilewright.compiler.program import item_bytes

WARP_ROWS = 16
_CODES = {"float16": "half", "bfloat16": "bfloat"}
_UNITS = {"float16": "fp16", "bfloat16": "bf16", "float32": "tf32"}
DTYPES = tuple(_UNITS)


@dataclass(frozen=True)
class WarpProducts:
    """How a warp computes scores from queries and keys, and results from scores and values.

    Statements find the tile of queries in `tw_shared`, those of keys and values as bytes in `keys`
    and `values`; `lane` and `warp_row` say which thread and row they are for.

    Attributes:
        unit: that multiplies, as schedules name it.
        held: rows of which a thread has elements; element e of four has the row `slot`.
        shares: distances of the lanes that have the other elements of a row.
        slot, row: text of the number among `held`, and of the row in the warp, of element `e`.
        key, column: text of the column of `scores[j][e]` and of `sums[j][e]` in its tile.
        with_keys, with_values: statements of the products.
    """

    unit: str
    held: int
    shares: tuple[int, ...]
    slot: str
    row: str
    key: str
    column: str
    with_keys: list[str]
    with_values: list[str]


def on_matrix_units(dtype: str, keys: int, depth: int) -> WarpProducts:
    """Return the products on tensor cores: fragments are those of `gemm`.

    A thread has two rows, 8 apart, of which four neighbours have all columns.

    Args:
        dtype: of the tiles in shared memory.
        keys, depth: of a tile, in elements.
    """
    products = _MatrixUnits(dtype, keys, depth)
    return WarpProducts(
        unit=_UNITS[dtype],
        held=2,
        shares=(1, 2),
        slot="e / 2",
        row="lane / 4 + e / 2 * 8",
        key="j * 8 + lane % 4 * 2 + e % 2",
        column="j * 8 + lane % 4 * 2 + e % 2",
        with_keys=products.with_keys(),
        with_values=products.with_words() if dtype == "float32" else products.with_values(),
    )


def on_threads(keys: int, depth: int) -> WarpProducts:
    """Return the products in fp32: 4 x 8 threads, each with four rows.

    Of the keys a thread has every eighth; of the results a chunk of four in every 32.
    """
    products = _Threads(keys, depth)
    return WarpProducts(
        unit="fp32",
        held=4,
        shares=(1, 2, 4),
        slot="e",
        row="lane / 8 + 4 * e",
        key="j * 8 + lane % 8",
        column="j / 4 * 32 + lane % 8 * 4 + j % 4",
        with_keys=products.with_keys(),
        with_values=products.with_values(),
    )


@dataclass(frozen=True)
class _MatrixUnits:
    dtype: str
    keys: int
    depth: int

    @property
    def chunks(self) -> int:
        """Pieces of 16 bytes in a row of a tile."""
        return self.depth * item_bytes(self.dtype) // VECTOR_BYTES

    @property
    def instruction(self) -> str:
        return INSTRUCTIONS[self.dtype]

    def with_keys(self) -> list[str]:
        return [
            "#pragma unroll",
            f"for (int s = 0; s < {self.chunks // 2}; ++s) {{",
            "unsigned a[4];",
            f"tw_load_matrix4(a, tw_shared + tw_swizzle<{self.chunks}>(warp_row + lane % 16, "
            "2 * s + lane / 16) * 16);",
            *self._rounded("a"),
            "#pragma unroll",
            f"for (int j = 0; j < {self.keys // 16}; ++j) {{",
            "unsigned b[4];",
            f"tw_load_matrix4(b, keys + tw_swizzle<{self.chunks}>(j * 16 + lane % 8 + "
            "lane / 16 * 8, 2 * s + lane / 8 % 2) * 16);",
            *self._rounded("b"),
            f"{self.instruction}(scores[2 * j], a, b[0], b[1]);",
            f"{self.instruction}(scores[2 * j + 1], a, b[2], b[3]);",
            "}",
            "}",
        ]

    def _rounded(self, fragment: str) -> list[str]:
        """Return the statements that round a fragment of float32 for the instruction."""
        if self.dtype != "float32":
            return []
        rounded = f"{fragment}[i] = tw_to_tf32(tw_bits<float>({fragment}[i]));"
        return ["#pragma unroll", f"for (int i = 0; i < 4; ++i) {rounded}"]

    def with_values(self) -> list[str]:
        code = _CODES[self.dtype]
        return [
            "#pragma unroll",
            f"for (int s = 0; s < {self.keys // 16}; ++s) {{",
            "unsigned a[4];",
            "#pragma unroll",
            "for (int i = 0; i < 4; ++i) {",
            # Two tiles of sums are, pair by pair, one fragment of the left factor.
            "const float *pair = &scores[2 * s + i / 2][i % 2 * 2];",
            f"a[i] = tw_to_{code}(pair[0]) | (unsigned)tw_to_{code}(pair[1]) << 16;",
            "}",
            "#pragma unroll",
            f"for (int j = 0; j < {self.depth // 16}; ++j) {{",
            "unsigned b[4];",
            f"tw_load_turned4(b, values + tw_swizzle<{self.chunks}>(s * 16 + lane % 16, "
            "2 * j + lane / 16) * 16);",
            f"{self.instruction}(sums[2 * j], a, b[0], b[1]);",
            f"{self.instruction}(sums[2 * j + 1], a, b[2], b[3]);",
            "}",
            "}",
        ]

    def with_words(self) -> list[str]:
        """An instruction sums over 8 keys, in any order: thread t has those of its two scores."""
        return [
            "const float *words = reinterpret_cast<const float *>(values);",
            "#pragma unroll",
            f"for (int s = 0; s < {self.keys // 8}; ++s) {{",
            "const unsigned a[4] = {tw_to_tf32(scores[s][0]), tw_to_tf32(scores[s][2]), "
            "tw_to_tf32(scores[s][1]), tw_to_tf32(scores[s][3])};",
            "const int key = s * 8 + lane % 4 * 2;",
            "#pragma unroll",
            f"for (int j = 0; j < {self.depth // 8}; ++j) {{",
            "const int column = j * 8 + lane / 4;",
            "unsigned b[2];",
            "#pragma unroll",
            f"for (int i = 0; i < 2; ++i) b[i] = tw_to_tf32(words[tw_swizzle<{self.chunks}>("
            "key + i, column / 4) * 4 + column % 4]);",
            f"{self.instruction}(sums[j], a, b[0], b[1]);",
            "}",
            "}",
        ]


@dataclass(frozen=True)
class _Threads:
    keys: int
    depth: int

    def _chunk(self, tile: str, row: str, chunk: str) -> str:
        """Return the address of a chunk of four words."""
        place = f"tw_swizzle<{self.depth // 4}>({row}, {chunk}) * 16"
        return f"reinterpret_cast<const float *>({tile} + {place})"

    def with_keys(self) -> list[str]:
        return [
            # Unrolled as a whole, a head of 128 would not fit into the cache of instructions.
            "#pragma unroll 4",
            f"for (int c = 0; c < {self.depth // 4}; ++c) {{",
            "__align__(16) float left[4][4];",
            "#pragma unroll",
            "for (int e = 0; e < 4; ++e) "
            f"tw_read<4>(left[e], {self._chunk('tw_shared', 'warp_row + lane / 8 + 4 * e', 'c')});",
            "#pragma unroll",
            f"for (int j = 0; j < {self.keys // 8}; ++j) {{",
            "__align__(16) float right[4];",
            f"tw_read<4>(right, {self._chunk('keys', 'j * 8 + lane % 8', 'c')});",
            "#pragma unroll",
            "for (int i = 0; i < 16; ++i) scores[j][i % 4] += left[i % 4][i / 4] * right[i / 4];",
            "}",
            "}",
        ]

    def with_values(self) -> list[str]:
        """The eight threads of a row hand each other their scores."""
        return [
            "#pragma unroll",
            f"for (int s = 0; s < {self.keys // 8}; ++s) {{",
            "#pragma unroll",
            "for (int t = 0; t < 8; ++t) {",
            "float left[4];",
            "#pragma unroll",
            "for (int e = 0; e < 4; ++e) left[e] = TW_SHUFFLE(scores[s][e], lane / 8 * 8 + t);",
            "#pragma unroll",
            f"for (int c = 0; c < {self.depth // 32}; ++c) {{",
            "__align__(16) float right[4];",
            f"tw_read<4>(right, {self._chunk('values', 's * 8 + t', 'c * 8 + lane % 8')});",
            "#pragma unroll",
            "for (int i = 0; i < 16; ++i) "
            "sums[c * 4 + i / 4][i % 4] += left[i % 4] * right[i / 4];",
            "}",
            "}",
            "}",
        ]
