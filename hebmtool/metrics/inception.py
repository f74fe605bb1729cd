"""Inception's features through clean-fid's own pipeline, so that our FID is the one others report.

    FID = FD in Inception's 2048 features of images resized to 299x299
    IS  = exp( E KL( p(y | x) || p(y) ) )      (Salimans et al., https://arxiv.org/abs/1606.03498)

Resizing and network are clean-fid's (Parmar et al., https://arxiv.org/abs/2104.11222), in two of its modes: "clean"
(antialiased bicubic, the network of the original TensorFlow graph) and "legacy_pytorch" (bilinear without
antialiasing, as in most published tables).  The distance itself is ours: clean-fid's gives scipy's `sqrtm` an argument
that scipy 1.18 no longer takes.
"""

import platform
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import files
from hebmtool.errors import HebmError
from hebmtool.metrics.distances import frechet_distance
from hebmtool.metrics.features import Features

MODES = ("clean", "legacy_pytorch")
BATCH = 32  # clean-fid's own
SPLITS = 10
PATIENCE = 30  # seconds without an answer, where clean-fid would wait for ever


def weights(mode: str) -> tuple[Path, str]:
    """Where clean-fid looks for the mode's network, and the address it fetches it from."""
    from cleanfid.downloads_helper import inception_url
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL

    if mode == "clean":
        folder, url = Path("./" if platform.system() == "Windows" else "/tmp"), inception_url
    else:
        folder, url = Path(torch.hub.get_dir()) / "checkpoints", FID_WEIGHTS_URL
    return folder / url.rsplit("/", 1)[1], url


@contextmanager
def _patient():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        # torchvision's, of how clean-fid builds the network; and clean-fid silences warnings for the whole process.
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        socket.setdefaulttimeout(before)


def network(mode: str, device: torch.device):
    """clean-fid's feature extractor: float [N, 3, 299, 299] in 0..255 -> [N, 2048].

    Raises:
        HebmError: its file is not there and cannot be fetched, or is unusable.
    """
    from cleanfid.features import build_feature_extractor

    path, url = weights(mode)
    there = path.is_file()
    try:
        with _patient():
            return build_feature_extractor(mode, device, use_dataparallel=False)
    except Exception as error:  # of the network, of the disk, of unpickling, of TorchScript: all mean no Inception
        if not there:
            with suppress(OSError):
                path.unlink()  # cut short, clean-fid would take it for whole the next time
        reason = str(error).strip().splitlines() or [type(error).__name__]
        trouble = "is damaged" if there else "is missing and could not be fetched"
        raise HebmError(
            f"FID in mode {mode} needs Inception, and {path} {trouble} ({reason[-1]}); place the file of {url} there, "
            f"under that name"
        ) from error


def load(mode: str, device: torch.device, extractor: Callable | None = None) -> Features:
    """Inception as a feature network, resizing included: uint8 [N, C, H, W], grey or colour, -> [N, 2048].

    Arguments:
        extractor: `network`'s, where it is there already.

    Raises:
        HebmError: as `network`.
    """
    from cleanfid.resize import build_resizer

    extractor = extractor or network(mode, device)
    with warnings.catch_warnings():  # the resizer of legacy_pytorch silences them for the whole process
        resize = build_resizer(mode)

    def prepared(image: Tensor) -> Tensor:
        return torch.from_numpy(resize(image.permute(1, 2, 0).numpy()).transpose(2, 0, 1).copy())

    def features(images: Tensor) -> Tensor:
        images = images.cpu().expand(-1, 3, -1, -1)
        with ThreadPoolExecutor() as pool:
            parts = (torch.stack(list(pool.map(prepared, batch))) for batch in images.split(BATCH))
            return torch.cat([extractor(part.to(device)) for part in parts])

    path, _ = weights(mode)
    digest = files.digest(path) if path.is_file() else None
    return Features(features, f"Inception ({mode})", device, digest)


def load_classifier(device: torch.device) -> Features | None:
    """p(y | x) of the "clean" network, uint8 [N, C, H, W] -> [N, 1008], or None where its file is not.

    Images are resized within the network, and its output has no bias, as for published Inception scores.
    """
    path, _ = weights("clean")
    if not path.is_file():
        return None
    with warnings.catch_warnings(action="ignore"):  # torch's, that TorchScript is old
        network = torch.jit.load(path, map_location=device).eval()

    def probabilities(images: Tensor) -> Tensor:
        parts = images.expand(-1, 3, -1, -1).split(BATCH)
        return torch.cat([network(part, no_output_bias=True) for part in parts])

    return Features(probabilities, "Inception classes", device, files.digest(path))


def inception_scores(probabilities: np.ndarray) -> np.ndarray:
    """IS of consecutive splits of p(y | x) [N, classes], N at least 2: ten of them, fewer where N is below 20."""
    found = []
    for p in np.array_split(probabilities, min(SPLITS, max(1, len(probabilities) // 2))):
        p = p.clip(1e-12)
        found.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    return np.array(found)


def folder_features(
    folder: str | Path, extractor: Callable, mode: str, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Inception's features of the images in a folder as clean-fid reads them, float64 [N, 2048].

    Arguments:
        extractor: `network`'s, of this mode.

    Raises:
        HebmError: the folder has fewer than two images.
    """
    from cleanfid import fid as cleanfid

    if sum(len(list(Path(folder).rglob(f"*.{ending}"))) for ending in cleanfid.EXTENSIONS) < 2:
        raise HebmError(f"FID needs at least two images in the folder {folder}; give a folder of images")
    with warnings.catch_warnings():
        found = cleanfid.get_folder_features(
            str(folder), extractor, num_workers=0, device=device, mode=mode, batch_size=BATCH, verbose=False
        )
    return found.astype(np.float64)


def fid(a: str | Path, b: str | Path, mode: str = "clean", device: torch.device | str = "cpu") -> float:
    """FID between the images of two folders: what `cleanfid.fid.compute_fid(a, b, mode=mode)` computes.

    Raises:
        HebmError: a folder has fewer than two images, or there is no Inception (as `network`).
    """
    extractor = network(mode, torch.device(device))
    return frechet_distance(*(folder_features(folder, extractor, mode, device) for folder in (a, b)))
