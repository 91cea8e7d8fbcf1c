"""Fits of simulated histories: what is recovered, what is left alone, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.fitting.command import _fitted
from bayes_prompt.fitting.evidence import has_filter
from bayes_prompt.fitting.families import FAMILIES, read
from bayes_prompt.fitting.fit import _effective, fit
from bayes_prompt.fitting.predictions import predicted, replicate
from bayes_prompt.fitting.program import Undetermined
from bayes_prompt.fitting.results import Estimate, FitResult
from bayes_prompt.history import History

COUNT = dist.LogNormal(0.0, 1.0)
FOLLOWED = [name for name, family in FAMILIES.items() if has_filter(family.declare())]


def drawn(model: Any, steps: int, prompts: int, seed: int = 0) -> History:
    trials = torch.full((steps, prompts), 8)
    return History(replicate(model, trials, seed), trials)


def covered(result: FitResult, truth: Mapping[str, float]) -> bool:
    """Whether intervals of 99.9% hold the truth: all of a handful of fits do, but for one in some hundred seeds."""
    ends = {name: estimate.interval(0.999) for name, estimate in result.parameters.items()}
    return all(float(ends[name][0]) <= value <= float(ends[name][1]) for name, value in truth.items())


RECOVERED: dict[str, dict[str, float]] = {
    "mopps": {"a": 2.0, "b": 1.0, "decay": 0.8},
    "static": {"mean": -0.5, "deviation": 1.5},
    "walk": {"mean": 0.5, "deviation": 1.2, "scale": 0.4, "trend": 0.1},
    "redraw": {"a": 1.0, "b": 2.0, "probability": 0.1},
    "dps": {"move": 0.5, "stay": 2.0, "decay": 0.9},
    "states": {"move": 0.3, "stay": 1.5, "rare": 0.5, "common": 5.0, "decay": 0.9},
}


@pytest.mark.parametrize("name", RECOVERED)
def test_intervals_hold_the_parameters_that_a_history_was_drawn_with(name: str) -> None:
    truth = RECOVERED[name]
    history = drawn(FAMILIES[name].declare(**truth), 12, 80)
    result = fit(history, name)
    assert covered(result, truth), result.table()
    mode = fit(history, name, method="map", start=truth)
    assert abs(result.log_count_evidence - mode.log_count_evidence) < 3  # the mean is near the mode
    assert len(result.elbo) == 40 and result.observations == 960


def test_the_mode_is_where_a_fine_grid_finds_it() -> None:
    history = drawn(bp.SuccessRate(dist.Beta(2.0, 1.0), decay=0.7), 10, 30)
    family = lambda decay: bp.SuccessRate(dist.Beta(2.0, 1.0), decay=decay)  # noqa: E731
    result = fit(history, family, method="map", decay=dist.Uniform(0.0, 1.0))
    from bayes_prompt.fitting.evidence import log_count_evidence

    decays = torch.linspace(0.01, 0.99, 99).tolist()
    # In unconstrained parameters, where the search is made, the density has the Jacobian decay (1 - decay).
    scores = [
        float(log_count_evidence(family(decay), history)) + float(torch.tensor(decay * (1 - decay)).log())
        for decay in decays
    ]
    best = decays[int(torch.tensor(scores).argmax())]
    assert abs(result.model.decay - best) <= 0.01
    assert type(result.model.decay) is float and not result.parameters["decay"].draws.requires_grad


def test_methods_agree_about_the_posterior() -> None:
    history = drawn(bp.SuccessRate(dist.Beta(2.0, 1.0)), 4, 40)
    family = lambda a, b: bp.SuccessRate(dist.Beta(a, b))  # noqa: E731
    svi = fit(history, family, a=COUNT, b=COUNT)
    nuts = fit(history, family, method="nuts", draws=200, warmup=50, a=COUNT, b=COUNT)
    for name in ("a", "b"):
        one, other = svi.parameters[name], nuts.parameters[name]
        error = float(other.sd) / nuts.effective_draws[name] ** 0.5
        # The posterior is not quite normal: allow for a fifth of its deviation beside the draws' error.
        assert abs(float(one.mean - other.mean)) < 4 * error + 0.2 * float(other.sd)
        assert 0.6 < float(one.sd / other.sd) < 1.6


@pytest.mark.parametrize("learn", [False, True])
def test_the_generative_program_is_fitted_too(learn: bool) -> None:
    moves = torch.eye(3).double()

    def family(stay: torch.Tensor) -> bp.SolvingProgress:
        return bp.SolvingProgress(dist.Dirichlet(0.5 + stay * moves), learn=learn, decay=1.0)

    history = drawn(family(torch.tensor(2.0)), 6, 30)
    prior = {"stay": COUNT}
    generative = fit(history, family, likelihood="generative", steps=120, **prior)
    predictive = fit(history, family, **prior)
    assert generative.likelihood == "generative" and len(generative.elbo) == 120
    if not learn:  # then both are the same posterior; the two guides are fitted to within a few hundredths
        ours, theirs = generative.parameters["stay"], predictive.parameters["stay"]
        assert abs(float(ours.mean - theirs.mean)) < 0.5 * float(theirs.sd)


def test_the_rest_of_the_process_is_left_alone() -> None:
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(3.0))
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    history = drawn(bp.SuccessRate(), 4, 10)
    first = fit(history, "mopps", steps=5, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert list(pyro.get_param_store().keys()) == ["mine"]
    torch.manual_seed(8)
    second = fit(history, "mopps", steps=5, seed=3)
    for name, estimate in first.parameters.items():
        assert torch.equal(estimate.draws, second.parameters[name].draws)
    assert first.elbo != fit(history, "mopps", steps=5, seed=4).elbo
    pyro.clear_param_store()


def test_parameters_may_be_fixed_and_vectors() -> None:
    history = drawn(bp.SuccessRate(bp.priors.histogram(torch.tensor([3.0, 1.0]))), 4, 30)
    family = lambda weights, decay: bp.SuccessRate(bp.priors.histogram(weights), decay=decay)  # noqa: E731
    result = fit(history, family, weights=dist.Dirichlet(torch.ones(2)), decay=1.0)
    assert [name for name, *_ in result.rows()] == ["weights[0]", "weights[1]"]
    assert float(result.parameters["weights"].mean.sum()) == pytest.approx(1.0, abs=1e-6)
    assert result.fixed == {"decay": 1.0} and result.model.decay == 1.0 and result.python() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mcmc"}, "method must be one of 'svi', 'nuts', 'map'; got 'mcmc'"),
        ({"likelihood": "exact"}, "likelihood must be one of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"a": 1.0, "b": 1.0, "decay": 0.5}, "at least one prior"),
        ({"a": dist.LogNormal(torch.zeros(2), 1.0)}, r"a has a prior of batch shape \(2,\)"),
        ({"start": {"a": -1.0}}, "start of a must lie where its prior does"),
        ({"start": {"a": [1.0, 2.0]}}, r"start of a must have shape \(\)"),
        ({"likelihood": "generative"}, "forgetting has no generative counterpart"),
        ({"c": COUNT}, "c is no parameter of 'mopps'"),
        ({"history": History(None, torch.ones(2, 2).long())}, "history must have successes"),
        ({"history": History(torch.zeros(2, 2).long(), torch.zeros(2, 2).long())}, "successes and looks; got none"),
        ({"start": {"zz": 1.0}}, "start has 'zz', which is no parameter"),
        ({"a": 1.0, "start": {"a": 2.0}}, "start has 'a', which is fixed"),
        (
            {"decay": dist.Uniform(0.0, 1.5)},
            r"decay must have a prior whose support lies in \[0, 1\]; that of .*Uniform",
        ),
        ({"decay": COUNT}, r"decay must have a prior whose support lies in \[0, 1\]"),
        ({"a": [1.0, 2.0]}, r"a must have shape \(\); got \[1.0, 2.0\]"),
        ({"family": "inflated", "weights": 0.3}, r"weights must have shape \(3,\); got 0.3"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"history": drawn(bp.SuccessRate(), 3, 5), "family": "mopps", **change}
    with pytest.raises(ValueError, match=message):
        fit(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": torch.ones(2, 2)}, "history must be a History; got Tensor"),
        ({"a": dist.Poisson(2.0)}, "a has the prior Poisson"),
        ({"a": torch.distributions.LogNormal(0.0, 1.0)}, "continuous distributions of pyro.distributions work"),
        ({"a": "many"}, "a must be a prior or numbers; got 'many'"),
    ],
)
def test_what_is_of_a_wrong_kind_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"history": drawn(bp.SuccessRate(), 3, 5), "family": "mopps", **change}
    with pytest.raises(TypeError, match=message):
        fit(**arguments)


@pytest.mark.parametrize("prior", [dist.Beta(2.0, 1.0), dist.Uniform(0.3, 0.9)])
def test_priors_of_the_decay_within_the_unit_interval_are_taken(prior: Any) -> None:
    assert 0 < fit(drawn(bp.SuccessRate(), 3, 5), "mopps", method="map", decay=prior).model.decay < 1


def test_pooling_is_refused_rather_than_left_out_of_a_program() -> None:
    family = lambda stay: bp.SolvingProgress(dist.Dirichlet(stay * torch.ones(3, 3)), decay=1.0, pooling="pool")  # noqa: E731
    with pytest.raises(TypeError, match="model is a SolvingProgress with pooling='pool'"):
        fit(drawn(bp.SuccessRate(), 3, 5), family, likelihood="generative", stay=COUNT)


@pytest.mark.parametrize("name", FOLLOWED)
def test_every_parameter_of_a_family_may_be_fixed(name: str) -> None:
    family, history = FAMILIES[name], drawn(bp.SuccessRate(), 3, 5)
    for parameter, value in family.start.items():
        result = fit(history, name, method="map", **{parameter: value})
        assert parameter not in result.parameters
        assert json.loads(json.dumps(result.to_json()))["fixed"] == {parameter: value}
        assert eval(str(result.python()), {"bp": bp, "dist": dist, "torch": torch})


def test_few_draws_tell_no_effective_number() -> None:
    history = drawn(bp.SuccessRate(), 3, 5)
    for draws in (1, 3, 4):
        result = fit(history, "mopps", method="nuts", draws=draws, warmup=3, decay=0.9)
        sizes = json.loads(json.dumps(result.to_json(), allow_nan=False))["effective_draws"].values()
        assert all(size is None if draws < 4 else size >= 0 for size in sizes), draws


@pytest.mark.parametrize(("draws", "least"), [([0.0, 1.0] * 20, 0.0), ([1.0] * 20, 0.0), ([0.0, 1.0, 2.0], None)])
def test_effective_draws_are_a_number_or_none(draws: list[float], least: float | None) -> None:
    found = _effective({"a": Estimate(torch.tensor(draws, dtype=torch.float64))})["a"]
    assert found != found if least is None else found >= least


def test_parameters_that_gradients_do_not_reach_are_named() -> None:
    history = drawn(bp.SuccessRate(), 3, 5)
    family = lambda a, b: bp.SuccessRate(dist.Beta(a, float(b)))  # noqa: E731
    with pytest.raises(ValueError, match="b: nothing depends on it"):
        fit(history, family, a=COUNT, b=COUNT)
    with pytest.raises(TypeError, match="decay must be a number") as caught:
        fit(history, lambda rho: bp.SuccessRate(decay=rho), rho=dist.Uniform(0.0, 1.0))
    assert "call that parameter 'decay'" in "".join(caught.value.__notes__)


ONCE = torch.full((1, 4), 8)  # in a single step
NEVER_TWICE = 8 * torch.eye(4).long()  # each in a step of its own


@pytest.mark.parametrize(
    ("name", "trials", "parameters"),
    [
        ("mopps", ONCE, ["decay"]),
        ("mopps", NEVER_TWICE, ["decay"]),
        ("inflated", NEVER_TWICE, ["decay"]),
        ("redraw", NEVER_TWICE, ["probability"]),
        ("dps", NEVER_TWICE, ["move", "stay", "decay"]),
        ("walk", ONCE, ["scale", "trend"]),
        ("mixture", ONCE, ["frozen", "scale", "trend"]),
        ("kalman", ONCE, ["scale", "trend"]),
        ("pooled", ONCE, ["move", "stay", "decay"]),
        ("adaptive", ONCE, ["move", "stay"]),
    ],
)
def test_what_no_count_tells_of_is_named_too(name: str, trials: torch.Tensor, parameters: list[str]) -> None:
    """All at once, with what will do; and that does, unless nothing is left to be fitted."""
    history, start = History(torch.where(trials > 0, 3, 0), trials), FAMILIES[name].start
    with pytest.raises(Undetermined, match=f"^{', '.join(parameters)}: nothing that this history shows") as caught:
        fit(history, name)
    assert caught.value.names == tuple(parameters)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.names) == (Undetermined, str(caught.value), caught.value.names)
    held = {parameter: start[parameter] for parameter in parameters}
    if len(held) == len(start):
        assert str(caught.value).endswith("so that there is nothing to fit; use a declaration with values of your own")
    else:
        for parameter in parameters:
            assert f"--fix {parameter}={start[parameter]:.6g}" in str(caught.value)
        assert set(fit(history, name, method="map", **held).parameters) == start.keys() - held.keys()


@pytest.mark.parametrize(("name", "parameters"), [("walk", ["scale", "trend"]), ("dps", ["move", "stay", "decay"])])
def test_a_comparison_holds_what_no_count_tells_of_where_its_family_starts(name: str, parameters: list[str]) -> None:
    history, family = History(torch.where(ONCE > 0, 3, 0), ONCE), FAMILIES[name]
    found = _fitted(name, history, None, 0, lambda *told: None)
    held = {each: family.start[each] for each in parameters}
    all_held = len(held) == len(family.start)
    wanted = family.declare() if all_held else fit(history, name, method="map", **held).model
    assert found.describe() == wanted.describe()


def test_what_takes_no_number_is_not_said_for_the_command_line() -> None:
    """And where prompts are looked at twice nothing is named that matters, be it ever so little."""
    family = lambda a, b, idle: bp.SuccessRate(dist.Beta(a, b + 0 * idle.sum()))  # noqa: E731
    with pytest.raises(Undetermined) as caught:
        fit(drawn(bp.SuccessRate(), 3, 5), family, a=COUNT, b=COUNT, idle=dist.Dirichlet(torch.ones(2)))
    assert caught.value.names == ("idle",) and "idle=[0" in str(caught.value) and "--fix" not in str(caught.value)
    history = drawn(bp.SuccessRate(), 3, 5)
    assert fit(history, lambda a, b: bp.SuccessRate(dist.Beta(a, 1.0 + 1e-6 * b)), method="map", a=COUNT, b=COUNT)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_start_within_their_priors_and_say_their_code(name: str) -> None:
    family = FAMILIES[name]
    assert family.priors.keys() == family.start.keys()
    for parameter, law in family.priors.items():
        value = torch.as_tensor(family.start[parameter], dtype=torch.float64)
        assert bool(law.support.check(value).all()) and value.shape == law.event_shape
    said = eval(family.code.format(**family.start), {"bp": bp, "dist": dist, "torch": torch})
    history, groups = drawn(bp.SuccessRate(), 6, 20), torch.arange(20).remainder(3).tolist()
    ours, theirs = (float(predicted(model, history, groups)[0].sum()) for model in (family.declare(), said))
    assert ours == pytest.approx(theirs, rel=1e-5)  # the code's numbers are float32, and six digits


def test_what_is_written_is_read_again(tmp_path: Any) -> None:
    history = drawn(FAMILIES["inflated"].declare(), 4, 20)
    result = fit(history, "inflated", method="map", decay=0.9)
    result.write(tmp_path / "model.json")
    assert read(tmp_path / "model.json").describe() == result.model.describe()
    assert eval(str(result.python()), {"bp": bp, "dist": dist, "torch": torch}).decay == 0.9
    stored = json.loads((tmp_path / "model.json").read_text())
    del stored["parameters"]["weights"]
    (tmp_path / "other.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="it lacks weights"):
        read(tmp_path / "other.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="is no fit of one of dps"):
        read(tmp_path / "other.json")
    with pytest.raises(ValueError, match="x is no parameter"):
        FAMILIES["dps"].declare(x=1.0)


@pytest.mark.slow
def test_the_recorded_history_is_fitted(shared: Any) -> None:
    history = History.read(shared / "data" / "one_shot_rlvr_histories.parquet")
    result = fit(history, "walk")
    start = fit(history, "walk", method="map")
    assert result.log_count_evidence > -40_600 and start.log_count_evidence >= result.log_count_evidence - 1
