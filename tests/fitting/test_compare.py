"""Comparisons: who is found, how sure that is, and what histories are checked by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.fitting import predictions, statistics
from bayes_prompt.fitting.compare import _mean, compare
from bayes_prompt.history import History
from bayes_prompt.models import priors
from bayes_prompt.models.drift import LogitRandomWalk, Mixture, Redraw
from bayes_prompt.models.kalman import LogitGaussian
from bayes_prompt.models.seeding import seeded

S, NORMAL = bp.SuccessRate, priors.logit_normal(0.0, 1.5)
STICKY = dist.Dirichlet(torch.ones(3, 3).double() + 8 * torch.eye(3).double())
EIGHT = {
    "fixed": bp.SolvingProgress(STICKY, learn=False),
    "learned": bp.SolvingProgress(decay=1.0),
    "beta": S(dist.Beta(1.0, 1.0)),
    "inflated": S(priors.inflated(dist.Beta(1.0, 1.0), 0.1, 0.1)),
    "walk": S(NORMAL, drift=LogitRandomWalk(0.3)),
    "trend": S(NORMAL, drift=LogitRandomWalk(0.3, 0.05)),
    "redraw": S(dist.Beta(1.0, 1.0), drift=Redraw(0.05)),
    "mixture": S(NORMAL, drift=Mixture(0.5, LogitRandomWalk(0.3))),
}


# Each with what it says of a unit of time, of which four steps' worth passes in the other's one.
FOUR_TIMES = {
    "walk": (S(NORMAL, drift=LogitRandomWalk(0.15, 0.02)), S(NORMAL, drift=LogitRandomWalk(0.3, 0.08))),
    "forgetting": (S(dist.Beta(1.0, 2.0), decay=0.9), S(dist.Beta(1.0, 2.0), decay=0.9**4)),
    "dps": (bp.SolvingProgress(decay=0.9), bp.SolvingProgress(decay=0.9**4)),
    "kalman": (LogitGaussian(drift=0.15, trend=0.02), LogitGaussian(drift=0.3, trend=0.08)),
}


def from_program(model: Any, steps: int, prompts: int, seed: int) -> History:
    """A history drawn by the declaration's own Pyro program."""
    trials = torch.full((steps, prompts), 8)
    with seeded(seed, torch.device("cpu")):
        found = model.pyro_model(History(None, trials))
    return History(found if isinstance(found, Tensor) else found.successes, trials)


def found(truth: str, steps: int, prompts: int, seed: int) -> bool:
    history = from_program(EIGHT[truth], steps, prompts, seed)
    return compare(history, EIGHT, replicates=0).best == truth


@pytest.mark.parametrize("truth", EIGHT)
def test_count_evidence_finds_the_true_model(truth: str) -> None:
    assert found(truth, 25, 150, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("truth", EIGHT)
def test_it_does_so_in_nine_of_ten_histories(truth: str) -> None:
    assert sum(found(truth, 50, 500, seed) for seed in range(10)) >= 9


def test_what_is_no_history_is_refused() -> None:
    with pytest.raises(TypeError, match="history must be a History; got Tensor"):
        compare(torch.ones(2, 2), EIGHT)  # type: ignore[arg-type]


def test_errors_are_worked_out_in_double_precision() -> None:
    # Sums that are a mean times looks but for a ten-millionth, which float32 does not tell from its own rounding.
    looks = torch.arange(1, 101)
    noise = 1e-7 * (1.0 - 2.0 * (torch.arange(100) % 2)).double()
    mean, error = _mean(looks.double() / 3 + noise, looks)
    assert mean == pytest.approx(1 / 3, rel=1e-9)
    assert error == pytest.approx(1e-7 * (100 / 99 * 100) ** 0.5 / 5050, rel=1e-3)


def test_errors_are_those_of_prompts_drawn_anew() -> None:
    history = from_program(EIGHT["walk"], 12, 60, seed=0)
    trials = history.trials * (torch.rand(12, 60, generator=torch.Generator().manual_seed(0)) < 0.5)
    history = History(torch.minimum(history.successes, trials), trials)  # type: ignore[type-var]
    models = {name: EIGHT[name] for name in ("walk", "beta")}
    second = compare(history, models, replicates=0).scores[1]
    by_prompt = {name: predictions.predicted(model, history)[0].sum(0) for name, model in models.items()}
    best = by_prompt[compare(history, models, replicates=0).best]
    looks = (trials > 0).sum(0).double()
    for values, value, error in (
        (by_prompt[second.name], second.per_look, second.error),
        (by_prompt[second.name] - best, second.difference, second.difference_error),
    ):
        whole = float(values.sum() / looks.sum())
        left_out = torch.stack([(values.sum() - v) / (looks.sum() - n) for v, n in zip(values, looks, strict=True)])
        jackknife = float((59 / 60 * (left_out - left_out.mean()).square().sum()).sqrt())
        assert value == pytest.approx(whole, rel=1e-12)
        assert error == pytest.approx(jackknife, rel=0.05)  # the two differ by terms of the order of 1 / prompts


def test_a_model_does_not_differ_from_itself_and_zero_chances_rank_last() -> None:
    history = from_program(EIGHT["beta"], 5, 20, seed=0)
    sure = bp.SolvingProgress(priors.local(), initial=priors.one_hot_initial(0))
    result = compare(history, {"sure": sure, "one": EIGHT["beta"], "two": EIGHT["beta"]}, replicates=0)
    assert [score.name for score in result.scores] == ["one", "two", "sure"]
    assert result.scores[1].difference == 0 and result.scores[1].difference_error == 0
    assert result.scores[2].unexpected > 0 and result.scores[0].unexpected == 0
    assert (result.prompts, result.looks) == (20, 100)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["scores"][0]["name"] == "one"


@pytest.mark.parametrize("name", ["fixed", "learned", "inflated", "mixture"])
def test_posteriors_are_asked_for_what_filters_tell(name: str) -> None:
    history = from_program(EIGHT[name], 8, 15, seed=0)
    trials = history.trials - torch.arange(15) % 3
    history = History(torch.minimum(history.successes, trials), trials)  # type: ignore[type-var]
    model = EIGHT[name]
    asked = lambda: predictions._posterior(model, 15, None)  # noqa: E731
    ours, theirs = predictions.predicted(model, history)[0], predictions._asked(asked(), history)[0]
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    assert torch.equal(predictions._by_filter(model, trials, 3), predictions._by_posterior(asked(), trials, 3))


def test_any_declaration_can_be_compared() -> None:
    history = from_program(EIGHT["walk"], 6, 30, seed=0)
    model = LogitGaussian(drift=0.3)
    chances, _ = predictions.predicted(model, history)
    posterior = model.posterior(30, dtype=torch.float64)
    for successes, trials in zip(history.successes, history.trials, strict=True):  # type: ignore[arg-type]
        posterior.update(torch.arange(30), successes, trials)
    assert float(chances.sum()) == pytest.approx(posterior.log_count_evidence, rel=1e-12)
    scores = compare(history, {"kalman": model, "walk": EIGHT["walk"]}, replicates=3).scores
    assert all(len(score.checks) > 10 for score in scores)


def test_replicates_come_from_the_law_of_the_program() -> None:
    trials = torch.full((10, 2000), 4)
    for name in ("walk", "fixed", "redraw"):
        ours = predictions.replicate(EIGHT[name], trials, 5)
        assert torch.equal(ours, predictions.replicate(EIGHT[name], trials, 5))
        with seeded(1, torch.device("cpu")):
            made = EIGHT[name].pyro_model(History(None, trials))
        theirs = made if isinstance(made, Tensor) else made.successes
        for figure in (
            lambda s: s[-1] / 4,
            lambda s: s[0] * s[-1] / 16,
            lambda s: ((s > 0) & (s < 4)).double().mean(0),
        ):
            one, other = figure(ours).double(), figure(theirs).double()
            error = ((one.var() + other.var()) / 2000).sqrt()
            assert abs(float(one.mean() - other.mean())) < 4.5 * float(error)


def test_draws_do_not_depend_on_other_prompts() -> None:
    trials = torch.full((6, 20), 8)
    whole = predictions.replicate(EIGHT["walk"], trials, 1)
    assert torch.equal(predictions.replicate(EIGHT["walk"], trials[:, :7], 1), whole[:, :7])


@st.composite
def histories(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    steps, prompts = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    cells = st.integers(0, 3).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials)))
    table = draw(st.lists(cells, min_size=steps * prompts, max_size=steps * prompts))
    successes, trials = torch.tensor(table).reshape(steps, prompts, 2).unbind(2)
    return successes, trials


@given(histories())
def test_figures_are_counted_as_one_would_by_hand(case: tuple[Tensor, Tensor]) -> None:
    successes, trials = case
    steps, prompts = trials.shape
    window = statistics._windows(steps).tolist()
    mixed: dict[int, list[float]] = {part: [] for part in range(max(window) + 1)}
    moves = [[0] * 3 for _ in range(3)]
    again: list[list[float]] = [[] for _ in statistics.GAPS]
    for prompt in range(prompts):
        before, since = None, None
        for step in range(steps):
            won, made = int(successes[step, prompt]), int(trials[step, prompt])
            if made == 0:
                continue
            state = 0 if won == 0 else 2 if won == made else 1
            mixed[window[step]].append(float(state == 1))
            if before is not None:
                moves[before][state] += 1
            if since is not None:
                since += 1
                for place, (low, high) in enumerate(statistics.GAPS):
                    if low <= since and (high is None or since <= high):
                        again[place].append(float(state == 2))
            if state == 2:
                since = 0
            before = state
    mean = lambda values: sum(values) / len(values) if values else float("nan")  # noqa: E731
    expected = [*map(mean, mixed.values()), *(float(n) for row in moves for n in row), *map(mean, again)]
    figures = statistics._figures(successes, trials, statistics._windows(steps))
    assert torch.allclose(figures, torch.tensor(expected).double(), equal_nan=True)
    assert len(statistics._labels(steps)) == len(figures)


def test_p_values_are_small_for_the_wrong_model_alone() -> None:
    history = from_program(EIGHT["redraw"], 20, 100, seed=2)
    result = compare(history, {name: EIGHT[name] for name in ("redraw", "beta")}, replicates=40)
    checks = {score.name: {check.label: check for check in score.checks} for score in result.scores}
    # Under the right model each of 18 is outside once in twenty times. No rate that stays goes from 0 to 8 of 8.
    assert sum(check.outside for check in checks["redraw"].values()) <= 6
    jump = checks["beta"]["unsolved -> solved"]
    assert jump.outside and jump.observed > jump.high and jump.p_value == 2 / 41
    assert not checks["redraw"]["unsolved -> solved"].outside
    check = result.scores[0].checks[0]
    assert check.low <= check.expected <= check.high and 0 < check.p_value <= 1


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    history = from_program(EIGHT["beta"], 2, 3, seed=0)
    with pytest.raises(ValueError, match="models must be one declaration or more"):
        compare(history, {})
    with pytest.raises(TypeError, match=r"models\['x'\] must be a declaration"):
        compare(history, {"x": 3})
    with pytest.raises(ValueError, match="history must have successes and looks"):
        compare(History(None, history.trials), EIGHT)
    with pytest.raises(ValueError, match="replicates must be at least 0"):
        compare(history, EIGHT, replicates=-1)


GROUPED = {
    "grouped": bp.SolvingProgress(STICKY, decay=0.9, pooling="group"),
    "grouped, decays": bp.SolvingProgress(STICKY, decay=bp.DecayBank(), pooling="group"),
    "shared": S(NORMAL, sharing=bp.EmpiricalBayes()),
    "bank": S(NORMAL, drift=bp.DriftBank([LogitRandomWalk(0.1), LogitRandomWalk(0.7)])),
    "decays": S(dist.Beta(1.0, 1.0), decay=bp.DecayBank()),
}


def in_turn(prompts: int) -> History:
    """Prompts that are first looked at in different steps, by families that differ."""
    rate = torch.tensor([0.1, 0.5, 0.9]).repeat(prompts // 3)
    trials = 8 * (torch.arange(9)[:, None] >= torch.arange(prompts) % 5).long()
    noise = torch.rand(9, prompts, generator=torch.Generator().manual_seed(0))
    return History((trials * (rate + 0.2 * (noise - 0.5)).clamp(0, 1)).round().long(), trials)


def test_groups_reach_the_declarations_that_learn_by_them() -> None:
    history, labels = in_turn(30), ["hard", "mixed", "easy"] * 10
    told = compare(history, GROUPED | EIGHT, groups=labels, replicates=0)
    for score in told.scores:
        model = (GROUPED | EIGHT)[score.name]
        known = {"groups": torch.arange(30) % 3} if score.name in GROUPED else {}
        posterior = model.posterior(30, dtype=torch.float64, backend="reference", **known)
        for successes, trials in zip(history.successes, history.trials, strict=True):  # type: ignore[arg-type]
            rows = trials.nonzero()[:, 0]
            posterior.update(rows, successes[rows], trials[rows])
        assert score.log_count_evidence == pytest.approx(posterior.log_count_evidence, rel=1e-12), score.name
    # What groups are called does not matter; that there are any does, to those alone that learn by them.
    again = compare(history, GROUPED | EIGHT, groups=torch.tensor([7, -1, 3]).repeat(10), replicates=0)
    assert again == told
    without = {"shared": GROUPED["shared"], "bank": GROUPED["bank"], "decays": GROUPED["decays"], **EIGHT}
    for score in compare(history, without, replicates=0).scores:
        (same,) = [each.log_count_evidence for each in told.scores if each.name == score.name]
        assert (score.log_count_evidence == same) == (score.name in EIGHT), score.name


def test_groups_learn_as_pools_of_their_own() -> None:
    history, labels = in_turn(15), [row % 3 for row in range(15)]
    group = bp.SolvingProgress(STICKY, decay=0.9, pooling="group", strength=0.0)
    pool = bp.SolvingProgress(STICKY, decay=0.9, pooling="pool")
    told = predictions.predicted(group, history, labels)[0]
    for first in range(3):
        own = History(history.successes[:, first::3], history.trials[:, first::3])  # type: ignore[index]
        alone = predictions.predicted(pool, own, labels[first::3])[0]  # which is not told of them
        assert torch.allclose(told[:, first::3], alone, rtol=1e-10, atol=1e-12)
    drawn = [predictions.replicate(model, history.trials, 3, [0] * 15) for model in (group, pool)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], predictions.replicate(group, history.trials, 3, labels))


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (None, ValueError, r"groups must be given for a SolvingProgress with pooling=\"group\"; got none"),
        ([0, 1], ValueError, "groups must have 6 entries, one for each prompt; got 2"),
        (torch.zeros(6, 1), ValueError, r"groups must have shape \(6,\); got \(6, 1\)"),
        ([0.0] * 5 + [float("nan")], ValueError, r"groups\[5\] = nan must be a label"),
        ("abcdef", TypeError, "groups must be a sequence of labels; got str"),
        ([[0]] * 6, TypeError, r"groups\[0\] must be a label; got list"),
    ],
)
def test_bad_groups_are_named(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compare(in_turn(6), GROUPED, groups=groups, replicates=0)


def test_one_prompt_has_no_standard_error(tmp_path: Path) -> None:
    history = from_program(EIGHT["beta"], 4, 1, seed=0)
    score = compare(history, {"beta": EIGHT["beta"]}, replicates=2).scores[0]
    assert score.error != score.error


@pytest.mark.parametrize("name", FOUR_TIMES)
def test_models_are_told_how_much_time_a_step_took(name: str) -> None:
    slow, fast = FOUR_TIMES[name]
    plain = from_program(EIGHT["walk"], 8, 15, seed=2)
    history = replace(plain, elapsed=torch.full((8,), 4.0))
    ours, theirs = predictions.predicted(slow, history)[0], predictions.predicted(fast, plain)[0]
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(ours, predictions.predicted(slow, plain)[0], rtol=1e-4)
    drawn = predictions.replicate(slow, plain.trials, 5, elapsed=history.elapsed)
    assert torch.equal(drawn, predictions.replicate(fast, plain.trials, 5, elapsed=torch.ones(8)))
    (found,) = compare(history, {"it": slow}, replicates=1, seed=5).scores
    assert found.log_count_evidence == pytest.approx(float(theirs.sum()), rel=1e-9)
    assert found.checks == statistics.checks(plain.successes, [drawn], plain.trials)
