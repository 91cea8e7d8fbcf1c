"""Every acquisition on every posterior."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt import acquisition as acq

ACQUISITIONS = [
    acq.PartialProbability(),
    acq.InformativeProbability(4),
    acq.TargetSuccessRate(0.5),
    acq.TargetSuccessRate(0.3, draw=False),
    acq.Threshold(0.3, 0.7),
    acq.Threshold(0.3, 0.7, draw=False),
    acq.ExpectedVariance(),
    acq.PartialProbability() + acq.EntropyBonus(0.1),
    acq.PartialProbability() + acq.UncertaintyBonus(0.5),
    acq.UncertaintyBonus(2.0),
    acq.QuadraticUtility(),
    acq.QuadraticUtility(0.3),
    acq.HistoryResampling(),
    acq.Uniform(),
]


def posteriors() -> list[bp.Posterior]:
    made = [
        bp.SolvingProgress().posterior(50),
        bp.SolvingProgress(emission=bp.PartitionEmission([0.0, 0.3, 0.7, 1.0])).posterior(50),
        bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(50, dtype=torch.float64),
        bp.GenerativeDifficulty(gradient_steps=1).posterior(embeddings=torch.eye(50)),
    ]
    for posterior in made:
        posterior.update(torch.arange(30), torch.arange(30) % 9, 8)
    return made


@pytest.mark.parametrize("acquisition", ACQUISITIONS, ids=repr)
def test_every_acquisition_scores_every_posterior(acquisition: acq.Acquisition) -> None:
    for posterior in posteriors():
        scores = acquisition.scores(posterior, seed=1, step=2)
        assert scores.shape == (50,) and scores.dtype == posterior.dtype
        assert bool(torch.isfinite(scores).all())
        assert torch.equal(scores, acquisition.scores(posterior, seed=1, step=2))


def test_group_size_is_that_of_the_last_observation_unless_told() -> None:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(3)
    assert torch.equal(acq.PartialProbability().scores(posterior, 0, 0), posterior.informative_probability(8))
    posterior.update([0], [1], 2)
    assert torch.equal(acq.PartialProbability().scores(posterior, 0, 0), posterior.informative_probability(2))
    assert torch.equal(acq.PartialProbability(16).scores(posterior, 0, 0), posterior.informative_probability(16))
    posterior.group_size = 4
    posterior.update([0], [1], 1)  # a group that lost all rollouts but one
    assert posterior.group_size == 4
    assert torch.equal(acq.PartialProbability().scores(posterior, 0, 0), posterior.informative_probability(4))
    resumed = bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(3)
    resumed.load_state_dict(posterior.state_dict())
    assert resumed.group_size == 4
    with pytest.raises(ValueError, match=r"group_size must lie in \[1, "):
        posterior.group_size = 0
    posterior.group_size = None
    assert posterior.group_size == 1  # that of the last observation again


def test_dps_score_is_the_belief_in_partial() -> None:
    posterior = bp.SolvingProgress().posterior(20)
    posterior.update(torch.arange(9), torch.arange(9), 8)
    assert torch.equal(acq.PartialProbability().scores(posterior, 0, 0), posterior.belief[:, 1])


def test_entropy_bonus_adds_up() -> None:
    posterior = bp.SolvingProgress().posterior(20)
    posterior.update(torch.arange(9), torch.arange(9), 8)
    both = (acq.PartialProbability() + acq.EntropyBonus(0.25)).scores(posterior, 0, 0)
    torch.testing.assert_close(both, posterior.belief[:, 1] + 0.25 * posterior.entropy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_uncertainty_bonus_is_the_standard_deviation_of_the_belief(dtype: torch.dtype) -> None:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), decay=1.0).posterior(4, dtype=dtype)
    posterior.update([0, 1, 2], [3, 0, 10**6], [8, 8, 2 * 10**6])
    alpha = torch.tensor([4.0, 1.0, 1 + 1e6, 1.0], dtype=torch.float64)
    beta = torch.tensor([6.0, 9.0, 1 + 1e6, 1.0], dtype=torch.float64)
    expected = 0.5 * torch.distributions.Beta(alpha, beta).stddev
    # A variance is the difference of numbers below 1/4, each rounded a few times.
    error = (4 * torch.finfo(dtype).eps) ** 0.5 / 2
    torch.testing.assert_close(acq.UncertaintyBonus(0.5).scores(posterior, 0, 0).double(), expected, rtol=0, atol=error)
    assert int(acq.UncertaintyBonus(1.0).scores(posterior, 0, 0).argmax()) == 3  # the one that nobody knows


def test_the_quadratic_utility_is_minus_a_squared_distance() -> None:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), decay=1.0).posterior(3, dtype=torch.float64)
    posterior.update([0, 1], [8, 0], 8)  # means 9/10 and 1/10
    found = acq.QuadraticUtility(0.4).scores(posterior, 0, 0)
    torch.testing.assert_close(found, torch.tensor([-0.25, -0.09, -0.01], dtype=torch.float64))


def test_threshold_takes_whoever_is_inside_and_then_the_nearest() -> None:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), decay=1.0).posterior(6, dtype=torch.float64)
    posterior.update(torch.arange(6), [0, 10, 40, 50, 60, 98], 98)  # rates .01 .11 .41 .51 .61 .99
    scores = acq.Threshold(0.4, 0.65, draw=False).scores(posterior, 0, 0)
    assert scores[2:5].tolist() == [0, 0, 0]
    assert scores[1] > scores[5] > scores[0]
    inside = {tuple(sorted(acq.top_b(scores, 2, seed=0, step=step).tolist())) for step in range(60)}
    assert inside == {(2, 3), (2, 4), (3, 4)}  # each pair is missed with probability (2/3)**60
    assert sorted(acq.top_b(scores, 4, seed=0, step=0).tolist()) == [1, 2, 3, 4]


def test_history_resampling_sits_out_what_was_solved() -> None:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), decay=0.0).posterior(4)
    posterior.update([0, 1, 2, 3], [8, 8, 3, 0], 8)
    scores = acq.HistoryResampling().scores(posterior, 0, 0)
    assert set(acq.top_b(scores, 2, seed=0, step=0).tolist()) == {2, 3}
    posterior.update([2, 3], [3, 0], 8)
    scores = acq.HistoryResampling().scores(posterior, 0, 0)
    assert len(set(scores.tolist())) == 1  # the solved ones are back


def test_thompson_prefers_the_target_but_explores() -> None:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), decay=1.0).posterior(3)
    posterior.update([0, 1], [400, 0], 800)  # one near a half, one near 0, one unknown
    best = [int(acq.TargetSuccessRate(0.5).scores(posterior, 0, step).argmax()) for step in range(200)]
    assert best.count(1) == 0 and best.count(2) > 0 and best.count(0) > best.count(2)


def test_top_b_checks_what_it_is_given() -> None:
    scores = torch.zeros(4)
    with pytest.raises(ValueError, match="batch_size must lie in"):
        acq.top_b(scores, 5, seed=0, step=0)
    with pytest.raises(ValueError, match="allowed must be bool"):
        acq.top_b(scores, 1, seed=0, step=0, allowed=torch.ones(4))
    with pytest.raises(ValueError, match="scores must be float32 or float64"):
        acq.top_b(torch.zeros(4, dtype=torch.int64), 1, seed=0, step=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: acq.PartialProbability(0), r"trials must lie in \[1, "),
        (lambda: acq.Threshold(-0.1, 0.2), r"low must lie in \[0, 1\]; got -0.1"),
        (lambda: acq.Threshold(0.1, float("nan")), r"high must lie in \[0, 1\]; got nan"),
        (lambda: acq.TargetSuccessRate(1.5), "target must lie in"),
        (lambda: acq.Threshold(0.8, 0.2), "low and high must satisfy"),
        (lambda: acq.EntropyBonus(float("nan")), "weight must be finite"),
        (lambda: acq.UncertaintyBonus(float("inf")), "weight must be finite; got inf"),
        (lambda: acq.QuadraticUtility(-0.1), r"target must lie in \[0, 1\]; got -0.1"),
        (lambda: acq.QuadraticUtility(float("nan")), r"target must lie in \[0, 1\]; got nan"),
    ],
)
def test_bad_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: acq.PartialProbability(2.5), "trials must be an integer; got float"),
        (lambda: acq.PartialProbability(True), "trials must be an integer; got bool"),
        (lambda: acq.TargetSuccessRate("a"), "target must be a number; got str"),
        (lambda: acq.TargetSuccessRate(draw="no"), "draw must be True or False; got 'no'"),
        (lambda: acq.Threshold("a", "b"), "low must be a number; got str"),
        (lambda: acq.Threshold(0.1, None), "high must be a number; got NoneType"),
        (lambda: acq.Threshold(0.1, 0.9, draw=1), "draw must be True or False; got 1"),
        (lambda: acq.EntropyBonus("a"), "weight must be a number; got str"),
        (lambda: acq.UncertaintyBonus(True), "weight must be a number; got bool"),
        (lambda: acq.QuadraticUtility(None), "target must be a number; got NoneType"),
        (lambda: acq.top_b(torch.zeros(4), 2.0, seed=0, step=0), "batch_size must be an integer; got float"),
    ],
)
def test_settings_of_a_wrong_type(make: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()  # type: ignore[operator]


def test_numbers_of_numpy_are_numbers() -> None:
    assert acq.PartialProbability(np.int64(2)) == acq.PartialProbability(2)
    assert acq.TargetSuccessRate(np.float32(0.5)) == acq.TargetSuccessRate(0.5)
    assert acq.EntropyBonus(np.float64(0.25)) == acq.EntropyBonus(0.25)
    for a, b in [  # checkpoints tell acquisitions apart by how they are written
        (acq.EntropyBonus(np.float32(0.25)), acq.EntropyBonus(0.25)),
        (acq.TargetSuccessRate(1), acq.TargetSuccessRate(1.0)),
        (acq.Threshold(0, np.float64(1)), acq.Threshold(0.0, 1.0)),
    ]:
        assert repr(a) == repr(b)
    assert acq.top_b(torch.arange(4.0), np.int32(2), seed=0, step=0).tolist() == [3, 2]
