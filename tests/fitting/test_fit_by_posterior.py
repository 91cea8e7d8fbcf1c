"""Fits of declarations that gradients do not go through: their posterior is asked, and moved a little."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.fitting.evidence import has_filter, log_count_evidence
from bayes_prompt.fitting.families import FAMILIES
from bayes_prompt.fitting.fit import fit
from bayes_prompt.fitting.laplace import laplace
from bayes_prompt.fitting.predictions import predicted, replicate
from bayes_prompt.fitting.program import Program
from bayes_prompt.history import History

SCALE = dist.LogNormal(-1.0, 1.0)
ASKED = [name for name, family in FAMILIES.items() if not has_filter(family.declare())]


def drawn(model: Any, steps: int, prompts: int, groups: list[int] | None = None) -> History:
    """A third of the prompts has its first look in the first step, a third in the second, a third in the third."""
    late = torch.arange(steps)[:, None] >= torch.arange(prompts) % 3
    trials = 8 * late.long()
    return History(replicate(model, trials, 0, groups), trials)


@pytest.mark.parametrize("name", ["mopps", "inflated"])
def test_differences_find_the_mode_and_the_curvature_that_gradients_find(name: str) -> None:
    family = FAMILIES[name]
    history = drawn(family.declare(), 4, 12)
    program = Program(family.build, dict(family.priors), {}, history)
    start = {key: torch.as_tensor(value).double() for key, value in family.start.items()}
    exact = laplace(program.predictive, start, lambda *_: None)
    asked = replace(program, follows=False)
    found = laplace(asked.predictive, start, lambda *_: None, differentiable=False)
    # Both stop where the largest slope is below 1e-3, so that modes are no farther apart than that by the curvature.
    covariance = exact.factor @ exact.factor.T
    assert bool(((found.mode - exact.mode).abs() < 2e-3 * covariance.abs().sum(1) + 1e-5).all())
    # Differences of the steps 1e-3 are wrong by a millionth of the fourth derivative.
    assert torch.allclose(
        found.factor @ found.factor.T, covariance, rtol=2e-2, atol=2e-3 * float(covariance.abs().max())
    )
    z = torch.linspace(-1, 1, len(exact.mode)).double()
    assert float(found.at(z) - found.at(0 * z)) == pytest.approx(
        float(exact.at(z) - exact.at(0 * z)), rel=0.05, abs=0.01
    )


def test_the_mode_of_a_kalman_filter_is_where_a_fine_grid_finds_it() -> None:
    def family(scale: Any) -> bp.LogitGaussian:
        return bp.LogitGaussian(drift=float(scale))

    history = drawn(family(0.4), 6, 30)
    result = fit(history, family, method="map", scale=SCALE)
    scales = torch.linspace(0.1, 1.0, 46).double()
    evidence = torch.stack([predicted(family(scale), history)[0].sum() for scale in scales])
    # The search is made in the logarithm of the scale, where the density has the Jacobian `scale`.
    best = float(scales[int((evidence + SCALE.log_prob(scales) + scales.log()).argmax())])
    assert abs(result.model.drift - best) <= 0.02 and type(result.model.drift) is float


@pytest.mark.parametrize(
    ("name", "truth", "fixed"),
    [
        ("kalman", {"scale": 0.4, "trend": 0.15}, {"mean": 0.0, "deviation": 1.2}),
        ("pooled", {"move": 0.5, "stay": 3.0}, {"decay": 0.99}),
        ("grouped", {"move": 0.5, "stay": 3.0}, {"decay": 0.99}),
        ("adaptive", {"move": 0.5, "stay": 3.0}, {}),
    ],
)
def test_intervals_hold_the_parameters_that_a_history_was_drawn_with(
    name: str, truth: dict[str, float], fixed: dict[str, float]
) -> None:
    groups = [row % 10 for row in range(40)]
    history = drawn(FAMILIES[name].declare(**truth, **fixed), 8, 40, groups)
    result = fit(history, name, groups=groups, steps=10, **fixed)
    for parameter, value in truth.items():
        low, high = result.parameters[parameter].interval(0.999)
        assert float(low) <= value <= float(high), result.table()
        assert float(result.parameters[parameter].sd) > 0


def test_a_prior_that_prompts_share_weighs_more_where_it_is_right() -> None:
    history = drawn(bp.SuccessRate(bp.priors.logit_normal(-2.0, 0.7)), 4, 30)

    def family(pool: Any, mean: float) -> bp.SuccessRate:
        prior = bp.priors.logit_normal(mean, 0.7)
        return bp.SuccessRate(prior, sharing=bp.EmpiricalBayes(pool=float(pool)))

    pools = [fit(history, family, method="map", mean=mean, pool=dist.LogNormal(2.0, 2.0)) for mean in (-2.0, 2.0)]
    right, wrong = (float(result.parameters["pool"].mean) for result in pools)
    assert right > 5 * wrong


def test_how_much_groups_lean_on_the_pool_is_fitted() -> None:
    def family(strength: Any) -> bp.SolvingProgress:
        return bp.SolvingProgress(decay=1.0, pooling="group", strength=float(strength))

    groups, law = [row % 8 for row in range(40)], dist.LogNormal(2.5, 1.0)
    history = drawn(family(12.0), 12, 40, groups)
    result = fit(history, family, method="map", groups=groups, strength=law)
    strengths = torch.logspace(0, 2.5, 41).double()
    evidence = torch.stack([predicted(family(each), history, groups)[0].sum() for each in strengths])
    # The search is made in the logarithm, as above; the grid's step is a factor of 1.15.
    best = float(strengths[int((evidence + law.log_prob(strengths) + strengths.log()).argmax())])
    assert best / 1.16 <= result.model.strength <= 1.16 * best


def test_banks_of_decays_are_fitted_and_compared_through_their_posterior() -> None:
    def family(stay: torch.Tensor) -> bp.SolvingProgress:
        moves = dist.Dirichlet(torch.ones(3, 3).double() + stay * torch.eye(3).double())
        return bp.SolvingProgress(moves, decay=bp.DecayBank((0.7, 1.0)), pooling="group")

    groups = [row % 3 for row in range(24)]
    history = drawn(family(torch.tensor(4.0)), 8, 24, groups)
    result = fit(history, family, method="map", groups=groups, stay=dist.LogNormal(0.0, 1.0))
    assert result.log_count_evidence == pytest.approx(float(predicted(result.model, history, groups)[0].sum()))
    with pytest.raises(TypeError, match="model is a SolvingProgress with pooling='group'"):
        fit(history, family, groups=groups, likelihood="generative", stay=dist.LogNormal(0.0, 1.0))


def test_groups_are_told_to_a_bank() -> None:
    groups = torch.arange(24).remainder(2).tolist()
    history = drawn(bp.SuccessRate(bp.priors.logit_normal(0.0, 1.5), drift=bp.LogitRandomWalk(0.6)), 6, 24)

    def family(scale: torch.Tensor) -> bp.SuccessRate:
        bank = bp.DriftBank([bp.LogitRandomWalk(0.1), bp.LogitRandomWalk(scale)])
        return bp.SuccessRate(bp.priors.logit_normal(0.0, 1.5), drift=bank, grid=21)

    alone = fit(history, family, method="map", scale=SCALE)
    told = fit(history, family, method="map", groups=groups, scale=SCALE)
    for result, known in ((alone, None), (told, groups)):
        assert result.log_count_evidence == pytest.approx(float(predicted(result.model, history, known)[0].sum()))
    assert told.log_count_evidence != alone.log_count_evidence
    with pytest.raises(TypeError, match="SuccessRate with a bank that is weighted by group"):
        fit(history, family, groups=groups, likelihood="generative", scale=SCALE)


@pytest.mark.parametrize("name", ASKED)
def test_every_parameter_of_a_family_may_be_fixed(name: str) -> None:
    family = FAMILIES[name]
    history = drawn(bp.SuccessRate(), 4, 6)
    for parameter in family.start:
        others = {other: value for other, value in family.start.items() if other != parameter}
        result = fit(history, name, method="map", groups=list("aabbcc"), **others)
        assert set(result.parameters) == {parameter}
        assert json.loads(json.dumps(result.to_json()))["fixed"] == others
        assert eval(str(result.python()), {"bp": bp, "dist": dist, "torch": torch})


def test_what_nothing_depends_on_is_named() -> None:
    trials = torch.full((3, 6), 8)
    at_once = History(replicate(bp.SuccessRate(), trials, 0), trials)  # nobody is unseen when somebody is observed
    fixed = {name: value for name, value in FAMILIES["shared"].start.items() if name != "pool"}
    with pytest.raises(ValueError, match="pool: nothing that this history shows depends on any parameter that is free"):
        fit(at_once, "shared", **fixed)


def test_bad_groups_and_families_are_named() -> None:
    history = drawn(bp.SuccessRate(), 3, 5)
    with pytest.raises(ValueError, match='groups must be given for a SolvingProgress with pooling="group"'):
        fit(history, "grouped")
    with pytest.raises(ValueError, match="groups must have 5 entries, one for each prompt; got 2"):
        fit(history, "grouped", groups=["a", "b"])
    with pytest.raises(TypeError, match="groups must be a sequence of labels; got str"):
        fit(history, "mopps", groups="abcde")
    with pytest.raises(TypeError, match="family must make a declaration, with a posterior; got float"):
        fit(history, lambda scale: float(scale), scale=SCALE)
    with pytest.raises(TypeError, match="model is a LogitGaussian"):
        fit(history, "kalman", likelihood="generative")


def test_a_fit_is_told_how_much_time_a_step_took() -> None:
    trials = torch.full((10, 25), 8)
    plain = History(replicate(bp.SuccessRate(drift=bp.LogitRandomWalk(0.4)), trials, 0), trials)
    history = replace(plain, elapsed=torch.full((10,), 4.0))

    def walk(unit: float) -> Callable[..., bp.SuccessRate]:
        return lambda scale: bp.SuccessRate(drift=bp.LogitRandomWalk(unit * scale))

    # The same question, asked of a posterior with central differences and of a filter with gradients.
    ours = fit(history, walk(0.5), method="map", scale=dist.LogNormal(-1.0, 1.0))
    theirs = fit(plain, walk(1.0), method="map", scale=dist.LogNormal(-1.0, 1.0))
    found, wanted = (float(result.parameters["scale"].mean) for result in (ours, theirs))
    assert found == pytest.approx(wanted, rel=1e-3)
    assert ours.log_count_evidence == pytest.approx(theirs.log_count_evidence, rel=1e-6)
    with pytest.raises(ValueError, match="likelihood must be 'predictive'"):
        fit(history, walk(0.5), likelihood="generative", scale=dist.LogNormal(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"history\.elapsed must be None here"):
        log_count_evidence(bp.SuccessRate(), history)
