"""LogitGaussian: fields, tables, description, and the Pyro program against its density and its predictive law."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from scipy import stats
from torch import Tensor

from bayes_prompt.errors import CannotLower
from bayes_prompt.history import History
from bayes_prompt.models.kalman import LogitGaussian

TRIALS = torch.tensor([[8, 0, 4], [8, 8, 0], [2, 0, 0]])
SUCCESSES = torch.tensor([[3, 0, 4], [8, 1, 0], [0, 0, 0]])


def per_prompt(loc: list[float], scale: list[float]) -> dist.Normal:
    return dist.Normal(*(torch.tensor(values, dtype=torch.float64) for values in (loc, scale)))


def test_lower_squares_in_float64_then_casts() -> None:
    loc, scale = [0.1, -3.0, 1e6], [0.7, 1e-10, 1e6]
    model = LogitGaussian(per_prompt(loc, scale), drift=0.5, trend=-0.25)
    for dtype in (torch.float32, torch.float64):
        tables = model.lower(dtype)
        assert torch.equal(tables.mean, torch.tensor(loc, dtype=dtype))
        assert torch.equal(tables.variance, torch.tensor([s * s for s in scale], dtype=torch.float64).to(dtype))
        assert (tables.drift, tables.trend) == (0.5, -0.25)
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64; got torch.bfloat16"):
        model.lower(torch.bfloat16)
    with pytest.raises(CannotLower, match=r"the variance of prior\[1\] is 1e-40, which torch.float32 cannot hold"):
        LogitGaussian(per_prompt([0.0, 0.0], [1.0, 1e-20])).lower()


def test_lowered_tables_are_nobody_elses() -> None:
    model = LogitGaussian(per_prompt([1.0, 2.0], [1.0, 2.0]))
    before = model.describe()
    for _ in range(2):
        tables = model.lower(torch.float64)
        assert (tables.mean.tolist(), tables.variance.tolist()) == ([1.0, 2.0], [1.0, 4.0])
        tables.mean.fill_(9.0)
        tables.variance.fill_(9.0)
    assert model.describe() == before


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Beta(1.0, 1.0), r"prior is a Beta; a Normal of the logit with batch shape \(\) or \(N,\) works"),
        (dist.LogNormal(0.0, 1.0), r"prior is a LogNormal; a Normal"),
        (dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1), r"prior is a Independent; a Normal"),
        (dist.Normal(torch.zeros(2, 3), torch.ones(3)), r"prior has batch shape \(2, 3\); a Normal"),
        (0.5, r"prior is a float; a Normal"),
    ],
)
def test_other_priors_cannot_be_lowered(prior: object, message: str) -> None:
    with pytest.raises(CannotLower, match=message):
        LogitGaussian(prior)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"drift": -0.1}, ValueError, r"drift must be at least 0; got -0.1"),
        ({"drift": math.nan}, ValueError, r"drift must lie within 1e\+06 of 0; got nan"),
        ({"drift": "1"}, TypeError, r"drift must be a number; got str"),
        ({"trend": math.inf}, ValueError, r"trend must lie within 1e\+06 of 0; got inf"),
        ({"trend": True}, TypeError, r"trend must be a number; got bool"),
        ({"method": "laplace"}, ValueError, r"method must be 'moments' or 'polya_gamma'; got 'laplace'"),
        ({"points": 15}, ValueError, r"points must be at least 16; got 15"),
        ({"points": 32.0}, TypeError, r"points must be an integer; got float"),
        (
            {"prior": dist.Normal(torch.tensor([0.0, math.inf]), torch.ones(2), validate_args=False)},
            ValueError,
            r"prior: loc\[1\] = inf must lie within 1e\+06 of 0",
        ),
        (
            {"prior": dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.0]), validate_args=False)},
            ValueError,
            r"prior: scale\[1\] = 0.0 must be positive and at most 1e\+06",
        ),
        ({"prior": dist.Normal(0.0, 2e6)}, ValueError, r"prior: scale = 2000000.0 must be positive and at most"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LogitGaussian(**fields)


def test_a_prior_of_another_pool_is_refused() -> None:
    model = LogitGaussian(per_prompt([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match="prior has 2 entries, but history has 3 prompts"):
        model.pyro_model(History(None, TRIALS))
    with pytest.raises(ValueError, match="prior has 2 entries, but num_prompts is 3"):
        model.posterior(3)


def test_descriptions_identify_the_model() -> None:
    several = [
        LogitGaussian(),
        LogitGaussian(dist.Normal(0.0, 1.0)),
        LogitGaussian(dist.Normal(0.5, 1.5)),
        LogitGaussian(per_prompt([0.0, 0.0], [1.0, 1.0])),
        LogitGaussian(per_prompt([0.0, 0.0], [1.0, 1.0 + 1e-15])),
        LogitGaussian(drift=0.0),
        LogitGaussian(trend=0.1),
        LogitGaussian(method="polya_gamma"),
        LogitGaussian(points=64),
    ]
    texts = [json.dumps(model.describe(), sort_keys=True) for model in several]
    assert all(one != other for one, other in combinations(texts, 2))
    assert texts[0] == json.dumps(LogitGaussian(points=np.int64(32)).describe(), sort_keys=True)
    assert all(json.loads(text) == model.describe() for text, model in zip(texts, several, strict=True))
    large = LogitGaussian(dist.Normal(torch.rand(10_000), torch.rand(10_000) + 0.1))
    assert len(json.dumps(large.describe())) < 500


def fixed(values: list[list[float]]) -> dict[str, Tensor]:
    return {f"logit_{t}": torch.tensor(row, dtype=torch.float64) for t, row in enumerate(values)}


@pytest.mark.parametrize("drift", [0.3, 0.0])
def test_density_is_the_walk_times_binomials_of_what_was_seen(drift: float) -> None:
    loc, scale, trend = [0.5, -2.0, 0.0], [1.5, 2.0, 0.25], 0.125
    walk = np.array([[0.25, -1.0, 0.5], [0.5, 0.0, 0.75], [1.5, 0.0, -4.0]])
    if drift == 0:
        walk = walk[0] + trend * np.arange(3)[:, None]
    model = LogitGaussian(per_prompt(loc, scale), drift=drift, trend=trend)
    given = fixed(walk.tolist() if drift else walk[:1].tolist())
    trace = poutine.trace(poutine.condition(model.pyro_model, given)).get_trace(History(SUCCESSES, TRIALS))
    expected = stats.norm.logpdf(walk[0], loc, scale).sum()
    if drift:
        expected += stats.norm.logpdf(walk[1:], walk[:-1] + trend, drift).sum()
    expected += stats.binom.logpmf(SUCCESSES, TRIALS, 1 / (1 + np.exp(-walk))).sum()
    # Sums of some twenty logarithms below 1,000, each rounded to a few units in the last place.
    assert float(trace.log_prob_sum()) == pytest.approx(expected, abs=1e-10)
    for t, row in enumerate(walk):
        assert torch.equal(trace.nodes[f"logit_{t}"]["value"], torch.from_numpy(row))


def test_prior_predictive_is_the_logistic_normal_binomial() -> None:
    """Also after steps of the walk, whose variances add up and whose trend moves the mean."""
    prompts, group = 20_000, 4
    trials = torch.full((3, prompts), group)
    trials[0, ::2] = 0
    successes = LogitGaussian(dist.Normal(-0.5, 1.0), drift=0.75, trend=0.5).pyro_model(History(None, trials))
    assert successes.dtype == torch.int64 and bool((successes[trials == 0] == 0).all())
    for t, seen in ((0, successes[0, 1::2]), (2, successes[2])):
        logit = np.linspace(-12, 12, 2001)
        density = stats.norm.pdf(logit, -0.5 + 0.5 * t, math.sqrt(1 + 0.75**2 * t)) * (logit[1] - logit[0])
        law = stats.binom.pmf(np.arange(group + 1)[:, None], group, 1 / (1 + np.exp(-logit))) @ density
        frequency = np.bincount(seen.numpy(), minlength=group + 1) / len(seen)
        # Six standard deviations: missed once in a hundred million runs if the draws are right.
        assert (np.abs(frequency - law) <= 6 * np.sqrt(law * (1 - law) / len(seen))).all()


def test_nuts_runs_and_the_graph_is_the_model() -> None:
    model, history = LogitGaussian(), History(SUCCESSES, TRIALS)
    chain = MCMC(NUTS(model.pyro_model, max_tree_depth=3), 3, warmup_steps=2, disable_progbar=True)
    chain.run(history)
    samples = chain.get_samples()
    assert samples.keys() == {"logit_0", "logit_1", "logit_2"}
    assert samples["logit_2"].shape == (3, 3) and bool(torch.isfinite(samples["logit_2"]).all())
    source = pyro.render_model(model.pyro_model, (history,)).source
    for edge in ("logit_0 -> logit_1", "logit_1 -> logit_2", "logit_0 -> successes_0", "label=prompts"):
        assert edge in source
