"""Emissions of large groups, of thousands of groups at once, and of others' making."""

from __future__ import annotations

import math
import tracemalloc

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models.emission import BetaBinomialEmission, PartitionEmission, PublishedEmission, check_table

EPS = torch.finfo(torch.float64).eps


def test_informative_of_a_million_rollouts() -> None:
    """The mean over [0, 1/2] of (1 - r)^G is 2 / (G + 1) but for 2^-G; of the uniform law, 1 / (G + 1) at each end."""
    trials = 10**6
    two_bins, sure = PartitionEmission([0.0, 0.5, 1.0]).informative(trials), 1 - 2 / (trials + 1)
    # Logarithms of 10^6 and differences of lgamma(10^6) = 1.3e7 go in: some roundings of those.
    error = 16 * EPS * trials * math.log(trials)
    assert two_bins.tolist() == pytest.approx([sure, sure], abs=error)
    uniform_and_unsolved = BetaBinomialEmission(
        dist.Beta(torch.tensor([1.0, 1e-12]).double(), torch.ones(2).double())
    ).informative(trials)
    # log P(0) = -1e-12 H_G to first order, H_G = log(G) + 0.577, and P(G) = 1e-12 / G.
    assert uniform_and_unsolved.tolist() == pytest.approx([sure, 1.44e-11], abs=error)
    assert PublishedEmission().informative(trials).tolist() == [0.0, 1.0, 0.0]
    # A law of counts cannot be negative, nor its complement, whatever the rounding.
    atoms = PartitionEmission([0.0, 0.0, 1.0, 1.0]).informative(trials)
    assert atoms[[0, 2]].tolist() == [0.0, 0.0]
    assert 0 < float(atoms[1]) <= 1


def test_many_different_counts_take_little_memory() -> None:
    """Thousands of counts at once: the nodes of all the integrals would take hundreds of megabytes."""
    emission, trials = PartitionEmission(torch.linspace(0, 1, 9)), 8_000
    tracemalloc.start()  # numpy reports what it allocates
    successes = torch.arange(trials + 1)
    table = emission.log_likelihood(successes, torch.full_like(successes, trials))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    nodes_of_all = 64 * 8 * table.numel()
    assert peak < 4 * nodes_of_all
    assert peak < 2**26 + 16 * 8 * table.numel()  # a dozen arrays of a part's nodes, of the table's size for the rest
    error = 16 * EPS * math.lgamma(trials + 2)  # some roundings of the largest logarithms that are added up
    torch.testing.assert_close(table.exp().sum(0), torch.ones(8, dtype=torch.float64), rtol=0, atol=error)
    some = torch.tensor([0, 2047, 2048, 7_999])
    torch.testing.assert_close(
        emission.log_likelihood(some, torch.full_like(some, trials)), table[some], rtol=16 * EPS, atol=error
    )
    none = torch.zeros(0, dtype=torch.int64)
    assert emission.log_likelihood(none, none).shape == (0, 8)


class Fixed(PublishedEmission):
    """Gives the same likelihoods for whatever it is asked."""

    def __init__(self, *rows: list[float]) -> None:
        object.__setattr__(self, "table", torch.tensor(rows, dtype=torch.float64))

    def event_log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        return self.table  # type: ignore[attr-defined,no-any-return]


def test_an_emission_that_gives_no_log_likelihoods_changes_nothing() -> None:
    successes, trials = torch.tensor([0, 3]), torch.tensor([4, 8])
    never, nan = -math.inf, math.nan
    for emission in (PublishedEmission(), PartitionEmission([0.0, 0.0, 1.0, 1.0]), Fixed([never] * 3, [0.0] * 3)):
        check_table(emission, emission.event_log_likelihood(successes, trials), successes, trials)
    for row in ([0.0, nan, never], [nan, nan, nan], [0.0, math.inf, 0.0]):
        broken = Fixed([0.0, never, never], row)
        posterior = bp.SolvingProgress(emission=broken).posterior(2)
        selector = bp.PromptSelector(posterior, bp.acquisition.PartialProbability(), batch_size=2)
        index = selector.select()
        before = selector.state_dict()
        for update in (posterior.update, posterior.warm_start):
            with pytest.raises(ValueError, match=r"emission Fixed must give finite .*, or -inf; 3 of 8 \(row 1\) has"):
                update([0, 1], successes, trials)
        with pytest.raises(ValueError, match="emission Fixed must give finite"):
            selector.update(index, successes=successes, trials=trials)
        assert str(before) == str(selector.state_dict())
        posterior.observe([0, 1], successes, trials)
        with pytest.raises(ValueError, match="emission Fixed must give finite"):
            posterior.advance()
        assert torch.equal(posterior.pending()[1], successes)  # still waiting

    class Late(Fixed):
        def count_correction(self, successes: Tensor, trials: Tensor) -> Tensor:
            raise RuntimeError("after all the rest")

    posterior = bp.SolvingProgress(emission=Late([0.0] * 3, [0.0] * 3)).posterior(2)
    before = posterior.state_dict()
    with pytest.raises(RuntimeError, match="after all the rest"):
        posterior.update([0, 1], successes, trials)
    assert str(before) == str(posterior.state_dict())
    with pytest.raises(ValueError, match=r"emission Fixed must give log likelihoods of shape \(2, 3\); got \(1, 3\)"):
        check_table(broken, torch.zeros(1, 3), successes, trials)


def test_tables_are_nobody_elses() -> None:
    """Neither what an emission was made of nor what it gave away reaches into it."""
    alpha, edges = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for emission in (BetaBinomialEmission(dist.Beta(alpha, alpha + 1)), PartitionEmission(edges)):
        before = emission.describe()
        alpha.fill_(7.0)
        edges.fill_(7.0)
        for table in emission.rates():
            table.fill_(7.0)
        assert emission.describe() == before
