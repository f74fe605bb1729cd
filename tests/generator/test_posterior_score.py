"""grad_u log q(u | x), against the change of variables from the posterior's own noise."""

import pytest
import torch

from hebmtool import recipe
from hebmtool.errors import HebmError
from hebmtool.generator import Tower


def tiny(**changes) -> Tower:
    torch.manual_seed(0)
    settings = {
        "scales": 2,
        "layers_per_scale": 1,
        "latent_channels": 1,
        "encoder_channels": 4,
        "decoder_channels": 4,
        "likelihood": "gaussian",
    }
    generator = Tower(recipe.Generator(**settings | changes), (1, 8, 8)).double().eval()
    with torch.no_grad():
        # Posteriors and conditionals far enough from N(0, I) for mistakes to show.
        for layer in [*generator.encoder, *generator.decoder]:
            for parameter in (layer.head or torch.nn.Identity()).parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


@pytest.mark.parametrize("residual", [True, False])
def test_matches_the_change_of_variables(residual):
    generator = tiny(residual_posterior=residual)
    x = torch.rand(1, 1, 8, 8, dtype=torch.double)
    noise = torch.randn(generator.D, dtype=torch.double)

    def to_u(epsilon: torch.Tensor) -> torch.Tensor:
        return generator.encode(x, epsilon[None])[0]

    def log_q(epsilon: torch.Tensor) -> torch.Tensor:
        jacobian = torch.autograd.functional.jacobian(to_u, epsilon, create_graph=True)
        return -0.5 * epsilon.square().sum() - torch.linalg.slogdet(jacobian).logabsdet

    epsilon = noise.clone().requires_grad_(True)
    in_epsilon = torch.autograd.grad(log_q(epsilon), epsilon)[0]
    jacobian = torch.autograd.functional.jacobian(to_u, noise)
    expected = torch.linalg.solve(jacobian.T, in_epsilon)
    found = generator.posterior_score(to_u(noise)[None].detach(), x)[0]
    assert expected.abs().max() > 0.5
    # Not to float64's rounding: raw parameters of latents pass through float32 in any generator.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_flows_are_refused_with_the_way_out():
    generator = tiny(flows=1)
    with pytest.raises(HebmError, match=r"prior\.objective=recovery"):
        generator.posterior_score(torch.zeros(1, generator.D), torch.zeros(1, 1, 8, 8))
