"""The kernel of attention: scores stay in registers, row sums follow the greatest score so far.

A block has some rows of queries of one head; its warps have 16 each. Keys and values pass by in
tiles, of which the next is copied while one is computed with. A tile's scores are products on
tensor cores, their fragments become the left factor of the product with the values, and what was
summed before is scaled whenever a greater score is met (Dao et al., FlashAttention, arXiv
2205.14135, algorithm 1; Dao, FlashAttention-2, arXiv 2307.08691, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm.ir import TensorLoad

from tilewright.compiler.cuda.attention import Attention
from tilewright.compiler.cuda.ctext import Printer
from tilewright.compiler.cuda.gemm import INSTRUCTIONS
from tilewright.compiler.cuda.kernel import Kernel, block, buffer_names, decompose, signature
from tilewright.compiler.cuda.operand import Loader
from tilewright.compiler.cuda.parts import Part
from tilewright.compiler.cuda.product import Operand, Product
from tilewright.compiler.cuda.reduction import finish
from tilewright.compiler.cuda.targets import WARP, CudaTarget
from tilewright.compiler.cuda.tile import VECTOR_BYTES, GemmTile, tile_dtypes, uses_matrix_units
from tilewright.compiler.program import item_bytes
from tilewright.compiler.schedule.analysis import Axis
from tilewright.compiler.schedule.expressions import loads_in

_WARP_ROWS = 16
# Warps of a block, most first: more share a tile of keys and values, fewer fill the chip.
_WARPS = (4, 2, 1)
_KEYS = (64, 32)
_STAGES = 2
# Each has an address and bounds in registers. With 16 to 32, 24 to 955 accesses spill.
_MOST_COPIES = 8
_CODES = {"float16": "half", "bfloat16": "bfloat", "float32": "tf32"}


@dataclass(frozen=True)
class AttentionTile:
    """How attention is cut.

    Attributes:
        warps: of a block, each with 16 rows.
        keys: in a tile.
        depth: of the tiles of queries, keys and values in shared memory, at least theirs.
        dtype: of these tiles.
    """

    warps: int
    keys: int
    depth: int
    dtype: str

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return self.warps * _WARP_ROWS

    @property
    def copies(self) -> int:
        """Pieces of 16 bytes of a tile of keys that a thread copies."""
        return self.keys * self.depth * item_bytes(self.dtype) // (VECTOR_BYTES * WARP * self.warps)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: queries, and two stages of keys and values."""
        return (self.rows + 2 * _STAGES * self.keys) * self.depth * item_bytes(self.dtype)


def choose_attention_tile(
    attention: Attention, precision: str, target: CudaTarget
) -> AttentionTile | None:
    """Return how to cut attention, or None where its products do not run on tensor cores."""
    scores, values = attention.scores, attention.values
    if not (uses_matrix_units(scores, precision) and uses_matrix_units(values, precision)):
        return None
    kinds = {*tile_dtypes(scores, precision), tile_dtypes(values, precision)[1]}
    if len(kinds) != 1 or (dtype := kinds.pop()) not in _CODES:
        return None
    depth = 16
    while depth < attention.depth:
        depth *= 2
    batch, rows, _, _ = scores.sizes
    blocks = {warps: batch * -(-rows // (warps * _WARP_ROWS)) for warps in _WARPS}
    filling = next((warps for warps in _WARPS if blocks[warps] >= target.sms), _WARPS[-1])
    for warps in sorted(n for n in _WARPS if n >= filling):
        for keys in _KEYS:
            tile = AttentionTile(warps, keys, depth, dtype)
            if tile.copies <= _MOST_COPIES and tile.shared_bytes <= target.block_shared_bytes:
                return tile
    return None


def attention_kernel(attention: Attention, tile: AttentionTile, name: str) -> tuple[Kernel, Part]:
    """Return the kernel, and a part that says what it reads and writes."""
    writer = _Writer(attention, tile, name)
    return writer.kernel(), writer.own


class _Writer:
    def __init__(self, attention: Attention, tile: AttentionTile, name: str) -> None:
        self.attention, self.tile, self.name = attention, tile, name
        self.own = replace(attention.last, reads=_reads(attention))
        self.buffers = buffer_names(self.own)
        scores, values = attention.scores, attention.values
        self.batch_head, self.batch = decompose("blockIdx.y", scores.batch, "b")
        self.query_head, queries = decompose("query", scores.rows, "m")
        names = {**self.batch, **queries}
        # Text of each axis of the scores, by position; the keys are last.
        self.axes = [names.get(axis.var, "0") for axis in scores.stage.spatial[:-1]]
        places = zip(values.stage.spatial[:-1], self.axes, strict=True)
        self.value_names = {axis.var: text for axis, text in places}
        element = item_bytes(tile.dtype)
        query_bytes = tile.rows * tile.depth * element
        key_bytes = tile.keys * tile.depth * element
        self.key_base, self.value_base = query_bytes, query_bytes + key_bytes
        self.stage_bytes = 2 * key_bytes
        turned = replace(values, columns=values.depth, depth=values.columns)
        self.loaders = (
            self._loader("q", scores.a, scores, scores.rows, tile.rows, 0, self.batch),
            self._loader(
                "key", scores.b, scores, scores.columns, tile.keys, self.key_base, self.batch
            ),
            self._loader(
                *("value", values.b, turned, values.depth, tile.keys, self.value_base),
                self.value_names,
            ),
        )

    def _loader(
        self,
        letter: str,
        operand: Operand,
        product: Product,
        rows: tuple[Axis, ...],
        extent: int,
        base: int,
        batch: dict[Any, str],
    ) -> Loader:
        tile = self.tile
        # Rows and columns say how far the stages are apart: a tile of keys and one of values.
        shape = GemmTile(tile.keys, tile.keys, tile.depth, tile.warps, 1, _STAGES)
        return Loader(
            letter, operand, product, rows, extent, tile.dtype, base, shape, self.buffers, batch
        )

    @property
    def chunks(self) -> int:
        """Pieces of 16 bytes in a row of a tile."""
        return self.loaders[0].chunks

    def kernel(self) -> Kernel:
        tile, (batch, rows, keys, _) = self.tile, self.attention.scores.sizes
        threads = tile.warps * WARP
        lines = [
            f"{signature(self.name, threads, self.own, self.buffers)} {{",
            "TW_SHARED;",
            f"const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * {_WARP_ROWS};",
            f"const int q_first = blockIdx.x * {tile.rows};",
            *self.batch_head,
            *self._load(),
            *self._score(),
            *self._finish(),
            f"float sums[{tile.depth // 8}][4] = {{}};",
            "float top[2] = {-tw_infinity(), -tw_infinity()}, total[2] = {0.0f, 0.0f};",
            "load_q(0, 0);",
            "load_tile(0, 0);",
            "tw_copy_commit();",
            "#pragma unroll 1",
            f"for (int tile = 0; tile < {-(-keys // tile.keys)}; ++tile) {{",
            "tw_copy_wait<0>();",
            # Everyone sees the tile, and has left the one that is filled next.
            "TW_BARRIER();",
            f"if (tile + 1 < {-(-keys // tile.keys)}) load_tile(tile + 1, (tile + 1) % {_STAGES});",
            "tw_copy_commit();",
            f"const unsigned char *stage = tw_shared + tile % {_STAGES} * {self.stage_bytes};",
            *self._products_with_keys(),
            *self._softmax(),
            *self._products_with_values(),
            "}",
            *self._results(),
            "}",
        ]
        unit = {"float16": "fp16", "bfloat16": "bf16"}.get(tile.dtype, "tf32")
        modes = "/".join(loader.mode for loader in self.loaders)
        label = f"attention {unit} {tile.rows}x{tile.keys}x{tile.depth} {modes}"
        grid = (-(-rows // tile.rows), batch, 1)
        return Kernel(self.name, block(lines), grid, threads, tile.shared_bytes, label)

    def _load(self) -> list[str]:
        """Return the functions that load the queries, and a tile of keys and values."""
        scores, values = self.attention.scores, self.attention.values
        queries, keys, wanted = self.loaders
        lines = [
            "const int k_first = 0;",
            "auto load_q = [&](int step, int slot) {",
            f"const int k_last = {scores.sizes[3]};",
            *queries.prologue(),
            *_body(queries),
            "};",
            "auto load_tile = [&](int tile, int slot) {",
            "const int step = 0;",
        ]
        for loader, depth in ((keys, scores.sizes[3]), (wanted, values.sizes[2])):
            lines += [
                "{",
                f"const int {loader.letter}_first = tile * {self.tile.keys}, k_last = {depth};",
                *loader.prologue(),
                *_body(loader),
                "}",
            ]
        return [*lines, "};"]

    def _score(self) -> list[str]:
        """Return the function that makes a score of a product: what stands before the softmax."""
        scores = self.attention.scores
        _, rows, keys, _ = scores.sizes
        lines = [
            "auto score = [&](int row, int key, float given) {",
            # Beyond the last row anything will do, but it must not be read from beyond.
            f"if (key >= {keys}) return -tw_infinity();",
            f"const int query = row < {rows} ? row : 0;",
            *self.query_head,
        ]
        value = "given"
        for number, (store, buffer) in enumerate(self.attention.stores):
            texts = [*self.axes, "key"]
            names = {axis.var: text for axis, text in zip(store.spatial, texts, strict=True)}

            def override(load: TensorLoad, source: Any = buffer, text: str = value) -> str | None:
                return text if load.source.same_as(source) else None

            text = Printer(store.spatial, names, self.buffers, override).text(store.value)
            value = f"score{number}"
            lines.append(f"const float {value} = {text};")
        return [*lines, f"return {value};", "};"]

    def _finish(self) -> list[str]:
        """Return the function that stores one result."""
        values = self.attention.values
        rows, columns = self.attention.scores.sizes[1], values.sizes[2]
        stage = values.stage
        names = {**self.value_names, stage.spatial[-1].var: "column"}
        original = self.attention.last.reductions[0].stage
        own = {
            axis.var: names[split.var]
            for axis, split in zip(original.spatial, stage.spatial, strict=True)
        }
        return [
            "auto store = [&](int query, int column, float result) {",
            f"if (query >= {rows} || column >= {columns}) return;",
            *self.query_head,
            *finish(self.own, own, self.buffers, "result"),
            "};",
        ]

    def _products_with_keys(self) -> list[str]:
        """Fragments are those of `gemm`."""
        tile, chunks = self.tile, self.chunks
        lines = [
            f"const unsigned char *keys = stage + {self.key_base};",
            f"float scores[{tile.keys // 8}][4] = {{}};",
            "#pragma unroll",
            f"for (int s = 0; s < {chunks // 2}; ++s) {{",
            "unsigned a[4];",
            f"tw_load_matrix4(a, tw_shared + tw_swizzle<{chunks}>(warp_row + lane % 16, "
            "2 * s + lane / 16) * 16);",
            *self._rounded("a"),
            "#pragma unroll",
            f"for (int j = 0; j < {tile.keys // 16}; ++j) {{",
            "unsigned b[4];",
            f"tw_load_matrix4(b, keys + tw_swizzle<{chunks}>(j * 16 + lane % 8 + lane / 16 * 8, "
            "2 * s + lane / 8 % 2) * 16);",
            *self._rounded("b"),
            f"{self._instruction}(scores[2 * j], a, b[0], b[1]);",
            f"{self._instruction}(scores[2 * j + 1], a, b[2], b[3]);",
            "}",
            "}",
        ]
        return lines

    @property
    def _instruction(self) -> str:
        return INSTRUCTIONS[self.tile.dtype]

    def _rounded(self, fragment: str) -> list[str]:
        """Return the statements that round a fragment of float32 for the instruction."""
        if self.tile.dtype != "float32":
            return []
        rounded = f"{fragment}[i] = tw_to_tf32(tw_bits<float>({fragment}[i]));"
        return ["#pragma unroll", f"for (int i = 0; i < 4; ++i) {rounded}"]

    def _softmax(self) -> list[str]:
        """Scores become exponentials; what was summed is scaled to the new greatest score.

        A thread has two rows, 8 apart, of which four neighbours have all columns.
        """
        count = self.tile.keys // 8
        row = "q_first + warp_row + lane / 4 + e / 2 * 8"
        key = f"tile * {self.tile.keys} + j * 8 + lane % 4 * 2 + e % 2"
        each = ["#pragma unroll", f"for (int j = 0; j < {count}; ++j) {{"]
        each += ["#pragma unroll", "for (int e = 0; e < 4; ++e) {"]
        return [
            "float most[2] = {top[0], top[1]};",
            *each,
            f"scores[j][e] = score({row}, {key}, scores[j][e]);",
            "most[e / 2] = tw_max(most[e / 2], scores[j][e]);",
            "}",
            "}",
            "float scale[2];",
            "#pragma unroll",
            "for (int h = 0; h < 2; ++h) {",
            "most[h] = tw_max(most[h], TW_SHUFFLE_XOR(most[h], 1));",
            "most[h] = tw_max(most[h], TW_SHUFFLE_XOR(most[h], 2));",
            # Where all so far are minus infinity, nothing is summed yet.
            "scale[h] = top[h] == most[h] ? 1.0f : expf(top[h] - most[h]);",
            "top[h] = most[h];",
            "total[h] *= scale[h];",
            "}",
            *each,
            "const float high = top[e / 2];",
            "scores[j][e] = high == -tw_infinity() ? 0.0f : expf(scores[j][e] - high);",
            "total[e / 2] += scores[j][e];",
            "}",
            "}",
            "#pragma unroll",
            f"for (int i = 0; i < {self.tile.depth // 8 * 4}; ++i) "
            "sums[i / 4][i % 4] *= scale[i % 4 / 2];",
        ]

    def _products_with_values(self) -> list[str]:
        values = f"const unsigned char *values = stage + {self.value_base};"
        if self.tile.dtype == "float32":
            return [values, *self._products_of_words()]
        code, chunks = _CODES[self.tile.dtype], self.chunks
        lines = [
            values,
            "#pragma unroll",
            f"for (int s = 0; s < {self.tile.keys // 16}; ++s) {{",
            "unsigned a[4];",
            "#pragma unroll",
            "for (int i = 0; i < 4; ++i) {",
            # Two tiles of sums are, pair by pair, one fragment of the left factor.
            "const float *pair = &scores[2 * s + i / 2][i % 2 * 2];",
            f"a[i] = tw_to_{code}(pair[0]) | (unsigned)tw_to_{code}(pair[1]) << 16;",
            "}",
            "#pragma unroll",
            f"for (int j = 0; j < {self.tile.depth // 16}; ++j) {{",
            "unsigned b[4];",
            f"tw_load_turned4(b, values + tw_swizzle<{chunks}>(s * 16 + lane % 16, "
            "2 * j + lane / 16) * 16);",
            f"{self._instruction}(sums[2 * j], a, b[0], b[1]);",
            f"{self._instruction}(sums[2 * j + 1], a, b[2], b[3]);",
            "}",
            "}",
        ]
        return lines

    def _products_of_words(self) -> list[str]:
        """An instruction sums over 8 keys, in any order: thread t has those of its two scores."""
        return [
            "const float *words = reinterpret_cast<const float *>(values);",
            "#pragma unroll",
            f"for (int s = 0; s < {self.tile.keys // 8}; ++s) {{",
            "const unsigned a[4] = {tw_to_tf32(scores[s][0]), tw_to_tf32(scores[s][2]), "
            "tw_to_tf32(scores[s][1]), tw_to_tf32(scores[s][3])};",
            "const int key = s * 8 + lane % 4 * 2;",
            "#pragma unroll",
            f"for (int j = 0; j < {self.tile.depth // 8}; ++j) {{",
            "const int column = j * 8 + lane / 4;",
            "unsigned b[2];",
            "#pragma unroll",
            f"for (int i = 0; i < 2; ++i) b[i] = tw_to_tf32(words[tw_swizzle<{self.chunks}>("
            "key + i, column / 4) * 4 + column % 4]);",
            f"{self._instruction}(sums[j], a, b[0], b[1]);",
            "}",
            "}",
        ]

    def _results(self) -> list[str]:
        return [
            "#pragma unroll",
            "for (int h = 0; h < 2; ++h) {",
            "total[h] += TW_SHUFFLE_XOR(total[h], 1);",
            "total[h] += TW_SHUFFLE_XOR(total[h], 2);",
            "}",
            "#pragma unroll",
            f"for (int i = 0; i < {self.tile.depth // 8 * 4}; ++i) "
            "store(q_first + warp_row + lane / 4 + i % 4 / 2 * 8, "
            "i / 4 * 8 + lane % 4 * 2 + i % 2, sums[i / 4][i % 4] / total[i % 4 / 2]);",
        ]


def _body(loader: Loader) -> list[str]:
    """Return the statements that load a tile, without the head of their function."""
    return loader.load()[1:-1]


def _reads(attention: Attention) -> tuple[Any, ...]:
    """Return the buffers that are read: factors, and what changes scores or results."""
    own = attention.last.reductions[0].stage.buffer
    loads = [
        load
        for operand in (attention.scores.a, attention.scores.b, attention.values.b)
        for load in loads_in(operand.value)
    ]
    loads += [
        load
        for store, given in attention.stores
        for load in loads_in(store.value)
        if not load.source.same_as(given)
    ]
    loads += [
        load
        for store in attention.last.stores
        for load in loads_in(store.value)
        if not load.source.same_as(own)
    ]
    found: list[Any] = []
    for load in loads:
        if not any(load.source.same_as(buffer) for buffer in found):
            found.append(load.source)
    return tuple(found)
