"""Emissions against exact rational arithmetic, scipy and numerical integration."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from bayes_prompt.errors import CannotLower
from bayes_prompt.models.emission import (
    BetaBinomialEmission,
    CountDistribution,
    Emission,
    PartitionEmission,
    PublishedEmission,
)

EPS = np.finfo(np.float64).eps


def beta_binomial(alpha: list[float], beta: list[float]) -> BetaBinomialEmission:
    return BetaBinomialEmission(dist.Beta(*(torch.tensor(values, dtype=torch.float64) for values in (alpha, beta))))


EMISSIONS: dict[str, Emission] = {
    "published": PublishedEmission(),
    "beta": beta_binomial([0.3, 2.0, 9.0, 40.0], [8.0, 2.0, 1.0, 0.01]),
    "partition": PartitionEmission([0.0, 0.1, 0.5, 0.9, 1.0]),
    "atoms": PartitionEmission([0.0, 0.0, 0.5, 0.5, 1.0, 1.0]),
}
all_emissions = pytest.mark.parametrize("emission", EMISSIONS.values(), ids=EMISSIONS.keys())


def counts(trials: int) -> tuple[Tensor, Tensor]:
    """Every count of a group."""
    successes = torch.arange(trials + 1)
    return successes, torch.full_like(successes, trials)


def rounding(trials: int, log_likelihood: np.ndarray) -> np.ndarray:
    """What float64 can lose: a few roundings of the largest logarithms that are added up, which are of this size."""
    finite = np.where(np.isfinite(log_likelihood), np.abs(log_likelihood), 0.0)
    return 16 * EPS * (special.gammaln(trials + 2) + trials + 1 + finite)


@all_emissions
@pytest.mark.parametrize("trials", [1, 2, 8, 64, 300])
def test_counts_have_a_law(emission: Emission, trials: int) -> None:
    table = emission.log_likelihood(*counts(trials))
    assert table.shape == (trials + 1, emission.num_states)
    assert table.dtype == torch.float64
    total = table.exp().sum(0).numpy()
    expected = np.ones(emission.num_states)
    if isinstance(emission, PublishedEmission) and trials == 1:
        expected[1] = 0.0  # a single rollout is never partial
    # Relative errors of the terms are the absolute ones of their logarithms; they are weighted by the terms themselves.
    np.testing.assert_allclose(total, expected, rtol=0, atol=float(rounding(trials, np.zeros(1))[0]) + trials * EPS)


@all_emissions
def test_no_trials_say_nothing(emission: Emission) -> None:
    none = torch.zeros(3, dtype=torch.int64)
    for table in (emission.log_likelihood(none, none), emission.event_log_likelihood(none, none)):
        assert torch.equal(table, torch.zeros(3, emission.num_states, dtype=torch.float64))
    assert torch.equal(emission.count_correction(none, none), torch.zeros(3, dtype=torch.float64))


@all_emissions
def test_an_event_and_its_correction_make_the_count(emission: Emission) -> None:
    for trials in (1, 2, 9):
        successes, group = counts(trials)
        event, correction = emission.event_log_likelihood(successes, group), emission.count_correction(successes, group)
        assert correction.shape == (trials + 1,)
        assert torch.equal(event + correction[:, None], emission.log_likelihood(successes, group))


def test_published_emission_reads_the_state_off_the_group() -> None:
    emission = PublishedEmission()
    successes, trials = torch.tensor([0, 1, 7, 8, 0, 1]), torch.tensor([8, 8, 8, 8, 1, 1])
    impossible = -math.inf
    unsolved, partial, solved = (
        [0.0, impossible, impossible],
        [impossible, 0.0, impossible],
        [impossible, impossible, 0.0],
    )
    event = emission.event_log_likelihood(successes, trials)
    assert event.tolist() == [unsolved, partial, partial, solved, unsolved, solved]
    assert emission.count_correction(successes, trials).tolist() == [0, -math.log(7), -math.log(7), 0, 0, 0]
    assert emission.informative(8).tolist() == [0.0, 1.0, 0.0]
    assert emission.informative(1).tolist() == [0.0, 0.0, 0.0]
    assert emission.mean_rate().tolist() == [0.0, 0.5, 1.0]
    assert emission.reward_variance().tolist() == [0.0, 0.25, 0.0]


def log_fraction(value: Fraction) -> float:
    """The logarithm of a fraction that may be far outside the range of floats."""
    if value == 0:
        return -math.inf
    shift = value.numerator.bit_length() - value.denominator.bit_length()
    return math.log(float(value / Fraction(2) ** shift)) + shift * math.log(2)


def exact_bin(s: int, t: int, low: float, high: float) -> float:
    """log of the mean of the Binomial law over a bin, in exact rational arithmetic."""
    if low == high:
        return log_fraction(math.comb(t, s) * Fraction(low) ** s * (1 - Fraction(low)) ** (t - s))

    def incomplete(edge: float) -> Fraction:
        """I_edge(s + 1, t - s + 1), the chance of more than s successes in t + 1 trials."""
        n, d = Fraction(edge).numerator, Fraction(edge).denominator
        return Fraction(
            sum(math.comb(t + 1, j) * n**j * (d - n) ** (t + 1 - j) for j in range(s + 1, t + 2)), d ** (t + 1)
        )

    return log_fraction((incomplete(high) - incomplete(low)) / ((t + 1) * (Fraction(high) - Fraction(low))))


@pytest.mark.parametrize("trials", [1, 8, 64, 127, 128, 300])
def test_partition_equals_exact_arithmetic(trials: int) -> None:
    edges = [0.0, 0.0, 1e-9, 0.01, 0.3, 0.3, 0.300001, 0.7, 1 - 1e-12, 1.0, 1.0]
    emission = PartitionEmission(edges)
    successes = sorted({0, 1, trials // 3, trials // 2, trials - 1, trials})
    table = emission.log_likelihood(torch.tensor(successes), torch.full((len(successes),), trials)).numpy()
    exact = np.array([[exact_bin(s, trials, *edge) for edge in pairwise(edges)] for s in successes])
    assert np.array_equal(np.isneginf(table), np.isneginf(exact))
    finite = np.isfinite(exact)
    error = np.abs(np.where(finite, table, 0.0) - np.where(finite, exact, 0.0))
    assert (error <= rounding(trials, exact)).all()
    # Never and always are certain, not only nearly so.
    assert table[0, 0] == 0.0
    assert table[-1, -1] == 0.0


def test_partition_equals_the_incomplete_beta_function() -> None:
    edges = np.array([0.0, 0.2, 0.5, 0.75, 1.0])
    s, t = (column.numpy()[:, None] for column in counts(20))
    inside = np.diff(special.betainc(s + 1.0, t - s + 1.0, edges), axis=1) / ((t + 1) * np.diff(edges))
    table = PartitionEmission(edges.tolist()).log_likelihood(*counts(20)).exp().numpy()
    # The difference of two numbers of at most 1 is known to a few EPS.
    np.testing.assert_allclose(table, inside, rtol=1e-12, atol=32 * EPS)


def test_partition_does_not_underflow() -> None:
    """All of 10^5 rollouts succeed: the mean of r^t over [0, h] is h^t / (t + 1), far below the smallest float."""
    trials, high = 100_000, 0.1
    table = PartitionEmission([0.0, high, 1.0]).log_likelihood(torch.tensor([trials]), torch.tensor([trials]))
    expected = trials * math.log(high) - math.log(trials + 1)
    assert table[0, 0].item() == pytest.approx(expected, rel=16 * EPS)
    by_symmetry = PartitionEmission([0.0, 1 - high, 1.0]).log_likelihood(torch.tensor([0]), torch.tensor([trials]))
    assert by_symmetry[0, 1].item() == pytest.approx(expected, rel=16 * EPS)


def test_beta_binomial_equals_scipy() -> None:
    alpha, beta = [0.3, 2.0, 9.0], [8.0, 2.0, 1.0]
    s, t = (column.numpy()[:, None] for column in counts(30))
    table = beta_binomial(alpha, beta).log_likelihood(*counts(30)).numpy()
    np.testing.assert_allclose(table, stats.betabinom.logpmf(s, t, alpha, beta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0**-20, 2.0), (15.5, 16.5), (1e6, 3e6), (2.0**60, 2.0**-10)])
def test_beta_binomial_equals_exact_arithmetic(alpha: float, beta: float) -> None:
    """Parameters below 1 and far above 10^6, where differences of lgamma have lost all their digits."""
    trials = 64
    table = beta_binomial([alpha, beta], [beta, alpha]).log_likelihood(*counts(trials)).numpy()

    def rising(a: Fraction, n: int) -> Fraction:
        return math.prod((a + i for i in range(n)), start=Fraction(1))

    a, b = Fraction(alpha), Fraction(beta)
    exact = np.array(
        [
            log_fraction(math.comb(trials, s) * rising(a, s) * rising(b, trials - s) / rising(a + b, trials))
            for s in range(trials + 1)
        ]
    )
    size = trials * abs(math.log(alpha + beta + trials)) + np.abs(exact) + abs(math.log(alpha)) + abs(math.log(beta))
    bound = rounding(trials, exact) + 16 * EPS * size
    assert (np.abs(table[:, 0] - exact) <= bound).all()
    assert (np.abs(table[::-1, 1] - exact) <= bound).all()


@pytest.mark.parametrize("name", ["beta", "partition"])
def test_rates_are_the_law_behind_the_counts(name: str) -> None:
    """Integrates the Binomial law, r, and r (1 - r), numerically over the law that `rates` gives."""
    emission = EMISSIONS[name]
    table = emission.log_likelihood(*counts(5)).exp()
    for k, (low, high, alpha, beta) in enumerate(zip(*emission.rates(), strict=True)):
        a, b = alpha.item(), beta.item()

        def mean(
            function: object, a: float = a, b: float = b, lo: float = low.item(), hi: float = high.item()
        ) -> float:
            # QUADPACK's weight for algebraic ends: the singularities of Beta densities with parameters below 1.
            value, _ = integrate.quad(lambda x: function(lo + (hi - lo) * x), 0, 1, weight="alg", wvar=(a - 1, b - 1))  # type: ignore[operator]
            return float(value) / float(special.beta(a, b))

        for s in range(6):
            assert mean(lambda r, s=s: stats.binom.pmf(s, 5, r)) == pytest.approx(table[s, k].item(), abs=1e-9)
        assert mean(lambda r: r) == pytest.approx(emission.mean_rate()[k].item(), abs=1e-9)
        assert mean(lambda r: r * (1 - r)) == pytest.approx(emission.reward_variance()[k].item(), abs=1e-9)


@all_emissions
@pytest.mark.parametrize("trials", [1, 2, 8, 40])
def test_informative_is_what_is_neither_all_wrong_nor_all_right(emission: Emission, trials: int) -> None:
    law = emission.log_likelihood(*counts(trials)).exp()
    informative = emission.informative(trials)
    expected = 1 - law[0] - law[-1]
    if isinstance(emission, PublishedEmission) and trials == 1:
        expected[1] = 0.0
    torch.testing.assert_close(informative, expected, rtol=0, atol=1e-12)
    assert ((informative >= 0) & (informative <= 1)).all()


@all_emissions
def test_informative_is_the_same_question_for_large_groups(emission: Emission) -> None:
    """One formula up to 256 rollouts, another one above."""
    for trials in (256, 257, np.int64(300)):
        if isinstance(emission, PublishedEmission):
            expected = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        else:
            expected = emission.log_likelihood(*counts(int(trials))).exp()[1:-1].sum(0)
        error = float(rounding(int(trials), np.zeros(1))[0]) + int(trials) * EPS
        torch.testing.assert_close(emission.informative(trials), expected, rtol=0, atol=error)


def test_informative_keeps_its_digits_where_it_is_tiny() -> None:
    """Beta(a, b) with a tiny: the chance of one success in two is 2 a b / ((a + b) (a + b + 1)), far below EPS."""
    a, b = 1e-30, 3.0
    value = beta_binomial([a, 1.0], [b, 1.0]).informative(2)[0].item()
    assert value == pytest.approx(2 * a * b / ((a + b) * (a + b + 1)), rel=1e-13)


def test_moments_of_atoms_are_exact() -> None:
    emission = EMISSIONS["atoms"]
    assert emission.mean_rate().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    variance = emission.reward_variance()
    assert variance[[0, 2, 4]].tolist() == [0.0, 0.25, 0.0]
    # mean of r (1 - r) over [0, 1/2] and [1/2, 1]: 1/6
    torch.testing.assert_close(variance[[1, 3]], torch.full((2,), 1 / 6, dtype=torch.float64), rtol=1e-15, atol=0)


@all_emissions
def test_distribution_agrees_with_the_table(emission: Emission) -> None:
    """States enumerated in a dimension of their own, rows with different trials, as Pyro calls it."""
    trials, successes = torch.tensor([8, 0, 3, 2]), torch.tensor([8, 0, 1, 0])
    states = torch.arange(emission.num_states)
    law = emission.distribution(states[:, None], trials)
    assert law.batch_shape == (emission.num_states, 4)
    table = emission.log_likelihood(successes, trials).T
    # Pyro's BetaBinomial takes differences of lgamma, whose values stay below 200 here.
    torch.testing.assert_close(law.log_prob(successes.double()), table, rtol=1e-12, atol=1e-12)
    widened = emission.distribution(states[0], trials[:1]).expand([5, 4])
    assert widened.sample().shape == (5, 4)
    assert widened.sample([3]).dtype == torch.float64


@all_emissions
def test_draws_follow_the_law(emission: Emission) -> None:
    draws, trials = 20_000, 6
    states = torch.arange(emission.num_states)[:, None]
    sample = emission.distribution(states, torch.full((1,), trials)).expand([emission.num_states, draws]).sample()
    frequency = torch.nn.functional.one_hot(sample.long(), trials + 1).double().mean(1)
    law = emission.log_likelihood(*counts(trials)).exp().T
    # Six standard deviations, and a handful of draws where the normal approximation of rare counts is poor.
    bound = 6 * (law * (1 - law) / draws).sqrt() + 8 / draws * (law > 0)
    assert ((frequency - law).abs() <= bound).all()


def test_missing_rows_draw_nothing() -> None:
    for emission in EMISSIONS.values():
        states = torch.arange(emission.num_states)
        assert torch.equal(
            emission.distribution(states, torch.zeros_like(states)).sample(), torch.zeros_like(states).double()
        )


def test_a_partial_group_of_one_cannot_be_drawn() -> None:
    law = PublishedEmission().distribution(torch.tensor([0, 2, 1]), torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match=r"trials must be at least 2 .* row 2 has 1"):
        law.sample()
    assert law.log_prob(torch.tensor([0.0, 1.0, 1.0])).tolist() == [0.0, 0.0, -math.inf]


def test_counts_outside_the_support_are_refused() -> None:
    law = CountDistribution(PublishedEmission(), torch.tensor([1]), torch.tensor([4]), validate_args=True)
    for value in (-1.0, 5.0, 1.5):
        with pytest.raises(ValueError, match="within the support"):
            law.log_prob(torch.tensor([value]))


def test_beta_binomial_parameters_receive_gradients() -> None:
    alpha = torch.tensor([1.0, 4.0], requires_grad=True)
    law = BetaBinomialEmission(dist.Beta(alpha, torch.ones(2))).distribution(torch.tensor([0, 1]), torch.tensor([8, 8]))
    law.log_prob(torch.tensor([3.0, 8.0])).sum().backward()
    assert alpha.grad is not None
    assert torch.isfinite(alpha.grad).all()
    assert (alpha.grad != 0).all()


@all_emissions
def test_bad_counts_are_named(emission: Emission) -> None:
    good = torch.tensor([1, 2])
    for method in (emission.log_likelihood, emission.event_log_likelihood, emission.count_correction):
        with pytest.raises(ValueError, match=r"row 1 has 3 of 2"):
            method(torch.tensor([1, 3]), torch.tensor([1, 2]))
        with pytest.raises(ValueError, match=r"row 0 has -1 of 1"):
            method(torch.tensor([-1, 3]), torch.tensor([1, 2]))
        with pytest.raises(ValueError, match=r"trials must be integers; got torch.float32"):
            method(good, torch.tensor([1.0, 2.0]))
        with pytest.raises(ValueError, match=r"trials must have shape \(M,\) like successes; got \(3,\)"):
            method(good, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="trials must be at least 1; got 0"):
        emission.informative(0)
    for wrong in (2.5, True, "8"):
        with pytest.raises(TypeError, match=f"trials must be an integer; got {type(wrong).__name__}"):
            emission.informative(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([0.0, 1.0], r"shape \(K \+ 1,\) with K >= 2; got shape \(2,\)"),
        ([0.0, 0.6, 0.5, 1.0], r"edges\[2\] is 0.5 after 0.6"),
        ([0.0, 1.5, 1.0], r"edges\[1\] is 1.5"),
        ([0.0, math.nan, 1.0], r"edges\[1\] is nan"),
        ([0.1, 0.5, 1.0], r"run from 0 to 1; got 0.1 to 1.0"),
        ([0.0, 0.5, 0.9], r"run from 0 to 1; got 0.0 to 0.9"),
    ],
)
def test_bad_edges_are_named(edges: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartitionEmission(edges)


def test_rates_without_tables_are_refused() -> None:
    with pytest.raises(CannotLower, match=r"rates is a Normal; a Beta with batch shape \(K,\)"):
        BetaBinomialEmission(dist.Normal(torch.zeros(3), torch.ones(3)))
    with pytest.raises(CannotLower, match=r"rates has batch shape \(\); a Beta with batch shape \(K,\)"):
        BetaBinomialEmission(dist.Beta(1.0, 1.0))
    with pytest.raises(CannotLower, match=r"rates is a Independent"):
        BetaBinomialEmission(dist.Beta(torch.ones(3), torch.ones(3)).to_event(1))
    with pytest.raises(ValueError, match=r"rates: beta\[1\] must be positive and finite; got inf"):
        BetaBinomialEmission(dist.Beta(torch.ones(2), torch.tensor([1.0, math.inf])))


def test_descriptions_tell_emissions_apart() -> None:
    several = [
        *EMISSIONS.values(),
        beta_binomial([1.0, 2.0], [3.0, 4.0]),
        beta_binomial([1.0, 2.0], [3.0, 4.0 + 1e-15]),
    ]
    texts = [json.dumps(emission.describe()) for emission in several]
    assert all(one != other for one, other in combinations(texts, 2))
    assert texts[0] == json.dumps(PublishedEmission().describe())
    assert all(json.loads(text) == emission.describe() for text, emission in zip(texts, several, strict=True))
