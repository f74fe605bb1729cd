"""Features of reference images, kept between runs of the command.

An entry is named by what it was computed from: the images' bytes, the feature network's file, and the kind of device.
It is a NumPy zip, whose checksums tell a damaged one, which is then computed again.  The folder is $HEBM_CACHE, or
hebmtool in the user's cache folder ($XDG_CACHE_HOME, by default ~/.cache); it may be removed at any time.
"""

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from hebmtool import data, files, ranks
from hebmtool.console import note
from hebmtool.errors import HebmError
from hebmtool.metrics.features import Features
from hebmtool.recipe import expanded


def folder() -> Path:
    """Where entries are."""
    if os.environ.get("HEBM_CACHE"):
        return expanded(os.environ["HEBM_CACHE"])
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The standard has relative paths ignored.
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "hebmtool"


def images_digest(images: data.Images) -> str:
    """SHA-256 of the images: their shape and their bytes, in order."""
    found = hashlib.sha256(repr((len(images), tuple(images.shape))).encode())
    for batch in images.batches():
        found.update(batch.contiguous().numpy())
    return found.hexdigest()


def features(images: data.Images, digest: str, network: Features) -> np.ndarray:
    """The network's features of all the images, float64 [N, D]; from the cache where they are there and whole.

    Arguments:
        digest: `images_digest(images)`.
    """

    def compute() -> np.ndarray:
        return np.concatenate([network(batch) for batch in images.batches()])

    if network.digest is None:
        return compute()
    key = hashlib.sha256(f"{digest} {network.digest} {network.device.type}".encode()).hexdigest()
    path = folder() / "features" / f"{key}.npz"
    found = ranks.first_alone(lambda: _kept(path, len(images)))
    if found is not None:
        return found
    found = compute()
    small = found.astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, features=small if np.array_equal(small, found) else found)
    try:
        files.write_bytes(path, buffer.getvalue())
    except HebmError as error:
        note(f"reference features are not kept: {error}")
    return found


def _kept(path: Path, n: int) -> np.ndarray | None:
    """The features of n images in an entry; None where it is not whole."""
    try:
        with np.load(path) as entry:
            found = entry["features"].astype(np.float64)
        return found if found.ndim == 2 and len(found) == n else None
    except Exception:  # absent, cut short, not a zip, a wrong checksum: whatever it is, it is computed again
        return None
