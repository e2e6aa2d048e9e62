"""Give a network with random weights the signal of a trained one: unit scale, input-dependent."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# With fewer rows the mean of a channel says more about the samples than about the network, and
# removing it leaves noise that the rescaling would amplify (squeeze-and-excitation, classifiers).
_MIN_ROWS = 64
# Gates of unit scale, 16 in a row, make EfficientNet amplify every difference between two images.
_VECTOR_GAIN = 0.5


def calibrate(model: nn.Module, batch: Sequence[torch.Tensor], skip: Sequence[str] = ()) -> None:
    """Rescale all weights in one forward pass, layer after layer, in the order of execution.

    The output of each convolution and linear layer gets unit variance and, through its bias, zero
    mean per channel over the batch (without that the outputs of a deep ReLU network for different
    inputs converge); batch normalisation gets the statistics of what it sees. Scales and offsets
    of normalisation layers become random, so that a compiler that ignores them is found out.

    Args:
        model: changed in place and left in evaluation mode.
        batch: arguments of the model, at least 2 different samples.
        skip: names of submodules whose weights stay (weights shared with another layer).
    """
    generator = torch.Generator().manual_seed(1)
    model.eval()
    handles = []
    for name, module in model.named_modules():
        if name in skip:
            continue
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear, Conv1D)):
            handles.append(module.register_forward_hook(_normalise_output))
        elif isinstance(module, (*_BATCH_NORMS, nn.LayerNorm)) and module.weight is not None:
            _randomise_affine(module, generator)
            if isinstance(module, _BATCH_NORMS):
                handles.append(module.register_forward_pre_hook(_take_statistics))
    with torch.no_grad():
        model(*batch)
    for handle in handles:
        handle.remove()


def _channels_last(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return `x` as [samples, channels], wherever `module` has its channels."""
    if isinstance(module, (*_CONVOLUTIONS, *_BATCH_NORMS)):
        x = x.movedim(1, -1)
    return x.reshape(-1, x.shape[-1])


def _normalise_output(module: nn.Module, _args: tuple, output: torch.Tensor) -> torch.Tensor:
    values = _channels_last(module, output)
    mean = values.mean(0)
    gain = 1.0
    if len(values) < _MIN_ROWS:
        mean, gain = torch.zeros_like(mean), _VECTOR_GAIN
    scale = gain / (values - mean).square().mean().sqrt().clamp_min(1e-6)
    module.weight.mul_(scale)
    shape = (1, -1, *(1,) * (output.ndim - 2)) if isinstance(module, _CONVOLUTIONS) else (-1,)
    if module.bias is None:
        return output * scale
    module.bias.sub_(mean).mul_(scale)
    return (output - mean.reshape(shape)) * scale


def _take_statistics(module: nn.Module, args: tuple) -> None:
    values = _channels_last(module, args[0])
    module.running_mean.copy_(values.mean(0))
    module.running_var.copy_(values.var(0).clamp_min(1e-4))


def _randomise_affine(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        module.weight.uniform_(0.5, 1.5, generator=generator)
        if module.bias is not None:
            module.bias.normal_(0, 0.2, generator=generator)
