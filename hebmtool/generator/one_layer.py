"""A generator of one layer whose latent is drawn from N(0, I) or from whatever prior comes with it: T is the identity.

    2x - 1 = g(z) + sigma eps,       g: a top-down network of transposed convolutions

There is no encoder: latents of images are inferred by Langevin dynamics ("A Tale of Two Latent Flows", Xie et al. 2023,
https://arxiv.org/abs/2301.09300).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from hebmtool import recipe as recipes
from hebmtool.generator.base import Generator, TopDown
from hebmtool.generator.likelihood import FixedGaussian


class OneLayer(Generator):
    """g: z [N, D] -> pixels [N, C, H, W] in (-1, 1): a linear map to the first one, then transposed convolutions.

    The first map is the image halved as long as no side falls below `first_map`; channels halve as it doubles, or with
    `even` are as many in all.  The last one gives the pixels, or with the head "conv" another map of their resolution,
    which a 3x3 convolution reads.

    Arguments:
        config: the recipe's `flow` part.
        image_shape: (C, H, W); sides that do not halve evenly are cropped.
    """

    has_encoder = False

    def __init__(self, config: recipes.Flow, image_shape: tuple[int, int, int]):
        super().__init__()
        self.image_shape, self.latent_shapes, self.state_channels = tuple(image_shape), [(config.latent, 1, 1)], [1]
        self.likelihood = FixedGaussian(config.sigma)
        channels, *sides = image_shape
        doublings = max(1, int(math.log2(max(1, min(sides) / config.first_map))))
        widths = [config.width * (1 if config.even else 2**i) for i in reversed(range(doublings))]
        half = config.width if config.even else max(1, config.width // 2)
        full = half if config.head == "conv" else channels
        first = [math.ceil(side / 2**doublings) for side in sides]
        self.constant = nn.Parameter(torch.zeros(widths[0], *first))
        self.project = nn.Linear(config.latent, self.constant.numel(), bias=False)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1)
            for c_in, c_out in zip(widths, [*widths[1:], full], strict=True)
        )
        self.head = nn.Conv2d(full, channels, 3, padding=1) if config.head == "conv" else None

    def forward(self, z: Tensor) -> Tensor:
        h = self.constant + self.project(z).unflatten(1, self.constant.shape)
        for up in self.ups:
            h = up(leaky_relu(h, 0.2))
        if self.head is not None:
            h = self.head(leaky_relu(h, 0.2))
        _, height, width = self.image_shape
        return torch.tanh(h[:, :, :height, :width])

    def walk(self, u: Tensor, layers: int | None = None) -> TopDown:
        z = u[:, :, None, None]
        return TopDown([z], [z], [torch.zeros_like(z)], [torch.ones_like(z)], [z.new_zeros(len(z), 1, 1, 1)])

    def T_inverse(self, z: Tensor) -> Tensor:
        return z

    def decode(self, walk: TopDown) -> Tensor:
        return self(walk.z[0].flatten(1))
