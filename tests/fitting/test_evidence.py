"""The differentiable filters: what they add up to, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.fitting.compare import compare
from bayes_prompt.fitting.evidence import count_filter, evidence_by_observation, log_chances, log_count_evidence
from bayes_prompt.fitting.filters import Decay
from bayes_prompt.fitting.outcomes import Outcomes, possible
from bayes_prompt.fitting.predictions import replicate
from bayes_prompt.history import History
from bayes_prompt.models import priors
from bayes_prompt.models.banks import DecayBank, DriftBank
from bayes_prompt.models.drift import ActivePassive, LogitRandomWalk, Mixture, Redraw
from bayes_prompt.models.sharing import EmpiricalBayes

S, P, NORMAL = bp.SuccessRate, bp.SolvingProgress, priors.logit_normal(0.0, 1.5)
PROMPTS = 12


def a_history(steps: int = 70, prompts: int = PROMPTS, seed: int = 0) -> History:
    """Group sizes from 1 to 8, and half of the cells without a look; more steps than a grid's window of 64."""
    generator = torch.Generator().manual_seed(seed)
    looked = torch.rand(steps, prompts, generator=generator) < 0.5
    trials = torch.randint(1, 9, (steps, prompts), generator=generator) * looked
    rate = torch.rand(prompts, generator=generator)
    noise = torch.rand(steps, prompts, generator=generator)
    successes = (trials * (rate + 0.4 * (noise - 0.5)).clamp(0, 1)).round().long()
    return History(torch.minimum(successes, trials), trials)


BOTH_WAYS = ActivePassive(LogitRandomWalk(0.3, 0.2), LogitRandomWalk(0.2, -0.05))
MODELS = {
    "beta": S(dist.Beta(1.0, 2.0), decay=0.7),
    "beta, all forget": S(dist.Beta(1.0, 2.0), decay=0.7, decay_unobserved=True),
    "beta, each its own": S(dist.Beta(torch.linspace(0.5, 2.0, PROMPTS), torch.ones(PROMPTS))),
    "dps": P(),
    "forbidden moves": P(priors.local(), initial=priors.one_hot_initial(2)),
    "fixed": P(learn=False),
    "forgets all": P(decay=0.0),
    "partition": P(priors.uniform(1.0, 4), emission=bp.PartitionEmission([0, 0, 0.5, 1, 1])),
    "laws": P(emission=bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 3, 8]), torch.tensor([8, 3, 0.5])))),
    "logit-normal": S(NORMAL),
    "logit-normal, forgets": S(NORMAL, decay=0.6),
    "logit-normal, forgets all": S(NORMAL, decay=0.0),
    "histogram": S(priors.histogram(torch.tensor([1.0, 0.0, 3.0])), decay=0.5),
    "inflated": S(priors.inflated(dist.Beta(1.0, 1.0), 0.1, 0.2), decay=0.8),
    "walk": S(NORMAL, drift=LogitRandomWalk(0.3, 0.1)),
    "redraw": S(dist.Beta(0.5, 0.5), drift=Redraw(0.1)),
    "mixture": S(NORMAL, drift=Mixture(0.5, LogitRandomWalk(0.5), 0.1, 0.05)),
    "both ways": S(NORMAL, drift=BOTH_WAYS),
    "bank of decays": S(dist.Beta(1.0, 2.0), decay=DecayBank((0.3, 0.8, 1.0, 0.0))),
    "bank of drifts": S(NORMAL, drift=DriftBank([LogitRandomWalk(0.1), LogitRandomWalk(0.7)])),
    "bank of both": S(NORMAL, drift=DriftBank([BOTH_WAYS, LogitRandomWalk(0.1)])),
}


# Prompts learn from each other at once: there is no filter of each alone, and the posterior itself is asked.
POOLED = {
    "pooled": P(pooling="pool"),
    "pooled, never forgets": P(priors.local(), decay=1.0, pooling="pool"),
    "pooled, bank of decays": P(decay=DecayBank((0.5, 1.0)), pooling="pool"),
    "shared": S(dist.Beta(1.0, 2.0), sharing=EmpiricalBayes()),
}


def fed(model: Any, history: History) -> Any:
    posterior = model.posterior(history.num_prompts, dtype=torch.float64, backend="reference")
    assert history.successes is not None
    for successes, trials in zip(history.successes, history.trials, strict=True):
        rows = trials.nonzero()[:, 0]
        posterior.update(rows, successes[rows], trials[rows])
    return posterior


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_posterior_accumulates(name: str) -> None:
    history, model = a_history(), MODELS[name]
    posterior = fed(model, history)
    with torch.no_grad():
        chances, unexpected = log_chances(model, history)
    # The order of sums differs: some 400 terms, each within a few roundings.
    assert float(chances.sum()) == pytest.approx(posterior.log_count_evidence, rel=1e-12)
    assert int(unexpected.sum()) == posterior.unexpected
    assert bool((chances[history.trials == 0] == 0).all()) and bool((chances[unexpected] == 0).all())


def test_comparisons_tell_what_the_posterior_accumulates_of_every_declaration() -> None:
    history, models = a_history(), MODELS | POOLED
    for score in compare(history, models, replicates=0).scores:
        posterior = fed(models[score.name], history)
        assert score.log_count_evidence == pytest.approx(posterior.log_count_evidence, rel=1e-12), score.name
        assert score.unexpected == posterior.unexpected
    # Pooling is no matter of taste on this history: were it left out, the numbers would be the unpooled ones'.
    assert abs(fed(POOLED["pooled"], history).log_count_evidence - fed(P(), history).log_count_evidence) > 1


def test_replicates_of_a_pooled_declaration_are_its_own() -> None:
    trials = torch.full((12, PROMPTS), 8)
    one, other = (replicate(P(decay=1.0, pooling=pooling), trials, 0) for pooling in ("pool", "prompt"))
    assert torch.equal(one[0], other[0]) and not torch.equal(one, other)


def test_some_of_these_models_meet_the_impossible() -> None:
    assert int(log_chances(MODELS["forbidden moves"], a_history())[1].sum()) > 0


@pytest.mark.parametrize("name", MODELS)
def test_chances_of_every_count_add_up(name: str) -> None:
    history = a_history(20)
    outcomes = possible(history.trials)
    filter = count_filter(MODELS[name], outcomes)
    state = filter.start(PROMPTS)
    with torch.no_grad():
        for step, trials in enumerate(history.trials):
            chance = filter.chance(state)
            for size in outcomes.trials.unique().tolist():
                if name == "laws" or size != 1 or not isinstance(MODELS[name], P):  # else partial has no count at all
                    total = chance[:, outcomes.trials == size].sum(1)
                    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)
            which = torch.searchsorted(outcomes.trials, trials) + history.successes[step]  # type: ignore[index]
            told, unexpected, state = filter.step(state, which)
            expected = chance.gather(1, which[:, None])[:, 0]
            looked = (trials > 0) & ~unexpected
            assert torch.allclose(told.exp()[looked], expected[looked], rtol=1e-12, atol=0)


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def moves(move: Tensor, stay: Tensor) -> Any:
    return dist.Dirichlet(move * torch.ones(3, 3).double() + stay * torch.eye(3).double())


def laws(a: Tensor, b: Tensor) -> Any:
    return bp.BetaBinomialEmission(dist.Beta(torch.stack([a, b, b]), torch.stack([b, b, a])))


EVEN = torch.sigmoid(torch.linspace(-6, 6, 25).double())
FAMILIES: dict[str, tuple[Callable[..., Any], list[float]]] = {
    "beta": (lambda a, b, d: S(dist.Beta(a, b), decay=Decay(d)), [1.0, 2.0, 0.7]),
    "beta, all forget": (lambda a, d: S(dist.Beta(a, a), decay=Decay(d), decay_unobserved=True), [1.0, 0.9]),
    "dps": (lambda m, s, d: P(moves(m, s), decay=Decay(d)), [1.0, 2.0, 0.7]),
    "initial": (lambda p: P(initial=torch.stack([p, p, 1 - 2 * p]), learn=False), [0.2]),
    "laws": (lambda a, b, d: P(emission=laws(a, b), decay=Decay(d)), [0.5, 4.0, 0.9]),
    "logit-normal": (lambda m, s: S(priors.logit_normal(m, s)), [0.3, 1.5]),
    "logit-normal, forgets": (lambda m, s, d: S(priors.logit_normal(m, s), decay=Decay(d)), [0.3, 1.5, 0.8]),
    "beta on a grid": (lambda a, b: S(dist.Beta(a, b), grid=30), [0.8, 1.3]),
    "inflated": (
        lambda a, z, o, d: S(priors.inflated(dist.Beta(a, 1.0 + a), z, o), decay=Decay(d)),
        [0.8, 0.1, 0.2, 0.8],
    ),
    "redraw": (lambda a, b, p: S(dist.Beta(a, b), drift=Redraw(p)), [1.2, 1.4, 0.1]),
    "walk": (
        lambda m, s, d, t: S(priors.logit_normal(m, s), drift=LogitRandomWalk(d, t), grid=EVEN),
        [0.3, 1.5, 0.3, 0.05],
    ),
    "mixture": (
        lambda m, f, d: S(priors.logit_normal(m, 1.5), drift=Mixture(f, LogitRandomWalk(d), 0.1, 0.05), grid=EVEN),
        [0.3, 0.4, 0.5],
    ),
    "bank": (
        lambda c, d: S(NORMAL, drift=DriftBank([LogitRandomWalk(c), LogitRandomWalk(d)]), grid=EVEN),
        [0.1, 0.6],
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_finite_differences(name: str) -> None:
    family, values = FAMILIES[name]
    history = a_history(15)
    free = numbers(*values)
    gradients = torch.autograd.grad(log_count_evidence(family(*free), history), free)
    # Central differences are wrong by h^2 f''' / 6, and by rounding of f ~ 500 over h: 1e-9 and 1e-8 with h = 1e-5.
    for place, (gradient, value) in enumerate(zip(gradients, values, strict=True)):
        ends = []
        for sign in (1, -1):
            moved = [v + sign * 1e-5 * (i == place) for i, v in enumerate(values)]
            with torch.no_grad():
                ends.append(float(log_count_evidence(family(*numbers(*moved)), history)))
        assert float(gradient) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-5), (place, value)


def test_a_tensor_takes_the_place_of_the_decay() -> None:
    history, (decay,) = a_history(20), numbers(0.6)
    model = S(dist.Beta(1.0, 2.0), decay=0.9)
    evidence = log_count_evidence(model, history, decay=decay)
    assert evidence.item() == float(log_count_evidence(S(dist.Beta(1.0, 2.0), decay=0.6), history))
    (gradient,) = torch.autograd.grad(evidence, decay)
    assert gradient.item() != 0
    with pytest.raises(ValueError, match="decay must lie in"):
        log_count_evidence(model, history, decay=torch.tensor(1.5))
    with pytest.raises(TypeError, match="decay must be a tensor"):
        log_count_evidence(model, history, decay=0.5)  # type: ignore[arg-type]


def test_terms_stand_in_the_order_of_looks() -> None:
    history, model = a_history(20), MODELS["walk"]
    terms = evidence_by_observation(model, history)
    step, row = history.trials.nonzero(as_tuple=True)
    assert terms.shape == (len(step),)
    assert torch.equal(terms, log_chances(model, history)[0][step, row])
    only = History(history.successes[:, 3:4], history.trials[:, 3:4])  # type: ignore[index]
    assert torch.allclose(evidence_by_observation(model, only), terms[row == 3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["fixed", "walk"])
def test_exact_filters_give_the_likelihood_of_the_pyro_program(name: str) -> None:
    model = MODELS[name] if name == "fixed" else S(NORMAL, drift=LogitRandomWalk(0.3, 0.1), grid=11)
    history = a_history(5, 3)
    bound = TraceEnum_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        loss = bound.loss(model.pyro_model, lambda history: None, history)
    assert float(log_count_evidence(model, history)) == pytest.approx(-float(loss), rel=1e-10)


def test_what_has_no_filter_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="model is a SuccessRate with sharing; SolvingProgress with pooling"):
        log_count_evidence(S(dist.Beta(1.0, 1.0), sharing=EmpiricalBayes()), a_history(3))
    with pytest.raises(TypeError, match=r"model is a SolvingProgress with pooling='pool'; .* pooling=\"prompt\" works"):
        log_count_evidence(P(pooling="pool"), a_history(3))
    with pytest.raises(TypeError, match="model is a float"):
        log_count_evidence(1.0, a_history(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="history must have successes"):
        log_count_evidence(S(), History(None, a_history(3).trials))


def test_outcomes_without_a_look_are_known() -> None:
    outcomes = Outcomes(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 2]))
    assert outcomes.looked.tolist() == [False, True, True]
    assert possible(torch.tensor([[0, 2]])).successes.tolist() == [0, 0, 1, 2]
