"""A latent of one layer with a flow for its prior, and no encoder ("A Tale of Two Latent Flows", "LFBM", Xie et al.
2023, https://arxiv.org/abs/2301.09300).

    z_0 ~ N(0, I),   z = f(z_0),   2x - 1 = g(z) + sigma eps
    log p(z) = log N(f^-1(z); 0, I) + log |det df^-1/dz|
    log p(z, x) = log p(z) - ||2x - 1 - g(z)||^2 / (2 sigma^2) + const       the norm being over observed pixels

f is a stack of couplings (RealNVP, https://arxiv.org/abs/1605.08803; splines, https://arxiv.org/abs/1906.04032) from
zuko, g a top-down network of transposed convolutions.  Inference is a short Langevin run (`hebmtool.short_run`).

Seen from the rest of the package `FlowModel` is a prior that brings its generator along: its latents, "u" elsewhere,
are z, and its generator has one layer.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from hebmtool import checkpoint
from hebmtool import recipe as recipes
from hebmtool.generator import TopDown
from hebmtool.prior import HeldStages, Noise, Prior, log_standard_normal
from hebmtool.run import Run
from hebmtool.short_run import short_run

BINS = 8
COUPLINGS = {
    "affine": {"univariate": MonotonicAffineTransform, "shapes": [(), ()]},
    "spline": {"univariate": MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]},
}
SMALLEST_MAP = 4
"""The first map is the image halved as long as no side falls below this."""


class TopDownNetwork(nn.Module):
    """g: z [N, D] -> pixels [N, C, H, W] in (-1, 1).

    Arguments:
        config: the recipe's `flow` part.
        image_shape: (C, H, W); sides that do not halve evenly are cropped.
    """

    L = 1

    def __init__(self, config: recipes.Flow, image_shape: tuple[int, int, int]):
        super().__init__()
        self.D, self.image_shape = config.latent, tuple(image_shape)
        channels, *sides = image_shape
        doublings = max(1, int(math.log2(min(sides) / SMALLEST_MAP)))
        widths = [config.width * 2**i for i in reversed(range(doublings))]
        first = [math.ceil(side / 2**doublings) for side in sides]
        self.constant = nn.Parameter(torch.zeros(widths[0], *first))
        self.project = nn.Linear(config.latent, self.constant.numel(), bias=False)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1)
            for c_in, c_out in zip(widths, [*widths[1:], channels], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.constant + self.project(z).unflatten(1, self.constant.shape)
        for up in self.ups:
            h = up(leaky_relu(h, 0.2))
        _, height, width = self.image_shape
        return torch.tanh(h[:, :, :height, :width])

    def images(self, z: Tensor) -> Tensor:
        """Mean images of p(x | z), [N, C, H, W] in [0, 1]."""
        return (self(z) + 1) / 2


class FlowModel(Prior):
    """Flow and top-down network; one checkpoint holds both.

    Arguments:
        config: the recipe's `flow` part.
        image_shape: (C, H, W).
    """

    kind = "flow"

    def __init__(self, config: recipes.Flow, image_shape: tuple[int, int, int]):
        nn.Module.__init__(self)
        self.config, D = config, config.latent
        self.g = TopDownNetwork(config, image_shape)
        couplings = []
        for i in range(config.transforms):
            if i % 2 == 0:
                mask = torch.randperm(D) % 2 == 0
            coupling = GeneralCouplingTransform(
                D,
                mask=mask if i % 2 == 0 else ~mask,
                hidden_features=(config.hidden,) * 2,
                **COUPLINGS[config.coupling],
            )
            # The identity, so that learning starts from N(0, I).
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)
            couplings.append(coupling)
        self.couplings = nn.ModuleList(couplings)

    @property
    def generator(self) -> TopDownNetwork:
        return self.g

    # The flow

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(f^-1(z) [N, D], log |det df^-1/dz| [N])."""
        total = z.new_zeros(len(z))
        for coupling in self.couplings:
            z, ladj = coupling().call_and_ladj(z)
            total = total + ladj
        return z, total

    def from_base(self, z_0: Tensor) -> Tensor:
        """z = f(z_0), [N, D]."""
        *_, z = self._stages(z_0)
        return z

    def _stages(self, z: Tensor) -> Iterator[Tensor]:
        yield z
        for coupling in reversed(self.couplings):
            z = coupling().inv(z)
            yield z

    def log_density(self, u: Tensor, walk: TopDown | None = None) -> Tensor:
        """log p(z), normalised, [N] nats."""
        z_0, ladj = self.to_base(u)
        return log_standard_normal(z_0) + ladj

    def trajectory(
        self, noise: Noise, steps: int | None = None, temperature: float = 1.0, held: HeldStages | None = None
    ) -> Iterator[Tensor]:
        """z_0 ~ N(0, temperature^2), then what each coupling makes of it.  There are no Langevin steps in a draw."""
        if held is not None:
            raise NotImplementedError("a flow has no layers to hold")
        with torch.no_grad():
            yield from self._stages(temperature * noise())

    # The joint model

    def log_pixels(self, z: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """-||2x - 1 - g(z)||^2 / (2 sigma^2), [N], over the pixels observed.

        Arguments:
            z: [N, D].
            x: [N, C, H, W] in [0, 1].
            observed: bool [N, 1, H, W]; all pixels when None.
        """
        error = (2 * x - 1 - self.g(z)).square()
        if observed is not None:
            error = error * observed
        return -error.flatten(1).sum(1) / (2 * self.config.sigma**2)

    def log_joint(self, z: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(z, x) up to a constant, [N]."""
        return self.log_density(z) + self.log_pixels(z, x, observed)

    @torch.no_grad()
    def start(self, z_0: Tensor, step: int | None = None) -> Tensor:
        """Where a chain starts, from z_0 ~ N(0, I), [N, D].

        Arguments:
            step: of learning; None afterwards.  In the first `warmup` steps it is z_0 itself: while g knows nothing,
                its slopes carry all chains far away, the flow follows them, and chains that start from the flow would
                start from there the next time.
        """
        warming = step is not None and step < self.config.warmup
        return z_0 if warming or self.config.start == "normal" else self.from_base(z_0)

    def infer(
        self, x: Tensor, z: Tensor, steps: int, noise: Callable[[], Tensor], observed: Tensor | None = None
    ) -> Tensor:
        """The short run from z towards p(z | x_observed), [N, D]."""
        return short_run(lambda z: self.log_joint(z, x, observed), z, steps, self.config.step_size, noise)

    def loss(self, z: Tensor, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """-log p(z, x) / (C H W) at inferred z, averaged, and its parts in nats per image."""
        log_z, log_x = self.log_density(z).mean(), self.log_pixels(z, x, observed).mean()
        return -(log_z + log_x) / math.prod(x.shape[1:]), {"log_z": log_z.item(), "log_x": log_x.item()}


def load_flow(run: Run, device: torch.device) -> FlowModel:
    """The run's flow model (averaged weights), frozen.

    Raises:
        HebmError: the run has none, or its file is unusable.
    """
    path = run.require_prior(FlowModel.kind)
    tensors, header = checkpoint.load(path, kind=FlowModel.kind)
    model = FlowModel(checkpoint.recipe(path, header).flow, header.extra["image_shape"])
    checkpoint.load_into(model, tensors, path)
    return model.to(device).eval().requires_grad_(False)
