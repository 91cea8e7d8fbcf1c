"""Priors on grids: Gauss points are exact for polynomials, even ones as wide as they say, atoms are kept."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from scipy import integrate, special

import bayes_prompt as bp
from bayes_prompt.errors import CannotLower
from bayes_prompt.models import grid
from bayes_prompt.models.grid import Points


def beta(alpha: float, beta: float) -> dist.Beta:
    return dist.Beta(torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64))


def moment(points: Points, successes: int, failures: int) -> float:
    """E[p^s (1 - p)^f] on the points; 0 * -inf of an atom that was not met counts as 0."""
    log = torch.zeros_like(points.logit)
    for count, each in ((successes, points.log_rate), (failures, points.log_failure)):
        if count:
            log = log + count * each
    return float(points.mass @ log.exp())


def beta_moment(alpha: float, beta: float, successes: int, failures: int) -> float:
    return math.exp(special.betaln(alpha + successes, beta + failures) - special.betaln(alpha, beta))


def fine_error(alpha: float, beta_: float) -> float:
    """How wrong the fine rule may be about a Beta, of which at most all lies beyond its ends.

    Rates end at 1 - 2e-9, whose distance from 1 is rounded by 2**-53 / 2e-9 = 6e-8. So wrong is a density there; and
    over the 2.5 units of the logit in which it is seen to fall, by the factor exp(-2.5 a), how much lies beyond. There,
    too, it is not quite exponential: it has a factor (1 + exp(-logit))^-(alpha + beta), and exp(-17.5) is 2.5e-8.
    """
    least = min(alpha, beta_)
    return 6e-8 * (1 + 1 / (2.5 * least)) + 2.5e-8 * (alpha + beta_) / (2.5 * least)


@given(
    alpha=st.floats(0.05, 20.0),
    beta_=st.floats(0.05, 20.0),
    size=st.integers(3, 41),
    share=st.floats(0.0, 1.0),
    degree=st.floats(0.0, 1.0),
)
@settings(max_examples=80, deadline=None)
def test_gauss_points_are_exact_for_polynomials(
    alpha: float, beta_: float, size: int, share: float, degree: float
) -> None:
    """Degree 2 K - 1, whatever the Beta: counts of 2 K - 2 rollouts, and the mean rate after them."""
    points = grid.lower(beta(alpha, beta_), size, 0.0)
    total = round(degree * (2 * len(points.logit) - 1))
    won = round(share * total)
    found, wanted = moment(points, won, total - won), beta_moment(alpha, beta_, won, total - won)
    assert found == pytest.approx(wanted, abs=fine_error(alpha, beta_))
    assert float(points.mass.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((points.logit.diff() > 0).all())


@pytest.mark.parametrize(("alpha", "beta_"), [(3e4, 1e4), (3e6, 1e6), (0.01, 0.01), (1e-3, 0.2)])
def test_narrow_and_hollow_priors_keep_their_mean(alpha: float, beta_: float) -> None:
    points = grid.lower(beta(alpha, beta_), 21, 0.0)
    assert moment(points, 1, 0) == pytest.approx(alpha / (alpha + beta_), abs=fine_error(alpha, beta_))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.5), (-2.0, 0.5), (1.0, 3.0)])
def test_gauss_points_of_a_logit_normal(mean: float, deviation: float) -> None:
    points = grid.lower(bp.priors.logit_normal(mean, deviation), 9, 0.0)

    def exact(won: int, lost: int) -> float:
        def integrand(z: float) -> float:
            rate = special.expit(mean + deviation * z)
            return rate**won * (1 - rate) ** lost * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        value, _ = integrate.quad(integrand, -12, 12, epsabs=1e-13, limit=400)
        return float(value)

    for won, lost in ((1, 0), (0, 5), (8, 8), (17, 0)):
        # Cut off at logits of 20: 6 deviations of the widest, beyond which lie 1e-10 of it.
        assert moment(points, won, lost) == pytest.approx(exact(won, lost), abs=1e-9)


def test_atoms_have_points_of_their_own() -> None:
    prior = bp.priors.inflated(beta(2.0, 3.0), zero=0.3, one=0.1)
    points = grid.lower(prior, 9, 0.0)
    assert (len(points.mass), float(points.logit[0]), float(points.logit[-1])) == (9, -math.inf, math.inf)
    assert float(points.mass[0]) == pytest.approx(0.3, abs=1e-15)
    assert float(points.mass[-1]) == pytest.approx(0.1, abs=1e-15)
    assert points.inner == slice(1, 8)
    assert moment(points, 6, 7) == pytest.approx(0.6 * beta_moment(2.0, 3.0, 6, 7), rel=1e-9)
    assert moment(points, 3, 0) == pytest.approx(0.1 + 0.6 * beta_moment(2.0, 3.0, 3, 0), rel=1e-9)
    only = grid.lower(bp.priors.inflated(beta(2.0, 3.0), one=0.2), 9, 0.0)
    assert bool(only.logit[0].isfinite()) and float(only.rate[-1]) == 1.0


def test_even_points_are_as_wide_as_the_drift_and_the_prior() -> None:
    points = grid.lower(beta(1.0, 1.0), 25, 6.0)
    torch.testing.assert_close(points.logit.diff(), points.logit.diff()[:1].expand(24))
    assert float(points.logit[0]) <= -6.0 and float(points.logit[-1]) >= 6.0
    far = grid.lower(bp.priors.logit_normal(5.0, 0.5), 25, 2.0)
    # A billionth of the prior lies beyond six deviations, and where that is past a logit of 8 the grid ends there.
    assert float(far.logit[0]) == pytest.approx(-2.0) and 7.9 < float(far.logit[-1]) <= 8.0
    # The trapezoidal rule, of which the gap squared over 12 of the curvature is left: a few thousandths at 0.25.
    middle = grid.lower(beta(3.0, 2.0), 65, 6.0)
    assert moment(middle, 1, 0) == pytest.approx(0.6, abs=1e-3)
    # What lies beyond the ends is not lost, but counted there.
    hollow = grid.lower(beta(0.1, 0.1), 41, 6.0)
    assert float(hollow.mass.sum()) == pytest.approx(1.0, abs=1e-12)
    below = special.betainc(0.1, 0.1, special.expit(float(hollow.logit[0])))
    assert float(hollow.mass[0]) > 0.9 * below


def test_a_grid_of_ones_own() -> None:
    rates = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    points = grid.lower(beta(2.0, 2.0), rates, 0.0)
    torch.testing.assert_close(points.rate, rates)
    logit = special.logit(rates[1:-1].numpy())
    gaps = np.diff(logit)
    widths = np.array([gaps[0], gaps[0] + gaps[1], gaps[1] + gaps[2], gaps[2]])
    density = (rates[1:-1] ** 2 * (1 - rates[1:-1]) ** 2).numpy()  # of the logit
    expected = widths * density / (widths * density).sum()
    np.testing.assert_allclose(points.mass, [0.0, *expected, 0.0], rtol=0, atol=1e-14)
    single = grid.lower(bp.priors.inflated(beta(1.0, 1.0), 0.2, 0.3), torch.tensor([0.0, 0.4, 1.0]), 0.0)
    torch.testing.assert_close(single.mass, torch.tensor([0.2, 0.5, 0.3]).double())


def test_a_prior_of_few_points_has_no_more() -> None:
    points = grid.lower(beta(1e12, 1e12), 9, 0.0)
    assert len(points.mass) <= 9 and float(points.mass.sum()) == pytest.approx(1.0, abs=1e-12)
    assert moment(points, 1, 0) == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize("reach", [0.0, 6.0])
def test_gradients_reach_the_prior_where_points_do_not_follow_from_it(reach: float) -> None:
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    size: int | torch.Tensor = 41 if reach else torch.linspace(0.01, 0.99, 41, dtype=torch.float64)

    def mean(value: torch.Tensor) -> torch.Tensor:
        points = grid.lower(dist.Beta(value, torch.tensor(3.0).double()), size, reach)
        return points.mass @ points.rate

    mean(alpha).backward()
    assert alpha.grad is not None
    with torch.no_grad():
        slope = float(mean(alpha + 1e-5) - mean(alpha - 1e-5)) / 2e-5
    # Central differences; the even grid ends where the prior's tail does, which moves it by a cell of 0.01 at most.
    assert float(alpha.grad) == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Beta(torch.ones(3), torch.ones(3)), r"prior has batch shape \(3,\) and event shape \(\); a distribution"),
        (dist.Beta(torch.ones(3), torch.ones(3)).to_event(1), r"batch shape \(\) and event shape \(3,\)"),
        (dist.Dirichlet(torch.ones(2)), r"event shape \(2,\)"),
        (dist.Normal(0.0, 1.0), r"prior, a Normal, has a support that reaches beyond \[0, 1\]"),
        (dist.Uniform(0.2, 1.5), r"prior, a Uniform, has a support that reaches beyond"),
        (dist.Gamma(1.0, 1.0), r"prior, a Gamma, has a support that reaches beyond"),
        (dist.Bernoulli(0.5), r"prior has a density that adds up to 0"),
    ],
)
def test_priors_that_cannot_be_lowered(prior: dist.Distribution, message: str) -> None:
    with pytest.raises(CannotLower, match=message):
        grid.lower(prior, 9, 0.0)


def test_a_prior_without_a_density_says_what_works() -> None:
    class Drawn(dist.TorchDistribution):
        arg_constraints: dict = {}  # noqa: RUF012
        support = dist.constraints.unit_interval

    with pytest.raises(CannotLower, match=r"prior, a Drawn, has no density: \w+; a distribution over"):
        grid.lower(Drawn(), 9, 0.0)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (2, ValueError, "grid must be at least 3; got 2"),
        (513, ValueError, "grid must be at most 512 points; got 513"),
        (9.0, TypeError, "grid must be an integer; got float"),
        (torch.tensor([0.1, 0.2]), ValueError, r"grid must have shape \(K,\) with K in \[3, 512\]; got \(2,\)"),
        (torch.tensor([0.1, 0.2, 1.2]), ValueError, r"grid\[2\] = 1.2.* must lie in \[0, 1\]"),
        (torch.tensor([0.1, 0.2, math.nan]), ValueError, r"grid\[2\] = nan must lie in \[0, 1\]"),
        (torch.tensor([0.1, 0.2, 0.2]), ValueError, r"grid\[2\] = 0.2.* must be greater than the entry before it"),
    ],
)
def test_bad_grids_are_named(size: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        grid.lower(beta(1.0, 1.0), size, 0.0)  # type: ignore[arg-type]


def test_a_grid_must_hold_the_atoms() -> None:
    prior = bp.priors.inflated(beta(1.0, 1.0), zero=0.1)
    with pytest.raises(ValueError, match=r"grid must hold 0, where the prior has an atom; it ends at 0\.1"):
        grid.lower(prior, torch.tensor([0.1, 0.5, 0.9]), 0.0)
    with pytest.raises(ValueError, match="grid must be at least 4; got 3"):
        grid.lower(prior, 3, 0.0)
