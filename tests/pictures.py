"""Image files for tests, and a check of the sentence that what is wrong with them leads to."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image


def picture(height, width, channels=3, seed=0):
    """uint8 [H, W, C], or [H, W] for one channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def grey(n, shape=(1, 8, 8), seed=0):
    """n images of noise, uint8 [n, C, H, W]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@contextmanager
def error(kind, *words):
    """Expect `kind` itself, with all the words in one line."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert caught.type is kind and "\n" not in message
    for word in words:
        assert str(word) in message, message
