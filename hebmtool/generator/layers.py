"""Building blocks of the generator: weight-normed convolutions and residual cells.

Weight norm, per output channel (Salimans & Kingma 2016, with the scale kept as its logarithm):

    w = exp(g) v / (||v||_2 + 1e-5)

A residual cell computes

    out = skip(s) + 0.1 * SE(op_2(op_1(s)))

(Vahdat & Kautz 2020, "NVAE", https://arxiv.org/abs/2007.03898, section 3.2).  A cell is "normal" (same
resolution), "down" (halves it) or "up" (doubles it).
"""

import re
from collections import defaultdict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool import rows
from hebmtool.generator.norm import BatchNorm

BN_EPS, NORM_EPS = 1e-5, 1e-5  # of BatchNorm, of weight norm
BN_MOMENTUM = 0.05
RESIDUAL_SCALE = 0.1
# The backward pass of oneDNN's 1x1 convolution of stride 2 in channels_last writes out of bounds where it reads so few
# channels: wrong gradients or a crash.  Stride 1 on every second pixel is the same convolution.
FEW_CHANNELS = 15  # fewer than a register of AVX-512 has room for


class Conv(nn.Module):
    """Convolution with weight norm, padded so that stride 1 keeps the size.

    Arguments:
        c_in, c_out: channels.  kernel: its side, odd.  stride: 1 or 2.
        groups, bias: as in `torch.nn.Conv2d`.
        norm: without it w is v itself.
        mask: multiplies v, so that masked taps count neither in the convolution nor in the norm.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm: bool = True,
        mask: Tensor | None = None,
    ):
        super().__init__()
        plain = nn.Conv2d(c_in, c_out, kernel, groups=groups, bias=bias)
        self.stride, self.padding, self.groups = stride, kernel // 2, groups
        self.v = plain.weight
        self.bias = plain.bias
        self.register_buffer("mask", mask, persistent=False)
        for name in ("folded", "folded_bias", "transposed"):
            self.register_buffer(name, None, persistent=False)
        self.g = nn.Parameter(self._norm(self.masked().detach()).log()) if norm else None

    def masked(self) -> Tensor:
        return self.v if self.mask is None else self.v * self.mask

    @staticmethod
    def _norm(v: Tensor) -> Tensor:
        return v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def weight(self) -> Tensor:
        """The weight w, [c_out, c_in / groups, kernel, kernel]."""
        v = self.masked()
        return v if self.g is None else self.g.exp() * v / (self._norm(v) + NORM_EPS)

    def fold(self) -> None:
        """Compute w once and for all; the parameters no longer matter afterwards."""
        self._fix(self.weight().detach(), None if self.bias is None else self.bias.detach())

    def absorb(self, before: "Affine | None" = None, after: "Affine | None" = None) -> None:
        """Take the affine before (1x1 kernels only: padding would see it) or after this folded convolution into it."""
        w, bias = self.folded, self.folded_bias
        bias = w.new_zeros(len(w)) if bias is None else bias
        if before is not None:
            bias = bias + w.flatten(1) @ before.shift.flatten()
            w = w * before.scale
        if after is not None:
            bias = after.scale.flatten() * bias + after.shift.flatten()
            w = after.scale[:, None] * w
        self._fix(w, bias)

    def _fix(self, w: Tensor, bias: Tensor | None) -> None:
        self.folded, self.folded_bias = w.contiguous(memory_format=torch.channels_last), bias
        self.transposed = transposed(w, self.groups) if self.stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride
        if stride == 2 and self.v.shape[2] == 1 and self.v.shape[1] <= FEW_CHANNELS:
            x, stride = x[:, :, ::2, ::2], 1
        if self.folded is None:
            return F.conv2d(x, self.weight(), self.bias, stride, self.padding, groups=self.groups)
        x = x.to(self.folded.dtype)
        if self.transposed is None:
            return F.conv2d(x, self.folded, self.folded_bias, stride, self.padding, groups=self.groups)
        return FixedConvolution.apply(x, self.folded, self.folded_bias, self.transposed, self.groups)


def transposed(w: Tensor, groups: int = 1) -> Tensor:
    """The weight [c_in, c_out / groups, k, k] whose convolution is the transpose of that by w [c_out, c_in / groups, k,
    k], both of stride 1 and odd k, padded to keep the size."""
    w = w.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return w.contiguous(memory_format=torch.channels_last)


class FixedConvolution(torch.autograd.Function):
    """Convolution by a constant, of stride 1 and padded to keep the size: (x, w, bias, transposed(w), groups).

    Only x is differentiated (as often as wanted).  The gradient is itself a convolution, so that it needs no x, which
    torch's own convolution keeps, and runs in the kernels of the forward pass, which are faster, depthwise twice.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, bias: Tensor | None, back: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(w, back)
        ctx.groups = groups
        padding = w.shape[2] // 2
        plain = not torch.compiler.is_compiling()  # which asks first: what is asked next cannot be compiled
        if plain and x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            # On one thread F.conv2d gives small batches of 1x1 kernels to MKL, on AMD's processors a third as fast.
            return torch.mkldnn_convolution(x, w, bias, (padding,) * 2, (1, 1), (1, 1), groups)
        return F.conv2d(x, w, bias, padding=padding, groups=groups)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        w, back = ctx.saved_tensors
        return FixedConvolution.apply(slope, back, None, w, ctx.groups), None, None, None, None


def elu(x: Tensor) -> Tensor:
    """ELU through exp rather than expm1, which torch does not vectorise on CPUs: some ten times faster there, and
    within one rounding of 1 of the exact value."""
    positive = F.relu(x)
    # Not x.clamp(max=0), whose gradient at 0 is 0.
    return positive + ((x - positive).exp() - 1)


class ELU(nn.Module):
    """`elu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return elu(x)


class Affine(nn.Module):
    """What a BatchNorm in evaluation mode computes, as one scale and one shift per channel."""

    def __init__(self, bn: nn.BatchNorm2d):
        super().__init__()
        scale = bn.weight.detach() / (bn.running_var + bn.eps).sqrt()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", (bn.bias.detach() - bn.running_mean * scale)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class BNSwishConv(nn.Module):
    """BatchNorm, SiLU, [nearest x2], 3x3 convolution: op `res_bnswish`."""

    def __init__(self, c_in: int, c_out: int, kind: str):
        super().__init__()
        self.bn = BatchNorm(c_in, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.up = kind == "up"
        self.conv = Conv(c_in, c_out, 3, stride=2 if kind == "down" else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(x))
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x)


class InvertedResidual(nn.Module):
    """Depthwise-separable branch with expansion: op `mconv_e{expansion}k{kernel}g0`.

    [nearest x2], BN, 1x1 to e*c_in, BN-SiLU, depthwise kxk, BN-SiLU, 1x1 to c_out, BN; no weight norm, no biases.
    """

    def __init__(self, c_in: int, c_out: int, kind: str, expansion: int, kernel: int):
        super().__init__()
        hidden = expansion * c_in
        stride = 2 if kind == "down" else 1

        def bn(c: int) -> nn.Module:
            return BatchNorm(c, eps=BN_EPS, momentum=BN_MOMENTUM)

        self.up = kind == "up"
        self.bn_in = bn(c_in)
        self.expand = Conv(c_in, hidden, 1, bias=False, norm=False)
        self.bn_expand = bn(hidden)
        self.depthwise = Conv(hidden, hidden, kernel, stride, groups=hidden, bias=False, norm=False)
        self.bn_depthwise = bn(hidden)
        self.project = Conv(hidden, c_out, 1, bias=False, norm=False)
        self.bn_out = bn(c_out)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.expand(self.bn_in(x))
        x = self.depthwise(F.silu(self.bn_expand(x)))
        return self.bn_out(self.project(F.silu(self.bn_depthwise(x))))

    def fold(self) -> None:
        """Take every BatchNorm into the folded convolution beside it."""
        self.expand.absorb(before=Affine(self.bn_in), after=Affine(self.bn_expand))
        self.depthwise.absorb(after=Affine(self.bn_depthwise))
        self.project.absorb(after=Affine(self.bn_out))
        self.bn_in = self.bn_expand = self.bn_depthwise = self.bn_out = nn.Identity()


class SqueezeExcitation(nn.Module):
    """Channel gates from the global mean: linear to max(C/16, 4), ReLU, linear, sigmoid."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        self.down = nn.Linear(channels, hidden)
        self.up = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """[N, C, 1, 1]."""
        # Not x.mean, whose gradient does not keep the layout of x.
        mean = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
        return torch.sigmoid(self.up(F.relu(self.down(mean))))[:, :, None, None]


class SkipDown(nn.Module):
    """Skip path that halves the resolution: four stride-2 1x1 convolutions on shifted copies, concatenated."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        quarter = c_out // 4
        widths = [quarter, quarter, quarter, c_out - 3 * quarter]
        self.convs = nn.ModuleList(Conv(c_in, c, 1, stride=2) for c in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        shifted = [x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:, :]]
        return torch.cat([conv(s) for conv, s in zip(self.convs, shifted, strict=True)], dim=1)


class SkipUp(nn.Module):
    """Skip path that doubles the resolution: a 1x1 convolution, bilinear with aligned corners."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = Conv(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The two commute, and the convolution is cheaper before.
        return F.interpolate(self.conv(x), scale_factor=2, mode="bilinear", align_corners=True)


def make_op(name: str, c_in: int, c_out: int, kind: str) -> nn.Module:
    """The op called `name`: `res_bnswish` or `mconv_e{expansion}k{kernel}g0`."""
    if name == "res_bnswish":
        return BNSwishConv(c_in, c_out, kind)
    match = re.fullmatch(r"mconv_e(\d+)k(\d+)g0", name)
    if match is None:
        raise ValueError(f"unknown cell op {name!r}; known: res_bnswish, mconv_e<expansion>k<kernel>g0")
    return InvertedResidual(c_in, c_out, kind, int(match[1]), int(match[2]))


class Cell(nn.Module):
    """Residual cell.  [N, c_in, H, W] -> [N, c_out, H', W'], H' = H, H/2 or 2H for normal, down, up.

    Arguments:
        kind: "normal", "down" or "up".
        ops: one or two op names; the first carries the change of resolution and channels.
        squeeze_excitation: whether channel gates close the branch.
    """

    def __init__(self, kind: str, ops: list[str], c_in: int, c_out: int, squeeze_excitation: bool):
        super().__init__()
        first, *rest = ops
        self.ops = nn.Sequential(
            make_op(first, c_in, c_out, kind), *(make_op(name, c_out, c_out, "normal") for name in rest)
        )
        self.se = SqueezeExcitation(c_out) if squeeze_excitation else nn.Identity()
        self.skip = {"normal": nn.Identity, "down": SkipDown, "up": SkipUp}[kind](
            *(() if kind == "normal" else (c_in, c_out))
        )

    def forward(self, s: Tensor) -> Tensor:
        branch = self.ops(s)
        if isinstance(self.se, SqueezeExcitation):
            return torch.addcmul(self.skip(s), branch, RESIDUAL_SCALE * self.se.gate(branch))
        return torch.add(self.skip(s), branch, alpha=RESIDUAL_SCALE)

    def fold(self) -> None:
        """Take BatchNorms into the folded convolutions before them.  That of a `res_bnswish` that begins the cell
        stays: before it is the residual stream, which the skip path reads as it is."""
        for op in self.ops:
            if isinstance(op, InvertedResidual):
                op.fold()
        for before, op in pairwise(self.ops):
            if isinstance(op, BNSwishConv):
                conv = before.conv if isinstance(before, BNSwishConv) else before.project
                conv.absorb(after=Affine(op.bn))
                op.bn = nn.Identity()


def raster_mask(c_in: int, c_out: int, kernel: int, strict: bool, mirrored: bool, groups: int = 1) -> Tensor:
    """Mask [c_out, c_in / groups, kernel, kernel] that lets a pixel see only pixels before it in raster order.

    In the centre tap, output channel block j sees the input channels of blocks below j (`strict`) or up to j,
    blocks being sized by the ratio of channels.  `mirrored` reverses the raster order, not the channels'.
    """
    middle = kernel // 2
    mask = torch.zeros(c_out, c_in // groups, kernel, kernel)
    mask[:, :, :middle] = 1
    mask[:, :, middle, :middle] = 1
    if groups > 1:  # depthwise: a channel sees only itself
        mask[:, :, middle, middle] = 0 if strict else 1
    else:
        blocks = min(c_in, c_out)
        of_out = torch.arange(c_out)[:, None] // (c_out // blocks)
        of_in = torch.arange(c_in)[None, :] // (c_in // blocks)
        mask[:, :, middle, middle] = (of_in < of_out if strict else of_in <= of_out).float()
    return mask.flip(2, 3) if mirrored else mask


class AutoregressiveShift(nn.Module):
    """z <- z - m(z) with m autoregressive in raster order (mirrored: in reverse): volume-preserving.

    Arguments:
        channels: Z, channels of the latent map.
    """

    def __init__(self, channels: int, mirrored: bool):
        super().__init__()
        hidden = 6 * channels
        self.first = Conv(channels, hidden, 3, bias=False, mask=raster_mask(channels, hidden, 3, True, mirrored))
        mask = raster_mask(hidden, hidden, 5, False, mirrored, groups=hidden)
        self.second = Conv(hidden, hidden, 5, groups=hidden, bias=False, mask=mask)
        self.mu = Conv(hidden, channels, 1, mask=raster_mask(hidden, channels, 1, False, mirrored))

    def forward(self, z: Tensor) -> Tensor:
        hidden = elu(self.second(elu(self.first(z))))
        return z - self.mu(elu(hidden))


class SpectralPenalty(nn.Module):
    """Spectral regularisation: sum of the largest singular values of every weight-normed convolution.

    As NVAE's section 3.1; BatchNorm scales are penalised by their largest magnitude.  Singular values come from one
    warm-started power iteration per call; convolutions of one shape are done together.  The iteration's vectors
    are buffers, so that resumed training continues exactly.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        groups = defaultdict(list)
        for m in module.modules():
            if isinstance(m, Conv):
                groups[tuple(m.v.flatten(1).shape)].append(m)
        self.groups = list(groups.values())
        for i, convs in enumerate(self.groups):
            c_out, fan_in = convs[0].v.flatten(1).shape
            generator = torch.Generator().manual_seed(i)
            self.register_buffer(f"left_{i}", F.normalize(torch.randn(len(convs), c_out, generator=generator), dim=1))
            self.register_buffer(f"right_{i}", torch.zeros(len(convs), fan_in))

    def forward(self) -> Tensor:
        """The penalty, a scalar; advances the power iteration, once per update."""
        total = 0.0
        for i, convs in enumerate(self.groups):
            w = _matrices(convs)
            left, right = getattr(self, f"left_{i}"), getattr(self, f"right_{i}")
            if rows.first_turn():
                with torch.no_grad():
                    right.copy_(F.normalize(torch.einsum("no,noi->ni", left, w), dim=1))
                    left.copy_(F.normalize(torch.einsum("noi,ni->no", w, right), dim=1))
            # Clones: the buffers are advanced again before a later backward might need them.
            total = total + torch.einsum("no,noi,ni->", left.clone(), w, right.clone())
        return total + sum(bn.weight.abs().max() for bn in self.norms)


def _matrices(convs: list[Conv]) -> Tensor:
    """Weights of one shape, [n, c_out, fan_in]; normed together, where all are, in a few kernels."""
    if any(conv.g is None for conv in convs):
        return torch.stack([conv.weight().flatten(1) for conv in convs])
    v = torch.stack([conv.masked().flatten(1) for conv in convs])
    g = torch.stack([conv.g.flatten(1) for conv in convs])
    return g.exp() * v / (v.norm(dim=2, keepdim=True) + NORM_EPS)
