"""The published f_i, for `prior.energy.form: published` (HEBM, https://arxiv.org/abs/2405.13910)."""

from torch import Tensor, nn

from hebmtool import recipe as recipes
from hebmtool.prior.spectral import ACTIVATIONS, SpectralConv, SpectralLinear, Standard, sinusoidal, spectral


class PublishedLayerEnergy(nn.Module):
    """HEBM's f_i (https://arxiv.org/abs/2405.13910): no biases, and spectral normalisation of everything.

        x = read(z + time(t))                           3x3
        x = x + second(s(first(s(x)) + time(t)))        3x3 both, `blocks` times
        x = down(s(x)) + time(t)                        4x4 of stride 2, down to 2x2
        f = out(s(hidden(s(flatten x)) + time(t)))      the head: two fully connected layers

    s is the activation, and every `time` a linear layer of its own on an embedding of TIME dimensions.  For 20 channels
    of 16x16, width 128 and 4 blocks that makes

        read    20 * 128 * 9                  =    23,040      and time  128 * 20  =  2,560
        blocks  4 * 2 * 128 * 128 * 9         = 1,179,648      and time  4 * 128 * 128 = 65,536
        down    3 * 128 * 128 * 16            =   786,432      and time  3 * 128 * 128 = 49,152
        head    2 * 2 * 128 * 16 + 16         =     8,208      and time  128 * 16  =  2,048

    2,116,624 parameters, the published count, and with it what the paper leaves open: 4 blocks, a hidden layer of 16,
    time added to z itself.  The count does not tell whether all blocks come before the first halving, nor where s
    stands: these are chosen.

    Arguments:
        channels, size: z_i is [N, channels, *size].
    """

    TIME, PERIOD, HIDDEN = 128, 1e4, 16

    def __init__(self, channels: int, state: int, size: tuple[int, int], config: recipes.Energy, outputs: int = 1):
        super().__init__()
        width, norm, self.activation = config.width, config.spectral_norm, ACTIVATIONS[config.activation]
        self.read_state = None
        (h, w), halvings = size, 0
        while min(h, w) > 2:
            h, w, halvings = h // 2, w // 2, halvings + 1

        def conv(c_in: int, kernel: int, stride: int = 1) -> SpectralConv:
            return SpectralConv(c_in, width, kernel, norm, stride, bias=False)

        def time(*widths: int) -> nn.ModuleList:
            return nn.ModuleList(SpectralLinear(self.TIME, c, norm) for c in widths)

        self.read, self.read_time = conv(channels, 3), SpectralLinear(self.TIME, channels, norm)
        self.first = nn.ModuleList(conv(width, 3) for _ in range(config.blocks))
        self.second = nn.ModuleList(conv(width, 3) for _ in range(config.blocks))
        self.block_time = time(*[width] * config.blocks)
        self.down, self.down_time = nn.ModuleList(conv(width, 4, 2) for _ in range(halvings)), time(*[width] * halvings)
        self.hidden = SpectralLinear(width * h * w, self.HIDDEN, norm)
        self.hidden_time = SpectralLinear(self.TIME, self.HIDDEN, norm)
        self.out = SpectralLinear(self.HIDDEN, outputs, norm)
        self.settle()

    def settle(self) -> None:
        for conv in spectral(self):
            conv.settle()

    @classmethod
    def embed(cls, t: Tensor) -> Tensor:
        return sinusoidal(t, cls.TIME, cls.PERIOD)

    def forward(self, z: Tensor, state: None, level: Tensor, standard: Standard | None = None) -> Tensor:
        act = self.activation

        def at(time: SpectralLinear, x: Tensor) -> Tensor:
            return time(level)[:, :, None, None].to(x.dtype)

        x = self.read(z + at(self.read_time, z))
        for first, second, time in zip(self.first, self.second, self.block_time, strict=True):
            h = first(act(x))
            x = x + second(act(h + at(time, h)))
        for down, time in zip(self.down, self.down_time, strict=True):
            x = down(act(x))
            x = x + at(time, x)
        x = self.hidden(act(x).flatten(1)) + self.hidden_time(level)
        return self.out(act(x))
