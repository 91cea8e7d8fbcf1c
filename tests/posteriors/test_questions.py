"""What acquisitions ask of a posterior, against numerical integration and simulation."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

import bayes_prompt as bp

WALK = bp.LogitRandomWalk(0.3)


def beta_prior(alpha: float, beta: float) -> dist.Beta:
    """In float64: torch would round plain numbers to float32 first."""
    return dist.Beta(torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.3, 4.0), (30.0, 2.0)])
@pytest.mark.parametrize("trials", [1, 2, 8])
def test_beta_against_quadrature(alpha: float, beta: float, trials: int) -> None:
    posterior = bp.SuccessRate(beta_prior(alpha, beta)).posterior(2, dtype=torch.float64)
    law = stats.beta(alpha, beta)

    def expect(function: object) -> float:
        # 0.3 makes the density infinite at 0: the substitution p = x**4 takes the singularity away.
        value, _ = integrate.quad(lambda x: function(x**4) * law.pdf(x**4) * 4 * x**3, 0, 1, epsabs=1e-12, limit=200)  # type: ignore[operator]
        return value

    close = {"abs": 1e-9}
    assert float(posterior.success_rate()[0]) == pytest.approx(law.mean(), **close)
    mixed = expect(lambda p: 1 - p**trials - (1 - p) ** trials)
    assert float(posterior.informative_probability(trials)[0]) == pytest.approx(mixed, **close)
    assert float(posterior.expected_variance()[0]) == pytest.approx(expect(lambda p: p * (1 - p)), **close)
    assert float(posterior.entropy()[0]) == pytest.approx(float(law.entropy()), **close)


def test_published_emission_answers_as_published() -> None:
    posterior = bp.SolvingProgress().posterior(5, dtype=torch.float64)
    posterior.update([0, 1, 2], [0, 3, 8], 8)
    belief = posterior.belief
    assert torch.equal(posterior.informative_probability(8), belief[:, 1])
    assert torch.equal(posterior.informative_probability(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(posterior.success_rate(), 0.5 * belief[:, 1] + belief[:, 2])
    torch.testing.assert_close(posterior.expected_variance(), 0.25 * belief[:, 1])
    entropy = torch.tensor(stats.entropy(belief.numpy(), axis=1))
    torch.testing.assert_close(posterior.entropy(), entropy)
    assert torch.equal(posterior.success_rate(torch.tensor([2, 0])), posterior.success_rate()[[2, 0]])


@pytest.mark.parametrize(
    "emission",
    [
        bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 3.0, 9.0]), torch.tensor([6.0, 3.0, 0.5]))),
        bp.PartitionEmission([0.0, 0.2, 0.7, 1.0]),
        bp.PartitionEmission([0.0, 0.0, 1.0, 1.0]),
        bp.PublishedEmission(),
    ],
)
def test_draws_have_the_moments_of_the_belief(emission: bp.Emission) -> None:
    posterior = bp.SolvingProgress(emission=emission, initial=torch.tensor([0.5, 0.3, 0.2])).posterior(200_000)
    draws = posterior.sample_success_rate(seed=3, step=1).double().numpy()
    # Five standard errors: missed once in two million runs if the draws are right.
    error = 5 * draws.std() / math.sqrt(draws.size)
    assert draws.mean() == pytest.approx(float(posterior.success_rate()[0]), abs=error)
    spread = draws * (1 - draws)
    error = 5 * spread.std() / math.sqrt(draws.size) + 1e-7
    assert spread.mean() == pytest.approx(float(posterior.expected_variance()[0]), abs=error)
    assert not np.array_equal(draws, posterior.sample_success_rate(seed=3, step=2).numpy())


def test_beta_evidence_is_the_beta_binomial() -> None:
    posterior = bp.SuccessRate(beta_prior(0.7, 2.0), decay=1.0).posterior(4, dtype=torch.float64)
    posterior.update([1, 3], [2, 8], 8)
    posterior.update([1], [5], 6)
    expected = (
        stats.betabinom(8, 0.7, 2.0).logpmf(2)
        + stats.betabinom(8, 0.7, 2.0).logpmf(8)
        + stats.betabinom(6, 2.7, 8.0).logpmf(5)
    )
    assert posterior.log_count_evidence == pytest.approx(expected, abs=1e-10)


def test_published_evidence_spreads_partial_over_its_counts() -> None:
    posterior = bp.SolvingProgress().posterior(3, dtype=torch.float64)
    posterior.update([0, 1, 2], [0, 3, 8], 8)
    assert posterior.log_evidence == pytest.approx(3 * math.log(1 / 3), abs=1e-12)
    assert posterior.log_count_evidence == pytest.approx(3 * math.log(1 / 3) - math.log(7), abs=1e-12)


def test_fixed_transitions_and_own_priors() -> None:
    concentration = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(2)) + 0.1
    fixed = bp.SolvingProgress(learn=False).posterior(4, concentration=concentration, dtype=torch.float64)
    fixed.update([0, 3], [0, 4], 8)
    transition = concentration.double() / concentration.double().sum(-1, keepdim=True)
    assert torch.equal(fixed.concentration, concentration.double())
    torch.testing.assert_close(fixed.belief[0], transition[0, 0])  # certainly unsolved, then one step
    torch.testing.assert_close(fixed.belief[3], transition[3, 1])
    learns = bp.SolvingProgress(decay=1.0).posterior(4, concentration=concentration, dtype=torch.float64)
    learns.update([0], [0], 8)
    assert float(learns.concentration[0].sum()) == pytest.approx(float(concentration[0].double().sum()) + 1)
    assert torch.equal(learns.concentration[1:], concentration[1:].double())


def test_elapsed_scales_the_forgetting() -> None:
    slow, fast = (bp.SolvingProgress(decay=0.5).posterior(1, dtype=torch.float64) for _ in range(2))
    for posterior in (slow, fast):
        posterior.update([0], [4], 8)
    learnt = slow.concentration - 1.0
    slow.advance()
    slow.advance()
    fast.advance(elapsed=2.0)
    torch.testing.assert_close(slow.concentration - 1.0, 0.25 * learnt)
    torch.testing.assert_close(fast.concentration, slow.concentration)


def test_warm_start_shapes_the_belief_only() -> None:
    posterior = bp.SolvingProgress().posterior(4, dtype=torch.float64)
    posterior.warm_start([0, 2], [8, 3], 8)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.allclose(posterior.belief[1], third) and posterior.visits.sum() == 0
    assert posterior.log_evidence == 0.0
    # Solved then, and one uniform transition later anything: not certain, so that the first rollout can surprise.
    torch.testing.assert_close(posterior.belief[0], third)
    sticky = bp.SolvingProgress(bp.priors.stability()).posterior(4, dtype=torch.float64)
    sticky.warm_start([0, 2], [8, 3], 8)
    torch.testing.assert_close(sticky.belief[0], torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(sticky.belief[2], torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))
    rates = bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(3)
    rates.warm_start([1, 1], [3, 4], [8, 8])
    assert rates.alpha.tolist() == [1, 8, 1] and rates.beta.tolist() == [1, 10, 1]
    rates.advance()
    with pytest.raises(ValueError, match="warm_start must come before"):
        rates.warm_start([0], [1], 8)


def test_answers_keep_their_precision_inside_autocast() -> None:
    """Trainers select and log inside it; a bfloat16 score would tie prompts that differ."""
    model = bp.SuccessRate(drift=bp.DriftBank([WALK, bp.Redraw()]), grid=9, sharing=bp.EmpiricalBayes())
    on_grid = bp.PromptSelector(model.posterior(9), bp.acquisition.LookIndex(), batch_size=2, seed=0)
    for selector in (bp.recipes.dps(num_prompts=9, batch_size=2), on_grid):
        ask_inside_autocast(selector)


def ask_inside_autocast(selector: bp.PromptSelector) -> None:
    selector.update([0, 1], successes=[1, 2], trials=3)
    posterior = selector.posterior
    questions = [
        lambda: posterior.look_index(4, 10.0),
        lambda: posterior.look_gain(4, 0.5),
        lambda: posterior.informative_quantile(4, 0.7),
        posterior.success_rate,
        posterior.expected_variance,
        posterior.entropy,
        lambda: posterior.informative_probability(4),
        lambda: posterior.sample_success_rate(0, 0),
    ]
    outside = [question() for question in questions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [question() for question in questions]
        selector.update(selector.select(), successes=[0, 1], trials=2)
    for wanted, answer in zip(outside, inside, strict=True):
        assert torch.equal(wanted, answer)


def test_priors_that_are_being_learnt_make_an_ordinary_posterior() -> None:
    own = torch.ones(2, 3, 3, requires_grad=True)
    posterior = bp.SolvingProgress().posterior(2, concentration=own, initial=torch.full((2, 3), 1 / 3).requires_grad_())
    posterior.update([0], [1], 2)
    assert not posterior.concentration.requires_grad and not posterior.belief.requires_grad


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_seeds_and_steps_of_numpy(backend: str) -> None:
    for model in (bp.SolvingProgress(), bp.SuccessRate(dist.Beta(1.0, 1.0)), bp.SuccessRate(drift=WALK, grid=9)):
        posterior = model.posterior(5, backend=backend)
        drawn = posterior.sample_success_rate(np.int64(3), np.uint32(7))
        assert torch.equal(drawn, posterior.sample_success_rate(3, 7))
    scores = torch.zeros(9)
    picked = bp.acquisition.top_b(scores, 4, seed=np.int64(3), step=np.int64(1), backend=backend)
    assert torch.equal(picked, bp.acquisition.top_b(scores, 4, seed=3, step=1, backend=backend))


def test_group_sizes_of_prompts_are_checked() -> None:
    for model in (bp.SolvingProgress(), bp.SuccessRate(dist.Beta(1.0, 1.0)), bp.SuccessRate(drift=WALK, grid=9)):
        posterior = model.posterior(5)
        with pytest.raises(ValueError, match="trials must have 5 entries, one for each prompt asked about; got 3"):
            posterior.informative_probability(torch.tensor([1, 2, 3]))
        with pytest.raises(ValueError, match=r"trials\[1\] = 0 must be at least 1"):
            posterior.informative_probability(torch.tensor([1, 0]), torch.tensor([3, 4]))


@pytest.mark.parametrize("learn", [True, False])
def test_drawn_transitions_have_the_mean_of_their_concentrations(learn: bool) -> None:
    """Forbidden moves stay forbidden, rows are probabilities, and the step decides the draw."""
    posterior = bp.SolvingProgress(bp.priors.local(), decay=0.9, learn=learn).posterior(20_000)
    posterior.update(torch.arange(20_000), torch.full((20_000,), 4), 8)
    drawn = posterior.sample_transition(seed=1, step=2)
    assert drawn.shape == (20_000, 3, 3)
    torch.testing.assert_close(drawn.sum(2), torch.ones(20_000, 3), rtol=0, atol=4 * 2.0**-24)
    assert bool((drawn[:, 0, 2] == 0).all()) and bool((drawn[:, 2, 0] == 0).all())
    mean = posterior.concentration[0] / posterior.concentration[0].sum(1, keepdim=True)
    # The standard deviation of a probability is at most 1/2, of the mean of 20,000 at most 0.0035: five of them.
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=5 * 0.5 / 20_000**0.5)
    assert torch.equal(drawn, posterior.sample_transition(seed=1, step=2))
    assert torch.equal(drawn, posterior.sample_transition(seed=1, step=3)) != learn
