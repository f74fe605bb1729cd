"""The energy F_w(z, t) = sum_i f_i(z_i, t): one small network per latent layer.

F is the negative of an energy in the physicist's sign: high means likely (HEBM, arXiv 2405.13910, section 3).
With `reads: z+state`, f_i sees besides z_i the top-down state h_i(z_{>i}) and the residual u_i, both of which the
walk through T has computed already, so F remains a function of z; it sees directly the dependence between layers,
where the prior hole is.

Convolutions are spectral-normalised (Miyato et al. 2018, arXiv 1802.05957).  The power iteration is advanced once
per update by `advance`, never by a forward pass, and `fixed` holds the normalised weights while a chain runs.

An energy computes in its generator's precision, latents, readouts and sums in float32.

`form` says what an f_i is: `compact` is this package's (`LayerEnergy`), `published` is HEBM's (`PublishedLayerEnergy`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool import recipe as recipes
from hebmtool import rows
from hebmtool.compute import autocast, uncast
from hebmtool.errors import UsageError
from hebmtool.generator import Generator, TopDown
from hebmtool.prior.published import PublishedLayerEnergy
from hebmtool.prior.spectral import ACTIVATIONS, SpectralConv, Standard, sinusoidal, spectral

TIME_FEATURES, PERIOD = 32, 100.0
SETTLING = 20
CALIBRATION_DRAWS = 512


class LayerEnergy(nn.Module):
    """f_i: latent map [N, Z, h, w], optional state [N, C, h, w], level embedding -> [N, outputs].

    Arguments:
        channels: channels read beside the state.
        state: channels of h_i, or 0 when it is not read.
        size: (h, w).
    """

    def __init__(self, channels: int, state: int, size: tuple[int, int], config: recipes.Energy, outputs: int = 1):
        super().__init__()
        width, norm, self.activation = config.width, config.spectral_norm, ACTIVATIONS[config.activation]
        self.read = SpectralConv(channels, width, 3, norm)
        self.read_state = SpectralConv(state, width, 1, norm) if state else None
        self.first = nn.ModuleList(SpectralConv(width, width, 3, norm) for _ in range(config.blocks))
        self.second = nn.ModuleList(SpectralConv(width, width, 3, norm) for _ in range(config.blocks))
        self.level = nn.ModuleList(nn.Linear(TIME_FEATURES, width) for _ in range(config.blocks))
        down, features = [], width
        if config.readout == "strided":
            h, w = size
            while max(h, w) > 2:
                down.append(SpectralConv(features if not down else 2 * width, 2 * width, 3, norm, stride=2))
                h, w, features = (h + 1) // 2, (w + 1) // 2, 2 * width
            self.last = h, w
            features *= h * w
        self.strided = config.readout == "strided"
        self.down = nn.ModuleList(down)
        self.head = nn.Linear(features, outputs)
        # F starts at 0: the prior starts at the Gaussian.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def settle(self) -> None:
        for _ in range(SETTLING):
            for conv in spectral(self):
                conv.advance()

    @staticmethod
    def embed(t: Tensor) -> Tensor:
        """What `forward` is told of levels t [N]."""
        return sinusoidal(t, TIME_FEATURES, PERIOD)

    def forward(self, z: Tensor, state: Tensor | None, level: Tensor, standard: Standard | None = None) -> Tensor:
        x, act = self.read(z), self.activation
        if self.read_state is not None:
            x = x + self.read_state(state, standard)
        for first, second, shift in zip(self.first, self.second, self.level, strict=True):
            x = x + second(act(first(act(x)) + shift(level)[:, :, None, None].to(x.dtype)))
        x = act(x)
        for down in self.down:
            x = act(down(x))
        # Read so that the gradient of x comes in the layout of x.
        w = self.head.weight
        if self.strided:
            x = x.permute(0, 2, 3, 1).flatten(1)
            w = w.unflatten(1, (-1, *self.last)).permute(0, 2, 3, 1).flatten(1)
        else:
            x = x.sum((2, 3))
        with uncast(x.device):
            return F.linear(x.float(), w, self.head.bias)


def chosen_layers(generator: Generator, layers: Sequence[int] | None, key: str) -> list[int] | None:
    """List indices of layers given by number (1 = bottom) in the recipe's `key`; None of None.  Raises UsageError for a
    layer that does not exist."""
    if layers is None:
        return None
    for number in layers:
        if not 1 <= number <= generator.L:
            raise UsageError(f"{key} names layer {number}, but the generator has 1 to {generator.L}")
    return sorted(generator.layer_number(number) for number in set(layers))


FORMS = {"compact": LayerEnergy, "published": PublishedLayerEnergy}


class Energy(nn.Module):
    """All f_i of a generator.

    Arguments:
        generator: only its shapes and precision are used, and draws of its states for standardising them.
        outputs: numbers that each f_i gives: 1, or one per class (`hebmtool.prior.labels`).
        chosen: list indices of the layers that have an f_i; all by default.
        network: what an f_i is; the recipe's `form` when None.
    """

    def __init__(
        self,
        generator: Generator,
        config: recipes.Energy,
        outputs: int = 1,
        chosen: Sequence[int] | None = None,
        network: type[nn.Module] | None = None,
    ):
        super().__init__()
        self.precision, self.outputs = generator.precision, outputs
        self.chosen = list(range(generator.L)) if chosen is None else sorted(chosen)
        self.reads_state = config.reads == "z+state"
        widths, channels = generator.state_channels, [shape[0] for shape in generator.latent_shapes]
        self.layers = nn.ModuleList(
            # The top state is a constant and says nothing.
            (network or FORMS[config.form])(
                2 * channels[l] if self.reads_state else channels[l],
                widths[l] if self.reads_state and l > 0 else 0,
                generator.latent_shapes[l][1:],
                config,
                outputs,
            )
            for l in self.chosen
        )
        self.to(memory_format=torch.channels_last)
        if self.reads_state:
            for l, width in enumerate(widths):
                self.register_buffer(f"state_mean_{l}", torch.zeros(width, 1, 1))
                self.register_buffer(f"state_scale_{l}", torch.ones(width, 1, 1))

    @torch.no_grad()
    def calibrate(self, walk: TopDown) -> None:
        """Set the affine that standardises each channel of h_i, from a walk over draws of N(0, I), as u."""
        if self.reads_state:
            for l, h in enumerate(walk.h):
                mean, scale = self.standard(l)
                mean.copy_(h.float().mean((0, 2, 3))[:, None, None])
                scale.copy_(h.float().std((0, 2, 3)).clamp(min=1e-3)[:, None, None])

    def standard(self, l: int) -> Standard | None:
        """What standardises h of list index l, where energies read it."""
        return (getattr(self, f"state_mean_{l}"), getattr(self, f"state_scale_{l}")) if self.reads_state else None

    def forward(self, walk: TopDown, t: Tensor) -> Tensor:
        """f_i per image and layer that has one, [N, layers, outputs], top first.

        Arguments:
            walk: through the first layers, or all of them; the layers it has not reached are left out.
            t: level per image, [N].
        """
        level = self.layers[0].embed(t)
        out = []
        with autocast(t.device, self.precision):
            for l, layer in zip(self.chosen, self.layers, strict=True):
                if l >= len(walk.z):
                    break
                if self.reads_state:
                    z, state = torch.cat([walk.z[l], walk.u[l]], dim=1), walk.h[l]
                else:
                    z, state = walk.z[l], None
                out.append(layer(z, state, level, self.standard(l)))
        return torch.stack(out, dim=1) if out else walk.z[0].new_zeros(len(walk.z[0]), 0, self.outputs)

    def by_layer(self, walk: TopDown, t: Tensor) -> Tensor:
        """The first output of every layer the walk has reached, [N, layers], top first: 0 of one that has no f_i."""
        found = self(walk, t)[..., 0]
        reached = len(walk.z)
        if found.shape[1] == reached:
            return found
        place, none = {l: k for k, l in enumerate(self.chosen)}, found.new_zeros(len(found))
        return torch.stack([found[:, place[l]] if l in place else none for l in range(reached)], dim=1)

    def advance(self) -> None:
        """One step of every power iteration, once per update."""
        if rows.first_turn():
            for conv in spectral(self):
                conv.advance()

    def settle(self) -> None:
        """Let the power iterations converge, after the weights were replaced by others (averaged ones, say)."""
        for layer in self.layers:
            layer.settle()

    def fix(self) -> None:
        """Make the weights constants, normalised once, for good."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        for l, layer in zip(self.chosen, self.layers, strict=True):
            for conv in spectral(layer):
                conv.fix(dtype, self.standard(l) if conv is layer.read_state else None)
        self.requires_grad_(False)

    def places(self) -> tuple[int, ...]:
        """The addresses of everything it reads; other ones where weights were moved, or made constants anew."""
        constants = (each for conv in spectral(self) for each in conv.fixed or () if each is not None)
        return tuple(x.data_ptr() for x in (*self.parameters(), *self.buffers(), *constants))

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within the block the weights are constants, normalised once: no gradient reaches the parameters."""
        required = [p.requires_grad for p in self.parameters()]
        try:
            self.fix()
            yield
        finally:
            for conv in spectral(self):
                conv.fixed = None
            for p, flag in zip(self.parameters(), required, strict=True):
                p.requires_grad_(flag)
