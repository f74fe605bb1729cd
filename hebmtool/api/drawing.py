"""Uses that draw from the prior: whole images, some layers given the others, under conditions on labels."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hebmtool.api.given import Images, as_read, wishes_of
from hebmtool.api.loaded import Loaded
from hebmtool.api.results import Controlled, Resampled
from hebmtool.console import note
from hebmtool.errors import UsageError
from hebmtool.judge import labels as label_judge
from hebmtool.metrics.features import load_own
from hebmtool.picture import Pictures
from hebmtool.prior import Prior, Steps
from hebmtool.run.open import load_labels
from hebmtool.use import controllable as control
from hebmtool.use import hierarchy
from hebmtool.use import sample as sampling
from hebmtool.use.arrival import Arrival, Tally
from hebmtool.use.controllable import Wish


class Drawing(Loaded):
    """What is drawn.  `hebmtool.api.model.Model` tells of the arguments that these methods share.

    arrival: where the last samples drawn have come to, None where there is no energy to say so.
    """

    arrival: Arrival | None = None

    def sample(
        self,
        n: int = 64,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        steps: Steps = None,
        chain: str | None = None,
        fast: bool = False,
        batch_size: int = 64,
        pixels: str | None = None,
        **settings: object,
    ) -> Pictures:
        """n images drawn from the prior (HEBM's Algorithm 2), uint8 [n, C, H, W].  Arguments as told of `Model`;
        pixels: the "mean" of p(x | z) or a "sample" of it, as the recipe's evaluate.pixels says when None.

        >>> model.sample(4, seed=7, steps=2)
        <pictures, uint8 [4, 1, 8, 8]>
        >>> model.sample(4, seed=7, chain="underdamped", theta=0.3)
        <pictures, uint8 [4, 1, 8, 8]>
        """
        how = {"temperature": temperature, "steps": steps, "chain": chain, "fast": fast, "batch_size": batch_size}
        return Pictures(torch.cat(list(self.batches(n, seed, pixels=pixels, **how, **settings))))

    def batches(
        self,
        n: int = 64,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        steps: Steps = None,
        chain: str | None = None,
        fast: bool = False,
        batch_size: int = 64,
        pixels: str | None = None,
        only: Sequence[int] | None = None,
        **settings: object,
    ) -> Iterator[Pictures]:
        """The same images a batch at a time, in bounded memory; of the n only those of these numbers, where given.

        >>> [len(batch) for batch in model.batches(100, batch_size=48)]
        [48, 48, 4]
        """
        numbers = {"n": n, "seed": seed, "temperature": temperature, "batch_size": batch_size}
        prior, steps = self._drawn_by(steps, chain, fast, settings, **numbers)
        pixels = sampling.check_pixels(pixels or self.recipe.evaluate.pixels)
        return self._told(prior, n, seed, batch_size, temperature, steps, pixels, only)

    def _told(self, prior: Prior, *how: object) -> Iterator[Pictures]:
        """Samples; then whether they have come where they should, which at another temperature is elsewhere."""
        self.arrival, tally = None, Tally(prior) if prior.T and how[-1] != [] else None
        yield from map(Pictures, sampling.sample(prior, *how, tally))
        if tally is not None:
            self.arrival = tally.arrival()
            temperature = how[3]
            if temperature == 1 and (sentence := self.arrival.sentence()):
                note(sentence)

    def progressive(
        self,
        n: int = 8,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        steps: Steps = None,
        chain: str | None = None,
        fast: bool = False,
        batch_size: int = 64,
        **settings: object,
    ) -> Pictures:
        """`sample`'s images with all that came before them, decoded: u_T ... u_0, noise first, uint8 [n, stages, C, H,
        W], shown as a strip each."""
        numbers = {"n": n, "seed": seed, "temperature": temperature, "batch_size": batch_size}
        prior, steps = self._drawn_by(steps, chain, fast, settings, **numbers)
        images, stages = sampling.progressive(prior, n, seed, batch_size, temperature, steps)
        return Pictures(images.unflatten(0, (n, stages)))

    def resample(
        self,
        layer: int | str = "all",
        vary: str | None = None,
        n: int | None = None,
        columns: int = 8,
        seed: int = 0,
        *,
        images: Images | None = None,
        temperature: float = 1.0,
        steps: Steps = None,
        chain: str | None = None,
        fast: bool = False,
        batch_size: int = 64,
        **settings: object,
    ) -> Resampled:
        """Draw some layers again and hold the others: what of the image does each layer carry?

        Arguments:
            layer: a layer's number (1 = bottom), a range of them as "2:5", or "all": every part of the hierarchy in
                turn, top to bottom, many layers in six parts.
            vary: draw the layers "above" those named, those "below", or "only" them; when None above, and only them
                for a range.
            n: base samples, a row each, base i being image i of `sample`; 8 when None, of all parts 4.
            columns: resamples of each, at most 1000.
            images: start from the posterior of these, a row each, instead of samples.

        Raises:
            UsageError: a layer that does not exist, or arguments that exclude each other.
            HebmError: the run has no layers.

        >>> model.resample(layer=1, n=2, columns=3)
        <layer 2 drawn again 3 times from each of 2 images, by the diffusion-ebm prior>
        """
        self.run.require_generator()
        parts, counts = _parts(layer, vary, self.generator.L), {"n": n, "columns": columns, "batch_size": batch_size}
        if images is not None and n is not None:
            raise UsageError("n counts base samples, and of images there is one row each; leave out either")
        prior, steps = self._drawn_by(steps, chain, fast, settings, seed=seed, temperature=temperature, **counts)
        every, single = layer == "all", [[number] for number in range(prior.generator.L, 0, -1)]
        x = None if images is None else as_read(images, self.recipe, prior.generator, seed)
        rows = len(x) if x is not None else n or (4 if every else 8)
        how = (rows, columns, seed, batch_size, temperature, steps, x)
        return Resampled(
            str(self.run.path),
            prior.kind,
            seed,
            every,
            hierarchy.draw(prior, parts, *how),
            partial(hierarchy.draw, prior, single, *how),
            partial(load_own, self.recipe.evaluate.features, prior.generator.image_shape, self.device),
        )

    def controllable(
        self,
        of_class: str | int | None = None,
        attributes: Sequence[str] | Mapping[str, object] | None = None,
        n: int = 64,
        seed: int = 0,
        *,
        weight: float = 1.0,
        across_layers: bool = False,
        judged: bool = True,
        temperature: float = 1.0,
        steps: Steps = None,
        chain: str | None = None,
        fast: bool = False,
        batch_size: int = 64,
        **settings: object,
    ) -> Controlled:
        """Draw images under conditions on labels that were coupled to the prior, and judge how many came out as asked.

        Arguments:
            of_class: a class, or "all" for each in turn.
            attributes: {"Smiling": 1, "Male": (0, 0.5)}, values with weights, or the texts "Smiling=1", "Male=0:0.5".
            n: images for each condition.
            weight: of the class; below 0 any other class is asked for.
            across_layers: draw one layer at a time again: which of them carry the label?
            judged: by a classifier of real images; the first time trains it, and keeps it in the run.
            chain: None takes the prior's own, but for an exact one the underdamped, which gets to what is asked for.

        Raises:
            UsageError: nothing asked, or a label, value or weight that does not exist.
            HebmError: the prior has no energy that labels could be coupled to.

        >>> model.controllable(3, n=4, judged=False)
        class 3: 4 images, not judged
        """
        self.run.require_generator()
        wishes = wishes_of(of_class, weight, attributes)
        numbers = {"n": n, "seed": seed, "temperature": temperature, "batch_size": batch_size}
        prior, steps = self._drawn_by(steps, chain or control.chain_for(self.prior), fast, settings, **numbers)
        labels = load_labels(self.run, prior.generator)
        wanted, how, layers = control.rows(wishes, labels), (n, seed, batch_size, temperature, steps), None
        if across_layers:
            if len(wanted) != 1:
                raise UsageError(f"across layers goes one condition, and {len(wanted)} are asked for; name one value")
            layers = control.across_layers(prior, labels, wanted[0], *how)
            sets, wanted = [layers.base, *layers.images], wanted * (len(layers.images) + 1)
        else:
            sets = control.sample(prior, labels, wanted, *how)
        figures = self._judged(sets, wanted, layers) if judged else {"rows": []}
        return Controlled(prior.kind, [Pictures(each) for each in sets], wanted, figures, layers)

    def _judged(self, sets: Sequence[Tensor], wanted: Sequence[Sequence[Wish]], layers: control.Layers | None) -> dict:
        figures = label_judge.report(sets, wanted, self.run, self.recipe, self.device)
        if layers is not None:
            for entry, part in zip(figures["rows"], [[], *layers.parts], strict=True):
                entry["resampled"] = part
        return figures


def _parts(layer: int | str, vary: str | None, L: int) -> list[list[int]]:
    """Numbers of the layers to draw again, part by part, of a generator with L."""
    if layer == "all":
        if vary is not None:
            raise UsageError("vary chooses layers around those named, and all are drawn in turn; leave it out")
        return hierarchy.blocks(L)
    named = hierarchy.parse(str(layer))
    return [hierarchy.varied(named, vary or ("only" if ":" in str(layer) else "above"), L)]
