"""Latents as things of their own: kept in a file, and ways from one to another.

    u(s) = |u|(s) (sin((1 - s) a) u_0 / |u_0| + sin(s a) u_1 / |u_1|) / sin a       a: the angle between u_0 and u_1

is the great circle from u_0 to u_1, its radius going evenly from one to the other: between two draws of N(0, I) in many
dimensions it stays where draws are, as a straight line does not.  Langevin steps then bring the points between to the
prior p(u), all with the same noise, so that what is near stays near.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import files
from hebmtool.errors import HebmError
from hebmtool.generator import Generator
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Prior, not_finite

ARRAYS = ("u", "z", "names", "shapes", "generator")
"""Of the file."""

TO_PRIOR = 2
"""Langevin steps that points between make, unless another number is asked for.  Few: ten steps with the same noise have
forgotten where each point was, and make one image of all of them."""


@dataclass
class Latents:
    """names: of the images.  u: residuals, and z = T(u), of the generator: flat [N, D], layers one after another, top
    first.  shapes: (Z, h, w) of every layer, top first.  generator: digest of its contents."""

    names: list[str]
    u: Tensor
    z: Tensor
    shapes: list[tuple[int, int, int]]
    generator: str

    def __len__(self) -> int:
        return len(self.u)

    def __repr__(self) -> str:
        return f"<latents of {len(self)} images, {self.u.shape[1]} dimensions in {len(self.shapes)} layers>"

    def save(self, path: str | Path) -> None:
        """Write an .npz of the arrays u, z (float32 [N, D]), names, shapes [L, 3] and generator.  Raises HebmError when
        it cannot be written."""
        buffer = io.BytesIO()
        arrays = {"u": self.u.cpu().numpy(), "z": self.z.cpu().numpy(), "shapes": np.array(self.shapes)}
        np.savez(buffer, names=np.array(self.names), generator=np.array(self.generator), **arrays)
        files.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Latents":
        """What `save` wrote.  Raises HebmError where the file is something else, or what it holds does not fit."""
        try:
            with np.load(files.regular(path), allow_pickle=False) as file:
                found = {name: file[name] for name in ARRAYS}
        except OSError as error:
            raise HebmError(f"could not read {path}: {error.strerror or error}") from error
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise HebmError(
                f"{path} holds no latents: it must be an .npz with the arrays {', '.join(ARRAYS)}, as encoding writes"
            ) from error
        names, shapes = found["names"], found["shapes"]
        for name in ("u", "z"):
            array = found[name]
            if array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise HebmError(
                    f"'{name}' of {path} is {array.dtype} {list(array.shape)}; it must be finite numbers [N, D]"
                )
        fits = shapes.ndim == 2 and shapes.dtype.kind == "i" and found["u"].shape == found["z"].shape
        if not fits or names.shape != found["u"].shape[:1] or shapes.prod(1).sum() != found["u"].shape[1]:
            raise HebmError(f"the arrays of {path} do not fit one another; encode the images again")
        u, z = (torch.from_numpy(found[name].astype(np.float32)) for name in ("u", "z"))
        return cls([str(name) for name in names], u, z, [tuple(map(int, s)) for s in shapes], str(found["generator"]))


@torch.no_grad()
def of_images(generator: Generator, u: Tensor, names: list[str], digest: str) -> Latents:
    """Of u [N, D] as priors over this generator have them."""
    residuals = generator.residuals(u)
    return Latents(names, residuals.cpu(), generator.T(u).cpu(), generator.latent_shapes, digest)


def slerp(start: Tensor, end: Tensor, points: int) -> Tensor:
    """`points` latents on the great circle from u_0 to u_1, both [D], ends included: [points, D].

    Where the angle has no direction (0, or half a turn) it is the straight line.
    """
    s = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device).unsqueeze(1)
    lengths = start.norm(), end.norm()
    angle = torch.arccos((start @ end / (lengths[0] * lengths[1])).clamp(-1, 1))
    if not angle.isfinite() or angle.sin() < 1e-4:
        return torch.lerp(start, end, s)
    directions = torch.sin((1 - s) * angle) * start / lengths[0] + torch.sin(s * angle) * end / lengths[1]
    path = torch.lerp(lengths[0], lengths[1], s) * directions / angle.sin()
    path[0], path[-1] = start, end
    return path


@torch.no_grad()
def between(prior: Prior, ends: Tensor, points: int, steps: int | None, seed: int) -> Tensor:
    """Ways from each of u [N, D], N at least 2, to the next: [N - 1, points, D].

    Arguments:
        points: of a way, ends included, which stay as they are.
        steps: Langevin steps of the points between on p(u); TO_PRIOR when None.

    Raises:
        HebmError: the chain left the numbers.
    """
    steps, ways = TO_PRIOR if steps is None else steps, []
    for i, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        way = slerp(start, end, points)
        if steps and points > 2:
            noise = Noise(derive_seed(seed, "between"), [i] * (points - 2), way.shape[1], way.device)
            way[1:-1] = prior.refine(way[1:-1], noise, steps)
        if not way.isfinite().all():
            raise not_finite(prior.kind)
        ways.append(way)
    return torch.stack(ways)
