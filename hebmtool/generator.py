"""The multi-layer generator p(x, z) = p(x | z) p(z), its encoder q(z | x), and the bijection T.

    p(z) = p(z_L) prod_{i<L} p(z_i | z_{>i}),        p(z_i | z_{>i}) = N(mu_i, sigma_i^2)
    T:    z_i = mu_i(z_{>i}) + sigma_i(z_{>i}) u_i          u ~ N(0, I) under the Gaussian prior
    T^-1: u_i = (z_i - mu_i(z_{>i})) / sigma_i(z_{>i})

Layer L is the top (coarsest, drawn first), layer 1 the bottom.  Inside the code lists run top first, so list index
l is layer L - l; `layer_number` is the one place that converts.  u and z travel as flat tensors [N, D], the
layers' maps one after another, top first; `split` gives the views [N, Z, h, w].

Everything that draws or reads latents (T, T^-1, the posterior, sampling) is the same walk down the tower,
`top_down`, and differs only in how z_i is chosen once mu_i and sigma_i are known.

A generator may be whitened for a prior: what goes in and comes out as flat u is then w of u = m + A w, in which the
aggregate posterior has mean 0 and covariance I.  Everything said of u and T holds for w and the bijection w -> z; the
walks go on holding the residuals u_i themselves.

The architecture is NVAE's (Vahdat & Kautz 2020, https://arxiv.org/abs/2007.03898).
"""

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool import recipe as recipes
from hebmtool.console import progress
from hebmtool.errors import HebmError, UsageError
from hebmtool.layers import ELU, Affine, AutoregressiveShift, Cell, Conv
from hebmtool.likelihood import log_normal, make_likelihood, normal_parameters

CELL_KINDS = {
    "res_bnswish": {role: ["res_bnswish"] * 2 for role in recipes.CELL_ROLES},
    "res_mbconv": {role: ["res_bnswish"] * 2 for role in recipes.CELL_ROLES}
    | {"normal_dec": ["mconv_e6k5g0"], "up_dec": ["mconv_e6k5g0"]}
    | {"normal_post": ["mconv_e3k5g0"], "up_post": ["mconv_e3k5g0"]},
    "mbconv_sep": {
        role: ["mconv_e6k5g0"] if role.endswith(("_enc", "_dec")) else ["mconv_e3k5g0"] for role in recipes.CELL_ROLES
    },
}


@dataclass
class TopDown:
    """What one walk down the tower met, lists top first, one entry per layer walked.

    z, mu, sigma, u: [N, Z, h, w].  h: the top-down state at the layer, [N, C, h, w], a function of z_{>i}.
    """

    z: list[Tensor] = field(default_factory=list)
    u: list[Tensor] = field(default_factory=list)
    mu: list[Tensor] = field(default_factory=list)
    sigma: list[Tensor] = field(default_factory=list)
    h: list[Tensor] = field(default_factory=list)


@dataclass
class Posterior:
    """A draw z ~ q(z | x) and what training needs of it.

    walk: the walk that drew it.  kl: [N, L] nats per layer, top first.  log_ratio: log q(z_i | z_{>i}, x) / p(z_i |
    z_{>i}) at the draw itself, [N, L], of which kl is the mean (and which it is where flows leave it no closed form).
    """

    walk: TopDown
    kl: Tensor
    log_ratio: Tensor


class Whitening(nn.Module):
    """The affine map u = m + A w.

    A is lower triangular, top layer first, so that a layer's u depends on its own w and on those of layers above, as z
    does on u: layers can be held and drawn again in w as they can in u.

    Arguments:
        mean: m, [D].
        factor: A, [D, D], lower triangular with a positive diagonal.
    """

    def __init__(self, mean: Tensor, factor: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        # In the layout it is read back in from a file: a product of another one differs in its last bit.
        self.register_buffer("factor", factor.contiguous())

    @classmethod
    def identity(cls, D: int) -> "Whitening":
        """The one that changes nothing."""
        return cls(torch.zeros(D), torch.eye(D))

    def to_u(self, w: Tensor) -> Tensor:
        """[N, d] -> [N, d], the first d <= D dimensions."""
        d = w.shape[1]
        return self.mean[:d] + w @ self.factor[:d, :d].T

    def to_w(self, u: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return torch.linalg.solve_triangular(self.factor, (u - self.mean).T, upper=False).T

    @property
    def log_scale(self) -> Tensor:
        """log |du_i / dw_i| of every dimension, [D]."""
        return self.factor.diagonal().log()

    @property
    def digest(self) -> str:
        """SHA-256 of m and A."""
        return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in (self.mean, self.factor))).hexdigest()

    @property
    def nats(self) -> float:
        """KL(N(m, A A^T) || N(0, I)): the part of the prior hole that a mean and a covariance know of."""
        square = self.factor.square().sum() + self.mean.square().sum() - len(self.mean)
        return (0.5 * square - self.log_scale.sum()).item()


class EncoderLayer(nn.Module):
    """One layer's share of the bottom-up tower, and its posterior's head."""

    def __init__(self, cells: nn.Module, down: nn.Module | None, merge: nn.Module | None, head: nn.Module):
        super().__init__()
        self.cells, self.down, self.merge, self.head = cells, down, merge, head


class DecoderLayer(nn.Module):
    """One layer's share of the top-down tower: cells, the prior's head, the combiner with z, and what follows."""

    def __init__(self, cells: nn.Module, head: nn.Module | None, combine: nn.Module, up: nn.Module | None):
        super().__init__()
        self.cells, self.head, self.combine, self.up = cells, head, combine, up


def layers_at_each_scale(g: recipes.Generator) -> list[int]:
    """Number of latent layers at each scale, coarsest (top) first."""
    counts = [g.layers_per_scale]
    for _ in range(g.scales - 1):
        counts.append(max(counts[-1] // 2, g.min_layers_per_scale) if g.halve else g.layers_per_scale)
    return counts[::-1]


class Generator(nn.Module):
    """A hierarchical VAE in NVAE's architecture.

    Arguments:
        config: the recipe's `generator` part.
        image_shape: (C, H, W) of the images.  Inside, they are centred in zeros of `padded_size`, a multiple of
            2^(scales - 1 + preprocess_blocks) (and MNIST's 28 always in at least 32, as in NVAE); outputs are cropped
            back.
        bits: bits per channel of the images.

    Images are [N, C, H, W] in [0, 1].  `L` layers, `D` latent dimensions.
    """

    def __init__(self, config: recipes.Generator, image_shape: tuple[int, int, int], bits: int = 8):
        super().__init__()
        self.config, self.image_shape, self.bits = config, tuple(image_shape), bits
        self.precision = "float32"  # of a frozen one's states and weights
        self.whitening: Whitening | None = None
        self.likelihood = make_likelihood(config.likelihood, config.mixtures, bits)
        channels, height, width = image_shape
        factor = 2 ** (config.scales - 1 + config.preprocess_blocks)
        inner = (32 if side == 28 else side for side in (height, width))
        self.padded_size = tuple(math.ceil(side / factor) * factor for side in inner)
        self.margins = tuple((full - side) // 2 for full, side in zip(self.padded_size, (height, width), strict=True))

        ops = config.cells if isinstance(config.cells, dict) else CELL_KINDS[config.cells]
        se, z = config.squeeze_excitation, config.latent_channels

        def cell(kind: str, part: str, c_in: int, c_out: int) -> Cell:
            return Cell(kind, ops[f"{kind}_{part}"], c_in, c_out, se)

        # Bottom-up: stem, preprocessing, then the layers' encoder parts, bottom to top.
        c = config.encoder_channels
        self.stem = Conv(channels, c, 3)
        pre = []
        for _ in range(config.preprocess_blocks):
            pre += [cell("normal", "pre", c, c) for _ in range(config.preprocess_cells - 1)]
            pre.append(cell("down", "pre", c, 2 * c))
            c *= 2
        self.preprocess = nn.Sequential(*pre)

        counts = layers_at_each_scale(config)
        self.L = sum(counts)
        scale_of = [scale for scale, count in enumerate(counts) for _ in range(count)]  # top first, 0 = coarsest
        resolution = [
            tuple(side // 2 ** (config.preprocess_blocks + config.scales - 1 - scale) for side in self.padded_size)
            for scale in scale_of
        ]
        self.latent_shapes = [(z, *hw) for hw in resolution]
        sizes = [math.prod(shape) for shape in self.latent_shapes]
        self.D = sum(sizes)
        starts = [sum(sizes[:l]) for l in range(self.L)]
        self.slices = [slice(a, a + n) for a, n in zip(starts, sizes, strict=True)]

        def enc_width(scale: int) -> int:
            return config.encoder_channels * 2 ** (config.preprocess_blocks + config.scales - 1 - scale)

        def dec_width(scale: int) -> int:
            return config.decoder_channels * 2 ** (config.preprocess_blocks + config.scales - 1 - scale)

        encoder, decoder = [], []
        for l, scale in enumerate(scale_of):
            e, d = enc_width(scale), dec_width(scale)
            top = l == 0
            first_of_scale = top or scale_of[l - 1] != scale
            last_of_scale = l == self.L - 1 or scale_of[l + 1] != scale
            encoder.append(
                EncoderLayer(
                    nn.Sequential(*(cell("normal", "enc", e, e) for _ in range(config.encoder_cells))),
                    cell("down", "enc", e, 2 * e) if first_of_scale and not top else None,
                    None if top else Conv(d, e, 1),
                    Conv(e, 2 * z, 3),
                )
            )
            decoder.append(
                DecoderLayer(
                    nn.Sequential(*(cell("normal", "dec", d, d) for _ in range(0 if top else config.decoder_cells))),
                    None if top else nn.Sequential(ELU(), Conv(d, 2 * z, 1)),
                    Conv(d + z, d, 1),
                    cell("up", "dec", d, d // 2) if last_of_scale and l < self.L - 1 else None,
                )
            )
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        top_width = enc_width(0)
        self.top = nn.Sequential(ELU(), Conv(top_width, top_width, 1), ELU())
        self.constant = nn.Parameter(torch.randn(dec_width(0), *resolution[0]))
        self.flows = nn.ModuleList(
            nn.Sequential(*(AutoregressiveShift(z, mirrored=bool(j % 2)) for j in range(2 * config.flows)))
            for _ in range(self.L)
        )

        # From the bottom latent back to pixels.
        c = dec_width(config.scales - 1)
        post = []
        for _ in range(config.postprocess_blocks):
            post.append(cell("up", "post", c, c // 2))
            c //= 2
            post += [cell("normal", "post", c, c) for _ in range(config.postprocess_cells - 1)]
        self.postprocess = nn.Sequential(*post)
        self.image_head = nn.Sequential(ELU(), Conv(c, self.likelihood.parameters(channels), 3))
        # The layout convolutions run fastest in, on CPUs and GPUs alike; states follow their weights.
        self.to(memory_format=torch.channels_last)

    # Layout ---------------------------------------------------------------------------------------------------------

    def layer_number(self, l: int) -> int:
        """Layer number (1 = bottom, L = top) of list index l (0 = top), and the other way round."""
        return self.L - l

    def split(self, flat: Tensor) -> list[Tensor]:
        """Flat latents [N, D] (or their first layers') -> views [N, Z, h, w], top first."""
        sizes = [s.stop - s.start for s in self.slices if s.stop <= flat.shape[1]]
        # Not slice by slice, whose gradients would each be as large as all of u.
        maps = flat[:, : sum(sizes)].split(sizes, dim=1)
        return [m.unflatten(1, shape) for m, shape in zip(maps, self.latent_shapes, strict=False)]

    @staticmethod
    def join(maps: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([m.flatten(1) for m in maps], dim=1)

    # The top-down tower ---------------------------------------------------------------------------------------------

    def _walk(self, choose: Callable[..., tuple[Tensor, Tensor]], n: int, layers: int) -> TopDown:
        """Walk the first `layers` layers from the top; `choose` gives (z_i, u_i) for (l, state, raw, mu_i, sigma_i)."""
        walk = TopDown()
        s = self.constant.expand(n, *self.constant.shape)
        for l, layer in enumerate(self.decoder[:layers]):
            if l > 0:
                s = self._descend(l - 1, s, walk.z[-1])
                s = layer.cells(s)
                # Latents, their densities and T stay in float32, whatever the precision.
                raw = layer.head(s).float()
            else:
                raw = s.new_zeros(n, 2 * self.config.latent_channels, *s.shape[2:]).float()
            mu, sigma = normal_parameters(*raw.chunk(2, dim=1))
            z, u = choose(l, s, raw, mu, sigma)
            walk.z.append(z)
            walk.u.append(u)
            walk.mu.append(mu)
            walk.sigma.append(sigma)
            walk.h.append(s)
        return walk

    def _descend(self, l: int, s: Tensor, z: Tensor) -> Tensor:
        layer = self.decoder[l]
        s = layer.combine(torch.cat([s, z.to(s.dtype)], dim=1))
        return s if layer.up is None else layer.up(s)

    def top_down(self, u: Tensor, layers: int | None = None) -> TopDown:
        """Walk with z = T(u).

        Arguments:
            u: [N, D], or only as many of the top layers as `layers` asks for.
            layers: walk only this many layers from the top; all of them by default.  Pixels are never computed.
        """
        maps = self.split(self.residuals(u))
        depth = self.L if layers is None else layers
        return self._walk(lambda l, s, raw, mu, sigma: (mu + sigma * maps[l], maps[l]), len(u), depth)

    def T(self, u: Tensor) -> Tensor:
        """z = T(u).  [N, D] -> [N, D]."""
        return self.join(self.top_down(u).z)

    def T_inverse(self, z: Tensor) -> Tensor:
        """u = T^-1(z).  [N, D] -> [N, D]."""
        maps = self.split(z)
        walk = self._walk(lambda l, s, raw, mu, sigma: (maps[l], (maps[l] - mu) / sigma), len(z), self.L)
        return self.latents(walk)

    def decode(self, walk: TopDown) -> Tensor:
        """Parameters of p(x | z), [N, P, H, W], from a whole walk."""
        s = self._descend(self.L - 1, walk.h[-1], walk.z[-1])
        logits = self.image_head(self.postprocess(s)).float()
        (top, left), (height, width) = self.margins, self.image_shape[1:]
        return logits[:, :, top : top + height, left : left + width]

    def images(self, u: Tensor) -> Tensor:
        """Mean images of p(x | T(u)).  [N, D] -> [N, C, H, W] in [0, 1]."""
        return self.likelihood.mean(self.decode(self.top_down(u)))

    # The encoder ----------------------------------------------------------------------------------------------------

    def _bottom_up(self, x: Tensor) -> list[Tensor]:
        """What each layer's posterior reads of the image, top first, [N, C, h, w]."""
        (top, left), (height, width) = self.margins, self.padded_size
        x = F.pad(x, (left, width - left - x.shape[3], top, height - top - x.shape[2]))
        s = self.preprocess(self.stem(2 * x - 1))
        seen: list[Tensor] = [s] * self.L
        for l in reversed(range(self.L)):
            s = seen[l] = self.encoder[l].cells(s)
            if self.encoder[l].down is not None:
                s = self.encoder[l].down(s)
        seen[0] = self.top(seen[0])
        return seen

    def posterior(self, x: Tensor, noise: Tensor | None = None) -> Posterior:
        """Draw z ~ q(z | x).

        Arguments:
            x: images, [N, C, H, W] in [0, 1].
            noise: [N, D] standard normal; drawn when None; zeros give the posterior means (through the flows).
        """
        seen = self._bottom_up(x)
        epsilon = None if noise is None else self.split(noise)
        kl, log_ratio = [], []

        def choose(l: int, s: Tensor, raw: Tensor, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            mu_q, sigma_q = self._posterior_parameters(l, seen[l], s, raw)
            e = torch.randn_like(mu_q) if epsilon is None else epsilon[l]
            z_q = mu_q + sigma_q * e
            z = self.flows[l](z_q)
            layer_kl = layer_ratio = log_normal(z_q, mu_q, sigma_q) - log_normal(z, mu, sigma)
            if not self.config.flows:
                ratio = sigma_q / sigma
                layer_kl = 0.5 * (((mu_q - mu) / sigma).square() + ratio.square()) - 0.5 - ratio.log()
            kl.append(layer_kl.flatten(1).sum(1))
            log_ratio.append(layer_ratio.flatten(1).sum(1))
            return z, (z - mu) / sigma

        walk = self._walk(choose, len(x), self.L)
        return Posterior(walk, torch.stack(kl, dim=1), torch.stack(log_ratio, dim=1))

    def _posterior_parameters(self, l: int, seen: Tensor, s: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of q(z_i | z_{>i}, x), before the flows."""
        layer = self.encoder[l]
        raw_q = layer.head(seen if layer.merge is None else seen + layer.merge(s)).float()
        return normal_parameters(*(raw_q + raw if self.config.residual_posterior else raw_q).chunk(2, dim=1))

    def posterior_score(self, u: Tensor, x: Tensor) -> Tensor:
        """grad_u log q(u | x), [N, D]: q(u | x) is the posterior carried to u by T^-1.

        Its mean over the x that could have given u is the score of the aggregate posterior, so it is what score
        matching regresses on where no noise has been added.

        Raises:
            HebmError: the posterior has flows, whose density at a given z has no closed form.
        """
        if self.config.flows:
            raise HebmError(
                f"the posterior score needs a posterior without flows, and this generator has {self.config.flows} per "
                "layer; train its prior with prior.objective=recovery"
            )
        with torch.no_grad():
            seen = self._bottom_up(x)
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            maps, log_q = self.split(self.residuals(u)), []

            def choose(l: int, s: Tensor, raw: Tensor, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
                z = mu + sigma * maps[l]
                density = log_normal(z, *self._posterior_parameters(l, seen[l], s, raw)) + sigma.log()
                log_q.append(density.sum())
                return z, maps[l]

            self._walk(choose, len(x), self.L)
            return torch.autograd.grad(sum(log_q), u)[0]

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """u = T^-1(z) for z ~ q(z | x).  [N, C, H, W] -> [N, D]."""
        return self.latents(self.posterior(x, noise).walk)

    # Whitened latents -----------------------------------------------------------------------------------------------

    def whiten(self, whitening: Whitening) -> "Generator":
        """Take w for u from here on, in place; returns this generator, which has to be frozen."""
        if not self.is_frozen:
            raise ValueError("only a frozen generator can be whitened: training needs the latents it has")
        self.whitening = whitening.to(self.constant.device)
        return self

    @property
    def whitening_digest(self) -> str | None:
        """Which latents these are: `Whitening.digest`, None where nothing is whitened."""
        return None if self.whitening is None else self.whitening.digest

    def residuals(self, u: Tensor) -> Tensor:
        """What `whitened` made u of, or the first dimensions' of it, [N, d]."""
        return u if self.whitening is None else self.whitening.to_u(u)

    def latents(self, walk: TopDown) -> Tensor:
        """u of a whole walk, [N, D]."""
        return self.whitened(self.join(walk.u))

    def whitened(self, residuals: Tensor) -> Tensor:
        """u for residuals [N, D], such as draws of N(0, I), this generator's own prior."""
        return residuals if self.whitening is None else self.whitening.to_w(residuals)

    def whitening_ratio(self, u: Tensor) -> Tensor:
        """What whitening alone knows, by layer: log of N(0, I) in w over N(0, I) in the residuals, densities of one law
        over the other's in the same coordinates.  u: [N, D] -> [N, L] nats, top first; 0 where nothing is whitened."""
        if self.whitening is None:
            return u.new_zeros(len(u), self.L)
        terms = 0.5 * (self.residuals(u).square() - u.square()) - self.whitening.log_scale
        return torch.stack([terms[:, s].sum(1) for s in self.slices], dim=1)

    # Use ------------------------------------------------------------------------------------------------------------

    def frozen(self, precision: str = "float32") -> "Generator":
        """A copy for inference: no gradients for parameters, weights normalised and BatchNorms taken into the
        convolutions beside them once and for all.  It computes what this one computes in evaluation mode.

        Arguments:
            precision: "float32", or "bf16" for states and weights; latents, their densities and pixels stay in float32.
        """
        if self.is_frozen:
            raise ValueError("this generator is frozen already; freeze the one it was made from")
        twin = copy.deepcopy(self).eval().requires_grad_(False)
        for conv in twin.modules():
            if isinstance(conv, Conv):
                conv.fold()
        for cell in twin.modules():
            if isinstance(cell, Cell):
                cell.fold()
        for module in list(twin.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, Affine(child))
        twin.precision = precision
        return twin.to(torch.bfloat16) if precision == "bf16" else twin

    @property
    def is_frozen(self) -> bool:
        return self.image_head[1].folded is not None

    def bits_per_dim(self, log_px: Tensor) -> Tensor:
        """Bits per dimension from a log-likelihood (or bound) in nats, [N] -> [N]."""
        dims = math.prod(self.image_shape)
        return -(log_px / dims + self.likelihood.log_bin) / math.log(2)


@torch.no_grad()
def readjust_batchnorm(
    generator: Generator, batches: int = 500, batch_size: int = 64, temperature: float = 1.0, seed: int = 0
) -> None:
    """Re-estimate, in place, the running statistics of the BatchNorms that generation passes.

    As NVAE and "Learning Latent Space Hierarchical EBM Diffusion Models" (https://arxiv.org/abs/2405.13910) do before
    stage two: the plain average of the statistics of `batches` generated batches.  The encoder's stay as they are.
    A frozen generator has no such statistics left.

    Arguments:
        batch_size: images per batch, at least 2.
        temperature: standard deviation of u; below 1 the images generated are nearer to the mode.
        seed: the draws depend on it alone.

    Raises:
        UsageError: a number out of range.
        ValueError: the generator is frozen.
    """
    for what, value, least in (("batches", batches, 1), ("batch size", batch_size, 2)):
        if value < least:
            raise UsageError(f"the {what} to re-estimate BatchNorm statistics is {value}, but must be at least {least}")
    if not 0 < temperature < math.inf:
        raise UsageError(f"the temperature to re-estimate BatchNorm statistics is {temperature}, but must be above 0")
    modules = [m for part in (generator.decoder, generator.postprocess) for m in part.modules()]
    if generator.is_frozen:
        raise ValueError("a frozen generator has no BatchNorm statistics; re-estimate them before freezing it")
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
    before = [(bn.momentum, bn.training) for bn in norms]
    for bn in norms:
        bn.reset_running_stats()
        bn.momentum = None  # torch's word for a plain average
        bn.train()
    draws = torch.Generator().manual_seed(seed)
    try:
        with progress("BatchNorm statistics", batches) as bar:
            for _ in range(batches):
                u = temperature * torch.randn(batch_size, generator.D, generator=draws)
                generator.decode(generator.top_down(u.to(generator.constant.device)))
                bar.advance()
    finally:
        for bn, (momentum, training) in zip(norms, before, strict=True):
            bn.momentum = momentum
            bn.train(training)
