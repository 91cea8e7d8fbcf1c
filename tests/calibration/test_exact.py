"""Filters that are exact Bayes are calibrated: ranks are uniform, and what is called informative as often is.

Left out, having no generative counterpart: decay below 1, and a bank of several decays. Forgetting is a device of the
filter; that it is none of Bayes's is the first of the faults below.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro.distributions as dist
import pytest
import sbc
import torch
from scipy import stats

import bayes_prompt as bp
from bayes_prompt import priors

FULL = pytest.mark.slow
SIZES = [pytest.param(4_000, 8, id="small"), pytest.param(40_000, 20, id="full", marks=FULL)]


def sticky(states: int) -> torch.Tensor:
    """Concentrations of transitions that mostly stay."""
    return 6 * torch.eye(states, dtype=torch.float64) + 0.5


LOGIT_NORMAL = priors.logit_normal(-0.5, 1.5)
INFLATED = priors.inflated(priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
HISTOGRAM = priors.histogram(torch.tensor([3.0, 1.0, 0.5, 1.0, 2.0]))
PARTITION = bp.PartitionEmission([0.0, 0.0, 0.3, 0.7, 1.0, 1.0])
BETA_BINOMIAL = bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 2.0, 3.0, 6.0]), torch.tensor([6.0, 3, 2, 0.5])))
WALK = bp.LogitRandomWalk(0.5, trend=0.1, repulsion=0.2)
MATRIX = sticky(5) / sticky(5).sum(1, keepdim=True)
PRACTICE = bp.ActivePassive(bp.LogitRandomWalk(0.4, trend=0.3), bp.Redraw(0.1))
MODELS: dict[str, Any] = {
    "published": bp.SolvingProgress(priors.progress(), learn=False),
    "forbidden moves": bp.SolvingProgress(priors.local(), initial=priors.one_hot_initial(0), learn=False),
    "partition": bp.SolvingProgress(sticky(5), learn=False, emission=PARTITION),
    "beta-binomial": bp.SolvingProgress(
        sticky(4), initial=dist.Dirichlet(torch.tensor([4.0, 2.0, 1.0, 1.0])), learn=False, emission=BETA_BINOMIAL
    ),
    "conjugate": bp.SuccessRate(dist.Beta(0.7, 1.3)),
    "static": bp.SuccessRate(LOGIT_NORMAL, grid=21),
    "static, inflated": bp.SuccessRate(INFLATED, grid=21),
    "static, histogram": bp.SuccessRate(HISTOGRAM, grid=21),
    "one decay of 1": bp.SuccessRate(INFLATED, grid=21, decay=bp.DecayBank((1.0,))),
    "walk": bp.SuccessRate(LOGIT_NORMAL, grid=31, drift=WALK),
    "walk, inflated": bp.SuccessRate(INFLATED, grid=31, drift=WALK),
    "redraw, histogram": bp.SuccessRate(HISTOGRAM, grid=21, drift=bp.Redraw(0.2)),
    "mixture": bp.SuccessRate(INFLATED, grid=21, drift=bp.Mixture(0.4, WALK, thaw=0.1, freeze=0.05)),
    "matrix": bp.SuccessRate(dist.Uniform(0.0, 1.0), grid=5, drift=bp.FixedTransition(MATRIX)),
    "active and passive": bp.SuccessRate(dist.Beta(1.0, 2.0), grid=21, drift=PRACTICE),
    "a bank of one drift": bp.SuccessRate(LOGIT_NORMAL, grid=21, drift=bp.DriftBank([WALK])),
}
STATIC = ("conjugate", "static", "static, inflated", "static, histogram", "one decay of 1")


def replicates(model: Any, prompts: int, steps: int, seed: int) -> sbc.Replicates:
    """Of the model's own program; a static grid's rates are from the grid."""
    on_points = isinstance(model, bp.SuccessRate) and model.on_grid and model.drift is None
    known = sbc.from_grid(model, prompts, seed) if on_points else None
    return sbc.simulate(model, sbc.looks(prompts, steps, seed), seed, known=known)


def p_values(model: Any, seen: sbc.Replicates, seed: int) -> tuple[float, float]:
    """Of ranks that are uniform, and of a P(informative) that is as often true."""
    posterior = sbc.filtered(model.posterior(len(seen.rate), dtype=torch.float64), seen)
    informative = sbc.reliability(posterior.informative_probability(sbc.GROUP), seen.informative)
    return sbc.uniformity(sbc.rate_ranks(posterior, seen.rate, seed)), informative


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_calibrated(name: str, prompts: int, steps: int) -> None:
    """Of prompts that are looked at now and then, by groups of two sizes: some were just seen, some never."""
    ranks, informative = p_values(MODELS[name], replicates(MODELS[name], prompts, steps, seed=0), seed=0)
    assert ranks > sbc.ALARM
    assert informative > sbc.ALARM


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("name", STATIC)
def test_counts_of_a_continuous_prior(name: str, prompts: int, steps: int) -> None:
    """A grid's points are not the prior, but predict its counts exactly: up to 2 K - 2 = 40 rollouts in all.

    The full size has prompts of up to 160 rollouts, for which "as good as exact" is claimed.
    """
    model = MODELS[name]
    seen = sbc.simulate(model, sbc.looks(prompts, steps, seed=1), seed=1)
    posterior = sbc.filtered(model.posterior(prompts, dtype=torch.float64), seen)
    counts = torch.arange(sbc.GROUP + 1)
    if name == "conjugate":
        law = torch.from_numpy(
            stats.betabinom.pmf(counts, sbc.GROUP, posterior.alpha[:, None], posterior.beta[:, None])
        )
    else:
        law = posterior.belief @ torch.from_numpy(stats.binom.pmf(counts, sbc.GROUP, posterior.grid[:, None]))
    assert sbc.uniformity(sbc.pit(law, seen.successes[-1], seed=1)) > sbc.ALARM
    assert sbc.reliability(posterior.informative_probability(sbc.GROUP), seen.informative) > sbc.ALARM


@pytest.mark.parametrize("name", ["published", "beta-binomial", "conjugate", "walk"])
def test_whoever_picks(name: str) -> None:
    """Picks that follow the belief, greedily, bias nothing: they know no more than the filter."""
    model, prompts = MODELS[name], 4_000
    trials = torch.full((9, prompts), sbc.GROUP)
    seen = sbc.simulate(model, trials, seed=2)
    posterior = model.posterior(prompts, dtype=torch.float64)
    selector = bp.PromptSelector(posterior, bp.acquisition.PartialProbability(), batch_size=prompts // 10, seed=2)
    for successes in seen.successes[:-1]:
        rows = selector.select()
        selector.update(rows, successes=successes[rows], trials=sbc.GROUP)
    assert int((posterior.visits > 0).sum()) < prompts  # some rest for good
    assert sbc.uniformity(sbc.rate_ranks(posterior, seen.rate, seed=2)) > sbc.ALARM
    assert sbc.reliability(posterior.informative_probability(sbc.GROUP), seen.informative) > sbc.ALARM


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("pooling", ["prompt", "group"])
def test_learned_transitions_where_states_are_seen(pooling: str, prompts: int, steps: int) -> None:
    """Under the published emission, and with a look at each prompt in each step, transitions are counted.

    Then the filter is exact Bayes. Of prompts with a matrix each there is one exception, the first step: as in the
    published code they count a transition into the first state, which there is none in the program. So their first
    counts are told by `warm_start`.
    """
    strength = 0.0 if pooling == "group" else None  # those that lean on the pool: test_approximate
    model = bp.SolvingProgress(priors.progress(), decay=1.0, pooling=pooling, strength=strength)
    together = 4 if pooling == "group" else 1
    groups = torch.arange(prompts) // together if pooling == "group" else None
    seen = sbc.simulate(model, sbc.looks(prompts, steps, seed=3, share=1.0), seed=3, groups=groups)
    warm = pooling == "prompt"
    posterior = sbc.filtered(model.posterior(prompts, groups=groups, dtype=torch.float64), seen, warm)
    one = slice(None, None, together)  # of each group: prompts of one matrix are no replicates of each other
    drawn = torch.stack([posterior.sample_success_rate(3, step)[one] for step in range(sbc.DRAWS)])
    assert sbc.uniformity(sbc.ranks(drawn, seen.rate[one], seed=3)) > sbc.ALARM
    predicted = posterior.informative_probability(sbc.GROUP)[one]
    assert sbc.reliability(predicted, seen.informative[one]) > sbc.ALARM
    assert sbc.uniformity(sbc.transition_ranks(posterior, seen, together, seed=3)) > sbc.ALARM


@pytest.mark.parametrize("pools", [pytest.param(60, id="small"), pytest.param(2_000, id="full", marks=FULL)])
def test_transitions_of_a_whole_pool(pools: int) -> None:
    """The same with pooling="pool", whose pools are the replicates: of each one prompt and one entry are looked at."""
    model = bp.SolvingProgress(priors.stability(), decay=1.0, pooling="pool")
    found = sbc.pool_transition_ranks(model, pools, prompts=5, steps=4, share=1.0)
    assert sbc.uniformity(found) > sbc.ALARM


@pytest.mark.parametrize("prompts", [pytest.param(4_000, id="small"), pytest.param(40_000, id="full", marks=FULL)])
@pytest.mark.parametrize("name", ["conjugate", "static, inflated"])
def test_what_is_known_before_training(name: str, prompts: int) -> None:
    """Of a rate that stays as it is, counts told by `warm_start` are counts."""
    seen = replicates(MODELS[name], prompts, 4, seed=8)
    posterior = sbc.filtered(MODELS[name].posterior(prompts, dtype=torch.float64), seen, warm=True)
    assert sbc.uniformity(sbc.rate_ranks(posterior, seen.rate, seed=8)) > sbc.ALARM
    assert sbc.reliability(posterior.informative_probability(sbc.GROUP), seen.informative) > sbc.ALARM


FAULTS: dict[str, tuple[Any, Any]] = {
    "decay": (MODELS["conjugate"], bp.SuccessRate(dist.Beta(0.7, 1.3), decay=0.5)),
    "prior": (MODELS["static, inflated"], bp.SuccessRate(priors.logit_normal(-0.3, 1.2), grid=21)),
    "scale": (
        bp.SuccessRate(LOGIT_NORMAL, grid=31, drift=bp.LogitRandomWalk(0.5)),
        bp.SuccessRate(LOGIT_NORMAL, grid=31, drift=bp.LogitRandomWalk(0.75)),
    ),
    "trend": (MODELS["walk"], bp.SuccessRate(LOGIT_NORMAL, grid=31, drift=bp.LogitRandomWalk(0.5, repulsion=0.2))),
    "rest": (MODELS["active and passive"], bp.SuccessRate(dist.Beta(1.0, 2.0), grid=21, drift=PRACTICE.active)),
    "transition": (MODELS["published"], bp.SolvingProgress(priors.uniform(), learn=False)),
    "emission": (
        bp.SolvingProgress(sticky(4), learn=False, emission=BETA_BINOMIAL),
        bp.SolvingProgress(sticky(4), learn=False, emission=bp.PartitionEmission([0.0, 0.1, 0.5, 0.9, 1.0])),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    """The same code raises the alarm where the filter's model is not the one that made the counts."""
    truth, believed = FAULTS[fault]
    seen = replicates(truth, 20_000, 8, seed=4)
    assert min(p_values(truth, seen, seed=4)) > sbc.ALARM
    assert p_values(believed, seen, seed=4)[0] < sbc.ALARM


def test_a_wrong_probability_is_found() -> None:
    """Of ranks nobody would see it: P(informative) of groups that are half as large."""
    model = MODELS["walk"]
    seen = replicates(model, 4_000, 8, seed=5)
    posterior = sbc.filtered(model.posterior(4_000, dtype=torch.float64), seen)
    assert sbc.reliability(posterior.informative_probability(sbc.GROUP // 2), seen.informative) < sbc.ALARM


def test_a_transition_too_many_is_found() -> None:
    """Without `warm_start` the first look counts one, see above; and ranks of transitions tell."""
    model = dataclasses.replace(MODELS["published"], learn=True, decay=1.0)
    seen = sbc.simulate(model, sbc.looks(20_000, 8, seed=6, share=1.0), seed=6)
    posterior = sbc.filtered(model.posterior(20_000, dtype=torch.float64), seen)
    assert sbc.uniformity(sbc.transition_ranks(posterior, seen, 1, seed=6)) < sbc.ALARM
