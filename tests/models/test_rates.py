"""Distributions of a success rate: densities integrate to one, samples follow them, atoms have their masses."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from scipy import integrate, stats

import bayes_prompt as bp
from bayes_prompt.errors import CannotLower

DRAWS = 20_000
# Kolmogorov's law: the statistic exceeds 2.5 / sqrt(n) once in 130,000 runs, whatever the continuous law.
KOLMOGOROV = 2.5 / math.sqrt(DRAWS)


@given(
    weights=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=9).filter(lambda w: sum(w) > 0.01), even=st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_histograms_integrate_to_one(weights: list[float], even: bool) -> None:
    bins = len(weights)
    edges = None if even else torch.linspace(0, 1, bins + 1).double() ** 2
    law = bp.priors.histogram(torch.tensor(weights, dtype=torch.float64), edges)
    ends = np.linspace(0, 1, bins + 1) if even else np.linspace(0, 1, bins + 1) ** 2
    middles = torch.from_numpy((ends[1:] + ends[:-1]) / 2)
    density = law.log_prob(middles).exp().numpy()
    mass = density * np.diff(ends)
    np.testing.assert_allclose(mass, np.array(weights) / sum(weights), rtol=1e-6, atol=1e-12)  # linspace is float32
    assert mass.sum() == pytest.approx(1.0, abs=1e-6)
    assert float(law.mean) == pytest.approx(float((mass * middles.numpy()).sum()), abs=1e-6)


def test_a_histogram_is_flat_within_its_bins_and_nowhere_else() -> None:
    law = bp.priors.histogram(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 0.5, 0.6, 1.0], dtype=torch.float64))
    values = torch.tensor([0.0, 0.25, 0.4999, 0.5, 0.55, 0.6, 1.0, -0.1, 1.1], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0, 1.875, 1.875, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(values).exp(), expected)
    assert law.log_prob(torch.rand(2, 3)).shape == (2, 3)


def test_draws_of_a_histogram_follow_it() -> None:
    pyro.set_rng_seed(5)
    edges = torch.tensor([0.0, 0.5, 0.6, 1.0], dtype=torch.float64)
    draws = bp.priors.histogram(torch.tensor([1.0, 2.0, 3.0]), edges).sample((DRAWS,)).numpy()

    def cumulative(x: np.ndarray) -> np.ndarray:
        return np.interp(x, edges.numpy(), [0.0, 1 / 6, 0.5, 1.0])

    assert stats.ks_1samp(draws, cumulative).statistic < KOLMOGOROV


def test_inflated_densities_and_atoms_add_up() -> None:
    law = bp.priors.inflated(dist.Beta(torch.tensor(2.0).double(), torch.tensor(3.0).double()), zero=0.3, one=0.1)
    inner, _ = integrate.quad(lambda p: float(law.log_prob(torch.tensor(p)).exp()), 0, 1)
    ends = law.log_prob(torch.tensor([0.0, 1.0])).exp()
    torch.testing.assert_close(ends, torch.tensor([0.3, 0.1]).double())
    # The integrand rounds p to float32, of which the density moves by 1e-7.
    assert inner + float(ends.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(law.mean) == pytest.approx(0.1 + 0.6 * 0.4, abs=1e-12)
    assert law.log_prob(torch.tensor([-0.5, 1.5])).tolist() == [-math.inf, -math.inf]
    plain = bp.priors.inflated(dist.Beta(2.0, 3.0))
    assert plain.log_prob(torch.tensor([0.0, 1.0])).tolist() == [-math.inf, -math.inf]


def test_draws_of_an_inflated_law_follow_it() -> None:
    pyro.set_rng_seed(6)
    draws = bp.priors.inflated(dist.Beta(2.0, 3.0), zero=0.3, one=0.1).sample((DRAWS,)).numpy()
    for atom, mass in ((0.0, 0.3), (1.0, 0.1)):
        # Five standard deviations of a share.
        assert (draws == atom).mean() == pytest.approx(mass, abs=5 * math.sqrt(mass * (1 - mass) / DRAWS))
    inner = draws[(draws > 0) & (draws < 1)]
    assert stats.ks_1samp(inner, stats.beta(2, 3).cdf).statistic < 2.5 / math.sqrt(len(inner))


def test_a_logit_normal_is_one() -> None:
    law = bp.priors.logit_normal(0.5, 1.5)
    rate = torch.tensor([0.1, 0.5, 0.97], dtype=torch.float64)
    expected = stats.norm.pdf(torch.logit(rate), 0.5, 1.5) / (rate * (1 - rate)).numpy()
    np.testing.assert_allclose(law.log_prob(rate).exp(), expected, rtol=1e-12)


def test_laws_expand_within_plates() -> None:
    for law in (
        bp.priors.inflated(dist.Beta(2.0, 3.0), 0.1, 0.2),
        bp.priors.histogram(torch.ones(4)),
        bp.priors.logit_normal(0.0, 1.0),
    ):

        def program(law: dist.Distribution = law) -> torch.Tensor:
            with pyro.plate("prompts", 5):
                return pyro.sample("rate", law)

        trace = pyro.poutine.trace(program).get_trace()
        assert trace.nodes["rate"]["value"].shape == (5,)
        each = law.log_prob(trace.nodes["rate"]["value"])
        assert float(trace.log_prob_sum()) == pytest.approx(float(each.sum()), rel=1e-6)


def test_gradients_reach_the_parameters() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    bp.priors.histogram(weights).log_prob(torch.tensor(0.5)).backward()
    # log(3 w1 / total): 1 / w1 - 1 / total, and -1 / total for the others.
    torch.testing.assert_close(weights.grad, torch.tensor([-1 / 6, 1 / 2 - 1 / 6, -1 / 6]))
    zero = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    bp.priors.inflated(dist.Beta(2.0, 3.0), zero).log_prob(torch.tensor([0.0, 0.4])).sum().backward()
    assert zero.grad is not None and float(zero.grad) == pytest.approx(1 / 0.2 - 1 / 0.8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.priors.inflated(0.5), CannotLower, r"base must be a distribution of batch shape \(\)"),
        (lambda: bp.priors.inflated(dist.Beta(torch.ones(2), 1.0)), CannotLower, "base must be a distribution"),
        (lambda: bp.priors.inflated(dist.Beta(1.0, 1.0), -0.1), ValueError, r"zero = -0.1 must lie in \[0, 1\)"),
        (lambda: bp.priors.inflated(dist.Beta(1.0, 1.0), one=math.nan), ValueError, r"one = nan must lie in \[0, 1\)"),
        (lambda: bp.priors.inflated(dist.Beta(1.0, 1.0), 0.5, 0.5), ValueError, r"zero \+ one = 1.0 must be below 1"),
        (lambda: bp.priors.logit_normal(0.0, 0.0), ValueError, "deviation = 0.0 must be positive and finite"),
        (lambda: bp.priors.logit_normal(math.inf, 1.0), ValueError, "mean = inf must be finite"),
        (lambda: bp.priors.histogram(torch.ones(2, 2)), ValueError, r"weights must have shape \(B,\)"),
        (lambda: bp.priors.histogram(torch.tensor([1.0, -1.0])), ValueError, r"weights\[1\] = -1.0 must be finite"),
        (lambda: bp.priors.histogram(torch.zeros(3)), ValueError, "the sum of weights = 0.0 must be positive"),
        (
            lambda: bp.priors.histogram(torch.ones(2), torch.tensor([0.0, 0.5, 0.9])),
            ValueError,
            r"edges must have shape \(3,\), from 0 to 1",
        ),
        (
            lambda: bp.priors.histogram(torch.ones(3), torch.tensor([0.0, 0.6, 0.5, 1.0])),
            ValueError,
            r"edges\[1\] = 0.5 must be greater than the edge before it",
        ),
    ],
)
def test_bad_laws_are_named(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]
