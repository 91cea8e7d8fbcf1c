"""SuccessRate: fields, tables, description, and the Pyro program against the Beta-Binomial law."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from itertools import combinations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, TraceEnum_ELBO
from scipy import special, stats

import bayes_prompt as bp
from bayes_prompt.errors import CannotLower
from bayes_prompt.history import History
from bayes_prompt.models.success_rate import SuccessRate

TRIALS = torch.tensor([[8, 0, 4], [8, 8, 0], [2, 0, 0]])


def per_prompt(alpha: list[float], beta: list[float]) -> dist.Beta:
    return dist.Beta(*(torch.tensor(values, dtype=torch.float64) for values in (alpha, beta)))


def test_defaults_are_exact_bayes_with_a_flat_prior() -> None:
    tables = SuccessRate().lower(torch.float64)
    assert (tables.alpha.tolist(), tables.beta.tolist()) == ([1.0], [1.0])
    assert (tables.decay, tables.decay_unobserved) == (1.0, False)


def test_lower_casts_from_float64() -> None:
    alpha, beta = [0.1, 0.7, 1e6 + 0.1], [3.3, 1e-30, 2.0]
    model = SuccessRate(per_prompt(alpha, beta), decay=0.5, decay_unobserved=True)
    tables = model.lower(torch.float32)
    assert torch.equal(tables.alpha, torch.tensor(alpha, dtype=torch.float32))
    assert torch.equal(tables.beta, torch.tensor(beta, dtype=torch.float32))
    assert (tables.decay, tables.decay_unobserved) == (0.5, True)
    assert model.lower(torch.float64).alpha.tolist() == alpha
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64; got torch.bfloat16"):
        model.lower(torch.bfloat16)
    with pytest.raises(CannotLower, match=r"prior: beta\[1\] is 1e-39, which torch.float32 cannot hold"):
        SuccessRate(per_prompt([1.0, 1.0], [1.0, 1e-39])).lower()


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 3e38), (torch.float64, 1.5e308)])
def test_a_sum_that_overflows_is_refused(dtype: torch.dtype, large: float) -> None:
    """Each parameter fits, but the mean would be large / inf."""
    model = SuccessRate(per_prompt([1.0, large], [large / 1e10, large]))
    with pytest.raises(CannotLower, match=rf"alpha \+ beta of prior\[1\] is .*, which {dtype} cannot hold"):
        model.lower(dtype)
    tables = SuccessRate(per_prompt([large / 4], [large / 4])).lower(dtype)
    assert bool(torch.isfinite(tables.alpha + tables.beta))


def test_a_large_prior_is_described_by_a_digest() -> None:
    alpha, beta = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    described = SuccessRate(per_prompt(alpha, beta)).describe()
    assert described["alpha"] == {"sha256": hashlib.sha256(struct.pack("<3d", *alpha)).hexdigest(), "shape": [3]}
    assert described["beta"] != described["alpha"]
    assert SuccessRate(per_prompt([1.0], [4.0])).describe()["beta"] == [4.0]
    large = SuccessRate(dist.Beta(torch.rand(10_000) + 0.1, torch.rand(10_000) + 0.1))
    assert len(json.dumps(large.describe())) < 500
    assert large.describe() == large.describe()


def test_lowered_tables_are_nobody_elses() -> None:
    """float64 to float64 is a copy as well."""
    model = SuccessRate(per_prompt([1.0, 2.0], [3.0, 4.0]))
    before = model.describe()
    for _ in range(2):
        tables = model.lower(torch.float64)
        assert (tables.alpha.tolist(), tables.beta.tolist()) == ([1.0, 2.0], [3.0, 4.0])
        tables.alpha.fill_(9.0)
        tables.beta.fill_(9.0)
    assert model.describe() == before


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Normal(0.0, 1.0), r"prior, a Normal, has a support that reaches beyond \[0, 1\]; a distribution over"),
        (dist.Beta(torch.ones(3), torch.ones(3)).to_event(1), r"prior has batch shape \(\) and event shape \(3,\)"),
        (dist.Beta(torch.ones(2, 3), torch.ones(3)), r"prior has batch shape \(2, 3\); a Beta"),
        (0.5, r"prior is a float; a distribution over \[0, 1\] with a density works"),
    ],
)
def test_other_priors_cannot_be_lowered(prior: object, message: str) -> None:
    with pytest.raises(CannotLower, match=message):
        SuccessRate(prior)  # type: ignore[arg-type]


def test_bad_fields_are_named() -> None:
    unchecked = dist.Beta(torch.tensor([1.0, math.inf]), torch.ones(2), validate_args=False)
    with pytest.raises(ValueError, match=r"prior: alpha\[1\] = inf must be positive and finite"):
        SuccessRate(unchecked)
    with pytest.raises(ValueError, match=r"prior: beta = 0.0 must be positive and finite"):
        SuccessRate(dist.Beta(1.0, 0.0, validate_args=False))
    for decay in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match=rf"decay must lie in \[0, 1\]; got {decay}"):
            SuccessRate(decay=decay)
    with pytest.raises(CannotLower, match=r"lower_grid\(\) gives its tables"):
        SuccessRate(grid=9).lower()
    with pytest.raises(TypeError, match="decay must be a number; got str"):
        SuccessRate(decay="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decay_unobserved must be True or False; got 1"):
        SuccessRate(decay_unobserved=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prior has 2 entries, but history has 3 prompts"):
        SuccessRate(per_prompt([1.0, 1.0], [1.0, 1.0])).pyro_model(History(None, TRIALS))


def test_descriptions_identify_the_model() -> None:
    several = [
        SuccessRate(),
        SuccessRate(dist.Beta(1.0, 2.0)),
        SuccessRate(per_prompt([1.0, 1.0], [1.0, 1.0])),
        SuccessRate(per_prompt([1.0, 1.0], [1.0, 1.0 + 1e-15])),
        SuccessRate(decay=0.5),
        SuccessRate(decay_unobserved=True),
        SuccessRate(grid=9),
        SuccessRate(grid=10),
        SuccessRate(grid=9, decay=0.5),
        SuccessRate(dist.Beta(1.0, 2.0), grid=9),
        SuccessRate(grid=9, drift=bp.Redraw(0.1)),
        SuccessRate(grid=9, drift=bp.DriftBank([bp.Redraw(0.1)])),
        SuccessRate(grid=9, decay=bp.DecayBank([0.5])),
        SuccessRate(grid=9, sharing=bp.EmpiricalBayes()),
    ]
    texts = [json.dumps(model.describe(), sort_keys=True) for model in several]
    assert all(one != other for one, other in combinations(texts, 2))
    assert texts[0] == json.dumps(SuccessRate().describe(), sort_keys=True)
    assert all(json.loads(text) == model.describe() for text, model in zip(texts, several, strict=True))


def test_posterior_starts_at_the_prior() -> None:
    posterior = SuccessRate(per_prompt([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])).posterior(3, dtype=torch.float64)
    assert posterior.alpha.tolist() == [1.0, 2.0, 3.0]
    assert posterior.beta.tolist() == [4.0, 5.0, 6.0]
    own = SuccessRate().posterior(2, alpha=torch.tensor([2.0, 3.0]), beta=torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(own.success_rate(), torch.tensor([2 / 3, 3 / 7]))


def test_density_is_prior_times_binomials_of_what_was_seen() -> None:
    successes = torch.tensor([[3, 0, 4], [8, 1, 0], [0, 0, 0]])
    alpha, beta = [0.5, 2.0, 3.0], [1.5, 2.0, 0.25]
    rate = torch.tensor([0.25, 0.5, 0.875], dtype=torch.float64)
    model = SuccessRate(per_prompt(alpha, beta))
    trace = poutine.trace(poutine.condition(model.pyro_model, {"rate": rate})).get_trace(History(successes, TRIALS))
    expected = stats.beta.logpdf(rate, alpha, beta).sum() + stats.binom.logpmf(successes, TRIALS, rate).sum()
    # Sums of a dozen logarithms below 100; trials = 0 contributes binom.logpmf(0, 0, rate) = 0.
    assert float(trace.log_prob_sum()) == pytest.approx(expected, abs=1e-10)
    assert trace.nodes["rate"]["value"].dtype == torch.float64


def test_prior_predictive_is_beta_binomial() -> None:
    prompts, group = 20_000, 6
    trials = torch.full((2, prompts), group)
    trials[1, ::2] = 0
    successes = SuccessRate(dist.Beta(0.5, 2.0)).pyro_model(History(None, trials))
    assert successes.dtype == torch.int64
    assert (successes[trials == 0] == 0).all()
    law = torch.from_numpy(stats.betabinom.pmf(range(group + 1), group, 0.5, 2.0))
    for seen in (successes[0], successes[1, 1::2]):
        frequency = torch.bincount(seen, minlength=group + 1).double() / len(seen)
        # Six standard deviations, and a handful of draws where the normal approximation of rare counts is poor.
        assert ((frequency - law).abs() <= 6 * (law * (1 - law) / len(seen)).sqrt() + 8 / len(seen)).all()
    # A prompt keeps its rate: the two steps of one prompt are correlated as the Beta-Binomial says, 1 / (a + b + 1).
    both = successes[:, 1::2].double() / group
    covariance = ((both[0] - both[0].mean()) * (both[1] - both[1].mean())).mean()
    variance_of_rate = 0.2 * 0.8 / 3.5
    assert abs(covariance - variance_of_rate) <= 6 * ((both[0] - 0.2) * (both[1] - 0.2)).std() / both.shape[1] ** 0.5


def test_nuts_runs_and_the_graph_is_the_model() -> None:
    model = SuccessRate(dist.Beta(2.0, 2.0))
    history = History(torch.tensor([[3, 0, 4], [8, 1, 0], [0, 0, 0]]), TRIALS)
    chain = MCMC(NUTS(model.pyro_model, max_tree_depth=3), 3, warmup_steps=2, disable_progbar=True)
    chain.run(history)
    rate = chain.get_samples()["rate"]
    assert rate.shape == (3, 3)
    assert ((rate > 0) & (rate < 1)).all()
    source = pyro.render_model(model.pyro_model, (history,)).source
    assert "rate -> successes" in source
    assert "label=prompts" in source
    assert "label=steps" in source


PRIOR = bp.priors.inflated(bp.priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
WALK = bp.LogitRandomWalk(0.5, 0.1)
DRIFTS = {
    "walk": WALK,
    "redraw": bp.Redraw(0.2),
    "mixture": bp.Mixture(0.3, WALK, thaw=0.1, freeze=0.05),
    "active": bp.ActivePassive(bp.LogitRandomWalk(0.5, 0.5), bp.Redraw(0.1)),
}
COUNTS = torch.tensor([[3, 0, 4, 0], [8, 1, 0, 0], [2, 0, 1, 0], [5, 0, 0, 0]])
SEEN = torch.tensor([[8, 0, 4, 0], [8, 8, 0, 0], [2, 0, 1, 0], [8, 8, 0, 0]])


def filtered_evidence(model: SuccessRate) -> float:
    posterior = model.posterior(COUNTS.shape[1], dtype=torch.float64)
    for won, of in zip(COUNTS, SEEN, strict=True):
        rows = of.nonzero().flatten()
        posterior.update(rows, won[rows], of[rows])
    return posterior.log_count_evidence


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_filter_is_exact_in_the_drifting_program(drift: str) -> None:
    """Pyro adds up all paths of all prompts; one of them is never observed."""
    model = SuccessRate(PRIOR, grid=7, drift=DRIFTS[drift])
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    evidence = -elbo.loss(model.pyro_model, lambda history: None, History(COUNTS, SEEN))
    assert evidence == pytest.approx(filtered_evidence(model), abs=1e-10)


def test_a_bank_is_a_drift_that_the_whole_pool_has() -> None:
    members = [bp.LogitRandomWalk(0.2), bp.Redraw(0.1), DRIFTS["active"]]
    model = SuccessRate(PRIOR, grid=7, drift=bp.DriftBank(members))
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    evidence = -elbo.loss(model.pyro_model, lambda history: None, History(COUNTS, SEEN))
    alone = [filtered_evidence(SuccessRate(PRIOR, grid=model.points().rate, drift=member)) for member in members]
    # On rates that are given, masses are the trapezoidal rule's, as on those that the walk asks for.
    assert evidence == pytest.approx(special.logsumexp(alone) - np.log(3), abs=1e-6)


def test_the_filter_is_exact_in_the_program_without_a_drift() -> None:
    """The rate integrated out by quadrature, with a unit mass at each atom."""
    model = SuccessRate(PRIOR, grid=15)
    nodes, weights = special.roots_hermitenorm(120)
    inner = torch.sigmoid(torch.from_numpy(-0.3 + 1.2 * nodes))
    rate = torch.cat([torch.zeros(1), inner, torch.ones(1)]).double()
    mass = np.concatenate([[0.1], 0.85 * weights / weights.sum(), [0.05]])
    total = 0.0
    for prompt in range(COUNTS.shape[1]):
        won, of = (each[:, prompt : prompt + 1].expand(-1, len(rate)) for each in (COUNTS, SEEN))
        trace = poutine.trace(poutine.condition(model.pyro_model, {"rate": rate})).get_trace(History(won, of))
        trace.compute_log_prob()
        density = trace.nodes["rate"]["log_prob"]
        torch.testing.assert_close(density, PRIOR.log_prob(rate))
        total += np.log(mass @ trace.nodes["successes"]["log_prob"].sum(0).exp().numpy())
    # Up to 26 rollouts of a prompt, which 13 points besides the atoms all but integrate.
    assert filtered_evidence(model) == pytest.approx(total, abs=1e-6)


def count_law(model: SuccessRate, group: int) -> np.ndarray:
    """P(counts of two looks, one step apart), (G + 1, G + 1), from the tables."""
    tables = model.lower_grid()
    rates = tables.points.rate.repeat(tables.modes).numpy()
    chance = stats.binom.pmf(np.arange(group + 1)[:, None], group, rates)
    weights = np.full(len(tables.initial), 1 / len(tables.initial))
    path = np.einsum("j,jk,jkl->kl", weights, tables.initial, tables.after_look(1.0))
    return chance @ path @ chance.T


@pytest.mark.parametrize("drift", DRIFTS)
def test_drifting_prior_predictive_has_the_law_of_the_tables(drift: str) -> None:
    pyro.set_rng_seed(8)
    model, prompts, group = SuccessRate(PRIOR, grid=7, drift=DRIFTS[drift]), 20_000, 2
    successes = model.pyro_model(History(None, torch.full((2, prompts), group)))
    assert successes.shape == (2, prompts) and successes.dtype == torch.int64
    law = torch.from_numpy(count_law(model, group)).flatten()
    frequency = torch.bincount(successes[0] * (group + 1) + successes[1], minlength=9).double() / prompts
    # Six standard deviations, and a handful of draws where rare counts are not normal.
    assert bool(((frequency - law).abs() <= 6 * (law * (1 - law) / prompts).sqrt() + 8 / prompts).all())


def test_static_prior_predictive_is_that_of_the_prior() -> None:
    pyro.set_rng_seed(9)
    model, prompts = SuccessRate(PRIOR, grid=15), 20_000
    successes = model.pyro_model(History(None, torch.full((2, prompts), 2)))
    points = model.points()
    chance = stats.binom.pmf(np.arange(3)[:, None], 2, points.rate.numpy())
    law = torch.from_numpy((chance * points.mass.numpy()) @ chance.T).flatten()
    frequency = torch.bincount(successes[0] * 3 + successes[1], minlength=9).double() / prompts
    assert bool(((frequency - law).abs() <= 6 * (law * (1 - law) / prompts).sqrt() + 8 / prompts).all())
