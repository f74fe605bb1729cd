"""p(x | z): what the decoder's last feature map means for the pixels, and how it reads them.

Images are float, [N, C, H, W] in [0, 1]; parameters ("logits") are the decoder's output [N, P, H, W].  `log_bin` is the
log volume of a pixel's bin, which turns a density into a probability for bits per dimension (0 where `log_prob` is a
probability already).
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from hebmtool import recipe as recipes
from hebmtool import rows
from hebmtool.recipe import words

# Beyond these raw values a latent's mean and log-scale saturate (NVAE, https://arxiv.org/abs/2007.03898).
SOFT_CLAMP = 5.0
SIGMA_FLOOR = 0.01


def soft_clamp(x: Tensor) -> Tensor:
    """5 tanh(x / 5): the identity near 0, bounded by +-5.  Through the sigmoid, which is ten times as fast as tanh on a
    CPU, and exact to the rounding of 5."""
    return 2 * SOFT_CLAMP * torch.sigmoid(x * (2 / SOFT_CLAMP)) - SOFT_CLAMP


def normal_parameters(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every Normal in the generator, from its raw parameters."""
    return soft_clamp(mu), soft_clamp(log_sigma).exp() + SIGMA_FLOOR


def log_normal(x: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Elementwise log N(x; mu, sigma^2)."""
    return -0.5 * ((x - mu) / sigma).square() - sigma.log() - 0.5 * math.log(2 * math.pi)


LIKELIHOODS: dict[str, type["Likelihood"]] = {}
"""By the recipe's word, `generator.likelihood`."""


class Likelihood(ABC):
    """p(x | z).  A subclass with a `word` in its definition is what `generator.likelihood` then calls by it."""

    log_bin = 0.0

    def __init_subclass__(cls, word: str | None = None, **keys):
        super().__init_subclass__(**keys)
        if word is not None:
            LIKELIHOODS[word] = cls
            words.LIKELIHOODS.add(word)

    @classmethod
    def from_recipe(cls, config: recipes.Generator, bits: int) -> "Likelihood":
        """The one that the recipe's `generator` part describes, of images with so many bits per channel."""
        return cls()

    @abstractmethod
    def parameters(self, channels: int) -> int:
        """P, for images of C channels."""

    @abstractmethod
    def read(self, v: Tensor, bits: int) -> Tensor:
        """Pixels as `log_prob` wants them, from whole numbers v in 0 .. 2^bits - 1, float [N, C, H, W].  May draw from
        torch's global generator."""

    def read_grey(self, v: Tensor, bits: int) -> Tensor:
        """The same without drawing, where a mean over draws of `read` is the likelihood there; else `read` itself."""
        return self.read(v, bits)

    @abstractmethod
    def pixels(self, logits: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) of every pixel, [N, H, W] nats, its channels together."""

    def log_prob(self, logits: Tensor, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """log p(x | z) of the visible pixels (bool [N, 1, H, W]; all when None), [N] nats."""
        pixels = self.pixels(logits, x)
        return (pixels if visible is None else pixels * visible[:, 0]).flatten(1).sum(1)

    @abstractmethod
    def mean(self, logits: Tensor) -> Tensor:
        """Mean images, [N, C, H, W] in [0, 1]."""

    @abstractmethod
    def sample(self, logits: Tensor) -> Tensor:
        """Images drawn from p(x | z), [N, C, H, W] in [0, 1]."""

    def bits_per_dim(self, log_px: Tensor, dims: int) -> Tensor:
        """Bits per dimension of images with so many dimensions, from log p(x) (or a bound) in nats, [N] -> [N]."""
        return -(log_px / dims + self.log_bin) / math.log(2)


class Bernoulli(Likelihood, word="bernoulli"):
    """Binary pixels, x ~ Bernoulli(v / (2^b - 1)); `mean` is the probability of a lit pixel, shown as grey."""

    def read(self, v: Tensor, bits: int) -> Tensor:
        return rows.bernoulli(self.read_grey(v, bits))

    def read_grey(self, v: Tensor, bits: int) -> Tensor:
        return v / (2**bits - 1)

    def parameters(self, channels: int) -> int:
        return channels

    def pixels(self, logits: Tensor, x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)

    def mean(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def sample(self, logits: Tensor) -> Tensor:
        return rows.bernoulli(torch.sigmoid(logits))


class Gaussian(Likelihood, word="gaussian"):
    """A density at y = 2x - 1 with learned mean and scale per pixel.

    Arguments:
        bits: bits per channel of the images, for `log_bin` only.
    """

    def __init__(self, bits: int):
        self.log_bin = math.log(2 / 2**bits)

    @classmethod
    def from_recipe(cls, config: recipes.Generator, bits: int) -> "Gaussian":
        return cls(bits)

    def read(self, v: Tensor, bits: int) -> Tensor:
        """x = (v + U(0, 1)) / 2^b: a density needs values that are not on a grid."""
        return (v + rows.rand_like(v)) / 2**bits

    def parameters(self, channels: int) -> int:
        return 2 * channels

    def pixels(self, logits: Tensor, x: Tensor) -> Tensor:
        mu, sigma = normal_parameters(*logits.chunk(2, dim=1))
        return log_normal(2 * x - 1, mu, sigma).sum(1)

    def mean(self, logits: Tensor) -> Tensor:
        mu, _ = normal_parameters(*logits.chunk(2, dim=1))
        return ((mu.clamp(-1, 1) + 1) / 2).clamp(0, 1)

    def sample(self, logits: Tensor) -> Tensor:
        mu, sigma = normal_parameters(*logits.chunk(2, dim=1))
        return (((mu + sigma * rows.randn_like(mu)).clamp(-1, 1) + 1) / 2).clamp(0, 1)


class FixedScale(Gaussian, word="fixed-gaussian"):
    """N(2x - 1; mu, sigma^2), one sigma for all pixels: squared error, weighed.

    Arguments:
        sigma: standard deviation of pixels, which reach from -1 to 1.
    """

    def __init__(self, sigma: float, bits: int):
        super().__init__(bits)
        self.sigma = sigma

    @classmethod
    def from_recipe(cls, config: recipes.Generator, bits: int) -> "FixedScale":
        return cls(config.sigma, bits)

    def parameters(self, channels: int) -> int:
        return channels

    def pixels(self, logits: Tensor, x: Tensor) -> Tensor:
        return log_normal(2 * x - 1, torch.tanh(logits), torch.full_like(logits, self.sigma)).sum(1)

    def mean(self, logits: Tensor) -> Tensor:
        return (torch.tanh(logits) + 1) / 2

    def sample(self, logits: Tensor) -> Tensor:
        return ((torch.tanh(logits) + self.sigma * torch.randn_like(logits) + 1) / 2).clamp(0, 1)


class Mixture(Likelihood, word="mixture"):
    """Mixture of M discretised logistics at y = 2x - 1, colours coupled (PixelCNN++, arXiv 1701.05517).

    Parameters: M weights; then per colour M means, M log-scales (clamped at -7) and M coefficients (through
    tanh).  Green's mean moves with the red value, blue's with red and green.  Grey images have no coefficients.

    Arguments:
        mixtures: M.
        bits: bits per channel; y lies on a grid of 2^bits values.
    """

    def __init__(self, mixtures: int, bits: int):
        self.mixtures = mixtures
        self.levels = 2**bits - 1

    @classmethod
    def from_recipe(cls, config: recipes.Generator, bits: int) -> "Mixture":
        return cls(config.mixtures, bits)

    def read(self, v: Tensor, bits: int) -> Tensor:
        return v / (2**bits - 1)

    def parameters(self, channels: int) -> int:
        return self.mixtures * (1 + channels * (3 if channels == 3 else 2))

    def _split(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Weights [N, M, H, W]; means, log-scales [N, C, M, H, W]; coefficients likewise, none for grey."""
        n, p, h, w = logits.shape
        colour = 3 if p == 10 * self.mixtures else 1
        # Parts are split off and not indexed: the gradient of every index is a map of zeros as large as the whole.
        weights, rest = logits.split([self.mixtures, p - self.mixtures], dim=1)
        mean, log_scale, *coefficients = rest.reshape(n, colour, -1, self.mixtures, h, w).unbind(2)
        return weights, mean, log_scale.clamp(min=-7.0), torch.tanh(coefficients[0]) if colour == 3 else None

    def pixels(self, logits: Tensor, x: Tensor) -> Tensor:
        weights, mean, log_scale, c = self._split(logits)
        y = (2 * x - 1)[:, :, None]
        if c is not None:
            (red, green, _), (a, b, d), (first, second, third) = y.unbind(1), c.unbind(1), mean.unbind(1)
            mean = torch.stack([first, second + a * red, third + b * red + d * green], dim=1)
        centred, inverse = y - mean, torch.exp(-log_scale)
        plus, minus = inverse * (centred + 1 / self.levels), inverse * (centred - 1 / self.levels)
        difference = torch.sigmoid(plus) - torch.sigmoid(minus)
        middle = inverse * centred
        log_density = middle - log_scale - 2 * F.softplus(middle)
        # Where the bin's probability underflows, the density times the bin's width stands in for it.
        inside = torch.where(
            difference > 1e-5, difference.clamp(min=1e-10).log(), log_density + math.log(2 / self.levels)
        )
        log_p = torch.where(y < -0.999, F.logsigmoid(plus), torch.where(y > 0.99, -F.softplus(minus), inside))
        log_p = log_p.sum(1) + torch.log_softmax(weights, dim=1)
        return torch.logsumexp(log_p, dim=1)

    @staticmethod
    def _couple(y: Tensor, c: Tensor | None) -> Tensor:
        """Images in [0, 1] from values y [N, C, H, W] before coupling, and coefficients likewise."""
        if c is None:
            return (y.clamp(-1, 1) + 1) / 2
        red = y[:, 0].clamp(-1, 1)
        green = (y[:, 1] + c[:, 0] * red).clamp(-1, 1)
        blue = (y[:, 2] + c[:, 1] * red + c[:, 2] * green).clamp(-1, 1)
        return (torch.stack([red, green, blue], dim=1) + 1) / 2

    def mean(self, logits: Tensor) -> Tensor:
        weights, mean, _, c = self._split(logits)
        share = torch.softmax(weights, dim=1)[:, None]
        return self._couple((share * mean).sum(2), None if c is None else (share * c).sum(2))

    def sample(self, logits: Tensor) -> Tensor:
        weights, mean, log_scale, c = self._split(logits)
        gumbel = -torch.log(-torch.log(rows.rand_like(weights).clamp(1e-7, 1 - 1e-7)))
        # One component per pixel, the same for all colours.
        chosen = F.one_hot((weights + gumbel).argmax(1), self.mixtures).movedim(-1, 1)[:, None].to(mean.dtype)
        mean, log_scale = (mean * chosen).sum(2), (log_scale * chosen).sum(2)
        noise = rows.rand_like(mean).clamp(1e-5, 1 - 1e-5)
        y = mean + log_scale.exp() * torch.logit(noise)
        return self._couple(y, None if c is None else (c * chosen).sum(2))


class FixedGaussian(Likelihood):
    """N(2x - 1; mu, sigma^2) up to a constant, one sigma for all pixels, mu in (-1, 1) being the logits themselves.

    Arguments:
        sigma: standard deviation of pixels, which reach from -1 to 1.
    """

    def __init__(self, sigma: float):
        self.sigma = sigma

    def parameters(self, channels: int) -> int:
        return channels

    def read(self, v: Tensor, bits: int) -> Tensor:
        return v / (2**bits - 1)

    def pixels(self, logits: Tensor, x: Tensor) -> Tensor:
        return -(2 * x - 1 - logits).square().sum(1) / (2 * self.sigma**2)

    def log_prob(self, logits: Tensor, x: Tensor, visible: Tensor | None = None) -> Tensor:
        error = (2 * x - 1 - logits).square()
        if visible is not None:
            error = error * visible
        return -error.flatten(1).sum(1) / (2 * self.sigma**2)

    def mean(self, logits: Tensor) -> Tensor:
        return (logits + 1) / 2

    def sample(self, logits: Tensor) -> Tensor:
        return ((logits + self.sigma * rows.randn_like(logits) + 1) / 2).clamp(0, 1)
