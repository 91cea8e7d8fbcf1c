"""The recipes that read texts or learn drifts; those of the other methods are tested with the selector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.posteriors.difficulty import DifficultyPosterior
from bayes_prompt.posteriors.grid import GridPosterior
from bayes_prompt.posteriors.kalman import KalmanPosterior

TEXTS = [f"{a} + {b} = ?" for a in range(6) for b in range(5)]


def gps(**options: Any) -> bp.PromptSelector:
    given: dict[str, Any] = {"num_prompts": 30, "batch_size": 4, **options}
    return bp.recipes.gps(**given)


def test_texts_bring_surface_features() -> None:
    selector = gps(texts=TEXTS, embedder=bp.embedding.HashedNgrams(64))
    posterior = selector.posterior
    assert isinstance(posterior, DifficultyPosterior)
    assert posterior.embeddings.shape == (30, 64 + len(bp.embedding.SURFACE_FEATURES))
    expected = bp.embedding.features(TEXTS, bp.embedding.HashedNgrams(64))
    np.testing.assert_array_equal(posterior.embeddings.numpy(), expected)


@pytest.mark.parametrize("published", [False, True])
def test_it_learns_which_kind_of_prompt_is_hard(published: bool) -> None:
    """The first fifteen prompts are never solved, the others half the time; they differ in one of three features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 3, generator=generator)
    features[:, 0] = torch.where(torch.arange(30) < 15, -2.0, 2.0)
    selector = gps(embeddings=features, published=published, diversity=0.0, batch_size=6)
    easy = []
    for _ in range(8):
        index = selector.select()
        easy.append(float((index >= 15).float().mean()))
        successes = torch.where(index >= 15, torch.randint(2, 7, (6,), generator=generator), 0)
        selector.update(index, successes=successes, trials=8)
    assert min(easy[4:]) >= 5 / 6
    unseen = selector.posterior.visits == 0
    rate = selector.posterior.success_rate()
    hard = torch.arange(30) < 15
    assert float(rate[unseen & hard].max()) < float(rate[~hard].min())


def test_no_two_of_a_batch_are_copies() -> None:
    """Ten prompts three times each: a batch of eight has eight of the ten, where plain scores would not care."""
    features = torch.randn(10, 4, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
    index = gps(embeddings=features, batch_size=8, diversity=0.1).select()
    assert len({int(row) % 10 for row in index}) == 8


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "give texts or embeddings of the prompts, one of the two"),
        ({"texts": TEXTS, "embeddings": torch.eye(30)}, ValueError, "give texts or embeddings"),
        (
            {"texts": TEXTS[:29], "embedder": bp.embedding.HashedNgrams(8)},
            ValueError,
            "texts are 29, not num_prompts = 30",
        ),
        ({"embeddings": torch.eye(31)}, ValueError, r"embeddings must have shape \(30, D\)"),
        ({"embeddings": torch.full((30, 2), torch.nan)}, ValueError, "embeddings"),
        ({"embeddings": torch.eye(30), "size": "huge"}, ValueError, "size must be one of small, base, paper"),
        ({"embeddings": torch.eye(30), "diversity": -1.0}, ValueError, "diversity must lie in .*; got -1.0"),
        ({"embeddings": torch.eye(30), "embedder": len}, ValueError, "embedder reads texts"),
        ({"embeddings": torch.eye(30), "optimism": 0.1, "published": True}, ValueError, "optimism .* not published"),
        ({"embeddings": torch.eye(30), "decy": 1}, TypeError, "no option 'decy'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gps(**options)


NGRAMS = bp.embedding.HashedNgrams(32)
FAMILIES = [f"family {row % 3}" for row in range(30)]


def best(**options: Any) -> bp.PromptSelector:
    given: dict[str, Any] = {"num_prompts": 30, "batch_size": 4, **options}
    return bp.recipes.best(**given)


def train(selector: bp.PromptSelector, steps: int, seed: int = 0) -> list[list[int]]:
    """Picks of some steps, whose counts are a function of step and prompt."""
    picked = []
    for _ in range(steps):
        index = selector.select()
        rng = np.random.default_rng([seed, selector.posterior.step])
        selector.update(index, successes=rng.binomial(8, rng.beta(0.5, 0.5, 30))[index], trials=8)
        picked.append(index.tolist())
    return picked


def test_the_best_takes_only_what_it_cannot_know() -> None:
    selector = best()
    posterior = selector.posterior
    assert isinstance(posterior, GridPosterior) and posterior.belief.shape == (30, 41)
    torch.testing.assert_close(posterior.bank_weights(), torch.full((1, 12), 1 / 12))
    torch.testing.assert_close(posterior.success_rate(), torch.full((30,), 0.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["nothing", "groups", "texts", "embeddings", "texts and groups"])
def test_new_prompts_are_picked_first(kind: str) -> None:
    """Five batches of four prompts, and half of one; then what a look is worth decides."""
    given: dict[str, Any] = {}
    if "groups" in kind:
        given["groups"] = FAMILIES
    if "texts" in kind:
        given |= {"texts": TEXTS, "embedder": NGRAMS}
    if "embeddings" in kind:
        given["embeddings"] = torch.randn(30, 3, generator=torch.Generator().manual_seed(3))
    selector = best(**given)
    first = [row for index in train(selector, 5) for row in index]
    assert len(set(first)) == 20
    (half,) = train(selector, 1)
    assert len(set(half) - set(first)) >= 2
    train(selector, 4)


def test_the_best_of_a_short_run_looks_for_less() -> None:
    """In ten steps 1.1 batches are of new prompts alone, where else all of the first five are, and none in the last."""
    short, long = best(num_steps=10), best(num_steps=10**6)
    assert repr(short.acquisition) == repr(long.acquisition) == repr(best().acquisition)
    seen = [len({row for index in train(selector, 5) for row in index}) for selector in (short, long)]
    assert seen[0] < seen[1] == 20
    train(short, 4)
    now = short.posterior.informative_probability(8)
    torch.testing.assert_close(short.acquisition.scores(short.posterior, 0, 9), now)


def coded(labels: Any) -> list[int]:
    posterior = best(groups=labels).posterior
    assert isinstance(posterior, GridPosterior)
    return posterior.groups.tolist()


def test_labels_of_any_kind() -> None:
    numbers = [row % 3 for row in range(30)]
    for labels in (
        FAMILIES,
        tuple(FAMILIES),
        np.array(FAMILIES),
        np.array(FAMILIES, dtype=object),
        [7 - 3 * number for number in numbers],
        np.array(numbers, dtype=np.int8) - 5,
        torch.tensor(numbers) * 10**12,
        [None if number == 1 else ("task", number) for number in numbers],
        [np.str_(family) for family in FAMILIES],
    ):
        assert coded(labels) == numbers
    assert coded(["one"] * 30) == [0] * 30
    assert coded([2 * bool(number) for number in numbers]) == [min(number, 1) for number in numbers]


def test_names_of_labels_do_not_matter() -> None:
    one, other = best(groups=FAMILIES), best(groups=[10 - row % 3 for row in range(30)])
    assert train(one, 9) == train(other, 9)
    assert torch.equal(one.posterior.belief, other.posterior.belief)


@pytest.mark.parametrize("kind", ["groups", "texts", "embeddings"])
def test_prompts_that_are_alike_learn_from_each_other(kind: str) -> None:
    """The first fifteen prompts are always solved, the others never; five of each were looked at."""
    hard = torch.arange(30) >= 15
    given: dict[str, Any] = {
        "groups": {"groups": hard.long()},
        "texts": {
            "texts": [f"prove lemma {row} of topology" if hard[row] else f"{row} + {row} = ?" for row in range(30)],
            "embedder": NGRAMS,
        },
        "embeddings": {"embeddings": torch.stack([3.0 * hard, torch.arange(30) % 4 / 10], 1)},
    }[kind]
    alone, told = best(batch_size=2), best(batch_size=2, **given)
    for row in range(5):
        for selector in (alone, told):
            selector.observe([row, 15 + row], successes=[8, 0], trials=8)
            selector.advance()
    for selector in (alone, told):
        easy, never = (selector.posterior.success_rate()[rows].mean() for rows in (slice(5, 15), slice(20, 30)))
        assert float(easy - never) > 0.3 if selector is told else abs(float(easy - never)) < 1e-6


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"groups": FAMILIES},
        {"texts": TEXTS, "embedder": NGRAMS},
        {"texts": TEXTS, "embedder": NGRAMS, "groups": FAMILIES},
        {"embeddings": torch.eye(30, dtype=torch.float64).numpy()},
    ],
    ids=["nothing", "groups", "texts", "both", "embeddings"],
)
def test_the_best_resumes_where_it_was(given: dict[str, Any], tmp_path: Path) -> None:
    straight, saved = best(**given), best(**given)
    assert train(straight, 4) == train(saved, 4)
    saved.save(tmp_path / "state")
    resumed = best(**given)
    train(resumed, 2, seed=1)  # of another life, of which nothing may be left
    resumed.load(tmp_path / "state")
    assert train(straight, 6) == train(resumed, 6)
    assert torch.equal(straight.posterior.belief, resumed.posterior.belief)
    if given:
        labels = [*FAMILIES[:28], FAMILIES[29], FAMILIES[28]]  # of two prompts that change places
        for stranger in (best(), best(**{**given, "groups": labels})):
            with pytest.raises(bp.CheckpointError):
                stranger.load(tmp_path / "state")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"texts": TEXTS, "embeddings": torch.eye(30)}, ValueError, "give texts or embeddings of the prompts, one"),
        ({"texts": TEXTS[:29], "embedder": NGRAMS}, ValueError, "texts are 29, not num_prompts = 30"),
        ({"embeddings": torch.eye(31)}, ValueError, r"embeddings must have shape \(30, D\)"),
        ({"embeddings": torch.full((30, 2), torch.nan)}, ValueError, r"embeddings\[0, 0\] = nan must be finite"),
        ({"embeddings": "thirty"}, TypeError, "embeddings must be an array of numbers"),
        ({"embeddings": torch.eye(30), "embedder": NGRAMS}, ValueError, "embedder reads texts; embeddings were given"),
        ({"embedder": NGRAMS}, ValueError, "embedder reads texts; none were given"),
        ({"groups": FAMILIES[:29]}, ValueError, "groups must have 30 entries, one for each prompt; got 29"),
        ({"groups": torch.zeros(30, 1)}, ValueError, r"groups must have shape \(30,\); got \(30, 1\)"),
        ({"groups": np.zeros(())}, ValueError, r"groups must have shape \(30,\); got \(\)"),
        ({"groups": [*FAMILIES[:29], ["x"]]}, TypeError, r"groups\[29\] must be a label; got list"),
        ({"groups": 3}, TypeError, "groups must be a sequence of labels; got int"),
        ({"groups": "x" * 30}, TypeError, "groups must be a sequence of labels; got str"),
        ({"batch_size": 31}, ValueError, "batch_size"),
        ({"num_prompts": 0}, ValueError, "num_prompts"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1; got 0"),
        ({"decay": 0.5}, TypeError, "no option 'decay'"),
    ],
)
def test_bad_arguments_of_the_best(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        best(**options)


def kgps(**options: Any) -> bp.PromptSelector:
    given: dict[str, Any] = {"num_prompts": 30, "batch_size": 4, **options}
    return bp.recipes.kgps(**given)


@pytest.mark.parametrize("method", ["moments", "polya_gamma"])
def test_kgps_is_greedy_on_the_expected_variance(method: str) -> None:
    selector, model = kgps(method=method), bp.LogitGaussian(drift=0.3, method=method)
    posterior = model.posterior(30)
    assert isinstance(selector.posterior, KalmanPosterior)
    for step in range(6):
        worth = posterior.expected_variance()
        index = selector.select()
        assert float(worth[index].min()) >= float(worth.sort(descending=True).values[3])
        won = torch.from_numpy(np.random.default_rng(step).binomial(8, 0.3, 4))
        selector.update(index, successes=won, trials=8, elapsed=0.5 * step)
        posterior.update(index, won, 8, 0.5 * step)
        assert torch.equal(selector.posterior.success_rate(), posterior.success_rate())


def test_settings_of_kgps_reach_its_model() -> None:
    def rate(selector: bp.PromptSelector) -> Tensor:
        selector.advance()
        return selector.posterior.success_rate()

    assert torch.equal(rate(kgps()), rate(kgps(prior=dist.Normal(0.0, 1.5), trend=0.0)))
    assert bool((rate(kgps(trend=0.5)) > rate(kgps())).all())
    assert bool((rate(kgps(prior=dist.Normal(-2.0, 0.5))) < 0.2).all())
    spread = [float(kgps(drift=drift).posterior.expected_variance()[0]) for drift in (0.0, 3.0)]
    assert spread[0] == spread[1]  # before the first step
    moved = [kgps(drift=drift) for drift in (0.0, 3.0)]
    for selector in moved:
        selector.advance()
    assert float(moved[0].posterior.expected_variance()[0]) > float(moved[1].posterior.expected_variance()[0])


def test_kgps_resumes_where_it_was(tmp_path: Path) -> None:
    straight, saved = kgps(), kgps()
    assert train(straight, 4) == train(saved, 4)
    saved.save(tmp_path / "state")
    resumed = kgps()
    train(resumed, 2, seed=1)
    resumed.load(tmp_path / "state")
    assert train(straight, 4) == train(resumed, 4)
    with pytest.raises(bp.CheckpointError):
        kgps(drift=0.2).load(tmp_path / "state")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drift": -0.1}, ValueError, "drift"),
        ({"drift": "1"}, TypeError, "drift"),
        ({"trend": float("nan")}, ValueError, "trend"),
        ({"prior": dist.Beta(1.0, 1.0)}, ValueError, "prior"),
        ({"method": "exact"}, ValueError, "method"),
        ({"batch_size": 31}, ValueError, "batch_size"),
        ({"texts": TEXTS}, TypeError, "no option 'texts'"),
    ],
)
def test_bad_arguments_of_kgps(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kgps(**options)
