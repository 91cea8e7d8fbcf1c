"""Looks at prompts on a grid, answered from the stored beliefs in one pass, against the answers of any posterior."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models import priors
from bayes_prompt.models.banks import DecayBank
from bayes_prompt.models.sharing import EmpiricalBayes
from bayes_prompt.posteriors.base import Posterior

PRIOR = priors.logit_normal(0.0, 3.0)
BANK = bp.SuccessRate(PRIOR, drift=priors.training(), sharing=EmpiricalBayes())
PROMPTS, CLUSTERED = 90, 2100  # the latter are too many for a cluster each
GROUPS = torch.arange(CLUSTERED) % 4
POOLS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "one group": (BANK, PROMPTS, {}),
    "groups": (BANK, PROMPTS, {"groups": GROUPS[:PROMPTS]}),
    "groups without weights": (BANK, PROMPTS, {"groups": torch.arange(PROMPTS) % 80}),
    "own clusters": (BANK, PROMPTS, {"groups": GROUPS[:PROMPTS], "embeddings": "random"}),
    "clusters across groups": (BANK, CLUSTERED, {"groups": GROUPS, "embeddings": "random"}),
    "no drift": (bp.SuccessRate(PRIOR, decay=0.8), PROMPTS, {}),
    "decays": (bp.SuccessRate(PRIOR, decay=DecayBank([0.5, 1.0])), PROMPTS, {"groups": GROUPS[:PROMPTS]}),
}


def trained(name: str, dtype: torch.dtype, backend: str = "auto") -> Any:
    """After a few steps in which half of the groups do better; two prompts in five were never observed."""
    model, prompts, options = POOLS[name]
    g = torch.Generator().manual_seed(3)
    if "embeddings" in options:
        options = options | {"embeddings": torch.randn(prompts, 4, generator=g)}
    posterior = model.posterior(prompts, dtype=dtype, backend=backend, **options)
    seen = torch.randperm(prompts, generator=g)[: prompts * 3 // 5]
    for _ in range(5):
        index = seen[torch.rand(len(seen), generator=g) < 0.6]
        successes = (torch.randint(0, 9, (len(index),), generator=g) + 4 * (index % 2)).clamp(max=8)
        posterior.update(index, successes, 8)
    return posterior


def bound(dtype: torch.dtype, horizon: float) -> float:
    """Sums over 41 points and at most 65 outcomes of numbers that add up to 1; see tests/kernels/test_grid_filter.py.

    The general way starts from beliefs now, which are sums over 41 points rounded to the dtype. In float64 it rounds
    nowhere less than the other does.
    """
    return (2 + horizon) * (3 * (41 + 65) + 16) * torch.finfo(dtype).eps * (1 if dtype == torch.float64 else 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", POOLS)
def test_answers_are_those_of_any_posterior(name: str, dtype: torch.dtype) -> None:
    posterior = trained(name, dtype)
    for trials in (1, 8, 100):  # the last are looked at as if they were 64
        for horizon in (0.0, 16.0):
            found, expected = posterior.look_index(trials, horizon), Posterior.look_index(posterior, trials, horizon)
            close(found, expected, bound(dtype, horizon))
        found = posterior.look_index(trials, 4.0, new=32.0)
        close(found, Posterior.look_index(posterior, trials, 4.0, new=32.0), bound(dtype, 32.0))
        for threshold in (-1.0, 0.0, 0.3, 0.7, 0.95, 1.0, 1.5):
            found, expected = posterior.look_gain(trials, threshold), Posterior.look_gain(posterior, trials, threshold)
            close(found, expected, 2 * bound(dtype, 0.0))  # the difference of two of them


@pytest.mark.parametrize("threshold", [-1e9, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_no_look_helps_against_what_no_prompt_can_be_worth(threshold: float, dtype: torch.dtype) -> None:
    gain = trained("groups", dtype).look_gain(8, threshold)
    assert bool((gain >= 0).all())
    close(gain, torch.zeros_like(gain), 2 * bound(dtype, 0.0))


def close(found: Tensor, expected: Tensor, error: float) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=error)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_backends_agree(backend: str) -> None:
    """On the device that the others are on; `triton` in its interpreter."""
    here, there = trained("groups", torch.float64), trained("groups", torch.float64, backend)
    close(there.look_index(8, 16.0), here.look_index(8, 16.0), bound(torch.float64, 16.0))
    close(there.look_gain(8, 0.6), here.look_gain(8, 0.6), 2 * bound(torch.float64, 0.0))


def test_looks_change_nothing_and_bad_questions_are_named() -> None:
    posterior = trained("groups", torch.float32)
    before = posterior.state_dict()
    first = posterior.look_index(8, 16.0), posterior.look_gain(8, 0.5)
    asked: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "horizon", lambda: posterior.look_index(8, math.inf)),
        (ValueError, "horizon", lambda: posterior.look_index(8, -0.5)),
        (TypeError, "horizon", lambda: posterior.look_index(8, "long")),
        (ValueError, "threshold", lambda: posterior.look_gain(8, math.nan)),
        (TypeError, "threshold", lambda: posterior.look_gain(8, None)),
        (ValueError, "trials", lambda: posterior.look_index(0, 1.0)),
        (ValueError, "trials", lambda: posterior.look_gain(0, 0.5)),
    ]
    for error, name, question in asked:
        with pytest.raises(error, match=name):
            question()
    again = posterior.look_index(8, 16.0), posterior.look_gain(8, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    after = posterior.state_dict()
    assert all(torch.equal(before["tensors"][name], after["tensors"][name]) for name in before["tensors"])
