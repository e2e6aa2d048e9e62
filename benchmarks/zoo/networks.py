"""Networks defined here, after their papers: VGG-16, ResNet3D-18, U-Net, RLFN and ESPCN."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

VGG16_CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg16() -> nn.Module:
    """VGG configuration D (arXiv 1409.1556): 13 convolutions (0 marks pooling), 3 dense layers."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16_CHANNELS:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096)]
    head += [nn.ReLU(), nn.Dropout(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head)


class Block3d(nn.Module):
    """Two 3x3x3 convolutions with batch normalisation and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv3d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm3d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, D, H, W] to [N, outputs, D/stride, H/stride, W/stride]."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet3d18() -> nn.Module:
    """R3D-18 (arXiv 1711.11248) for 16 frames of 112x112."""
    stem = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    blocks = []
    channels = 64
    for width in (64, 128, 256, 512):
        blocks += [Block3d(channels, width, 1 if width == 64 else 2), Block3d(width, width, 1)]
        channels = width
    head = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(512, 400)]
    return nn.Sequential(stem, nn.BatchNorm3d(64), nn.ReLU(), *blocks, *head)


def _double_conv(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (arXiv 1505.04597) of half width with padded convolutions and learned upsampling."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.stem = _double_conv(3, widths[0])
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(_double_conv(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, 3, H, W] to [N, 2, H, W]; H and W are multiples of 16."""
        skips = [self.stem(x)]
        for block in self.down:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        y = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            y = merge(torch.cat([skips.pop(), up(y)], 1))
        return self.head(y)


class SpatialAttention(nn.Module):
    """RLFN's enhanced spatial attention: a mask computed at about 1/6 of the resolution."""

    def __init__(self, channels: int, hidden: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.skip = nn.Conv2d(hidden, hidden, 1)
        self.stride = nn.Conv2d(hidden, hidden, 3, 2)
        self.body = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` [N, channels, H, W] times a mask in 0..1 of the same shape."""
        reduced = self.reduce(x)
        small = self.body(F.max_pool2d(self.stride(reduced), 7, 3))
        large = F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.expand(large + self.skip(reduced)))


class ResidualLocalFeature(nn.Module):
    """RLFN's block: three 3x3 convolutions, a residual, a 1x1 convolution, attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.mix = nn.Conv2d(channels, channels, 1)
        self.attention = SpatialAttention(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, channels, H, W] to the same shape."""
        y = x
        for conv in self.convs:
            y = F.leaky_relu(conv(y), 0.05)
        return self.attention(self.mix(y + x))


class Rlfn(nn.Module):
    """RLFN x4 super-resolution (arXiv 2205.07514): 6 blocks of 52 channels."""

    def __init__(self, channels: int = 52, blocks: int = 6, scale: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualLocalFeature(channels) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels, channels, 3, padding=1)
        self.upscale = nn.Conv2d(channels, 3 * scale * scale, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, 3, H, W] to [N, 3, scale*H, scale*W]."""
        features = self.head(x)
        return self.shuffle(self.upscale(self.tail(self.body(features)) + features))


def espcn() -> nn.Module:
    """ESPCN x3 super-resolution of one luminance channel (arXiv 1609.05158)."""
    convs = [nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*convs, nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3))
