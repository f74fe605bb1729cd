"""Feature networks, phi: uint8 images [N, C, H, W] -> features [N, D], in which sets of images are compared.

One is embedded, for small grey images (`hebmtool.metrics.embedded`); any other is a TorchScript file, or Inception
(`hebmtool.metrics.inception`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import files
from hebmtool.errors import HebmError
from hebmtool.metrics import embedded

BATCH = 250


@dataclass
class Features:
    """A feature network: `network` maps uint8 [N, C, H, W] to float [N, D]; `name` says which it is, and `digest` is
    the SHA-256 of its file."""

    network: Callable[[Tensor], Tensor]
    name: str
    device: torch.device
    digest: str | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        """uint8 [N, C, H, W] -> float64 [N, D].

        Raises:
            HebmError: the network refuses the images, or does not give finite [N, D].
        """
        try:
            parts = [self.network(batch.to(self.device)).double().cpu() for batch in images.split(BATCH)]
        except (RuntimeError, AttributeError) as error:  # the latter where it gives no tensor
            reason = str(error).strip().splitlines()[-1]
            raise HebmError(
                f"the feature network {self.name} does not accept images of shape {list(images.shape[1:])} ({reason}); "
                f"it must map uint8 [N, C, H, W] to float [N, D]"
            ) from error
        features = torch.cat(parts)
        if features.ndim != 2 or not features.isfinite().all():
            found = f"shape {list(features.shape)}" if features.ndim != 2 else "values that are not finite"
            raise HebmError(
                f"the feature network {self.name} gives {found} for {len(images)} images; "
                f"it must map uint8 [N, C, H, W] to finite float [N, D]"
            )
        return features.numpy()


def load_features(path: str | None, image_shape: tuple[int, int, int], device: torch.device) -> Features | None:
    """The TorchScript network at `path`; for None the embedded one if the images are grey and small, else None.

    Raises:
        HebmError: the file is missing or no TorchScript network.
    """
    if path is None:
        if image_shape[0] != 1 or max(image_shape[1:]) > 32:
            return None
        return Features(embedded.load().to(device), "embedded", device, files.digest(embedded.PATH))
    if not Path(path).is_file():
        raise HebmError(f"no feature network at {path}; evaluate.features takes a TorchScript file or null")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, that TorchScript is old
            network = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise HebmError(f"{path} is not a TorchScript network torch can load; save one with torch.jit.save") from error
    return Features(network, Path(path).name, device, files.digest(path))
