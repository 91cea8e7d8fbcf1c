"""Simulation-based calibration: a truth from a model's own prior, and its rank among the draws of the posterior.

Where the filter is exact Bayes in the model's Pyro program, ranks are uniform over 0..L (Talts, Betancourt, Simpson,
Vehtari and Gelman, arXiv 1804.06788, theorem 1). Given everything observed, the truths of different prompts are
independent, and so are their ranks: each prompt is a replicate, and one pool has thousands of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.history import History
from bayes_prompt.models.progress import Simulation
from bayes_prompt.models.seeding import seeded

CPU = torch.device("cpu")
DRAWS = 15  # L: ranks fall into 16 bins
GROUP = 8  # rollouts of the coming step
Times = tuple[float, ...]
ALARM = 1e-6
"""A p-value below it is a failure: 1e-4 for a whole run of up to a hundred tests (Bonferroni)."""


@dataclass(frozen=True)
class Replicates:
    """What a simulation knows about N prompts: counts (T + 1, N) and trials, of which the last row is yet to come.

    rate: (N,) the true success rate at the coming rollouts. sites: every value of the Pyro program, by name.
    """

    trials: Tensor
    successes: Tensor
    rate: Tensor
    sites: dict[str, Tensor]

    @property
    def informative(self) -> Tensor:
        """Whether the coming rollouts are mixed, (N,) bool."""
        return (self.successes[-1] > 0) & (self.successes[-1] < self.trials[-1])


def looks(prompts: int, steps: int, seed: int, share: float = 0.5) -> Tensor:
    """Trials (steps + 1, prompts): a look at a random `share` of the pool in each step, then one at everybody."""
    source = torch.Generator().manual_seed(_stream(seed, 0))
    picked = torch.rand(steps + 1, prompts, generator=source) < share
    size = torch.where(torch.rand(steps + 1, prompts, generator=source) < 0.5, GROUP // 2, GROUP)
    trials = torch.where(picked, size, 0)
    trials[-1] = GROUP
    return trials


def simulate(
    model: Any, trials: Tensor, seed: int, groups: Tensor | None = None, known: dict[str, Tensor] | None = None
) -> Replicates:
    """Run the model's own Pyro program, with the values of some sites given."""
    arguments = (History(None, trials),) if groups is None else (History(None, trials), groups)
    with seeded(_stream(seed, 1), CPU):
        trace = poutine.trace(poutine.condition(model.pyro_model, known or {})).get_trace(*arguments)
        sites = {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}
        returned = trace.nodes["_RETURN"]["value"]
        successes = returned.successes if isinstance(returned, Simulation) else returned
        return Replicates(trials, successes, _rate(model, sites, len(trials) - 1), sites)


def from_grid(model: bp.SuccessRate, prompts: int, seed: int) -> dict[str, Tensor]:
    """Rates drawn from a static grid's own law: of its points are the posterior's draws."""
    points = model.points()
    with seeded(_stream(seed, 2), CPU):
        return {"rate": points.rate[torch.multinomial(points.mass, prompts, replacement=True)]}


def simulate_known(model: Any, trials: Tensor, seed: int) -> Replicates:
    """The same with a first row of counts that are known before time moves: of the rates that the next one has."""
    seen = simulate(model, trials[1:], seed)
    with seeded(_stream(seed, 2), CPU):
        known = torch.binomial(trials[0].double(), _rate(model, seen.sites, 0)).long()
    return Replicates(trials, torch.cat([known[None], seen.successes]), seen.rate, seen.sites)


def chain(
    model: bp.SuccessRate,
    trials: Tensor,
    seed: int,
    elapsed: Times = (1.0,),
    member: int = 0,
    initial: Tensor | None = None,
) -> Replicates:
    """A drifting rate's counts, step by step, where steps take these times in turns, under one member of a bank.

    The Pyro program has one unit of time a step; drifts that are told of another do not always what two units would.
    initial: (N, states), in place of the declared law of the first state.
    """
    tables, states = lowered(model), []
    rate = tables.points.rate.repeat(tables.modes)
    with seeded(_stream(seed, 1), CPU):
        law = tables.initial[member].expand(trials.shape[1], -1) if initial is None else initial
        for step, each in enumerate(trials):
            states.append(torch.multinomial(law, 1)[:, 0])
            rests, moves = (law[member] for law in _moves(model, elapsed[step % len(elapsed)]))
            law = torch.where(each[:, None] > 0, moves[states[-1]], rests[states[-1]])
        rates = rate[torch.stack(states)]
        return Replicates(trials, torch.binomial(trials.double(), rates).long(), rates[-1], {})


@lru_cache(maxsize=64)
def lowered(model: bp.SuccessRate) -> Any:
    """The model's tables, worked out once."""
    return model.lower_grid()


def filtered(posterior: Any, seen: Replicates, warm: bool = False, elapsed: Times = (1.0,)) -> Any:
    """The posterior before the coming rollouts.

    warm: the first step's counts are known before time begins to move. elapsed: what it is told of the steps, in turns.
    """
    for step, trials in enumerate(seen.trials[:-1]):
        rows = trials.nonzero()[:, 0]
        counts = rows, seen.successes[step, rows], trials[rows]
        if warm and step == 0:
            posterior.warm_start(*counts)
        else:
            posterior.update(*counts, elapsed[step % len(elapsed)])
    return posterior


def rate_ranks(posterior: Any, truth: Tensor, seed: int) -> Tensor:
    """Ranks (N,) of true rates among L Thompson draws; those that are nearer to 0 or 1 than numbers go are equals.

    What is drawn by others stops short of 1, where ours may be 1.
    """
    drawn = torch.stack([posterior.sample_success_rate(seed, step) for step in range(DRAWS)])
    ends = torch.finfo(drawn.dtype)
    return ranks(*(rates.clamp(ends.tiny, 1 - 2 * ends.eps) for rates in (drawn, truth)), seed)


def pool_transition_ranks(model: bp.SolvingProgress, pools: int, prompts: int, steps: int, share: float) -> Tensor:
    """Ranks (pools,) of transitions that all prompts of a pool share, of one of the nine entries for each pool."""
    found = []
    for pool in range(pools):
        seen = simulate(model, looks(prompts, steps, seed=pool, share=share), seed=pool)
        posterior = filtered(model.posterior(prompts, dtype=torch.float64), seen)
        drawn = torch.stack([posterior.sample_transition(pool, step)[0] for step in range(DRAWS)])
        entry = pool % 3, pool // 3 % 3
        found.append(ranks(drawn[:, *entry], seen.sites["transition"][entry], seed=pool))
    return torch.stack(found)


def transition_ranks(posterior: Any, seen: Replicates, together: int, seed: int) -> Tensor:
    """Ranks (R,) of one entry of each true transition matrix, which `together` prompts in a row share."""
    truth = seen.sites["transition"].flatten(-2)  # (R, K * K)
    entry = torch.arange(len(truth))[:, None] % truth.shape[1]
    drawn = [posterior.sample_transition(seed, step)[::together].flatten(1).gather(1, entry) for step in range(DRAWS)]
    return ranks(torch.stack(drawn)[..., 0], truth.gather(1, entry)[:, 0], seed)


def ranks(drawn: Tensor, truth: Tensor, seed: int) -> Tensor:
    """Ranks (...) in 0..L of truths (...) among L draws (L, ...), those of equals at random."""
    below, equal = (drawn < truth).sum(0), (drawn == truth).sum(0)
    random = torch.rand(truth.shape, generator=torch.Generator().manual_seed(_stream(seed, 3)), dtype=torch.float64)
    return below + (random * (equal + 1)).long()


def pit(law: Tensor, count: Tensor, seed: int) -> Tensor:
    """The randomised probability integral transform in bins 0..L, (N,): count (N,) under its predictive law (N, C)."""
    at = law.gather(1, count[:, None])[:, 0]
    random = torch.rand(len(count), generator=torch.Generator().manual_seed(_stream(seed, 3)), dtype=torch.float64)
    value = law.cumsum(1).gather(1, count[:, None])[:, 0] - random * at
    return (value * (DRAWS + 1)).long().clamp(0, DRAWS)


def uniformity(rank: Tensor, departure: float = 0.0) -> float:
    """p-value of the hypothesis that ranks in 0..L are uniform, but for a departure.

    departure: the root mean square of how much the probabilities of the bins differ from 1 / (L + 1), relative to it.
        Pearson's statistic of n ranks is then chi-square with L degrees of freedom and noncentrality n departure ** 2.
    """
    found = torch.bincount(rank, minlength=DRAWS + 1).double()
    expected = len(rank) / (DRAWS + 1)
    statistic = float(((found - expected).square() / expected).sum())
    return float(stats.ncx2.sf(statistic, DRAWS, max(len(rank) * departure**2, 1e-12)))


def reliability(predicted: Tensor, happened: Tensor, bins: int = 8) -> float:
    """p-value of the hypothesis that events (N,) have the probabilities (N,) that were predicted.

    Events are summed up in bins of the predicted probability. Given all that was observed they are independent, so the
    sum's variance is that of sum p (1 - p); bins in which it is below 10, where sums are not normal, are left out.
    """
    order = predicted.double().argsort(stable=True)
    statistic, used = 0.0, 0
    for part in order.tensor_split(bins):
        p = predicted[part].double().clamp(0, 1)
        variance = float((p * (1 - p)).sum())
        if variance >= 10:
            statistic += float((happened[part].double() - p).sum()) ** 2 / variance
            used += 1
    assert used, "nothing was uncertain"
    return float(stats.chi2.sf(statistic, used))


@lru_cache(maxsize=64)
def _moves(model: bp.SuccessRate, time: float) -> tuple[Tensor, Tensor]:
    return lowered(model).transition(time), lowered(model).after_look(time)


def _stream(seed: int, use: int) -> int:
    """A seed for one use: ties broken with the numbers that made the truth would be no ties at random."""
    return 4 * seed + use


def _rate(model: Any, sites: dict[str, Tensor], step: int) -> Tensor:
    if isinstance(model, bp.LogitGaussian):
        return torch.sigmoid(sites[f"logit_{step}"])
    state = sites.get(f"state_{step}")
    if isinstance(model, bp.SolvingProgress):
        assert state is not None and model.emission is not None
        low, high, alpha, beta = (table[state] for table in model.emission.rates())
        return low + (high - low) * torch.distributions.Beta(alpha, beta).sample()
    if state is None:
        return sites["rate"].double()
    tables = model.lower_grid()
    return tables.points.rate.repeat(tables.modes)[state]
