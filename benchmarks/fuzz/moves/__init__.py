"""What may come next in a graph: each move reads tensors and adds nodes, or declines with None.

The moves stay around what the compiler rewrites: convolutions of all kinds, products, element-wise
operators with broadcast, reductions, changes of shape, residuals, and pairs of quantize and
dequantize.
"""

from benchmarks.fuzz.moves import elementwise, networks, products, quantized, shapes, windows
from benchmarks.fuzz.moves.registry import MOVES

# Images are one kind of input of several, so what only they can take would be rare.
MOVES.extend(
    2
    * (
        *(windows.convolve, windows.convolve_plainly, windows.convolve_transposed, windows.pool),
        *(networks.residual_block, networks.inverted_bottleneck, networks.gate),
        *(quantized.convolve_in_integers, quantized.convolve_with_codes),
    )
)

__all__ = ["MOVES", "elementwise", "networks", "products", "quantized", "shapes", "windows"]
