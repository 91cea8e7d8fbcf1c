"""Scores that know what a look is worth, and the guard that nobody starves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt import acquisition as acq

EXPLORERS = [
    acq.LookIndex(),
    acq.LookIndex(horizon=3.0, trials=4),
    acq.KnowledgeGradient(),
    acq.UpperQuantile(),
    acq.ThompsonInformative(),
    acq.RevisitFloor(acq.LookIndex(), absence=2, share=0.2),
    acq.RevisitFloor(acq.KnowledgeGradient(), absence=1),
    acq.RevisitFloor(acq.Uniform(), absence=1, share=1.0),
    acq.LookIndex() + acq.EntropyBonus(0.1),
    acq.Survey(acq.LookIndex()),
    acq.Survey(acq.KnowledgeGradient(), batches=2.5),
    acq.Survey(acq.LookIndex(new=40.0, num_steps=3), num_steps=3),
    acq.Survey(acq.RevisitFloor(acq.Uniform(), absence=1, share=1.0), batches=0),
    acq.RevisitFloor(acq.Survey(acq.LookIndex(), batches=9), absence=1),
]


def posteriors() -> list[bp.Posterior]:
    walk = bp.LogitRandomWalk(0.3)
    made = [
        bp.SolvingProgress().posterior(50),
        bp.SolvingProgress(emission=bp.PartitionEmission([0.0, 0.3, 0.7, 1.0]), pooling="pool").posterior(50),
        bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(50, dtype=torch.float64),
        bp.SuccessRate(drift=walk, grid=9).posterior(50),
        bp.SuccessRate(drift=bp.DriftBank([walk, bp.Redraw()]), grid=9, sharing=bp.EmpiricalBayes()).posterior(50),
        bp.SuccessRate(decay=bp.DecayBank(), grid=9).posterior(50),
        bp.GenerativeDifficulty(gradient_steps=1).posterior(embeddings=torch.eye(50)),
    ]
    for posterior in made:
        posterior.update(torch.arange(30), torch.arange(30) % 9, 8)
        posterior.advance()
    return made


@pytest.mark.parametrize("acquisition", EXPLORERS, ids=repr)
def test_every_explorer_scores_every_posterior(acquisition: acq.Acquisition) -> None:
    for posterior in posteriors():
        asked = [lambda p=posterior: acquisition.ranking(p, 1, 2, acq.Batch(7))[0]] * 2
        if "KnowledgeGradient" not in repr(acquisition):
            asked.append(lambda p=posterior: acquisition.scores(p, 1, 2))
        answers = [ask().clone() for ask in asked]
        for scores in answers:
            assert scores.shape == (50,) and scores.dtype == posterior.dtype
            assert bool(torch.isfinite(scores).all())
        assert torch.equal(answers[0], answers[1])


def test_scores_are_what_the_posterior_answers() -> None:
    posterior = posteriors()[3]
    now = posterior.informative_probability(8)
    assert torch.equal(acq.LookIndex(12.0).scores(posterior, 0, 0), posterior.look_index(8, 12.0))
    torch.testing.assert_close(acq.LookIndex(0.0).scores(posterior, 0, 0), now)
    assert torch.equal(acq.LookIndex(12.0, trials=4).scores(posterior, 0, 0), posterior.look_index(4, 12.0))
    assert torch.equal(acq.UpperQuantile(0.6).scores(posterior, 0, 0), posterior.informative_quantile(8, 0.6))
    longer = acq.LookIndex(12.0, new=40.0).scores(posterior, 0, 0)
    wanted = torch.where(posterior.unseen, posterior.look_index(8, 40.0), posterior.look_index(8, 12.0))
    assert torch.equal(longer, wanted) and not torch.equal(longer, posterior.look_index(8, 12.0))
    assert torch.equal(acq.LookIndex(12.0, new=12.0).scores(posterior, 0, 0), posterior.look_index(8, 12.0))
    # The price is what the last prompt of a greedy batch would bring.
    price = sorted(now.tolist(), reverse=True)[6]
    found, shortlist = acq.KnowledgeGradient(4.0).ranking(posterior, 0, 0, acq.Batch(7))
    torch.testing.assert_close(found, now + 4.0 * posterior.look_gain(8, price))
    assert shortlist is None
    assert torch.equal(acq.KnowledgeGradient(0.0).ranking(posterior, 0, 0, acq.Batch(5))[0], now)


def test_draws_are_of_the_informative_probability() -> None:
    rows = 40_000
    posterior = bp.SuccessRate(dist.Beta(2.0, 1.0)).posterior(rows)
    drawn = acq.ThompsonInformative(4).scores(posterior, 3, 1).double()
    assert torch.equal(drawn.float(), acq.ThompsonInformative(4).scores(posterior, 3, 1))
    assert not torch.equal(drawn.float(), acq.ThompsonInformative(4).scores(posterior, 3, 2))
    # Five standard errors, and the single precision of the draws.
    error = 5 * float(drawn.std()) / math.sqrt(rows) + 1e-6
    assert float(drawn.mean()) == pytest.approx(float(posterior.informative_probability(4)[0]), abs=error)
    rate = posterior.sample_success_rate(3, 1).double()
    torch.testing.assert_close(drawn, 1 - rate**4 - (1 - rate) ** 4, rtol=0, atol=1e-7)


def test_what_is_not_known_is_looked_at_first() -> None:
    """A prompt that is known to come out mixed about half of the time, and one that may, of which nothing is known."""
    known, unknown = (50.0, 550.0), (0.5, 0.5)
    alpha, beta = (torch.tensor(each).double() for each in zip(known, unknown, strict=True))
    posterior = bp.SuccessRate().posterior(2, alpha=alpha, beta=beta, dtype=torch.float64)
    now = posterior.informative_probability(8)
    assert 0.4 < float(now[0]) < 0.7 and 0.4 < float(now[1]) < 0.7
    for acquisition in (acq.LookIndex(30.0), acq.UpperQuantile(0.9)):
        scores = acquisition.scores(posterior, 0, 0) - now
        assert float(scores[1]) > 2 * float(scores[0]) > 0


@dataclass(frozen=True)
class Told(acq.Acquisition):
    """Scores from outside."""

    values: tuple[float, ...]

    def scores(self, posterior: bp.Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,)."""
        return torch.tensor(self.values, dtype=posterior.dtype)


@given(
    seed=st.integers(0, 2**31),
    steps=st.integers(0, 12),
    absence=st.integers(1, 10),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    batch=st.integers(1, 20),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
)
@settings(max_examples=150, deadline=None)
def test_the_longest_absent_get_their_places_and_nobody_else_moves(
    seed: int, steps: int, absence: int, share: float, batch: int, spread: float
) -> None:
    rng, rows = np.random.default_rng(seed), 20
    posterior = bp.SuccessRate().posterior(rows)
    for _ in range(steps):
        index = rng.choice(rows, 3, replace=False)
        posterior.update(index, [1, 2, 3], 8)
    values = (spread * rng.permutation(rows)).astype(np.float32)
    plain = Told(tuple(values.tolist()))
    scores, _ = acq.RevisitFloor(plain, absence, share).ranking(posterior, 0, 0, acq.Batch(batch))
    absent = posterior.step - posterior.last_observed.numpy()
    due = sorted((row for row in range(rows) if absent[row] >= absence), key=lambda row: (-absent[row], -values[row]))
    served = due[: max(1, round(share * batch)) if share else 0]
    rest = [row for row in range(rows) if row not in served]
    if spread:  # among equals, any may be served
        assert scores[rest].tolist() == values[rest].tolist()
        assert all(scores[a] > scores[b] for a, b in pairwise(served))
        assert not served or not rest or float(scores[served].min()) > float(scores[rest].max())
    raised = [row for row in range(rows) if float(scores[row]) != values[row]]
    assert len(raised) == len(served) and sorted(absent[raised]) == sorted(absent[served])


def test_the_other_scores_are_those_of_the_batch() -> None:
    """Whether somebody is due or not, the acquisition inside is asked for the batch that is to be picked."""
    posterior, inner = posteriors()[3], acq.KnowledgeGradient(5.0)
    scores, _ = acq.RevisitFloor(inner, absence=1, share=0.1).ranking(posterior, 0, 0, acq.Batch(20))
    wanted = inner.ranking(posterior, 0, 0, acq.Batch(20))[0]
    assert int((scores != wanted).sum()) == 2
    assert not torch.equal(wanted, inner.ranking(posterior, 0, 0, acq.Batch(5))[0])


def test_nobody_starves() -> None:
    """A greedy pick of the same prompts for ever; two of ten places go to those that are due, first come first served.

    60 prompts in twos are 30 steps, and the guard begins after 10: nobody is absent for longer than both together.
    """
    values = tuple(float(row) for row in range(60))
    floor = acq.RevisitFloor(Told(values), absence=10, share=0.2)
    starving, guarded = (
        bp.PromptSelector(bp.SuccessRate().posterior(60), each, batch_size=10, seed=0) for each in (Told(values), floor)
    )
    longest = 0
    for _ in range(120):
        for selector in (starving, guarded):
            index = selector.select()
            selector.update(index, successes=[1] * 10, trials=8)
        longest = max(longest, int((guarded.posterior.step - guarded.posterior.last_observed).max()))
        if guarded.posterior.step > 12:
            assert len(set(index.tolist()) & set(range(52, 60))) == 8
    assert longest <= 40
    assert int(starving.posterior.last_observed.min()) == 0


@given(
    seed=st.integers(0, 2**31),
    steps=st.integers(0, 8),
    batches=st.sampled_from([0.0, 0.5, 1.0, 2.25, 5.5, 30.0]),
    batch=st.integers(1, 20),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
)
@settings(max_examples=150, deadline=None)
def test_new_prompts_lie_above_all_others_in_their_order(
    seed: int, steps: int, batches: float, batch: int, spread: float
) -> None:
    rng, rows = np.random.default_rng(seed), 20
    posterior = bp.SuccessRate().posterior(rows)
    for _ in range(steps):
        posterior.update(rng.choice(rows, 3, replace=False), [1, 2, 3], 8)
    values = (spread * rng.permutation(rows)).astype(np.float32)
    plain = Told(tuple(values.tolist()))
    scores, shortlist = acq.Survey(plain, batches).ranking(posterior, 0, 0, acq.Batch(batch))
    left = min(1.0, max(0.0, batches - 3 * steps / batch))
    new = sorted(np.flatnonzero(posterior.visits.numpy() == 0), key=lambda row: -values[row])
    places = len(new) if left == 1 else min(len(new), round(left * batch))
    raised = np.flatnonzero(scores.numpy() != values)
    assert shortlist is None and len(raised) == places and set(raised) <= set(new)
    rest = np.setdiff1d(np.arange(rows), raised)
    if places and len(rest):
        assert float(scores[raised].min()) > float(scores[rest].max())
    if spread:  # among equals, any may have the places
        assert sorted(raised) == sorted(new[:places])
        assert all(scores[a] > scores[b] for a, b in pairwise(new[:places]))


def test_a_pool_is_surveyed_first_and_its_best_ones_then() -> None:
    """60 prompts by tens: two batches of new ones, half a batch, and from then on the same ten."""
    values = tuple(float(row) for row in range(60))
    selector = bp.PromptSelector(
        bp.SuccessRate().posterior(60), acq.Survey(Told(values), batches=2.5), batch_size=10, seed=0
    )
    picked = []
    for _ in range(5):
        index = selector.select()
        picked.append(sorted(index.tolist()))
        selector.update(index, successes=[1] * 10, trials=8)
    best = list(range(50, 60))
    assert picked == [best, list(range(40, 50)), [*range(35, 40), *range(55, 60)], best, best]


def test_a_survey_of_candidates_and_of_a_pool_that_is_known() -> None:
    values = tuple(float(row) for row in range(12))
    selector = bp.PromptSelector(bp.SuccessRate().posterior(12), acq.Survey(Told(values)), batch_size=3, seed=0)
    selector.update(selector.select(candidates=[1, 3, 5, 7]), successes=[1] * 3, trials=8)
    assert selector.posterior.visits.nonzero()[:, 0].tolist() == [3, 5, 7]
    assert selector.select(candidates=[1, 3, 5, 7]).tolist() in ([1, 7, 5], [7, 5, 1])
    known = bp.SuccessRate().posterior(12)
    known.update(range(12), [1] * 12, 8)
    assert acq.Survey(Told(values)).ranking(known, 0, 0, acq.Batch(3))[0].tolist() == list(values)


def test_the_other_scores_are_those_of_the_batch_after_a_survey() -> None:
    posterior, inner = posteriors()[3], acq.KnowledgeGradient(5.0)
    survey = acq.Survey(inner, batches=1.5)
    assert posterior.looks == 30
    wanted = inner.ranking(posterior, 0, 0, acq.Batch(20))[0]
    assert torch.equal(survey.ranking(posterior, 0, 0, acq.Batch(20))[0], wanted)
    assert not torch.equal(acq.Survey(inner, batches=1.6).ranking(posterior, 0, 0, acq.Batch(20))[0], wanted)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("never", [False, True])
def test_lifted_scores_keep_their_order_whatever_their_size(scale: float, never: bool) -> None:
    """200 prompts, of which the worst is never to be picked; a score of -inf among them changes nothing."""
    values = [scale * float(row) for row in range(200)]
    if never:
        values[0] = -math.inf
    posterior, told = bp.SuccessRate().posterior(200), Told(tuple(values))
    posterior.update(range(150, 200), [1] * 50, 8)
    surveyed = acq.Survey(told, batches=9.0).ranking(posterior, 0, 0, acq.Batch(20))[0]
    assert surveyed.argsort(descending=True).tolist()[:150] == [*range(149, 0, -1), 199 if never else 0]
    for _ in range(4):
        posterior.update(range(190, 200), [1] * 10, 8)
    guarded = acq.RevisitFloor(told, absence=4, share=0.25).ranking(posterior, 0, 0, acq.Batch(20))[0]
    # Those never observed have been absent for longest, the best of them first.
    assert guarded.argsort(descending=True).tolist()[:10] == [149, 148, 147, 146, 145, 199, 198, 197, 196, 195]


def test_no_look_is_of_use_for_longer_than_the_run() -> None:
    posterior = bp.SuccessRate(drift=bp.LogitRandomWalk(0.3), grid=9).posterior(20)
    index = acq.LookIndex(5.0, new=9.0, num_steps=12)
    for step in range(15):
        left = max(0.0, 11.0 - step)
        wanted = acq.LookIndex(min(5.0, left), new=min(9.0, left)).scores(posterior, 0, step)
        assert torch.equal(index.scores(posterior, 0, step), wanted)
        posterior.update([step], [step % 9], 8)
    torch.testing.assert_close(index.scores(posterior, 0, 15), posterior.informative_probability(8))
    alike = acq.LookIndex(5.0, num_steps=12).scores(posterior, 0, 15), acq.LookIndex(0.0).scores(posterior, 0, 15)
    assert torch.equal(*alike)


@pytest.mark.parametrize(
    ("num_steps", "batches"), [(None, 5.5), (10**9, 5.5), (50, 5.5), (20, 2.2), (10, 1.1), (1, 0.11)]
)
def test_a_survey_takes_a_small_part_of_a_short_run(num_steps: int | None, batches: float) -> None:
    values = tuple(float(row) for row in range(600))
    posterior = bp.SuccessRate().posterior(600)
    for _ in range(7):
        told, plain = (acq.Survey(Told(values), many, num_steps=of) for many, of in ((5.5, num_steps), (batches, None)))
        ranked, wanted = (each.ranking(posterior, 0, 0, acq.Batch(50))[0] for each in (told, plain))
        assert torch.equal(ranked, wanted)
        posterior.update(wanted.topk(50).indices, [1] * 50, 8)


def test_a_run_may_go_on_for_longer_than_it_was_meant_to() -> None:
    def of(num_steps: int | None) -> bp.PromptSelector:
        survey = acq.Survey(acq.LookIndex(8.0, num_steps=num_steps), num_steps=num_steps)
        return bp.PromptSelector(bp.SuccessRate().posterior(30), survey, 4, 0)

    first = of(6)
    for _ in range(6):
        first.update(first.select(), successes=[3] * 4, trials=8)
    for num_steps in (12, None):
        second = of(num_steps)
        second.load_state_dict(first.state_dict())
        assert second.posterior.step == 6
        assert second.acquisition == of(num_steps).acquisition != first.acquisition


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: acq.LookIndex(num_steps=0), ValueError, "num_steps must be at least 1; got 0"),
        (lambda: acq.Survey(acq.Uniform(), num_steps=2.5), TypeError, "num_steps must be an integer"),
        (lambda: acq.LookIndex(-1.0), ValueError, "horizon must be finite and at least 0; got -1.0"),
        (lambda: acq.LookIndex(math.inf), ValueError, "horizon must be finite and at least 0; got inf"),
        (lambda: acq.LookIndex("3"), TypeError, "horizon must be a number; got str"),
        (lambda: acq.LookIndex(trials=0), ValueError, "trials"),
        (lambda: acq.KnowledgeGradient(math.nan), ValueError, "horizon must be finite and at least 0; got nan"),
        (lambda: acq.UpperQuantile(1.0), ValueError, r"level must lie in \(0, 1\); got 1.0"),
        (lambda: acq.UpperQuantile(True), TypeError, "level must be a number; got bool"),
        (lambda: acq.ThompsonInformative(2.5), TypeError, "trials"),
        (lambda: acq.Survey(0.5), TypeError, "acquisition must be an Acquisition that does not choose"),
        (lambda: acq.Survey(acq.Uniform(), -1.0), ValueError, "batches must be finite and at least 0; got -1.0"),
        (lambda: acq.Survey(acq.Uniform(), math.inf), ValueError, "batches must be finite and at least 0; got inf"),
        (lambda: acq.Survey(acq.Uniform(), "5"), TypeError, "batches must be a number; got str"),
        (lambda: acq.RevisitFloor(0.5), TypeError, "acquisition must be an Acquisition that does not choose"),
        (lambda: acq.RevisitFloor(acq.Uniform(), absence=0), ValueError, "absence"),
        (lambda: acq.RevisitFloor(acq.Uniform(), share=1.5), ValueError, r"share must lie in \[0, 1\]; got 1.5"),
        (lambda: acq.RevisitFloor(acq.Uniform(), share="1"), TypeError, "share must be a number; got str"),
    ],
)
def test_bad_settings_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_equal_settings_are_written_alike() -> None:
    assert repr(acq.LookIndex(np.float64(3), np.int64(8))) == repr(acq.LookIndex(3, 8)) == repr(acq.LookIndex(3.0, 8))
    assert repr(acq.RevisitFloor(acq.LookIndex(), share=1)) == repr(acq.RevisitFloor(acq.LookIndex(), share=1.0))
    assert repr(acq.Survey(acq.Uniform(), 2)) == repr(acq.Survey(acq.Uniform(), 2.0))
    assert repr(acq.Survey(acq.Uniform(), 2)) != repr(acq.Survey(acq.Uniform(), 3))
    assert repr(acq.UpperQuantile(0.5)) != repr(acq.UpperQuantile(0.6))
