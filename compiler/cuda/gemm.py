"""Products of matrices and convolutions as implicit products: tiles in shared memory.

A block computes a tile of the result, step by step along the depth. `stages` tiles of both factors
are in shared memory: while one is computed with, the next are copied in the background (cp.async).
Warps compute their part on tensor cores (mma.sync, fragments by ldmatrix) or, in fp32, with 4 x 8
threads that each keep a tile of results in registers. Both read shared memory in 16-byte chunks,
whose places are swizzled so that eight rows are read without a conflict.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx

from tilewright.compiler.cuda import warpgroup
from tilewright.compiler.cuda.ctext import STORED, Printer, computed_type, stored
from tilewright.compiler.cuda.kernel import Kernel, block, buffer_names, decompose, signature
from tilewright.compiler.cuda.operand import Loader
from tilewright.compiler.cuda.parts import Part, Reduction
from tilewright.compiler.cuda.product import Product
from tilewright.compiler.cuda.reduction import finish
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.cuda.tile import GemmTile, check_tile, tile_dtypes, uses_matrix_units
from tilewright.compiler.program import item_bytes
from tilewright.compiler.schedule.analysis import Axis, Stage
from tilewright.compiler.schedule.expressions import loads_in

INSTRUCTIONS = {"float32": "tw_mma_tf32", "float16": "tw_mma_half", "bfloat16": "tw_mma_bfloat"}


def gemm_kernel(
    part: Part,
    product: Product,
    tile: GemmTile,
    precision: str,
    target: CudaTarget,
    name: str,
) -> Kernel:
    """Return the kernel of a product.

    Args:
        part: of kind "reduction"; where the tile splits the depth, its store is left to the part
            that `split_depth` returns, and the kernel writes partial sums.

    Raises:
        InvalidScheduleError: the tile does not fit.
    """
    check_tile(tile, product, precision, target)
    return _Writer(part, product, tile, precision, name).kernel()


def split_depth(part: Part, product: Product, tile: GemmTile) -> tuple[Any, Part]:
    """Return the buffer of partial sums, and the part that adds them and stores the result."""
    (reduction,) = part.reductions
    stage = reduction.stage
    dtype = {"float16": "float32", "bfloat16": "float32"}.get(reduction.dtype, reduction.dtype)
    axes = (*product.batch, *product.rows, *product.columns)
    shape = (tile.split, *(axis.extent for axis in axes))
    partial = tirx.decl_buffer(shape, dtype, "partial")
    number = tirx.Var("part", str(stage.spatial[0].var.ty))
    term: Any = tirx.BufferLoad(partial, [number, *(axis.var for axis in axes)])
    sums = Stage(
        stage.name,
        stage.spatial,
        (Axis(number, tile.split),),
        stage.buffer,
        stage.indices,
        stage.value,
        stage.init,
    )
    inner = Reduction(sums, "add", term, reduction.init)
    reads = [buffer for buffer in part.reads if _is_read(part, buffer)]
    return partial, replace(part, reductions=(inner,), reads=(partial, *reads))


def _is_read(part: Part, buffer: Any) -> bool:
    """Tell whether the part's store reads a buffer."""
    return any(
        load.source.same_as(buffer) for store in part.stores for load in loads_in(store.value)
    )


class _Writer:
    def __init__(
        self, part: Part, product: Product, tile: GemmTile, precision: str, name: str
    ) -> None:
        self.part, self.product, self.tile = part, product, tile
        self.precision, self.name = precision, name
        self.on_tensor_cores = uses_matrix_units(product, precision)
        self.dtypes = tile_dtypes(product, precision)
        if tile.split > 1:
            partial, _ = split_depth(part, product, tile)
            self.own = replace(part, reads=operand_buffers(product, part), writes=(partial,))
        else:
            self.own = part
        self.buffers = buffer_names(self.own)
        self.kind = computed_type(str(product.stage.buffer.dtype))
        batch_head, self.batch_names = decompose("blockIdx.y", product.batch, "b")
        self.batch_head = batch_head
        a_bytes = tile.rows * tile.depth * item_bytes(self.dtypes[0])
        self.loaders = [
            self._loader("a", product.a, product.rows, tile.rows, self.dtypes[0], 0),
            self._loader("b", product.b, product.columns, tile.columns, self.dtypes[1], a_bytes),
        ]
        self.stage_bytes = a_bytes + tile.columns * tile.depth * item_bytes(self.dtypes[1])

    def _loader(
        self, letter: str, operand: Any, rows: tuple[Axis, ...], extent: int, dtype: str, base: int
    ) -> Loader:
        return Loader(
            letter,
            operand,
            self.product,
            rows,
            extent,
            dtype,
            base,
            self.tile,
            self.buffers,
            self.batch_names,
        )

    def kernel(self) -> Kernel:
        tile, (batch, rows, columns, depth) = self.tile, self.product.sizes
        row_blocks, column_blocks = -(-rows // tile.rows), -(-columns // tile.columns)
        steps = -(-depth // tile.depth)
        slice_depth = -(-steps // tile.split) * tile.depth
        lines = [f"{signature(self.name, tile.threads, self.own)} {{", "TW_SHARED;"]
        lines += [
            "const int lane = threadIdx.x % 32;",
            *self._warp_places(),
            f"const int a_first = blockIdx.x % {row_blocks} * {tile.rows};",
            f"const int b_first = blockIdx.x / {row_blocks} * {tile.columns};",
            f"const int k_first = blockIdx.z * {slice_depth};",
            f"const int k_last = tw_min({depth}, k_first + {slice_depth});",
            f"const int steps = (k_last - k_first + {tile.depth - 1}) / {tile.depth};",
            *self.batch_head,
        ]
        for loader in self.loaders:
            lines += [*loader.prologue(), *loader.load()]
        lines += self._compute()
        lines += self._pipeline()
        lines += self._results()
        lines.append("}")
        grid = (row_blocks * column_blocks, batch, tile.split)
        shared = tile.stages * self.stage_bytes
        unit = "fp32"
        if self.on_tensor_cores:
            unit = {"float32": "tf32", "float16": "fp16", "bfloat16": "bf16"}.get(
                self.dtypes[0], "int8"
            )
        elif self.product.dtype == "int32":
            unit = "int32"
        modes = "/".join(loader.mode for loader in self.loaders)
        unit += " by warpgroups" if tile.by_warpgroups else ""
        label = f"gemm {unit} {tile.rows}x{tile.columns}x{tile.depth} {tile.stages} stages"
        label += f" {modes}" + (f" split {tile.split}" if tile.split > 1 else "")
        text = block(lines)
        if tile.by_warpgroups:
            text = warpgroup.define(self.dtypes, tile.warp_tile[1]) + text
        return Kernel(self.name, text, grid, tile.threads, shared, label)

    def _warp_places(self) -> list[str]:
        """Where the warp's part of the block's tile begins; its rows are `row_step` apart."""
        tile, (rows, columns) = self.tile, self.tile.warp_tile
        if not tile.by_warpgroups:
            return [
                "const int warp = threadIdx.x / 32;",
                f"const int warp_row = warp / {tile.warp_columns} * {rows};",
                f"const int warp_column = warp % {tile.warp_columns} * {columns};",
            ]
        warps = warpgroup.WARPS
        return [
            # From one lane, so that the compiler knows it to be the same in all.
            "const int warp = TW_SHUFFLE((int)threadIdx.x / 32, 0);",
            f"const int group_row = warp / {warps} / {tile.warp_columns} * {rows * warps};",
            f"const int warp_row = group_row + warp % {warps} * 16;",
            f"const int warp_column = warp / {warps} % {tile.warp_columns} * {columns};",
        ]

    @property
    def _row_step(self) -> int:
        """Distance of the rows of one instruction from those of the next."""
        return warpgroup.ROWS if self.tile.by_warpgroups else 16

    def _pipeline(self) -> list[str]:
        stages, by_warpgroups = self.tile.stages, self.tile.by_warpgroups
        compute = f"compute(step % {stages});"
        # Products of warpgroups go on while the next tile is asked for.
        before = [compute] if by_warpgroups else []
        after = ["tw_wgmma_wait(sums);"] if by_warpgroups else [compute]
        return [
            "#pragma unroll",
            f"for (int step = 0; step < {stages - 1}; ++step) {{",
            "if (step < steps) {",
            "load_a(step, step);",
            "load_b(step, step);",
            "}",
            "tw_copy_commit();",
            "}",
            "#pragma unroll 1",
            "for (int step = 0; step < steps; ++step) {",
            f"tw_copy_wait<{stages - 2}>();",
            *(["tw_wgmma_publish();"] if by_warpgroups else []),
            # Everyone sees the tile, and has left the one that is filled next.
            "TW_BARRIER();",
            *before,
            f"const int next = step + {stages - 1};",
            "if (next < steps) {",
            f"load_a(next, next % {stages});",
            f"load_b(next, next % {stages});",
            "}",
            "tw_copy_commit();",
            *after,
            "}",
        ]

    def _compute(self) -> list[str]:
        if not self.on_tensor_cores:
            return self._threads()
        rows, columns = self.tile.warp_tile
        kind = "int" if self.product.is_integer else "float"
        lines = [f"{kind} sums[{rows // 16}][{columns // 8}][4] = {{}};"]
        lines += ["auto compute = [&](int slot) {", *self._tiles()]
        if self.tile.by_warpgroups:
            lines += ["#if defined(TW_WARPGROUPS)", *self._warpgroups(), "#else"]
        lines += self._matrix_units()
        if self.tile.by_warpgroups:
            lines.append("#endif")
        return [*lines, "};"]

    def _warpgroups(self) -> list[str]:
        """Issue the products of a step; the descriptors move along the depth within a row."""
        rows, _ = self.tile.warp_tile
        chunks = self.loaders[0].chunks
        row_bytes = 16 * chunks
        bits = f"{warpgroup.descriptor_bits(chunks):#x}ull"
        name = f"tw_wgmma_{warpgroup.instruction(self.dtypes)}"
        return [
            "tw_wgmma_begin(sums);",
            "#pragma unroll",
            f"for (int s = 0; s < {chunks // 2}; ++s) {{",
            f"const auto right = tw_matrix({bits}, b_tile + warp_column * {row_bytes} + 32 * s);",
            "#pragma unroll",
            f"for (int i = 0; i < {rows // 16}; ++i) {name}(sums[i], tw_matrix({bits}, a_tile + "
            f"(group_row + i * {warpgroup.ROWS}) * {row_bytes} + 32 * s), right);",
            "}",
            "tw_wgmma_commit();",
        ]

    def _tiles(self) -> list[str]:
        return [
            f"const unsigned char *a_tile = tw_shared + slot * {self.stage_bytes};",
            f"const unsigned char *b_tile = a_tile + {self.loaders[1].base};",
        ]

    def _matrix_units(self) -> list[str]:
        """Fragments are described in the PTX ISA, "Matrix fragments for mma.m16n8k..."."""
        rows, columns = self.tile.warp_tile
        high, wide, chunks = rows // 16, columns // 16, self.loaders[0].chunks
        instruction = INSTRUCTIONS.get(self.dtypes[0]) or "tw_mma_{}{}".format(
            *("u8" if dtype == "uint8" else "s8" for dtype in self.dtypes)
        )
        lines = [
            "#pragma unroll",
            f"for (int s = 0; s < {chunks // 2}; ++s) {{",
            f"unsigned a[{high}][4], b[{wide}][4];",
            "#pragma unroll",
            f"for (int i = 0; i < {high}; ++i) tw_load_matrix4(a[i], a_tile + tw_swizzle<{chunks}>("
            f"warp_row + i * {self._row_step} + lane % 16, 2 * s + lane / 16) * 16);",
            "#pragma unroll",
            f"for (int j = 0; j < {wide}; ++j) tw_load_matrix4(b[j], b_tile + tw_swizzle<{chunks}>("
            "warp_column + j * 16 + lane % 8 + lane / 16 * 8, 2 * s + lane / 8 % 2) * 16);",
        ]
        if self.dtypes[0] == "float32":
            for name, count in (("a", high), ("b", wide)):
                lines += [
                    "#pragma unroll",
                    f"for (int i = 0; i < {4 * count}; ++i) {name}[i / 4][i % 4] = "
                    f"tw_to_tf32(tw_bits<float>({name}[i / 4][i % 4]));",
                ]
        lines += [
            "#pragma unroll",
            f"for (int i = 0; i < {high}; ++i) {{",
            "#pragma unroll",
            f"for (int j = 0; j < {2 * wide}; ++j) {instruction}(sums[i][j], a[i], "
            "b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);",
            "}",
            "}",
        ]
        return lines

    def _threads(self) -> list[str]:
        rows, columns = self.tile.warp_tile
        high, wide = rows // 4, columns // 8
        chunks, lanes = self.loaders[0].chunks, self.loaders[0].lanes
        element = STORED[self.dtypes[0]]

        def chunk(tile: str, row: str) -> str:
            return f"&{tile}[tw_swizzle<{chunks}>({row}, c) * {lanes}]"

        return [
            f"{self.kind} sums[{high}][{wide}] = {{}};",
            "auto compute = [&](int slot) {",
            *self._tiles(),
            f"const {element} *a = reinterpret_cast<const {element} *>(a_tile);",
            f"const {element} *b = reinterpret_cast<const {element} *>(b_tile);",
            "#pragma unroll",
            f"for (int c = 0; c < {chunks}; ++c) {{",
            f"__align__(16) {element} right[{wide}][{lanes}];",
            "#pragma unroll",
            f"for (int j = 0; j < {wide}; ++j) tw_read<{lanes}>(right[j], "
            f"{chunk('b', 'warp_column + lane % 8 + 8 * j')});",
            "#pragma unroll",
            f"for (int i = 0; i < {high}; ++i) {{",
            f"__align__(16) {element} left[{lanes}];",
            f"tw_read<{lanes}>(left, {chunk('a', 'warp_row + lane / 8 + 4 * i')});",
            "#pragma unroll",
            f"for (int v = 0; v < {lanes}; ++v) {{",
            "#pragma unroll",
            f"for (int j = 0; j < {wide}; ++j) sums[i][j] += left[v] * right[j][v];",
            "}",
            "}",
            "}",
            "};",
        ]

    def _results(self) -> list[str]:
        """Hand every sum to the function that stores it."""
        rows, columns = self.tile.warp_tile
        lines = self._finish()
        if self.on_tensor_cores:
            loops = (rows // 16, columns // 8, 4)
            row = f"warp_row + i * {self._row_step} + lane / 4 + e / 2 * 8"
            column = "warp_column + j * 8 + lane % 4 * 2 + e % 2"
            value = "sums[i][j][e]"
        else:
            loops = (rows // 4, columns // 8, 1)
            row, column = "warp_row + lane / 8 + 4 * i", "warp_column + lane % 8 + 8 * j"
            value = "sums[i][j]"
        for name, count in zip("ije", loops, strict=True):
            lines += ["#pragma unroll", f"for (int {name} = 0; {name} < {count}; ++{name}) {{"]
        lines += [f"finish(a_first + {row}, b_first + {column}, {value});", "}", "}", "}"]
        return lines

    def _finish(self) -> list[str]:
        product = self.product
        _, rows, columns, _ = product.sizes
        row_head, row_names = decompose("row", product.rows, "m")
        column_head, column_names = decompose("column", product.columns, "n")
        names = {**self.batch_names, **row_names, **column_names}
        lines = [
            f"auto finish = [&](int row, int column, {self.kind} result) {{",
            f"if (row >= {rows} || column >= {columns}) return;",
        ]
        if self.tile.split > 1:
            dtype = str(self.own.writes[0].dtype)
            place = f"((blockIdx.z * {product.sizes[0]} + blockIdx.y) * {rows} + row) * {columns}"
            value = stored("result", dtype)
            return [*lines, f"out0[{place} + column] = {value};", "};"]
        original = self.part.reductions[0].stage
        printer = Printer(product.stage.axes, names, self.buffers)
        own = {
            axis.var: printer.text(index, is_index=True)
            for axis, index in zip(original.spatial, product.stage.indices, strict=True)
        }
        return [
            *lines,
            *row_head,
            *column_head,
            *finish(self.part, own, self.buffers, "result"),
            "};",
        ]


def operand_buffers(product: Product, part: Part) -> tuple[Any, ...]:
    """Return the buffers that the factors of a product are read from."""
    used = [load.source for o in (product.a, product.b) for load in loads_in(o.value)]
    return tuple(b for b in part.reads if any(b.same_as(other) for other in used))
