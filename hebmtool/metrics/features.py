"""Feature networks, phi: uint8 images [N, C, H, W] -> features [N, D], in which sets of images are compared.

Two are embedded, one for small grey images (`hebmtool.metrics.embedded`) and one for all others
(`hebmtool.metrics.colour`); any other is a file, or Inception (`hebmtool.metrics.inception`).  A safetensors file
(`hebmtool.metrics.networks`) is data.  TorchScript (.pt) can write files while it computes, and torch.export's .pt2 is
unpickled when torch reads it, so these are programs: they are opened for who names one and says that it is trusted, and
never because a run's recipe names one.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import files, ranks
from hebmtool.console import note
from hebmtool.errors import HebmError
from hebmtool.metrics import colour, embedded, networks

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
            batches = images.split(ranks.share(len(images), BATCH))
            parts = list(ranks.spread(batches, lambda batch: self.network(batch.to(self.device)).double().cpu()))
            features = torch.cat(parts)
        except Exception as error:  # a program may raise anything, and what gives no tensor an AttributeError
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise HebmError(
                f"the feature network {self.name} does not accept images of shape {list(images.shape[1:])} ({reason}); "
                f"it must map uint8 [N, C, H, W] to float [N, D]"
            ) from error
        fits = features.ndim == 2 and len(features) == len(images)
        if not fits or not features.isfinite().all():
            found = "values that are not finite" if fits else f"shape {list(features.shape)}"
            raise HebmError(
                f"the feature network {self.name} gives {found} for {len(images)} images; "
                f"it must map uint8 [N, C, H, W] to finite float [N, D]"
            )
        return features.numpy()


def load_features(
    path: str | None, image_shape: tuple[int, int, int], device: torch.device, trusted: bool = False
) -> Features | None:
    """The network at `path`; for None the embedded one for such images, or None where they are neither grey nor RGB.

    Arguments:
        trusted: whether a file that runs code may.  Where it may not, a safetensors file of the same name beside it is
            taken in its place.

    Raises:
        HebmError: the file is missing, no feature network, or one that would run code.
    """
    if path is None:
        if image_shape[0] not in (1, 3):
            return None
        if image_shape[0] == 1 and max(image_shape[1:]) <= 32:
            return Features(embedded.load().to(device), "embedded", device, files.digest(embedded.PATH))
        return Features(colour.load().to(device), "embedded colour", device, files.digest(colour.PATH))
    file = Path(path)
    if _runs_code(file) and not trusted:
        if file.is_file() and not _converted(path).is_file():
            raise HebmError(_untrusted(path))
        file = _converted(path)
    if not file.is_file():
        raise HebmError(
            f"no feature network at {path}; evaluate.features takes a safetensors or TorchScript file or null"
        )
    network = _program(file, device) if _runs_code(file) else networks.load(file).to(device)
    return Features(network, file.name, device, files.digest(file))


def load_own(path: str | None, image_shape: tuple[int, int, int], device: torch.device) -> Features | None:
    """`load_features` of what a run's recipe names, for uses that do without where it would run code, with a note."""
    if path is not None and _runs_code(Path(path)) and not _converted(path).is_file():
        note(f"nothing is measured in features: {_untrusted(path)}")
        return None
    return load_features(path, image_shape, device)


def _runs_code(path: Path) -> bool:
    return path.suffix.lower() != ".safetensors"


def _converted(path: str) -> Path:
    return Path(f"{os.path.splitext(path)[0]}.safetensors")


def _untrusted(path: str) -> str:
    return (
        f"the feature network {path} is no safetensors file, and reading any other runs what is in it; convert it with "
        "`python -m hebmtool.metrics.networks OLD.pt NEW.safetensors`, or name it yourself (features, or in training "
        "the override evaluate.features) and say trust_features"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    # torch.export logs a traceback of what it cannot read, besides raising.
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _program(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Of a TorchScript or .pt2 file, which is run."""
    try:
        with warnings.catch_warnings(action="ignore"), _quiet():  # torch's, that TorchScript is old
            if path.suffix.lower() == ".pt2":
                return torch.export.load(path).module().to(device)
            return torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # of unpickling: anything
        raise HebmError(
            f"{path} is not a TorchScript network torch can load, nor of torch.export; save one with torch.jit.save, "
            "or as .pt2 with torch.export.save"
        ) from error
