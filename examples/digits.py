"""The UCI digits that ship inside scikit-learn, with the split that training and demo share."""

import numpy as np
from sklearn.datasets import load_digits

HELD_OUT = 540
SPLIT_SEED = 0


def load_split() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return (images, labels) for training and (images, labels) held out.

    Images are float32 [N, 1, 8, 8] in 0..1, labels int64 [N]. The stream of `RandomState` is frozen
    for all versions of numpy, so the held-out images never change.
    """
    digits = load_digits()
    images = (digits.images[:, np.newaxis] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    return (images[training], labels[training]), (images[held_out], labels[held_out])
