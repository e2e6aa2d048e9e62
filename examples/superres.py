"""Images that ship inside scikit-image, cut for x2 super-resolution of luminance.

Training and held-out images are different photographs.
"""

import numpy as np
from skimage import color, data, transform

SCALE = 2
SIZE = 96  # of the small image; the network is exported for one of this size
TRAINING = (
    "brick", "coins", "grass", "gravel", "hubble_deep_field", "immunohistochemistry", "moon",
    "page", "retina", "rocket", "stereo_motorcycle", "text",
)  # fmt: skip
HELD_OUT = ("astronaut", "camera", "cat", "coffee")
_CROPS = 4


def luminance(name: str) -> np.ndarray:
    """Return an image as float32 [H, W] in 0..1."""
    image = getattr(data, name)()
    image = image[0] if isinstance(image, tuple) else image
    image = color.rgb2gray(image[..., :3]) if image.ndim == 3 else image / 255
    return image.astype(np.float32)


def shrunk(large: np.ndarray) -> np.ndarray:
    """Return an image at half the size, smoothed before it is sampled."""
    shape = (large.shape[0] // SCALE, large.shape[1] // SCALE)
    return transform.resize(large, shape, order=3, anti_aliasing=True).astype(np.float32)


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Return small images [N, 1, 96, 96] and what they were shrunk from [N, 1, 192, 192].

    From every photograph the four quarters around its middle.
    """
    crops = []
    size = SIZE * SCALE
    for name in HELD_OUT:
        image = luminance(name)
        top, left = (max(extent // 2 - size + 50, 0) for extent in image.shape)
        places = [(top + dy, left + dx) for dy in (0, size - 100) for dx in (0, size - 100)]
        crops += [image[y : y + size, x : x + size] for y, x in places[:_CROPS]]
    large = np.stack(crops)
    small = np.stack([shrunk(crop) for crop in crops])
    return small[:, np.newaxis], large[:, np.newaxis]


def psnr(seen: np.ndarray, wanted: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of an image in 0..1, limited to that range.

    A border of 4 pixels is left out, as is usual: there the network sees padding.
    """
    inner = (..., slice(4, -4), slice(4, -4))
    error = np.clip(seen[inner].astype(np.float64), 0, 1) - wanted[inner]
    return float(-10 * np.log10(np.mean(error**2)))
