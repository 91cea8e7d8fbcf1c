"""The recipe that reads texts; those of the other methods are tested with the selector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.posteriors.difficulty import DifficultyPosterior

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
