"""Hybrid Monte Carlo: its steps keep volume and run backwards, and its law is left as it is however long they are."""

import math

import pytest
import torch

from hebmtool.chains import value_and_gradient
from hebmtool.chains.hybrid import ACCEPTED, KICKS, Hybrid, hybrid, jump, longer, move, step
from hebmtool.noise import Noise
from hebmtool.prior import Schedule


def two_humps(u):
    """F on the plane, some nats: with N(0, I), a law of two humps of different weight that bends."""
    return 2 * (1.5 * u[:, 0] + 0.5).tanh().square() * 2 + 0.7 * u[:, 1] * u[:, 0].sin() - 0.1 * u[:, 1].square()


def slope(u):
    return value_and_gradient(two_humps, u)


def angle(theta, n):
    return torch.full((n, 1), theta, dtype=torch.get_default_dtype())


def test_steps_keep_volume_and_are_their_own_reverse():
    m, sigma, theta = (
        torch.tensor([[0.3, -0.4]]).double(),
        torch.tensor([[0.7]]).double(),
        torch.tensor([[0.9]]).double(),
    )

    def there(x):
        """F differentiated in the graph, so that the map itself can be."""

        def twice(u):
            value = two_humps(u)
            return value, torch.autograd.grad(value.sum(), u, create_graph=True)[0]

        u, v = x[None, :2], x[None, 2:]
        push = twice(u)[1]
        for _ in range(KICKS):
            u, _, push, v = step(twice, u, v, push, m, sigma, theta)
        return torch.cat([u, v], 1)[0]

    x = torch.tensor([0.2, -1.1, 0.5, 0.8]).double().requires_grad_(True)
    end = there(x)
    assert torch.linalg.det(torch.autograd.functional.jacobian(there, x)).item() == pytest.approx(1, abs=1e-9)
    assert not torch.allclose(end, x, atol=0.1)
    turned = torch.cat([end[:2], -end[2:]]).detach().requires_grad_(True)
    back = there(turned)
    assert torch.allclose(torch.cat([back[:2], -back[2:]]), x, atol=1e-9)


def quadrature(m, sigma, tau=1.0):
    """Means of u_1, u_2, u_1^2, u_2^2, u_1 u_2 and of u_1 > 0 under (exp(F) N(u; m, sigma^2))^(1 / tau^2)."""
    line = torch.linspace(-6, 6, 601)
    u = torch.cartesian_prod(line, line)
    log_p = two_humps(u) - 0.5 * ((u - m) / sigma).square().sum(1)
    return (log_p / tau**2).softmax(0).double() @ features(u).double()


def features(u):
    return torch.cat([u, u.square(), u.prod(1, keepdim=True), (u[:, :1] > 0).float()], 1)


@pytest.mark.parametrize(
    ("theta", "tau", "r"), [(0.3, 1.0, 0.0), (1.2, 1.4, 0.0), (0.3, 1.4, 0.0), (1.2, 1.0, 0.6), (0.3, 1.4, 1.0)]
)
def test_the_law_is_exact_at_any_step(theta, tau, r):
    """From N(m, sigma^2) to it, with steps that refuse many moves as well."""
    torch.manual_seed(0)
    n, m, sigma = 4000, torch.tensor([[0.4, -0.2]]), torch.tensor([[0.8]])
    taken = []

    def watch(u, F, push, moved):
        taken.extend([] if moved is None else [moved.float().mean()])

    eps = lambda: torch.randn(n, 2)  # noqa: E731
    u = hybrid(slope, m, sigma, lambda: angle(theta, n), 1 + 40 * (KICKS + (r > 0)), eps, tau, watch=watch, r=r)
    found, expected = features(u).double(), quadrature(m, sigma, tau)
    assert len(taken) == 40
    if theta > 1:
        assert 0.3 < taken[-1] < 0.9
    assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / n**0.5).all(), (found.mean(0), expected)


def test_one_move_leaves_the_law_as_it_is():
    """Draws of the law, by rejection, moved once: what was true of them still is, pair by pair."""
    torch.manual_seed(1)
    n, m, sigma = 40_000, torch.zeros(1, 2), torch.ones(1, 1)
    u = torch.randn(4 * n, 2)
    u = u[torch.rand(4 * n).log() < two_humps(u) - 6][:n]
    assert len(u) > 4000
    F, push = slope(u)
    moved, F, push, taken = move(slope, u, F, push, m, sigma, angle(0.9, len(u)), KICKS, lambda: torch.randn_like(u))
    assert 0.4 < taken.float().mean() < 0.99
    change = (features(moved) - features(u)).double()
    assert (change.mean(0).abs() < 4 * change.std(0) / len(u) ** 0.5).all()
    expected, expected_push = slope(moved)
    assert torch.equal(F, expected) and torch.equal(push, expected_push)
    assert torch.equal(moved[~taken], u[~taken]) and not torch.isclose(moved[taken], u[taken]).all(1).any()


@pytest.mark.parametrize("r", [0.2, 1.0])
def test_one_jump_leaves_the_law_as_it_is(r):
    torch.manual_seed(1)
    u = torch.randn(160_000, 2)
    u = u[torch.rand(len(u)).log() < two_humps(u) - 6]
    F, push = slope(u)
    jumped, F, push = jump(slope, u, F, push, torch.zeros(1, 2), torch.ones(1, 1), r, lambda: torch.randn_like(u))
    change = (features(jumped) - features(u)).double()
    assert (change.mean(0).abs() < 4 * change.std(0) / len(u) ** 0.5).all()
    expected, expected_push = slope(jumped)
    assert torch.equal(F, expected) and torch.equal(push, expected_push)
    assert 0.2 < (jumped != u).any(1).float().mean() < 0.95


def test_jumps_carry_mass_where_no_gradient_leads():
    """Two humps that nothing lies between: who starts on the lighter one stays, or comes to the shares."""

    def F(u):
        humps = torch.cat([math.log(share) - 12.5 * (u - at).square() for share, at in ((0.3, -2.0), (0.7, 2.0))], 1)
        return humps.logsumexp(1) + 0.5 * u.square().sum(1)

    torch.manual_seed(0)
    n, start, steps = 500, torch.full((500, 1), -2.0), lambda: angle(0.1, 500)
    for r, low, high in ((0.0, 0, 0), (1.0, 0.62, 0.78)):
        u = hybrid(
            lambda u: value_and_gradient(F, u),
            *(torch.zeros(1, 1), torch.ones(1, 1), steps, 1001, lambda: torch.randn(n, 1)),
            start=start,
            r=r,
        )
        assert low <= (u > 0).float().mean() <= high


def test_jumps_count_as_gradients():
    for K in (1, 2, 3, 6, 7, 11, 12):
        gradients = []
        told = lambda u, *_, gradients=gradients: gradients.append(u)  # noqa: E731
        Hybrid(0.3, renew=0.5).refine(slope, torch.zeros(4, 2), Schedule(3), K, lambda: torch.randn(4, 2), watch=told)
        assert len(gradients) == K


def test_an_energy_that_is_not_finite_is_never_gone_to():
    def broken(u):
        return torch.where(u[:, 0] > 0, math.nan, 0.0), torch.zeros_like(u)

    start = torch.tensor([[-0.5, 0.0]]).expand(64, 2)
    u = Hybrid(1.0).refine(broken, start, Schedule(3), 1 + 3 * KICKS, lambda: torch.randn(64, 2))
    assert (u[:, 0] <= 0).all() and len(u.unique(dim=0)) > 10


def test_an_image_does_not_depend_on_its_batch():
    chain, schedule = Hybrid(0.5, torch.tensor([0.4, 0.5, 0.6])), Schedule(3)

    def drawn(numbers):
        noise = Noise(3, numbers, 2)
        t = torch.zeros(len(numbers), dtype=torch.long)
        u = chain(slope, noise(), schedule, t + 1, 9, noise)
        return chain.refine(slope, u, schedule, 11, noise)

    assert torch.equal(drawn([0, 1, 2, 3])[2:], drawn([2, 3]))


def test_every_level_has_its_own_steps_read_anew_at_every_move():
    by_level, seen = torch.tensor([0.1, 0.2, 0.3]), []
    chain = Hybrid(0.5).stepping(by_level)

    def watch(u, F, push, taken):
        seen.append(float(by_level[0]))
        by_level[0] = 0.7

    chain.refine(slope, torch.randn(3, 2), Schedule(3), 5, lambda: torch.randn(3, 2), watch=watch)
    assert torch.equal(chain._angle(torch.tensor([2, 0]))(), by_level[[2, 0]][:, None])
    assert chain == Hybrid(0.5) and len(seen) == 5


def test_steps_lengthen_where_nearly_all_is_taken():
    theta = torch.tensor(0.4)
    assert longer(theta, torch.tensor(1.0), 0.5) > theta > longer(theta, torch.tensor(0.2), 0.5)
    assert longer(theta, torch.tensor(ACCEPTED), 0.5) == theta
    assert longer(torch.tensor(1.49), torch.tensor(1.0), 5.0) <= 1.5
