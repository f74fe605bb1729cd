"""Strided 1x1 convolutions in channels_last against float64: oneDNN's own backward pass is out of bounds for few
channels."""

import pytest
import torch
import torch.nn.functional as F

from hebmtool.generator.layers import Conv, SkipDown


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 8, 12, 13, 14, 15, 16, 17, 24, 40])
@pytest.mark.parametrize("side", [7, 50, 65])
def test_gradients_of_a_strided_convolution(channels, side):
    conv = Conv(channels, 6, 1, stride=2).to(memory_format=torch.channels_last)
    x = torch.randn(8, channels, side, side).to(memory_format=torch.channels_last).requires_grad_(True)
    y = conv(x)
    slope = torch.randn_like(y)
    found = torch.autograd.grad((y * slope).sum(), (x, conv.v, conv.bias))

    exact = Conv(channels, 6, 1, stride=2).double()
    exact.load_state_dict({k: v.double() for k, v in conv.state_dict().items()})
    X = x.detach().double().contiguous().requires_grad_(True)
    Y = F.conv2d(X, exact.weight(), exact.bias, 2)
    wanted = torch.autograd.grad((Y * slope.double()).sum(), (X, exact.v, exact.bias))
    for a, b in zip((y, *found), (Y, *wanted), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_a_skip_path_of_few_channels_trains():
    skip = SkipDown(4, 8).to(memory_format=torch.channels_last)
    x = torch.randn(8, 4, 64, 64).to(memory_format=torch.channels_last).requires_grad_(True)
    for _ in range(5):
        skip(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in skip.parameters()) and skip(x).shape == (8, 8, 32, 32)
