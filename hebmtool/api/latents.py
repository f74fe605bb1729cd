"""Uses that take latents out of images, and make images of them."""

from pathlib import Path

import torch
from torch import Tensor

from hebmtool.api.given import Failed, Images, at_least, named_images, raised
from hebmtool.api.loaded import Loaded
from hebmtool.api.results import Ways
from hebmtool.errors import HebmError, UsageError
from hebmtool.picture import Pictures
from hebmtool.run import header
from hebmtool.use import latents
from hebmtool.use.infer import Inference
from hebmtool.use.latents import Latents


class Coding(Loaded):
    """From images to latents and back."""

    def encode(
        self,
        images: Images | None = None,
        *,
        n: int = 16,
        steps: int | None = None,
        seed: int = 0,
        fit: bool = False,
        failed: Failed | None = None,
    ) -> Latents:
        """Latents of images, as reconstruction has them: the posterior's mean, or where a chain ends.

        Arguments and errors are those of `reconstruct`.

        >>> model.encode(n=4)
        <latents of 4 images, 40 dimensions in 2 layers>
        """
        at_least(0, steps=steps, seed=seed)
        at_least(1, n=n)
        names, pixels = named_images(
            images, self.run, self.recipe, self.generator.image_shape, n, fit, failed or raised
        )
        u = Inference(self.prior, self.recipe, steps, seed)(pixels)[:, 0]
        return latents.of_images(self.generator, u, names, self._generator_digest())

    def decode(self, found: Latents | str | Path | Tensor) -> Pictures:
        """Mean images of latents, uint8 [N, C, H, W].

        Arguments:
            found: what `encode` returned, the .npz it was saved in, or residuals u [N, D].

        Raises:
            UsageError: a tensor of another shape.
            HebmError: a file of something else, or latents of another generator.

        >>> model.decode(model.encode(n=4))
        <pictures, uint8 [4, 1, 8, 8]>
        """
        u = found if isinstance(found, Tensor) else self._of_this(found)
        if u.ndim != 2 or u.shape[1] != self.generator.D or not len(u):
            raise UsageError(f"the latents are {list(u.shape)}; they must be [N, {self.generator.D}], N at least 1")
        u = self.generator.whitened(u.to(self.device, torch.float32))
        return Pictures(Inference(self.prior, self.recipe).decode(u))

    def interpolate(
        self,
        images: Images | None = None,
        points: int = 9,
        *,
        steps: int | None = None,
        seed: int = 0,
        fit: bool = False,
        failed: Failed | None = None,
    ) -> Ways:
        """Ways from each image to the next, over the latents: on the great circle in u, then brought to the prior.

        Arguments:
            images: uint8 [N, C, H, W], or paths, at least two; the run's first two test images when None.
            points: of each way, ends included; at least 3.
            steps: Langevin steps on the prior that the points between make, with the same noise; 2 when None.
            seed: of posterior draws and chains.
            fit: bring images of another size or colour to the run's, instead of refusing them.

        Raises:
            UsageError: fewer than three points.
            HebmError: fewer than two images, or what `reconstruct` raises.

        >>> model.interpolate(points=5)
        <1 way of 5 points by the diffusion-ebm prior>
        """
        at_least(3, points=points)
        at_least(0, steps=steps, seed=seed)
        names, pixels = named_images(
            images, self.run, self.recipe, self.generator.image_shape, 2, fit, failed or raised
        )
        if len(pixels) < 2:
            raise HebmError(f"a way goes from one image to another, and {names[0]} is the only one; give two or more")
        ends = Inference(self.prior, self.recipe, seed=seed, drawn=True)(pixels)[:, 0]
        u = latents.between(self.prior, ends, points, steps, seed)
        made = Inference(self.prior, self.recipe).decode(u.flatten(0, 1)).unflatten(0, u.shape[:2])
        return Ways(self.prior.kind, names, Pictures(pixels), Pictures(made))

    def _generator_digest(self) -> str:
        kind = self.prior.kind
        path = self.run.prior_path(kind) if self.prior.brings_generator else self.run.require_generator()
        return header.contents(path)

    def _of_this(self, found: Latents | str | Path) -> Tensor:
        read = found if isinstance(found, Latents) else Latents.load(found)
        if read.generator != self._generator_digest():
            where = "they were" if found is read else f"those in {found} were"
            raise HebmError(
                f"latents mean something to the generator they were taken with alone, and {where} taken with another "
                f"than that of {self.run.path}; name that run, or encode the images with this one"
            )
        return read.u
