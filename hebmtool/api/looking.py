"""Uses that look at images: how likely they are, what the model makes of them, what it fills in."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hebmtool import data
from hebmtool.api.given import Failed, Images, at_least, hidden_pixels, named_images, paths_of, raised, read, stacked
from hebmtool.api.loaded import Loaded
from hebmtool.api.results import Inpainted, Matched, Reconstructed, Score, Scores, Separation
from hebmtool.data import masks
from hebmtool.errors import HebmError
from hebmtool.judge import ood as separation
from hebmtool.metrics import flow_match as matching
from hebmtool.picture import Pictures
from hebmtool.run import split
from hebmtool.use import inpaint as inpainting
from hebmtool.use import reconstruct as reconstruction
from hebmtool.use import score as scoring
from hebmtool.use.infer import Inference


class Looking(Loaded):
    """What is seen in images.  `hebmtool.api.model.Model` tells of the arguments that these methods share."""

    def score(
        self,
        images: Images,
        *,
        layer: int | None = None,
        score: str | None = None,
        scheme: str | None = None,
        level: int = 1,
        draws: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        failed: Failed | None = None,
    ) -> Scores:
        """How in-distribution images are to the run: high = in-distribution (`hebmtool.use.score`).

        Arguments:
            images: uint8 [N, C, H, W], or files, folders, .npz or .npy files by their paths; brought to the run's size
                and colour as its own were.
            layer: use the layers above this one (1 = bottom; 0 uses all); chosen on the run's test images and the
                generator's own draws when None.
            score: "energy"; "likelihood", the ELBO in nats, layers up to `layer` drawn from the prior; "llr", Havtorn's
                likelihood ratio, its sign turned so that high is in-distribution here too.  Without an encoder only
                "posterior", log p(z, x) at the inferred z.
            scheme: of the energy, "inference" at the image's own latents, or "diffusion", which noises them to `level`
                and lets the prior bring them back.
            draws: posterior draws averaged per image; 4 when None, 1 without an encoder.

        Raises:
            UsageError: a word, layer or level that does not exist.
            HebmError: the prior has no energy or no levels, or an image cannot be read.

        >>> import torch
        >>> model.score(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), layer=0).values.shape
        torch.Size([3])
        """
        how = {"layer": layer, "score": score, "scheme": scheme, "level": level, "draws": draws, "seed": seed}
        found = list(self.score_stream(images, batch_size=batch_size, failed=failed, **how))
        if not found:
            raise HebmError("there is no image to score; give images, folders, .npz or .npy files")
        names, values, (method, *_), (cut, *_) = zip(*found, strict=True)
        return Scores(list(names), torch.tensor(values, dtype=torch.float64), method, cut)

    def score_stream(
        self,
        images: Images,
        *,
        layer: int | None = None,
        score: str | None = None,
        scheme: str | None = None,
        level: int = 1,
        draws: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        failed: Failed | None = None,
    ) -> Iterator[Score]:
        """The same scores as they come, a batch at a time; paths are read as they are needed."""
        at_least(1, draws=draws, batch_size=batch_size)
        one = scoring.make_scorer(self.prior, self.recipe, score, scheme, level, draws, seed)
        if layer is not None:
            cut = one.check(layer)
        elif not self.generator.has_encoder:
            cut = one.cuts[0]
        else:
            try:
                test = split.load(self.run, self.recipe.data, "test")
            except HebmError as error:
                raise HebmError(f"the cut is chosen on the run's test images, but {error}; or name a layer") from error
            cut, _ = scoring.default_cut(one, test)
        named = read(images, self.recipe, self.generator.image_shape, failed or raised)
        scored = scoring.stream(one, named, cut, batch_size)
        return (Score(name, value, one.name, cut) for name, value in scored)

    def auroc(
        self,
        ood: Sequence[str | Path] | Mapping[str, Tensor] | None = None,
        n: int = 300,
        *,
        layer: int | None = None,
        score: str | None = None,
        scheme: str | None = None,
        level: int = 1,
        draws: int | None = None,
        seed: int = 0,
        failed: Failed | None = None,
    ) -> Separation:
        """Hold scores of the run's test images against out-of-distribution sets, these being the positives: AUROC,
        AUPRC and the share of test images flagged when 95% of the others are, with bootstrap intervals, at every cut.

        Arguments:
            ood: the sets, by paths or as {name: uint8 [M, C, H, W]}; a built-in battery when None, made of the run's
                own images and of what scikit-learn carries.
            n: images per set.
            layer, score, scheme, level, draws: as `score`'s; every score the prior has when None.

        Raises:
            UsageError, HebmError: as `score`; too few test images.
        """
        at_least(2, n=n)
        at_least(1, draws=draws)
        methods = self._methods(score, scheme, layer)
        scorers = [scoring.make_scorer(self.prior, self.recipe, *each, level, draws, seed) for each in methods]
        if layer is not None:
            for each in scorers:
                each.check(layer)
        shape, failed = self.generator.image_shape, failed or raised
        if ood is None:
            sets = None
        elif isinstance(ood, Mapping):
            sets = [(name, stacked(images[:n], self.recipe, shape)) for name, images in ood.items()]
        else:
            sets = data.given_sets(list(paths_of(ood)), self.recipe, shape, n, failed)
        found = separation.compare(scorers, split.load(self.run, self.recipe.data, "test"), n, layer, sets)
        return Separation(str(self.run.path), self.prior.kind, found)

    def _methods(self, score: str | None, scheme: str | None, layer: int | None) -> list[tuple[str | None, str | None]]:
        """The scores, with their schemes, that stand for those that are not named."""
        methods = [(score, scheme)]
        if scheme is None and score in (None, "energy") and self.prior.T > 1:
            methods.append(("energy", "diffusion"))
        if score is None and scheme is None and self.generator.has_encoder:
            methods.append(("likelihood", "inference"))
            if layer != 0 and self.generator.L > 1:  # the ratio has no cut 0
                methods.append(("llr", "inference"))
        return methods

    def reconstruct(
        self,
        images: Images | None = None,
        *,
        n: int = 16,
        steps: int | None = None,
        seed: int = 0,
        fit: bool = False,
        failed: Failed | None = None,
    ) -> Reconstructed:
        """Infer the latents of images and decode them: how much of an image does the model keep?

        Arguments:
            images: uint8 [N, C, H, W], or paths; the run's first n test images when None.
            steps: Langevin steps of inference.  When None without an encoder the recipe's number, with one none: what
                it says is then refined by none, on p(u) p(x | T(u)), p(u) being the prior.
            seed: of the chains.
            fit: bring images of another size or colour to the run's, instead of refusing them.

        Raises:
            HebmError: images that cannot be read or do not fit, or a chain that left the numbers.

        >>> model.reconstruct(n=4).made
        <pictures, uint8 [4, 1, 8, 8]>
        """
        at_least(0, steps=steps, seed=seed)
        at_least(1, n=n)
        names, images = named_images(
            images, self.run, self.recipe, self.generator.image_shape, n, fit, failed or raised
        )
        made, errors = reconstruction.reconstruct(Inference(self.prior, self.recipe, steps, seed), images)
        return Reconstructed(self.prior.kind, names, Pictures(images), Pictures(made), errors)

    def inpaint(
        self,
        images: Images | None = None,
        mask: str | Path | Tensor = "center:0.5",
        draws: int = 4,
        *,
        n: int = 8,
        damaged: bool = False,
        steps: int | None = None,
        seed: int = 0,
        fit: bool = False,
        failed: Failed | None = None,
    ) -> Inpainted:
        """Complete images whose pixels are partly hidden, several times each; visible pixels stay as they are.

        Latents are inferred from the visible pixels alone: by Langevin dynamics where there is no encoder; else
        by it and the generator in turns, then by Langevin dynamics on p(u) p(x_visible | T(u)).

        Arguments:
            images, n, seed, fit: as `reconstruct`'s.
            mask: what is hidden: "left", "right", "top" or "bottom"; "center:F", a box with the share F of either side;
                "random:P", each pixel with probability P; a picture of the images' size, white where pixels are hidden,
                an .npy or .npz of one mask or of one per image, or a tensor [H, W] or [N, H, W], not 0 where hidden.
            draws: completions of each image.
            damaged: what stands at hidden pixels is not the original, so nothing is compared with it.
            steps: Langevin steps of inference; the recipe's number without an encoder, else 100, when None.

        Raises:
            UsageError: no such mask.
            HebmError: as `reconstruct`; a mask that cannot be used.

        >>> model.inpaint(mask="left", draws=2, n=3, steps=2).completions
        <pictures, uint8 [3, 2, 1, 8, 8]>
        """
        at_least(0, steps=steps, seed=seed)
        at_least(1, n=n, draws=draws)
        shape = self.generator.image_shape
        if not isinstance(mask, Tensor):
            masks.parse(str(mask), shape)  # a wrong word is better known before reading images
        names, images = named_images(images, self.run, self.recipe, shape, n, fit, failed or raised)
        hidden = hidden_pixels(mask, shape, seed, len(images))
        found = inpainting.inpaint(Inference(self.prior, self.recipe, steps, seed), images, hidden, draws)
        return Inpainted(self.prior.kind, names, Pictures(images), hidden, found, damaged)

    def flow_match(self, n: int = 256, steps: int | None = None) -> Matched:
        """Short-run inference seen as a flow: do latents inferred from images have the law of the prior?

        Arguments:
            n: test images to infer.
            steps: Langevin steps of inference; as many as in learning when None.

        Raises:
            HebmError: latents here come from an encoder.
        """
        if self.generator.has_encoder:
            raise HebmError(
                f"flow matching is of latents inferred by a short run, and those of {self.run.path} come from an "
                "encoder; name a run of a flow or a latent-ebm"
            )
        at_least(16, n=n)
        at_least(0, steps=steps)
        test, seed = split.load(self.run, self.recipe.data, "test"), self.recipe.seed
        steps = self.prior.inference.steps if steps is None else steps
        # The recipe's seed: with as many steps and images, this is what learning ended with.
        z = Inference(self.prior, self.recipe, steps, seed, learning=True)(test.batch(range(min(n, len(test)))))[:, 0]
        found = matching.match(self.prior, z, seed)
        picture = partial(matching.figure, self.prior, z, found, seed)
        return Matched(str(self.run.path), self.prior.kind, steps, found, picture)
