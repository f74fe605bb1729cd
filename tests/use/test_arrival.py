"""Whether a sampler has arrived: its draws' mean F against the posterior's, and what its moves came to."""

import pytest
import torch
from toys import Plane, toy_prior

from hebmtool.use.arrival import Arrival, Mean, Tally
from hebmtool.use.sample import sample


@pytest.mark.parametrize(
    ("F", "posterior", "arrived"),
    [
        (Mean(5.0, 0.05), Mean(5.1, 0.05), True),
        (Mean(4.3, 0.05), Mean(5.1, 0.05), False),
        (Mean(4.3, 0.5), Mean(5.1, 0.05), True),
        (Mean(5.0, None), Mean(5.1, 0.05), None),
        (Mean(6.0, 0.05), Mean(5.1, 0.05), True),
        (Mean(5.0, 0.05), None, None),
    ],
)
def test_a_sampler_that_is_short_of_the_posterior_says_so(F, posterior, arrived):
    found = Arrival(F, posterior, 0.8, 12.0)
    assert found.arrived is arrived and found.as_dict()["arrived"] is arrived
    assert (found.sentence() is not None) == (arrived is False)
    if arrived is False:
        assert "has not arrived: its draws have a mean F of 4.30 ± 0.05 nats" in found.sentence()


def test_moves_are_counted_and_draws_held_against_what_learning_kept():
    torch.manual_seed(0)
    prior = toy_prior(Plane(), "diffusion-ebm", "hmc", weight=0.5, objective="nce", theta=0.5)
    prior.posterior_tilt = (100.0, 0.1)
    tally = Tally(prior)
    drawn = torch.cat(list(sample(prior, 40, batch_size=16, steps=9, tally=tally)))
    found = tally.arrival()
    # Two moves an image.
    assert len(drawn) == 40 and tally.proposed == 80
    assert found.moves == pytest.approx(2 * found.acceptance) and 0 < found.acceptance <= 1
    assert found.arrived is False and found.posterior == Mean(100.0, 0.1)
    assert tally.arrival(found.F).arrived
    torch.testing.assert_close(torch.cat(list(sample(prior, 40, batch_size=40, steps=9))), drawn, atol=1, rtol=0)


def test_a_chain_without_a_test_has_no_moves_to_count():
    prior = toy_prior(Plane(), "ebm", "underdamped", weight=0.5)
    tally = Tally(prior)
    list(sample(prior, 4, steps=2, tally=tally))
    found = tally.arrival()
    assert (found.acceptance, found.moves, found.posterior, found.arrived) == (None, None, None, None)
