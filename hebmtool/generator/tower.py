"""The multi-layer generator of NVAE, and its encoder (Vahdat & Kautz 2020, https://arxiv.org/abs/2007.03898).

Everything that draws or reads latents (T, T^-1, the posterior, sampling) is the same walk down the tower, `_walk`, and
differs only in how z_i is chosen once mu_i and sigma_i are known.
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hebmtool import recipe as recipes
from hebmtool import rows
from hebmtool.errors import HebmError
from hebmtool.generator.base import Generator, Posterior, TopDown
from hebmtool.generator.layers import ELU, Affine, AutoregressiveShift, Cell, Conv
from hebmtool.generator.likelihood import LIKELIHOODS, log_normal, normal_parameters
from hebmtool.generator.norm import computed_again
from hebmtool.generator.whitening import Whitening

CELL_KINDS = {
    "res_bnswish": {role: ["res_bnswish"] * 2 for role in recipes.CELL_ROLES},
    "res_mbconv": {role: ["res_bnswish"] * 2 for role in recipes.CELL_ROLES}
    | {"normal_dec": ["mconv_e6k5g0"], "up_dec": ["mconv_e6k5g0"]}
    | {"normal_post": ["mconv_e3k5g0"], "up_post": ["mconv_e3k5g0"]},
    "mbconv_sep": {
        role: ["mconv_e6k5g0"] if role.endswith(("_enc", "_dec")) else ["mconv_e3k5g0"] for role in recipes.CELL_ROLES
    },
}


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


class Tower(Generator):
    """A hierarchical VAE in NVAE's architecture.

    Arguments:
        config: the recipe's `generator` part.
        image_shape: (C, H, W) of the images.  Inside, they are centred in zeros of `padded_size`, a multiple of
            2^(scales - 1 + preprocess_blocks) (and MNIST's 28 always in at least 32, as in NVAE); outputs are cropped
            back.
        bits: bits per channel of the images.

    recompute: whether training computes cells again for the gradient, for less memory.
    """

    recompute = False

    # Longer than a screen: every module in the order in which weights are drawn, on which seeds depend.
    def __init__(self, config: recipes.Generator, image_shape: tuple[int, int, int], bits: int = 8):
        super().__init__()
        self.config, self.image_shape, self.bits = config, tuple(image_shape), bits
        self.likelihood = LIKELIHOODS[config.likelihood].from_recipe(config, bits)
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
        scale_of = [scale for scale, count in enumerate(counts) for _ in range(count)]  # top first, 0 = coarsest
        resolution = [
            tuple(side // 2 ** (config.preprocess_blocks + config.scales - 1 - scale) for side in self.padded_size)
            for scale in scale_of
        ]
        self.latent_shapes = [(z, *hw) for hw in resolution]

        def enc_width(scale: int) -> int:
            return config.encoder_channels * 2 ** (config.preprocess_blocks + config.scales - 1 - scale)

        def dec_width(scale: int) -> int:
            return config.decoder_channels * 2 ** (config.preprocess_blocks + config.scales - 1 - scale)

        self.state_channels = [dec_width(scale) for scale in scale_of]
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

    # The top-down tower ---------------------------------------------------------------------------------------------

    def _walk(self, choose: Callable[..., tuple[Tensor, Tensor]], n: int, layers: int) -> TopDown:
        """Walk the first `layers` layers from the top; `choose` gives (z_i, u_i) for (l, state, raw, mu_i, sigma_i)."""
        walk = TopDown()
        s = self.constant.expand(n, *self.constant.shape)
        for l, layer in enumerate(self.decoder[:layers]):
            if l > 0:
                s = self._descend(l - 1, s, walk.z[-1])
                s = self._through(layer.cells, s)
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

    def _through(self, cells: nn.Sequential, s: Tensor) -> Tensor:
        """What the cells make of the state; with `recompute` what they found on the way is not kept for the gradient,
        which computes it again.  Nothing is drawn in them."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return cells(s)
        how = {"use_reentrant": False, "preserve_rng_state": False}
        for cell in cells:
            s = checkpoint(cell, s, context_fn=lambda: (nullcontext(), computed_again()), **how)
        return s

    def _descend(self, l: int, s: Tensor, z: Tensor) -> Tensor:
        layer = self.decoder[l]
        s = layer.combine(torch.cat([s, z.to(s.dtype)], dim=1))
        return s if layer.up is None else layer.up(s)

    def walk(self, u: Tensor, layers: int | None = None) -> TopDown:
        maps = self.split(self.residuals(u))
        depth = self.L if layers is None else layers
        return self._walk(lambda l, s, raw, mu, sigma: (mu + sigma * maps[l], maps[l]), len(u), depth)

    def T_inverse(self, z: Tensor) -> Tensor:
        maps = self.split(z)
        walk = self._walk(lambda l, s, raw, mu, sigma: (maps[l], (maps[l] - mu) / sigma), len(z), self.L)
        return self.latents(walk)

    def decode(self, walk: TopDown) -> Tensor:
        s = self._descend(self.L - 1, walk.h[-1], walk.z[-1])
        logits = self.image_head(self._through(self.postprocess, s)).float()
        (top, left), (height, width) = self.margins, self.image_shape[1:]
        return logits[:, :, top : top + height, left : left + width]

    # The encoder ----------------------------------------------------------------------------------------------------

    def _bottom_up(self, x: Tensor) -> list[Tensor]:
        """What each layer's posterior reads of the image, top first, [N, C, h, w]."""
        (top, left), (height, width) = self.margins, self.padded_size
        x = F.pad(x, (left, width - left - x.shape[3], top, height - top - x.shape[2]))
        s = self._through(self.preprocess, self.stem(2 * x - 1))
        seen: list[Tensor] = [s] * self.L
        for l in reversed(range(self.L)):
            s = seen[l] = self._through(self.encoder[l].cells, s)
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
            e = rows.randn_like(mu_q) if epsilon is None else epsilon[l]
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

    def noise(self, n: int) -> Tensor:
        """What `posterior` draws for n images, [N, D]: the same numbers, drawn beforehand."""
        return self.join([self._drawn(n, shape) for shape in self.latent_shapes])

    def _drawn(self, n: int, shape: tuple[int, int, int]) -> Tensor:
        # torch draws in the order in which a map lies in memory, which is that of the states.
        laid = {"device": self.device, "memory_format": torch.channels_last}
        return rows.randn_like(torch.empty(n, *shape, **laid))

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

    def whiten(self, whitening: Whitening) -> "Tower":
        """Take w for u from here on, in place; returns this generator, which has to be frozen."""
        if not self.is_frozen:
            raise ValueError("only a frozen generator can be whitened: training needs the latents it has")
        self.whitening = whitening.to(self.device)
        return self

    # Use ------------------------------------------------------------------------------------------------------------

    def frozen(self, precision: str = "float32") -> "Tower":
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
