"""A run's prior, loaded, with every use of it as a method.

>>> import hebmtool
>>> model = hebmtool.load("digits")
>>> model
<Model digits: diffusion-ebm prior, 2 layers, images 1x8x8>
>>> model.sample(16, seed=0)
<pictures, uint8 [16, 1, 8, 8]>
"""

from collections.abc import Sequence
from pathlib import Path

from hebmtool.api import judging
from hebmtool.api.drawing import Drawing
from hebmtool.api.given import at_least
from hebmtool.api.latents import Coding
from hebmtool.api.looking import Looking
from hebmtool.api.results import Diagnosed
from hebmtool.compute import pick_device
from hebmtool.errors import UsageError
from hebmtool.judge import diagnose as diagnostics
from hebmtool.judge.sources import drawn_by, given
from hebmtool.prior import Prior
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior

PRECISIONS = ("float32", "bf16")


def load(
    run: Run | str | Path | None = None,
    prior: str | None = None,
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    precision: str = "float32",
    readjust_bn: int = 0,
    readjust_temperature: float = 1.0,
    data_path: str | Path | None = None,
) -> "Model":
    """Load a run's prior on its generator, both frozen.

    Arguments:
        run: a name, a folder or a `Run`; the one trained last when None.
        prior: its kind, such as "gaussian", "ebm", "diffusion-ebm", "flow" or "latent-ebm"; the best that is trained
            when None.
        runs: the folder of runs.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        precision: "float32" or "bf16", of generator and energies.
        readjust_bn: first re-estimate the generator's BatchNorm statistics on this many generated batches; 0 keeps
            those it was trained with.
        readjust_temperature: standard deviation of u in those batches.
        data_path: where the run's images are now, in place of its recipe's `data.path`.

    Raises:
        UsageError: a word that does not exist.
        HebmError: there is no such run, the prior is not trained, a file is unusable, or CUDA is absent.

    >>> hebmtool.load("digits", prior="gaussian")
    <Model digits: gaussian prior, 2 layers, images 1x8x8>
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is '{precision}'; choose one of {', '.join(PRECISIONS)}")
    where, found = pick_device(device), judging.opened(run, runs, data_path)
    if not found.one_stage:
        found.require_generator()
    kind = prior or found.priors()[-1]

    def prior_in(precision: str) -> Prior:
        return load_prior(found, kind, where, readjust_bn, readjust_temperature, precision)

    return Model(found, prior_in, precision)


class Model(Drawing, Looking, Coding):
    """A run's prior and generator, as `load` loads them.

    run: its folder.  recipe: what it was trained with.  prior: `hebmtool.prior.Prior`, over flat latents u [N, D].
    generator: `hebmtool.generator.Generator`, which turns them into images.

    Arguments that several methods share:
        n, seed: how many, and of what noise; what image i of a seed sees is the same at any n and batch_size;
            in bf16 what it becomes is so up to rounding.
        temperature: tau > 0; samples p^(1/tau^2), 1 being the prior itself.
        steps: Langevin steps, of every level or of each (least noise first); the prior's own when None.
        chain, settings: draw by another chain than the prior was learned with, "langevin", "preconditioned" or
            "underdamped", or by other values of its settings, eta, h, theta, persistence, renew (the recipe's `prior`).
        fast: with the few steps of `prior.fast`, by default only where the noise is least, and in bf16 (float32
            where that is faster).
        batch_size: images drawn at a time.
        failed: told of every file that cannot be read, which is then passed over; when None it ends the call.

    Raised by all that draw: UsageError for a number out of bounds or ways of drawing the prior does not have, HebmError
    where a chain left the numbers.
    """

    def __repr__(self) -> str:
        L, shape = self.generator.L, "x".join(map(str, self.generator.image_shape))
        layers = f"{L} layer{'s' * (L > 1)}"
        return f"<Model {self.run.name}: {self.prior.kind} prior, {layers}, images {shape}>"

    def diagnose(
        self,
        samples: int = 500,
        steps: int | None = None,
        seed: int = 0,
        parts: Sequence[str] = diagnostics.PARTS,
        *,
        chain: str | None = None,
        **settings: object,
    ) -> Diagnosed:
        """Find where the prior falls short: likelihood bounds, two-sample tests by layer and level, what its chains do.

        Arguments:
            samples: draws of each law in the two-sample tests.
            parts: of "likelihood", "two-sample" and "chains"; those that say nothing of the prior are passed over.

        Raises:
            UsageError: a part that does not exist, or a way of drawing that the prior does not have.
            HebmError: no part says anything.
        """
        at_least(20, samples=samples)
        at_least(1, steps=steps)
        at_least(0, seed=seed)
        prior = drawn_by(self.prior, given(chain, settings), steps)
        told = diagnostics.telling(prior, parts)
        found = diagnostics.diagnose_prior(prior, self.run, self.recipe, samples, steps, seed, told)
        return Diagnosed(str(self.run.path), found)

    def info(self) -> judging.Info:
        """`hebmtool.info` of the run."""
        return judging.info(self.run)

    def evaluate(self, **how: object) -> judging.Evaluated:
        """`hebmtool.evaluate` of the run's prior of this kind, with its arguments."""
        return judging.evaluate(self.run, self.prior.kind, device=str(self.device), **how)

    def report(self, seed: int = 0, batch_size: int = 64) -> judging.Page:
        """`hebmtool.api.report` of the run, all its priors included."""
        return judging.report(self.run, seed, batch_size, device=str(self.device))
