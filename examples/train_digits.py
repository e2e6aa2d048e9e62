"""Train the small CNN of the demo and export it: `python examples/train_digits.py` (needs torch).

Half a minute on one processor; writes examples/digits_cnn.onnx, which is committed.
"""

from pathlib import Path

import numpy as np
import torch
from digits import load_split
from torch import nn
from torch.nn import functional as F

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


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train with Adam, a one-cycle rate and random shifts by up to one pixel."""
    optimiser = torch.optim.Adam(network.parameters(), weight_decay=1e-4)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            dy, dx = torch.randint(0, 3, (2,)).tolist()
            batch = F.pad(images[chosen], (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]
            loss = F.cross_entropy(network(batch), labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def main() -> None:
    """Train, print the accuracy on the held-out images, export for one image at a time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (images, labels), (held_out, expected) = load_split()
    network = make_network()
    train(network, torch.from_numpy(images), torch.from_numpy(labels))
    network.eval()
    with torch.no_grad():
        found = network(torch.from_numpy(held_out)).argmax(1).numpy()
        print(f"accuracy on {len(expected)} held-out images: {np.mean(found == expected):.4f}")
        example = (torch.from_numpy(held_out[:1]),)
        names = {"input_names": ["image"], "output_names": ["logits"]}
        torch.onnx.export(network, example, str(OUTPUT), dynamo=False, opset_version=17, **names)
    print(f"wrote {OUTPUT} ({OUTPUT.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    main()
