"""Filters that are told how much time each step took are calibrated, whatever it was.

Where a long step is as good as several short ones, the program makes these, and the filter is told their number. Where
it is not (a prompt changes over once in a step, or is trained on in its first unit alone), `sbc.chain` draws by the
transitions that the declaration gives for the time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro.distributions as dist
import pytest
import sbc
import torch

import bayes_prompt as bp
from bayes_prompt import priors

FULL = pytest.mark.slow
SIZES = [pytest.param(4_000, 8, id="small"), pytest.param(40_000, 20, id="full", marks=FULL)]
LOGIT_NORMAL = priors.logit_normal(-0.5, 1.5)
INFLATED = priors.inflated(priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
HISTOGRAM = priors.histogram(torch.tensor([3.0, 1.0, 0.5, 1.0, 2.0]))
MATRIX = (6 * torch.eye(5, dtype=torch.float64) + 0.5) / 8.5


def walk(unit: float) -> bp.LogitRandomWalk:
    return bp.LogitRandomWalk(0.5 * unit**0.5, trend=0.1 * unit, repulsion=0.2 * unit)


def redraw(unit: float) -> bp.Redraw:
    return bp.Redraw(1 - 0.8**unit)


# Declarations whose steps take so many units of time. Of the Gaussian filter, which is approximate, no departure was
# found, see test_approximate.
MODELS: dict[str, Any] = {
    "walk": lambda unit: bp.SuccessRate(LOGIT_NORMAL, grid=31, drift=walk(unit)),
    "walk, inflated": lambda unit: bp.SuccessRate(INFLATED, grid=31, drift=walk(unit)),
    "redraw, histogram": lambda unit: bp.SuccessRate(HISTOGRAM, grid=21, drift=redraw(unit)),
    "frozen for good": lambda unit: bp.SuccessRate(INFLATED, grid=21, drift=bp.Mixture(0.4, walk(unit))),
    "a bank of one drift": lambda unit: bp.SuccessRate(LOGIT_NORMAL, grid=21, drift=bp.DriftBank([walk(unit)])),
    "Kalman": lambda unit: bp.LogitGaussian(dist.Normal(-0.3, 1.5), drift=0.4 * unit**0.5, trend=0.1 * unit),
}
MATRICES = bp.SuccessRate(dist.Uniform(0.0, 1.0), grid=5, drift=bp.FixedTransition(MATRIX))


def by_leaps(model: Any, leaps: tuple[int, ...], prompts: int, steps: int, seed: int) -> sbc.Replicates:
    """Looks that are so many steps of the program apart, in turns; in those between nobody is looked at."""
    now = torch.tensor([sum((leaps * steps)[:step]) for step in range(steps + 1)])
    trials = torch.zeros(int(now[-1]) + 1, prompts, dtype=torch.int64)
    trials[now] = sbc.looks(prompts, steps, seed=seed)
    seen = sbc.simulate(model, trials, seed=seed)
    return dataclasses.replace(seen, trials=trials[now], successes=seen.successes[now])


def calibrated(model: Any, seen: sbc.Replicates, elapsed: tuple[float, ...], seed: int) -> tuple[float, float]:
    """p-values of ranks that are uniform, and of a P(informative) that is as often true."""
    posterior = sbc.filtered(model.posterior(len(seen.rate), dtype=torch.float64), seen, elapsed=elapsed)
    informative = sbc.reliability(posterior.informative_probability(sbc.GROUP), seen.informative)
    return sbc.uniformity(sbc.rate_ranks(posterior, seen.rate, seed)), informative


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("name", [*MODELS, "matrix"])
def test_time_that_passes_by_leaps(name: str, prompts: int, steps: int) -> None:
    """A filter that is told `elapsed=2` where the program made two steps."""
    model = MATRICES if name == "matrix" else MODELS[name](1.0)
    seen = by_leaps(model, (2, 1), prompts, steps, seed=7)
    assert min(calibrated(model, seen, (2.0, 1.0), seed=7)) > sbc.ALARM


@pytest.mark.parametrize(("prompts", "steps"), [pytest.param(2_000, 8, id="small"), SIZES[1]])
@pytest.mark.parametrize("name", MODELS)
def test_parts_of_a_unit(name: str, prompts: int, steps: int) -> None:
    """A program whose steps take a quarter of a unit, and a filter that is told of 1/4, 3/4 and 7/4."""
    seen = by_leaps(MODELS[name](0.25), (1, 3, 7), prompts, steps, seed=9)
    assert min(calibrated(MODELS[name](1.0), seen, (0.25, 0.75, 1.75), seed=9)) > sbc.ALARM


TIMES = (0.3, 2.0, 1.0, 0.0, 4.5)
STEPPED: dict[str, bp.SuccessRate] = {
    "mixture": bp.SuccessRate(INFLATED, grid=21, drift=bp.Mixture(0.4, walk(1.0), thaw=0.1, freeze=0.05)),
    "active and passive": bp.SuccessRate(
        dist.Beta(1.0, 2.0), grid=21, drift=bp.ActivePassive(bp.LogitRandomWalk(0.4, trend=0.3), bp.Redraw(0.1))
    ),
    "both": bp.SuccessRate(
        dist.Beta(1.0, 2.0),
        grid=21,
        drift=bp.ActivePassive(
            bp.Mixture(0.5, bp.LogitRandomWalk(0.4, trend=0.3), thaw=0.2),
            bp.Mixture(0.5, bp.LogitRandomWalk(0.2, trend=-0.1), freeze=0.1),
        ),
    ),
}


@pytest.mark.parametrize(("prompts", "steps"), SIZES)
@pytest.mark.parametrize("name", STEPPED)
def test_steps_that_are_no_sum_of_short_ones(name: str, prompts: int, steps: int) -> None:
    model = STEPPED[name]
    seen = sbc.chain(model, sbc.looks(prompts, steps, seed=10), 10, TIMES)
    assert min(calibrated(model, seen, TIMES, seed=10)) > sbc.ALARM


@pytest.mark.parametrize("name", ["mixture", "active and passive"])
def test_chains_are_those_of_the_program(name: str) -> None:
    """Of one unit a step, the filter that is exact in the program is exact of `sbc.chain`, too."""
    seen = sbc.chain(STEPPED[name], sbc.looks(4_000, 8, seed=11), 11)
    assert min(calibrated(STEPPED[name], seen, (1.0,), seed=11)) > sbc.ALARM


@pytest.mark.parametrize("name", ["walk", "redraw, histogram", "Kalman"])
def test_a_wrong_time_is_found(name: str) -> None:
    """The same, told that four units passed each time."""
    model = MODELS[name](1.0)
    seen = by_leaps(model, (2, 1), 20_000, 8, seed=7)
    assert calibrated(model, seen, (4.0,), seed=7)[0] < sbc.ALARM


@pytest.mark.parametrize("name", STEPPED)
def test_a_wrong_time_of_such_steps_is_found(name: str) -> None:
    """Told that each took one unit."""
    seen = sbc.chain(STEPPED[name], sbc.looks(20_000, 8, seed=12), 12, TIMES)
    assert calibrated(STEPPED[name], seen, (1.0,), seed=12)[0] < sbc.ALARM
