"""What the training scripts of the examples share: the loop, and the export (needs torch)."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]


def minimise(
    network: nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    steps: int,
    rate: float,
    weight_decay: float = 0.0,
) -> None:
    """Train with Adam and a one-cycle rate.

    Args:
        network: what is trained.
        loss: of what the network makes of the first half of a batch, beside the second half.
        batches: one for each step.
        steps: how many there are.
        rate: the greatest learning rate.
        weight_decay: of Adam.
    """
    optimiser = torch.optim.Adam(network.parameters(), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps)
    network.train()
    for given, wanted in batches:
        error = loss(network(given), wanted)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
    network.eval()


def export(network: nn.Module, example: torch.Tensor, names: tuple[str, str], output: Path) -> None:
    """Write a network for inputs of one shape; `names` are of its input and its output."""
    said = {"input_names": names[:1], "output_names": names[1:]}
    torch.onnx.export(network, (example,), str(output), dynamo=False, opset_version=17, **said)
    print(f"wrote {output} ({output.stat().st_size / 1024:.0f} KiB)")
