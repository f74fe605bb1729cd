"""The building blocks: weight norm, causal masks, shift-only flows, the spectral penalty, cells."""

import pytest
import torch
from torch import nn

from hebmtool.generator.layers import (
    Affine,
    AutoregressiveShift,
    Cell,
    Conv,
    SkipDown,
    SpectralPenalty,
    SqueezeExcitation,
    elu,
    make_op,
    raster_mask,
)


def randomise(module: nn.Module, scale: float = 0.5) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * scale)
    return module


def jacobian(f, x):
    """[x.numel(), x.numel()] of a map from [1, C, H, W] to the same shape."""
    return torch.autograd.functional.jacobian(lambda flat: f(flat.view_as(x)).flatten(), x.flatten())


# Convolutions


def test_weight_norm_is_the_formula():
    conv = randomise(Conv(3, 5, 3)).double()
    for o in range(5):
        v, g = conv.v[o], conv.g[o].item()
        expected = torch.tensor(g, dtype=torch.double).exp() * v / (v.square().sum().sqrt() + 1e-5)
        assert torch.allclose(conv.weight()[o], expected, rtol=1e-12)


def test_weight_norm_starts_at_the_plain_convolution_and_ignores_the_length_of_v():
    conv = Conv(3, 5, 3)
    assert torch.allclose(conv.weight(), conv.v, rtol=1e-4)
    before = conv.weight().detach().clone()
    with torch.no_grad():
        conv.v.mul_(7)
    assert torch.allclose(conv.weight(), before, rtol=1e-4)


def test_masked_taps_count_neither_in_the_output_nor_in_the_norm():
    conv = Conv(2, 4, 3, mask=raster_mask(2, 4, 3, strict=True, mirrored=False))
    before = conv.weight().detach().clone()
    with torch.no_grad():
        conv.v.add_((1 - conv.mask) * 100)
    assert torch.equal(conv.weight(), before)
    assert torch.all(before[conv.mask == 0] == 0)


def test_fold_computes_the_same_and_leaves_the_parameters_out():
    conv = randomise(Conv(3, 5, 3, stride=2))
    x = torch.randn(2, 3, 8, 8)
    before = conv(x)
    conv.fold()
    assert torch.allclose(conv(x), before, atol=1e-6)
    with torch.no_grad():
        conv.v.fill_(float("nan"))
    assert torch.allclose(conv(x), before, atol=1e-6)
    assert set(conv.state_dict()) == {"v", "g", "bias"}


# Masks and flows


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_masked_convolution_is_causal(mirrored, strict, depthwise):
    channels, side = 3, 5
    groups = channels if depthwise else 1
    mask = raster_mask(channels, channels, 3, strict, mirrored, groups=groups)
    conv = randomise(Conv(channels, channels, 3, groups=groups, bias=False, mask=mask)).double()
    j = jacobian(conv, torch.randn(1, channels, side, side, dtype=torch.double))
    j = j.reshape(channels, side * side, channels, side * side)
    for p in range(side * side):
        for q in range(side * side):
            before = q > p if mirrored else q < p
            if q == p:
                for o in range(channels):
                    for i in range(channels):
                        allowed = (i < o if strict else i <= o) and (not depthwise or (i == o))
                        assert (j[o, p, i, q] != 0) == allowed
            elif not before:
                assert torch.all(j[:, p, :, q] == 0)
            elif not depthwise and max(abs(p // side - q // side), abs(p % side - q % side)) <= 1:
                assert torch.all(j[:, p, :, q] != 0)


@pytest.mark.parametrize(("c_in", "c_out"), [(2, 12), (12, 2)])
def test_mask_blocks_are_sized_by_the_ratio_of_channels(c_in, c_out):
    tap = raster_mask(c_in, c_out, 1, strict=False, mirrored=False)[:, :, 0, 0]
    for o in range(c_out):
        for i in range(c_in):
            assert tap[o, i] == float(i * 2 // c_in <= o * 2 // c_out)


@pytest.mark.parametrize("mirrored", [False, True])
def test_autoregressive_shift_preserves_volume(mirrored):
    flow = randomise(AutoregressiveShift(2, mirrored), scale=1.0).double()
    j = jacobian(flow, torch.randn(1, 2, 3, 3, dtype=torch.double))
    assert torch.linalg.det(j).item() == pytest.approx(1, abs=1e-9)
    off = j - torch.eye(18, dtype=torch.double)
    assert off.abs().max() > 1e-2, "the shift does nothing"
    # In the order (pixel, channel), pixels reversed when mirrored, the Jacobian is unit lower triangular.
    order = torch.arange(18).view(2, 9).T
    order = (order.flip(0) if mirrored else order).flatten()
    assert torch.equal(torch.triu(off[order][:, order]), torch.zeros(18, 18, dtype=torch.double))


# Spectral penalty


def test_spectral_penalty_converges_to_the_largest_singular_values():
    modules = nn.ModuleList([Conv(3, 6, 3), Conv(3, 6, 3), Conv(6, 4, 1), Conv(4, 4, 5, groups=4, norm=False)])
    modules.append(nn.BatchNorm2d(4))
    randomise(modules)
    penalty = SpectralPenalty(modules)
    for _ in range(300):
        value = penalty()
    expected = sum(torch.linalg.svdvals(m.weight().flatten(1))[0] for m in modules if isinstance(m, Conv))
    expected = expected + modules[-1].weight.abs().max()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_spectral_penalty_has_the_singular_values_gradient():
    conv = randomise(Conv(3, 6, 3, norm=False))
    penalty = SpectralPenalty(nn.ModuleList([conv]))
    for _ in range(300):
        value = penalty()
    value.backward()
    w = conv.v.detach().clone().requires_grad_()
    torch.linalg.svdvals(w.flatten(1))[0].backward()
    assert torch.allclose(conv.v.grad, w.grad, atol=1e-3)


def test_spectral_penalty_resumes_from_its_buffers():
    convs = nn.ModuleList([randomise(Conv(3, 6, 3))])
    one, two = SpectralPenalty(convs), SpectralPenalty(convs)
    one()
    two.load_state_dict(one.state_dict())
    assert two().item() == one().item()


# Cells


def test_elu_equals_torchs_with_its_gradient():
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([0.0, -1e-6, 1e-6, 100, -100])]).requires_grad_()
    y = x.detach().clone().requires_grad_()
    assert torch.allclose(elu(x), nn.functional.elu(y), atol=2e-7)
    elu(x).sum().backward()
    nn.functional.elu(y).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=2e-7)


def test_affine_is_a_batchnorm_in_evaluation_mode():
    bn = randomise(nn.BatchNorm2d(3)).eval()
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(Affine(bn)(x), bn(x), atol=1e-6)


@pytest.mark.parametrize("ops", [["res_bnswish"] * 2, ["mconv_e3k5g0"], ["mconv_e2k3g0", "res_bnswish"]])
@pytest.mark.parametrize(("kind", "c_out", "side"), [("normal", 8, 6), ("down", 16, 3), ("up", 4, 12)])
@pytest.mark.parametrize("se", [False, True])
def test_cell_shapes_and_residual(ops, kind, c_out, side, se):
    cell = Cell(kind, ops, 8, c_out, se).eval()
    x = torch.randn(2, 8, 6, 6)
    assert cell(x).shape == (2, c_out, side, side)
    assert torch.allclose(cell(x) - cell.skip(x), 0.1 * cell.se(cell.ops(x)), atol=1e-5)


def test_skip_down_reads_all_four_pixels_of_a_square():
    skip = SkipDown(1, 7)
    assert [conv.v.shape[0] for conv in skip.convs] == [1, 1, 1, 4]
    with torch.no_grad():
        for conv in skip.convs:
            conv.v.fill_(1)
            conv.g.zero_()
            conv.bias.zero_()
    x = torch.arange(16.0).view(1, 1, 4, 4)
    out = skip(x)[0, :4, 0, 0]
    assert torch.allclose(out, nn.functional.silu(torch.tensor([0.0, 5, 1, 4])), atol=1e-4)


def test_squeeze_excitation_gates_whole_channels():
    se = SqueezeExcitation(128)
    assert se.down.out_features == 8 and SqueezeExcitation(8).down.out_features == 4
    x = torch.rand(2, 128, 3, 3) + 1
    gate = se(x) / x
    assert torch.allclose(gate, gate[:, :, :1, :1].expand_as(gate), atol=1e-6)
    assert gate.min() > 0 and gate.max() < 1


def test_unknown_op():
    with pytest.raises(ValueError, match="mconv_e6k5g8"):
        make_op("mconv_e6k5g8", 4, 4, "normal")
