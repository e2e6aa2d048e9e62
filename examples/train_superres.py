"""Train the x2 super-resolution network and export it: `python examples/train_superres.py`.

ESPCN (arXiv 1609.05158) with ReLU, 14,000 weights, on images inside scikit-image. A few minutes on
one processor; needs the extra `bench`; writes examples/superres_x2.onnx, which is committed.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from skimage import transform
from superres import SCALE, SIZE, TRAINING, held_out, luminance, psnr, shrunk
from torch import nn
from torch.nn import functional as F
from training import Batch, export, minimise

OUTPUT = Path(__file__).with_name("superres_x2.onnx")
STEPS = 15000
BATCH = 16
PATCH = 32


def make_network() -> nn.Module:
    """Return the network: [N, 1, H, W] in 0..1 -> [N, 1, 2 H, 2 W]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, SCALE * SCALE, 3, padding=1),
        nn.PixelShuffle(SCALE),
    )


def patches(rng: np.random.Generator, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list:
    """Return a random batch of small patches and their originals, turned and mirrored."""
    batch = []
    for _ in range(BATCH):
        small, large = pairs[rng.integers(len(pairs))]
        y, x = (int(rng.integers(extent - PATCH)) for extent in small.shape)
        a = small[y : y + PATCH, x : x + PATCH]
        b = large[SCALE * y : SCALE * (y + PATCH), SCALE * x : SCALE * (x + PATCH)]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        a, b = (np.rot90(p.T if mirror else p, turns).copy() for p in (a, b))
        batch.append((a, b))
    return [torch.from_numpy(np.stack(side))[:, None] for side in zip(*batch, strict=True)]


def all_patches() -> Iterator[Batch]:
    """Yield the batches of all steps."""
    pairs = []
    for name in TRAINING:
        image = luminance(name)
        image = image[: image.shape[0] // SCALE * SCALE, : image.shape[1] // SCALE * SCALE]
        pairs.append((shrunk(image), image))
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        small, large = patches(rng, pairs)
        yield small, large


def main() -> None:
    """Train, print the quality on the held-out images beside bicubic, export."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = make_network()
    minimise(network, F.l1_loss, all_patches(), STEPS, rate=2e-3)
    small, large = held_out()
    with torch.no_grad():
        found = network(torch.from_numpy(small)).numpy()
    shape = (1, SIZE * SCALE, SIZE * SCALE)
    cubic = np.stack([transform.resize(image, shape, order=3) for image in small])
    pairs = list(zip(cubic, found, large, strict=True))
    print(f"bicubic {np.mean([psnr(c, w) for c, _, w in pairs]):.2f} dB")
    print(f"network {np.mean([psnr(f, w) for _, f, w in pairs]):.2f} dB")
    export(network, torch.from_numpy(small[:1]), ("small", "large"), OUTPUT)


if __name__ == "__main__":
    main()
