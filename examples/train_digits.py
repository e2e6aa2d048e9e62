"""Train the small CNN of the demo and export it: `python examples/train_digits.py` (needs torch).

Half a minute on one processor; writes examples/digits_cnn.onnx, which is committed.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from digits import load_split
from torch import nn
from torch.nn import functional as F
from training import Batch, export, minimise

OUTPUT = Path(__file__).with_name("digits_cnn.onnx")
EPOCHS = 40
BATCH = 64


def make_network() -> nn.Module:
    """Return the network: three convolutions with batch normalisation, pooling, one dense layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 48), (48, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        if outputs > 32:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 2 * 2, 10))


def shifted(images: torch.Tensor, labels: torch.Tensor) -> Iterator[Batch]:
    """Yield the batches of all epochs, shifted at random by up to one pixel."""
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            dy, dx = torch.randint(0, 3, (2,)).tolist()
            padded = F.pad(images[chosen], (1, 1, 1, 1))
            yield padded[:, :, dy : dy + 8, dx : dx + 8], labels[chosen]


def main() -> None:
    """Train, print the accuracy on the held-out images, export for one image at a time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (images, labels), (held_out, expected) = load_split()
    network = make_network()
    minimise(
        network,
        partial(F.cross_entropy, label_smoothing=0.05),
        shifted(torch.from_numpy(images), torch.from_numpy(labels)),
        steps=EPOCHS * -(-len(labels) // BATCH),
        rate=5e-3,
        weight_decay=1e-4,
    )
    with torch.no_grad():
        found = network(torch.from_numpy(held_out)).argmax(1).numpy()
        print(f"accuracy on {len(expected)} held-out images: {np.mean(found == expected):.4f}")
    export(network, torch.from_numpy(held_out[:1]), ("image", "logits"), OUTPUT)


if __name__ == "__main__":
    main()
