"""The Pyro program of a world, runs as its traces, and what a world refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, TraceEnum_ELBO, config_enumerate
from scipy import stats
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt import simulate
from bayes_prompt.history import History

LEVEL = 1e-6  # of each test of a law: a correct one fails once in a million times
N = 40


def picks(seed: int, step: int, size: int = 8) -> Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(1_000 * seed + step))[:size]


def played(world: simulate.World, seed: int, steps: int) -> tuple[simulate.Run, list[simulate.Learner]]:
    """A run under random picks, and the learner before every step."""
    run, learners = world.start(seed), []
    for step in range(steps):
        learners.append(run.learner)
        index = picks(seed, step)
        run.learn(index, run.roll_out(index))
    return run, learners


def condition(run: simulate.Run, learners: list[simulate.Learner]) -> dict[str, Tensor]:
    """What the program drew, read off a run of a world without shared parts."""
    first = learners[0]
    data = {"difficulty": first.difficulty}
    if first.kind is not None:
        data["kind"] = first.kind
    for step in range(1, len(learners)):
        data[f"noise_{step}"] = learners[step].walk - learners[step - 1].walk
    return data


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_is_a_trace_of_the_program(full_world: simulate.World, seed: int) -> None:
    """Given its difficulties, its noise and its counts, the program goes through the same rates."""
    world = replace(full_world, family=None, slope=None)
    run, learners = played(world, seed, 12)
    program = poutine.condition(world.pyro_model, data=condition(run, learners))
    trace = poutine.trace(program).get_trace(run.history())
    for step, learner in enumerate(learners):
        rates = trace.nodes[f"rates_{step}"]["value"]
        # A difference of two walks and its sum again round twice each step, at numbers of a few logits.
        assert float((rates - learner.rates()).abs().max()) < 1e-12
    assert sorted({name.rpartition("_")[0] for name in trace.nodes if name[-1].isdigit()}) == [
        *("noise", "rates", "successes")
    ]


def test_the_pool_of_a_run_is_the_programs(full_world: simulate.World) -> None:
    with bp.models.seeding.seeded(5, torch.device("cpu")):
        trace = poutine.trace(full_world.begin).get_trace()
    sites = {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}
    expected = full_world.embeddings @ sites["slope"] + sites["family"][torch.arange(N) % 4]
    learner = trace.nodes["_RETURN"]["value"]
    assert torch.equal(learner.difficulty, expected + sites["difficulty"])
    assert torch.equal(learner.kind, sites["kind"])
    ordinary = torch.sigmoid(-learner.difficulty)
    for kind, rates in ((0, torch.zeros(N).double()), (1, ordinary), (2, torch.ones(N).double())):
        assert torch.equal(learner.rates()[learner.kind == kind], rates[learner.kind == kind])


def test_the_log_density_of_a_run_is_the_sum_of_its_parts(full_world: simulate.World) -> None:
    world = replace(full_world, family=None, slope=None, never=0.0, always=0.0)
    run, learners = played(world, 3, 4)
    history = run.history()
    data = condition(run, learners)
    trace = poutine.trace(poutine.condition(world.pyro_model, data=data)).get_trace(history)
    expected = stats.norm.logpdf(data["difficulty"], 0.5, 1.5).sum()
    for step, learner in enumerate(learners):
        if step:
            # The scale is what a float32 makes of 0.2.
            expected += stats.norm.logpdf(data[f"noise_{step}"], 0.0, float(np.float32(0.2))).sum()
        seen = history.trials[step] > 0
        counts = (history.successes[step][seen], history.trials[step][seen], learner.rates()[seen])
        expected += stats.binom.logpmf(*counts).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=1e-9)


def test_counts_of_a_run_have_the_law_of_the_program(full_world: simulate.World) -> None:
    """Over many seeds: a randomised probability integral transform of each first count is uniform."""
    world = replace(full_world, num_prompts=N, trials=5)
    generator = np.random.default_rng(0)
    levels = []
    for seed in range(60):
        run = world.start(seed)
        rates, counts = run.rates().numpy(), run.roll_out(range(N)).numpy()
        below, upto = stats.binom.cdf(counts - 1, 5, rates), stats.binom.cdf(counts, 5, rates)
        levels.append(below + (upto - below) * generator.random(N))
    assert stats.kstest(np.concatenate(levels), "uniform").pvalue > LEVEL


def test_the_prior_predictive_of_the_program_is_what_runs_do() -> None:
    """Totals of successes after learning, of the program sampled and of runs, share their law."""
    world = simulate.World(
        12, learning=simulate.Growth(0.5), transfer=simulate.Transfer(1.0, everyone=0.1), batch_size=12
    )
    history = History(None, torch.full((4, 12), 8))
    pyro.set_rng_seed(0)
    sampled = [int(world.pyro_model(history)[-1].sum()) for _ in range(120)]
    ran = []
    for seed in range(120):
        run = world.start(seed)
        for _ in range(4):
            counts = run.roll_out(range(12))
            run.learn(range(12), counts)
        ran.append(int(counts.sum()))
    assert stats.ks_2samp(sampled, ran).pvalue > LEVEL
    still = replace(world, learning=simulate.Growth(0.0))
    unlearned = [int(still.pyro_model(history)[-1].sum()) for _ in range(120)]
    assert stats.ks_2samp(unlearned, ran).pvalue < LEVEL  # the test sees what learning does


def test_nuts_finds_the_difficulty_of_a_run() -> None:
    """The program can be conditioned on a run: 3 prompts, rolled out so often that their difficulties are known."""
    world = simulate.World(3, dist.Normal(0.0, 2.0), learning=simulate.Growth(0.005), trials=400, batch_size=3)
    run = world.start(0)
    for _ in range(2):
        run.learn(range(3), run.roll_out(range(3)))
    pyro.set_rng_seed(0)
    chain = MCMC(NUTS(world.pyro_model), num_samples=60, warmup_steps=40, disable_progbar=True)
    chain.run(run.history())
    draws = chain.get_samples()["difficulty"]
    # The truth is as far from the mean as the posterior is wide: five of these, and one for the chain's own error.
    assert bool(((draws.mean(0) - run.learner.difficulty).abs() < 6 * draws.std(0)).all())
    assert bool((draws.std(0) < 0.5).all())


def test_kinds_are_summed_out() -> None:
    """Enumerated, the evidence of what three certain prompts and others did is the mixture's, worked out by hand."""
    law = dist.Delta(torch.tensor(0.0))
    world = simulate.World(4, law, never=0.25, always=0.5, learning=simulate.Growth(0.0), trials=2, batch_size=4)
    successes = torch.tensor([[0, 2, 1, 2]])
    program = config_enumerate(poutine.condition(world.pyro_model, data={"difficulty": torch.zeros(4).double()}))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(
        program, lambda history: None, History(successes, torch.full((1, 4), 2))
    )
    ordinary = 0.25 * stats.binom.pmf([0, 2, 1, 2], 2, 0.5)
    certain = np.array([0.25, 0.5, 0.0, 0.5])
    # A certain prompt keeps some 1e-15 of doubt, since Binomial's logits are finite.
    assert -loss == pytest.approx(float(np.log(ordinary + certain).sum()), abs=1e-12)


def test_mixtures_and_wide_laws_are_laws_too() -> None:
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-4.0, 4.0]), 0.5))
    for law in (mixture, dist.StudentT(3.0, 0.0, 1.0), dist.Gumbel(0.0, 1.0), dist.Normal(torch.arange(N) * 1.0, 1e-3)):
        learner = simulate.World(N, law, noise=law, batch_size=1).start(0).learner
        assert learner.difficulty.dtype == torch.float64
        assert bool(torch.isfinite(learner.difficulty).all())
    assert float((learner.difficulty - torch.arange(N)).abs().max()) < 0.01  # each prompt has its own law


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_prompts": 0}, ValueError, "num_prompts must be at least 1; got 0"),
        ({"difficulty": 2.0}, TypeError, "difficulty is a float; a univariate Pyro distribution works"),
        ({"difficulty": torch.distributions.Normal(0.0, 1.0)}, TypeError, "difficulty is a Normal"),
        ({"difficulty": dist.Normal(torch.zeros(3), 1.0)}, ValueError, r"difficulty has batch shape \(3,\)"),
        ({"difficulty": dist.Normal(torch.zeros(2), 1.0).to_event(1)}, ValueError, r"event shape \(2,\)"),
        ({"noise": "much"}, TypeError, "noise is a str"),
        ({"never": 0.7, "always": 0.4}, ValueError, "never [+] always must be at most 1"),
        ({"never": -0.1}, ValueError, r"never must lie in \[0, 1\]"),
        ({"groups": None}, ValueError, "family needs groups"),
        ({"groups": None, "family": None}, ValueError, "transfer has kin = 0.1, which needs groups"),
        ({"embeddings": None}, ValueError, "slope needs embeddings"),
        ({"groups": torch.arange(3)}, ValueError, "groups must have 40 entries, one for each prompt; got 3"),
        ({"groups": torch.arange(N) - 1}, ValueError, r"groups\[0\] = -1.0 must be at least 0"),
        ({"embeddings": torch.zeros(3, 2)}, ValueError, r"embeddings must have shape \(40, D\)"),
        ({"embeddings": torch.full((N, 1), math.nan)}, ValueError, r"embeddings\[0, 0\] = nan must be finite"),
        ({"trials": 0}, ValueError, r"trials must lie in \[1"),
        ({"batch_size": 41}, ValueError, r"batch_size must lie in \[1, 40\]; got 41"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"transfer": lambda taught, groups, texts: taught[:3]}, ValueError, r"transfer must give .* shape \(40,\)"),
        ({"learning": None}, TypeError, "learning must be a function; got NoneType"),
        ({"transfer": 0.5}, TypeError, "transfer must be a function; got float"),
        ({"forgetting": 0.1}, TypeError, "forgetting must be a function; got float"),
        (
            {"learning": lambda skill, felt: skill + felt * math.nan},
            ValueError,
            "learning must give finite numbers; got nan",
        ),
        ({"learning": lambda skill, felt: 3.0}, ValueError, "learning must give a tensor of shape"),
        ({"forgetting": lambda skill, taught: skill[None]}, ValueError, "forgetting must give a tensor of shape"),
    ],
)
def test_a_world_names_what_is_wrong(
    full_world: simulate.World, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(full_world, **changes)


def test_a_history_of_another_pool_is_refused(full_world: simulate.World) -> None:
    with pytest.raises(ValueError, match="the world has 40 prompts, but history has 3"):
        full_world.pyro_model(History(None, torch.ones(2, 3, dtype=torch.int64)))


def test_a_part_that_gives_no_numbers_later_is_named() -> None:
    """At the start nothing was learned, and 0 / 1 is a number; after the first step 1 / 0 is none."""
    part = simulate.World(N, learning=lambda skill, felt: skill + felt / (1 - felt.sign()), batch_size=5, steps=4)
    run, index = part.start(0), torch.arange(N)
    with pytest.raises(ValueError, match="learning of step 1 must give finite numbers; got"):
        run.learn(index, torch.full((N,), 4))
