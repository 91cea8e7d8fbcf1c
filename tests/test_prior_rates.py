"""Success rates that are known before training, told to any recipe."""

from __future__ import annotations

from collections import UserList
from typing import Any

import numpy as np
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.posteriors import checks
from bayes_prompt.recipes import _as_rollouts
from bayes_prompt.replays.methods import known

RATES = [None, 0.0, 1.0, float("nan"), 0.6, 0.4, None, None]


def made(name: str, **options: Any) -> bp.PromptSelector:
    if name == "gps":
        options["embeddings"] = torch.eye(8)
    if name == "dps":  # whose default forgets them at once
        options["transition"] = bp.priors.stability()
    return known()[name](num_prompts=8, batch_size=2, **options)


@pytest.mark.parametrize("name", sorted(known()))
def test_they_count_as_so_many_rollouts(name: str) -> None:
    told, plain = made(name, prior_rates=RATES), made(name)
    rows = torch.tensor([1, 2, 4, 5])
    plain.posterior.warm_start(rows, torch.tensor([0, 4, 3, 2]), torch.tensor([4, 4, 5, 5]))
    assert torch.equal(told.posterior.success_rate(), plain.posterior.success_rate())
    rate = told.posterior.success_rate()
    assert float(rate[1]) < float(rate[5]) <= float(rate[4]) < float(rate[2])
    assert name == "dps" or float(rate[5]) < float(rate[4])  # to dps both are partially solved
    assert not bool(told.posterior.visits.any())
    assert torch.equal(told.select(), plain.select())


def test_each_is_told_as_what_comes_nearest() -> None:
    """Of 4, 5 or 6 rollouts; a rate and its complement alike, and a higher one as no less."""
    rates = torch.linspace(0, 1, 129, dtype=torch.float64)
    rows, successes, trials = _as_rollouts(rates)
    assert torch.equal(rows, torch.arange(129))
    told = successes / trials
    assert float((told - rates).abs().max()) <= 1 / 12  # halfway between 0 and 1/6, the widest gap
    assert bool((told.diff() >= 0).all())
    assert torch.allclose(told, 1 - told.flip(0))


class Column(UserList[float]):
    """Something with a length whose entries can be asked for, as a table's column is."""


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, Column])
def test_of_any_kind(kind: Any) -> None:
    rates = [float("nan") if rate is None else rate for rate in RATES]
    found = made("best", prior_rates=kind(rates)).posterior.informative_probability(8)
    assert torch.equal(found, made("best", prior_rates=RATES).posterior.informative_probability(8))


def test_where_none_is_known_nothing_changes() -> None:
    told, plain = made("best", prior_rates=[None] * 8), made("best")
    assert torch.equal(told.posterior.informative_probability(8), plain.posterior.informative_probability(8))
    assert torch.equal(told.select(), plain.select())


def test_what_is_missing_may_be_said_in_many_ways() -> None:
    masked = np.ma.masked_array([0.25, 9.0, 1.0], mask=[False, True, False])
    given = ([0.25, None, 1.0], [0.25, float("nan"), 1], masked, torch.tensor([0.25, torch.nan, 1.0]).to_sparse())
    for rates in given:
        found = checks.rates("prior_rates", rates, 3)
        torch.testing.assert_close(found, torch.tensor([0.25, torch.nan, 1.0]).double(), equal_nan=True)


@pytest.mark.parametrize(
    ("rates", "kind", "message"),
    [
        ([0.5] * 7, ValueError, r"prior_rates must have shape \(8,\), one for each prompt; got \(7,\)"),
        ([0.5] * 7 + [1.5], ValueError, r"prior_rates must lie in \[0, 1\]; got 1.5 at 7"),
        ([-0.1] + [None] * 7, ValueError, r"prior_rates must lie in \[0, 1\]; got -0.1 at 0"),
        ([float("inf")] * 8, ValueError, r"prior_rates must lie in \[0, 1\]; got inf at 0"),
        (["half"] * 8, TypeError, "prior_rates must be numbers, or None where there is none"),
        ([[0.5]] * 8, ValueError, r"prior_rates must have shape \(8,\)"),
        ([[0.5], [0.5, 0.5]] * 4, TypeError, "prior_rates must be numbers"),
        ([True] * 8, TypeError, "prior_rates must be numbers"),
        ([True] + [None] * 7, TypeError, "prior_rates must be numbers, or None where there is none; got True"),
        ({row: 0.5 for row in range(8)}, TypeError, "prior_rates must be a sequence, a tensor or an array; got dict"),
        (set(range(8)), TypeError, "prior_rates must be a sequence, a tensor or an array; got set"),
        (b"01010101", TypeError, "prior_rates must be a sequence, a tensor or an array; got bytes"),
        (np.array(0.5), TypeError, "prior_rates must be a sequence, a tensor or an array; got ndarray"),
        (0.5, TypeError, "prior_rates must be a sequence, a tensor or an array; got float"),
    ],
)
def test_what_is_no_rate_is_named(rates: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        made("best", prior_rates=rates)
