"""The kernel of attention: scores stay in registers, row sums follow the greatest score so far.

A block has some rows of queries of one head; its warps have 16 each. Keys and values pass by in
tiles, of which the next is copied while one is computed with. A tile's scores become the left
factor of the product with the values, and what was summed before is scaled whenever a greater score
is met (Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1; Dao, FlashAttention-2, arXiv
2307.08691, section 3.1). How a warp multiplies is in `attention_products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.ir import TensorLoad

from tilewright.compiler.cuda.attention import Attention
from tilewright.compiler.cuda.attention_products import (
    DTYPES,
    WARP_ROWS,
    WarpProducts,
    on_matrix_units,
    on_threads,
)
from tilewright.compiler.cuda.ctext import Printer
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

# Warps of a block, most first: more share a tile of keys and values, fewer fill the chip.
_WARPS = (4, 2, 1)
_KEYS = (64, 32)
_STAGES = 2
# Each has an address and bounds in registers. With 16 to 32, 24 to 955 accesses spill.
_MOST_COPIES = 8


@dataclass(frozen=True)
class AttentionTile:
    """How attention is cut.

    Attributes:
        warps: of a block, each with 16 rows.
        keys: in a tile.
        depth: of the tiles of queries, keys and values in shared memory, at least theirs.
        dtype: of these tiles.
        on_tensor_cores: whether they multiply; else threads do, in fp32.
    """

    warps: int
    keys: int
    depth: int
    dtype: str
    on_tensor_cores: bool

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return self.warps * WARP_ROWS

    @property
    def copies(self) -> int:
        """Pieces of 16 bytes of a tile of keys that a thread copies."""
        return self.keys * self.depth * item_bytes(self.dtype) // (VECTOR_BYTES * WARP * self.warps)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: queries, and two stages of keys and values."""
        return (self.rows + 2 * _STAGES * self.keys) * self.depth * item_bytes(self.dtype)

    def products(self) -> WarpProducts:
        """Return how a warp multiplies."""
        if self.on_tensor_cores:
            return on_matrix_units(self.dtype, self.keys, self.depth)
        return on_threads(self.keys, self.depth)


def choose_attention_tile(
    attention: Attention, precision: str, target: CudaTarget
) -> AttentionTile | None:
    """Return how to cut attention, or None where its products have no kernel of this kind."""
    scores, values = attention.scores, attention.values
    units = {uses_matrix_units(product, precision) for product in (scores, values)}
    kinds = {*tile_dtypes(scores, precision), tile_dtypes(values, precision)[1]}
    if len(units) != 1 or len(kinds) != 1 or (dtype := kinds.pop()) not in DTYPES:
        return None
    on_tensor_cores = units.pop()
    # Eight threads have a row of the result in chunks of four words.
    depth = 16 if on_tensor_cores else 32
    while depth < attention.depth:
        depth *= 2
    batch, rows, _, _ = scores.sizes
    blocks = {warps: batch * -(-rows // (warps * WARP_ROWS)) for warps in _WARPS}
    filling = next((warps for warps in _WARPS if blocks[warps] >= target.sms), _WARPS[-1])
    for warps in sorted(n for n in _WARPS if n >= filling):
        for keys in _KEYS:
            tile = AttentionTile(warps, keys, depth, dtype, on_tensor_cores)
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
        self.products = tile.products()
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

    def kernel(self) -> Kernel:
        tile, (batch, rows, keys, _) = self.tile, self.attention.scores.sizes
        held = self.products.held
        nothing, zeros = ", ".join(["-tw_infinity()"] * held), ", ".join(["0.0f"] * held)
        threads = tile.warps * WARP
        lines = [
            f"{signature(self.name, threads, self.own)} {{",
            "TW_SHARED;",
            f"const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * {WARP_ROWS};",
            f"const int q_first = blockIdx.x * {tile.rows};",
            *self.batch_head,
            *self._load(),
            *self._score(),
            *self._finish(),
            f"float sums[{tile.depth // 8}][4] = {{}};",
            f"float top[{held}] = {{{nothing}}}, total[{held}] = {{{zeros}}};",
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
            f"const unsigned char *keys = stage + {self.key_base};",
            f"float scores[{tile.keys // 8}][4] = {{}};",
            *self.products.with_keys,
            *self._softmax(),
            f"const unsigned char *values = stage + {self.value_base};",
            *self.products.with_values,
            "}",
            *self._results(),
            "}",
        ]
        modes = "/".join(loader.mode for loader in self.loaders)
        label = f"attention {self.products.unit} {tile.rows}x{tile.keys}x{tile.depth} {modes}"
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

    def _softmax(self) -> list[str]:
        """Scores become exponentials; what was summed is scaled to the new greatest score."""
        products, count = self.products, self.tile.keys // 8
        row, slot = f"q_first + warp_row + {products.row}", products.slot
        key = f"tile * {self.tile.keys} + {products.key}"
        each = ["#pragma unroll", f"for (int j = 0; j < {count}; ++j) {{"]
        each += ["#pragma unroll", "for (int e = 0; e < 4; ++e) {"]
        return [
            f"float most[{products.held}], scale[{products.held}];",
            *self._each_row(["most[h] = top[h];"]),
            *each,
            f"scores[j][e] = score({row}, {key}, scores[j][e]);",
            f"most[{slot}] = tw_max(most[{slot}], scores[j][e]);",
            "}",
            "}",
            *self._each_row(
                [
                    *(
                        f"most[h] = tw_max(most[h], TW_SHUFFLE_XOR(most[h], {distance}));"
                        for distance in products.shares
                    ),
                    # Where all so far are minus infinity, nothing is summed yet.
                    "scale[h] = top[h] == most[h] ? 1.0f : expf(top[h] - most[h]);",
                    "top[h] = most[h];",
                    "total[h] *= scale[h];",
                ]
            ),
            *each,
            f"const float high = top[{slot}];",
            "scores[j][e] = high == -tw_infinity() ? 0.0f : expf(scores[j][e] - high);",
            f"total[{slot}] += scores[j][e];",
            "}",
            "}",
            *self._each_sum(f"sums[j][e] *= scale[{slot}];"),
        ]

    def _each_row(self, body: Sequence[str]) -> list[str]:
        """Return a loop over the rows of which a thread has elements, number h."""
        head = ["#pragma unroll", f"for (int h = 0; h < {self.products.held}; ++h) {{"]
        return [*head, *body, "}"]

    def _each_sum(self, statement: str) -> list[str]:
        """Return a loop over the results of a thread, element e of j."""
        return [
            *("#pragma unroll", f"for (int j = 0; j < {self.tile.depth // 8}; ++j) {{"),
            *("#pragma unroll", f"for (int e = 0; e < 4; ++e) {statement}", "}"),
        ]

    def _results(self) -> list[str]:
        products = self.products
        shared = [f"total[h] += TW_SHUFFLE_XOR(total[h], {n});" for n in products.shares]
        store = (
            f"store(q_first + warp_row + {products.row}, {products.column}, "
            f"sums[j][e] / total[{products.slot}]);"
        )
        return [*self._each_row(shared), *self._each_sum(store)]


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
