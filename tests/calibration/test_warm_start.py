"""Counts that are known before training: of the rates, or hidden states, that training begins with.

Time does not move between them and the first step, but for hidden states of `SolvingProgress`, which make a transition.
Of rates that stay as they are, see test_exact; of what unseen prompts learn from them, test_sharing.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import sbc
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt import priors

FULL = pytest.mark.slow
SIZES = [pytest.param(4_000, 6, id="small"), pytest.param(40_000, 20, id="full", marks=FULL)]
INFLATED = priors.inflated(priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
LOGIT_NORMAL = priors.logit_normal(-0.5, 1.5)
WALK = bp.LogitRandomWalk(0.5, trend=0.3, repulsion=0.2)
MATRIX = (6 * torch.eye(5, dtype=torch.float64) + 0.5) / 8.5
HIDDEN = bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 2.0, 3.0, 6.0]), torch.tensor([6.0, 3, 2, 0.5])))
STICKY = 6 * torch.eye(4, dtype=torch.float64) + 0.5
MODELS: dict[str, Any] = {
    "walk": bp.SuccessRate(LOGIT_NORMAL, grid=31, drift=WALK),
    "walk, inflated": bp.SuccessRate(INFLATED, grid=31, drift=WALK),
    "redraw": bp.SuccessRate(LOGIT_NORMAL, grid=21, drift=bp.Redraw(0.2)),
    "mixture": bp.SuccessRate(INFLATED, grid=21, drift=bp.Mixture(0.4, WALK, thaw=0.1, freeze=0.05)),
    "active and passive": bp.SuccessRate(INFLATED, grid=21, drift=bp.ActivePassive(WALK, bp.Redraw(0.1))),
    "matrix": bp.SuccessRate(dist.Uniform(0.0, 1.0), grid=5, drift=bp.FixedTransition(MATRIX)),
    "a bank of one drift": bp.SuccessRate(LOGIT_NORMAL, grid=21, drift=bp.DriftBank([WALK])),
    "Kalman": bp.LogitGaussian(dist.Normal(-0.3, 1.5), drift=0.4, trend=0.1),
    "Kalman that rests": bp.LogitGaussian(dist.Normal(-0.3, 1.5), drift=0.0),
    "hidden states": bp.SolvingProgress(STICKY, learn=False, emission=HIDDEN),
}


def known(model: Any, prompts: int, steps: int, seed: int) -> sbc.Replicates:
    """Of half of the prompts something is known before, whether they are looked at in the first step or not."""
    trials = sbc.looks(prompts, steps, seed)
    return sbc.simulate(model, trials, seed) if states(model) else sbc.simulate_known(model, trials, seed)


def states(model: Any) -> bool:
    return isinstance(model, bp.SolvingProgress)


def p_values(posterior: Any, seen: sbc.Replicates, seed: int) -> tuple[float, float]:
    """Of ranks that are uniform, and of a P(informative) that is as often true."""
    informative = sbc.reliability(posterior.informative_probability(sbc.GROUP), seen.informative)
    return sbc.uniformity(sbc.rate_ranks(posterior, seen.rate, seed)), informative


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_before_training(name: str, prompts: int, steps: int) -> None:
    seen = known(MODELS[name], prompts, steps, seed=0)
    posterior = sbc.filtered(MODELS[name].posterior(prompts, dtype=torch.float64), seen, warm=True)
    assert min(p_values(posterior, seen, seed=0)) > sbc.ALARM


@pytest.mark.parametrize("name", MODELS)
def test_before_the_first_step(name: str) -> None:
    """The same where training has not begun: the coming rollouts are the first, of half of the prompts the second."""
    seen = known(MODELS[name], 4_000, 1, seed=1)
    posterior = MODELS[name].posterior(4_000, dtype=torch.float64)
    row = seen.trials[0].nonzero()[:, 0]
    posterior.warm_start(row, seen.successes[0, row], seen.trials[0, row])
    assert min(p_values(posterior, seen, seed=1)) > sbc.ALARM


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("name", ["walk", "mixture", "active and passive"])
def test_before_steps_of_any_time(name: str, prompts: int, steps: int) -> None:
    """What is known is so at the time 0 of the first step, whatever time that takes."""
    times = (0.0, *(2.0, 0.3, 1.0, 4.5) * steps)[: steps + 1]
    seen = sbc.chain(MODELS[name], sbc.looks(prompts, steps, seed=2), 2, times)
    posterior = MODELS[name].posterior(prompts, dtype=torch.float64)
    assert min(p_values(sbc.filtered(posterior, seen, warm=True, elapsed=times), seen, seed=2)) > sbc.ALARM


ROLLOUTS = 4  # what is known are rates of so many: to recipes these are counts, see `PRIOR_TRIALS`


def of_recipe(name: str, steps: int, prompts: int, seed: int, told: int = ROLLOUTS) -> tuple[Any, sbc.Replicates]:
    """The posterior of a recipe that was told success rates beforehand, and what happened.

    told: rollouts whose rates are known. For dps every prompt's is, and each is looked at in each step: then it is
    exact, see test_exact.
    """
    trials = sbc.looks(prompts, steps, seed, share=1.0 if name == "dps" else 0.5)
    trials[0] = torch.where(trials[0] > 0, told, 0)
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "kgps": (bp.LogitGaussian(dist.Normal(-0.3, 1.5), 0.3, 0.05), {"prior": dist.Normal(-0.3, 1.5), "trend": 0.05}),
        "mopps": (bp.SuccessRate(dist.Beta(0.7, 1.3)), {"prior": dist.Beta(0.7, 1.3), "decay": 1.0}),
        "dps": (
            bp.SolvingProgress(priors.progress(), decay=1.0),
            {"transition": priors.progress(), "decay": 1.0},
        ),
    }
    model, arguments = models[name]
    seen = sbc.simulate_known(model, trials, seed) if name == "kgps" else sbc.simulate(model, trials, seed)
    rates: Tensor = seen.successes[0] / seen.trials[0].double()  # NaN where nothing is known
    recipe: Any = getattr(bp.recipes, name)
    selector = recipe(num_prompts=prompts, batch_size=1, dtype=torch.float64, prior_rates=rates, **arguments)
    for successes, each in zip(seen.successes[1:-1], trials[1:-1], strict=True):
        rows = each.nonzero()[:, 0]
        selector.posterior.update(rows, successes[rows], each[rows])
    return selector.posterior, seen


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("name", ["kgps", "mopps", "dps"])
def test_prior_rates_of_a_recipe(name: str, prompts: int, steps: int) -> None:
    posterior, seen = of_recipe(name, steps, prompts, seed=3)
    assert min(p_values(posterior, seen, seed=3)) > sbc.ALARM


@pytest.mark.parametrize("name", ["kgps", "mopps"])
def test_prior_rates_of_many_rollouts(name: str) -> None:
    """They are told as 4 to 6 rollouts, for they may be another model's. If they are this one's, beliefs are cautious:
    the central half of draws holds more than half of the truths, and the central 87.5% more, too. (70% and 96%, of
    prompts that were looked at once more or not at all.)
    """
    posterior, seen = of_recipe(name, 1, 8_000, seed=4, told=64)
    rank = sbc.rate_ranks(posterior, seen.rate, seed=4)[seen.trials[0] > 0]
    inside = [float(((rank >= out) & (rank <= sbc.DRAWS - out)).double().mean()) for out in (4, 1)]
    chance = [5 * (share * (1 - share) / len(rank)) ** 0.5 for share in (0.5, 0.875)]
    assert inside[0] > 0.5 + chance[0]
    assert inside[1] > 0.875 + chance[1]


@pytest.mark.parametrize("name", ["walk", "Kalman"])
def test_time_that_did_not_pass_is_found(name: str) -> None:
    """The same code raises the alarm where what is known before is told as a step of its own."""
    seen = known(MODELS[name], 20_000, 1, seed=5)
    posterior = sbc.filtered(MODELS[name].posterior(20_000, dtype=torch.float64), seen)
    assert p_values(posterior, seen, seed=5)[0] < sbc.ALARM


@pytest.mark.parametrize("name", ["walk", "Kalman"])
def test_a_count_that_is_told_twice_is_found(name: str) -> None:
    """And where its weight is twice what it should be."""
    model = MODELS[name]
    seen = known(model, 20_000, 1, seed=6)
    posterior, row = model.posterior(20_000, dtype=torch.float64), seen.trials[0].nonzero()[:, 0]
    posterior.warm_start(row, 2 * seen.successes[0, row], 2 * seen.trials[0, row])
    assert p_values(posterior, seen, seed=6)[0] < sbc.ALARM
