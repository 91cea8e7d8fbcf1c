"""Banks, whose members are weighted online, where one of them is true: of drifts, of decays, and of strengths.

A bank averages its members' beliefs after each look (generalised pseudo-Bayes), which no exact filter does. Weights
that fade (`memory` below 1), or have a `floor`, expect changes that no program makes: the banks here have neither.
Groups of prompts, which learn nothing of each other, are the replicates. For the bounds see test_approximate.
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
from bayes_prompt.models.banks import StrengthBank
from bayes_prompt.models.seeding import seeded
from bayes_prompt.posteriors.forgetting import forgotten

FULL = pytest.mark.slow
RUNS = [pytest.param(4, id="small"), pytest.param(80, id="full", marks=FULL)]
GROUPS, SIZE = 64, 5
ALONE: dict[str, Any] = {"memory": 1.0, "floor": 0.0, "pooling": 0.0}
TIMES = (0.5, 2.0, 1.0)
SLOW, FAST = bp.LogitRandomWalk(0.2), bp.LogitRandomWalk(1.0)
DRIFTS: dict[str, bp.DriftBank] = {
    "walks": bp.DriftBank([SLOW, FAST], **ALONE),
    "shares of modes": bp.DriftBank([bp.Mixture(0.8, FAST, thaw=0.05), bp.Mixture(0.2, FAST, freeze=0.02)], **ALONE),
    "moves of a mode": bp.DriftBank([bp.Mixture(0.5, SLOW, 0.1, 0.1), bp.Mixture(0.5, FAST, 0.1, 0.1)], **ALONE),
    "of training": bp.DriftBank(priors.training().members, **ALONE),
}


def told(posterior: Any, seen: sbc.Replicates, true: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Of one prompt of each group: the rank of its rate, P(informative), the event; and of the group: the weight of a
    member that is picked at random, and whether it is the true one.
    """
    informative = posterior.informative_probability(sbc.GROUP)
    source = torch.Generator().manual_seed(10**6 + seed)
    picked = torch.randint(posterior.bank_weights().shape[1], true.shape, generator=source)
    weight = posterior.bank_weights().gather(1, picked[:, None])[:, 0]
    rank = sbc.rate_ranks(posterior, seen.rate, seed)
    return rank[::SIZE], informative[::SIZE], seen.informative[::SIZE], weight, true == picked


def mixed(each: list[sbc.Replicates], true: Tensor) -> sbc.Replicates:
    """Of each prompt what its group's member (R,) made."""
    member, prompts = true.repeat_interleave(SIZE), torch.arange(GROUPS * SIZE)
    successes = torch.stack([one.successes for one in each])[member, :, prompts].T
    return sbc.Replicates(each[0].trials, successes, torch.stack([one.rate for one in each])[member, prompts], {})


def one_of_drifts(bank: bp.DriftBank, seed: int, elapsed: tuple[float, ...] = (1.0,)) -> tuple[Tensor, ...]:
    model = bp.SuccessRate(priors.logit_normal(0.0, 1.0), grid=15, drift=bank)
    groups = torch.arange(GROUPS).repeat_interleave(SIZE)
    members = len(bank.members)
    true = torch.randint(members, (GROUPS,), generator=torch.Generator().manual_seed(seed))
    trials = sbc.looks(GROUPS * SIZE, 8, seed)
    each = [sbc.chain(model, trials, members * seed + member, elapsed, member) for member in range(members)]
    seen = mixed(each, true)
    posterior = model.posterior(GROUPS * SIZE, groups=groups, dtype=torch.float64)
    return told(sbc.filtered(posterior, seen, elapsed=elapsed), seen, true, seed)


# What is learned of how many are frozen is averaged away with the mode: such weights are too sure, by a tenth.
OFF = {"shares of modes": 0.13}  # 0.105


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize(
    ("name", "elapsed"),
    [(name, elapsed) for name in DRIFTS for elapsed in ((1.0,), TIMES) if name != "of training" or elapsed == TIMES],
)
def test_bank_of_drifts(name: str, elapsed: tuple[float, ...], runs: int) -> None:
    """Modes that nobody sees, such as frozen and moving, are averaged with the rest. (Rates: 0.040 at the most.)"""
    if len(DRIFTS[name].members) > 4:
        runs = (runs + 4) // 5
    check([one_of_drifts(DRIFTS[name], run, elapsed) for run in range(runs)], 0.06, OFF.get(name, 0.0))


def check(found: list[tuple[Tensor, ...]], departure: float, off: float = 0.0) -> None:
    """off: how far weights may be from how often they are right, in any fifth of them."""
    rank, informative, happened, weight, true = (torch.cat(parts) for parts in zip(*found, strict=True))
    bins = min(5, 1 + len(rank) // 200)  # of enough replicates
    assert sbc.uniformity(rank, departure) > sbc.ALARM
    if len(rank) >= 200:
        assert sbc.reliability(informative, happened, bins) > sbc.ALARM
    if len(rank) >= 200 and not off:
        assert sbc.reliability(weight, true, bins) > sbc.ALARM
    for part in weight.argsort().tensor_split(5):
        chance = SIGMAS * (weight[part] * (1 - weight[part])).mean().sqrt() / len(part) ** 0.5 + 0.5 / len(part)
        assert abs(float(weight[part].mean() - true[part].double().mean())) < off + float(chance)


SIGMAS = 5.5  # one in 26 million: far beyond `sbc.ALARM`, of any of five
DECAYS = bp.DecayBank((0.3, 0.95), **ALONE)
HIDDEN = bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 2.0, 3.0, 6.0]), torch.tensor([6.0, 3, 2, 0.5])))
STICKY = 6 * torch.eye(4, dtype=torch.float64) + 0.5


def forgetful(decay: float | bp.DecayBank, states: bool) -> Any:
    if states:
        return bp.SolvingProgress(STICKY, decay=decay, emission=HIDDEN, pooling="group", strength=0.0)
    return bp.SuccessRate(priors.logit_normal(0.0, 1.0), grid=15, decay=decay)


def own_future(decay: float, states: bool, trials: Tensor, groups: Tensor, seed: int) -> sbc.Replicates:
    """Counts drawn from what a single decay predicts of them, step by step: there is no other program of it.

    On a grid a prompt forgets when it is looked at, and so does the law that its counts are drawn from; not that of the
    coming ones, of which nobody has forgotten anything yet.
    """
    model, drawn = forgetful(decay, states), []
    posterior = model.posterior(len(groups), groups=groups, dtype=torch.float64)
    with seeded(seed, sbc.CPU):
        for step, each in enumerate(trials):
            rows = each.nonzero()[:, 0]
            mass, counts = posterior._point_mass(rows), torch.zeros_like(each)
            if not states and step < len(trials) - 1:
                mass = forgotten(mass, model.points().mass, torch.tensor([decay]).double())[0]
            for size in each[rows].unique().tolist():
                law = mass[each[rows] == size] @ posterior._point_chance(size).T
                counts[rows[each[rows] == size]] = torch.multinomial(law, 1)[:, 0]
            drawn.append(counts)
            posterior.update(rows, counts[rows], each[rows])
    return sbc.Replicates(trials, torch.stack(drawn), drawn[-1].double(), {})


def one_of_decays(states: bool, seed: int) -> tuple[Tensor, ...]:
    """As `told`; there is no rate, and the coming count takes its place: where it lies in what is predicted of it."""
    groups = torch.arange(GROUPS).repeat_interleave(SIZE)
    true = torch.randint(2, (GROUPS,), generator=torch.Generator().manual_seed(seed))
    trials = sbc.looks(GROUPS * SIZE, 12, seed)
    each = [own_future(decay, states, trials, groups, 2 * seed + k) for k, decay in enumerate(DECAYS.members)]
    seen = mixed(each, true)
    posterior = forgetful(DECAYS, states).posterior(GROUPS * SIZE, groups=groups, dtype=torch.float64)
    sbc.filtered(posterior, seen)
    law = posterior._point_mass(torch.arange(GROUPS * SIZE)) @ posterior._point_chance(sbc.GROUP).T
    _, *others = told(posterior, seen, true, seed)
    return sbc.pit(law, seen.successes[-1], seed)[::SIZE], *others


@pytest.mark.parametrize("runs", [pytest.param(3, id="small"), pytest.param(40, id="full", marks=FULL)])
@pytest.mark.parametrize("states", [False, True], ids=["rates", "hidden states"])
def test_bank_of_decays(states: bool, runs: int) -> None:
    """Weights of a grid's decays are off by 0.065 in the worst fifth, of hidden states' by 0.016. (0.046, 0.000.)"""
    check([one_of_decays(states, run) for run in range(runs)], 0.07, 0.0 if states else 0.1)


STRENGTHS = (0.0, 5.0, 50.0)


def one_of_strengths(seed: int) -> tuple[Tensor, ...]:
    """Of one pool of twelve groups whose states are guessed: a rate's rank, P(informative) and the event, the weight
    that the last group gives to a strength, and whether it is the true one.
    """
    bank = StrengthBank(STRENGTHS, memory=1.0, floor=0.0, pooling=1.0)
    model = bp.SolvingProgress(STICKY, decay=1.0, emission=HIDDEN, pooling="group", strength=bank)
    groups = torch.arange(72) % 12
    seen = sbc.simulate(model, sbc.looks(72, 10, seed), seed, groups)
    posterior = sbc.filtered(model.posterior(72, groups=groups, dtype=torch.float64), seen)
    informative, picked = posterior.informative_probability(sbc.GROUP)[:1], torch.tensor([seed % 3])
    weight = posterior.strength_weights()[-1, picked]
    return (
        sbc.rate_ranks(posterior, seen.rate, seed)[:1],
        informative,
        seen.informative[:1],
        weight,
        seen.sites["strength"] == picked,
    )


@pytest.mark.parametrize("pools", [pytest.param(40, id="small"), pytest.param(800, id="full", marks=FULL)])
def test_bank_of_strengths(pools: int) -> None:
    """With `pooling=1` a group counts its own evidence twice: weights are too sure, as far as 600 pools can tell.

    (Off by 0.115 in the worst fifth, where chance makes 0.05; ranks 0.118, no more than chance.)
    """
    check([one_of_strengths(pool) for pool in range(pools)], 0.17, 0.12)
