"""Test-time allocation: the worth of samples against sums over all outcomes, the optimum against all allocations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.acquisition.allocation import Allocation, RateBeliefs, allocate, expected_accuracy
from bayes_prompt.acquisition.objectives import AnyCorrect, BestOfN, MajorityVote, Objective

OBJECTIVES = [AnyCorrect(), MajorityVote(), BestOfN(0.9, 0.2), BestOfN(1.0, 0.5), BestOfN(0.6, 0.0)]
NAMES = [repr(objective) for objective in OBJECTIVES]
EXACT = 1e-12  # a hundred steps of a few roundings each, of numbers up to 1
FEW, TRIPLES = [0, 1, 2, 3, 4, 5, 8, 13, 40], [(0.3, 0.3), (1.0, 1.0), (0.5, 4.0), (7.0, 2.0), (400.0, 300.0)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny here, and threads that wait for one another take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def chance_given_successes(objective: Objective, successes: int, samples: int) -> float:
    """P(right answer) when so many of the samples are right, straight from what the objective says."""
    if samples == 0:
        return 0.0
    if isinstance(objective, AnyCorrect):
        return float(successes > 0)
    if isinstance(objective, MajorityVote):
        return 0.5 * (2 * successes > samples) + 0.5 * (2 * successes >= samples)
    assert isinstance(objective, BestOfN)
    right = scipy.stats.binom.pmf(np.arange(successes + 1), successes, objective.sensitivity)[:, None]
    wrong = np.arange(samples - successes + 1)
    wrong_law = scipy.stats.binom.pmf(wrong, samples - successes, objective.false_positive_rate)[None]
    accepted = np.arange(successes + 1)[:, None] + wrong[None]
    share = np.arange(successes + 1)[:, None] / np.maximum(accepted, 1)
    return float((right * wrong_law * np.where(accepted > 0, share, successes / samples)).sum())


def accuracy_by_sum(objective: Objective, law: np.ndarray) -> float:
    """The same, over the law of the number of successes (n + 1,)."""
    return sum(float(p) * chance_given_successes(objective, s, len(law) - 1) for s, p in enumerate(law))


def accuracy(beliefs: RateBeliefs, samples: int, objective: Objective) -> Tensor:
    return expected_accuracy(beliefs, torch.full((len(beliefs.mean),), samples), objective)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
@pytest.mark.parametrize("samples", FEW)
def test_accuracy_is_the_sum_over_all_outcomes(objective: Objective, samples: int) -> None:
    alpha, beta = zip(*TRIPLES, strict=True)
    laws = [scipy.stats.betabinom.pmf(np.arange(samples + 1), samples, a, b) for a, b in TRIPLES]
    told = accuracy(RateBeliefs.beta(list(alpha), list(beta)), samples, objective)
    # scipy's law is made of differences of log gamma functions: of 700, each good to some 1e-13.
    np.testing.assert_allclose(told, [accuracy_by_sum(objective, law) for law in laws], rtol=0, atol=1e-11)

    rates = [0.0, 1e-3, 0.3, 0.5, 0.8, 1.0]
    laws = [scipy.stats.binom.pmf(np.arange(samples + 1), samples, p) for p in rates]
    told = accuracy(RateBeliefs.known(rates), samples, objective)
    np.testing.assert_allclose(told, [accuracy_by_sum(objective, law) for law in laws], rtol=0, atol=EXACT)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_all_or_nothing_needs_one_sample(objective: Objective) -> None:
    beliefs = RateBeliefs.moments([0.1, 0.5, 0.9], [0.3, 0.5, 0.3])  # as wide as their means allow
    torch.testing.assert_close(accuracy(beliefs, 31, objective), beliefs.mean, rtol=0, atol=EXACT)
    known = RateBeliefs.known([0.0, 1.0])
    assert accuracy(known, 31, objective).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_a_long_run_stays_accurate(objective: Objective) -> None:
    """Thousands of steps: errors of the recurrences must not grow."""
    samples, (a, b) = 4_001, (2.5, 3.5)
    successes = np.arange(samples + 1)
    step = (samples - successes[:-1]) * (a + successes[:-1]) / ((successes[:-1] + 1) * (b + samples - successes[1:]))
    law = np.cumprod(np.append(1.0, step))
    law /= law.sum()  # the Beta-Binomial law
    if isinstance(objective, BestOfN):
        t, f = objective.sensitivity, objective.false_positive_rate
        node, weight = scipy.special.roots_jacobi(400, b - 1, a - 1)
        rate = (node + 1) / 2
        rejected = rate * (1 - t) + (1 - rate) * (1 - f)
        # The chance that all are rejected is a power of 4,001, which 400 nodes resolve: they are dense at both ends.
        chance = rate * t / (1 - rejected) + rejected**samples * (rate * (1 - t) / rejected - rate * t / (1 - rejected))
        expected = float((weight * chance).sum() / weight.sum())
    else:
        expected = accuracy_by_sum(objective, law)
    # Each of 4,001 steps adds a few roundings, 1e-15 of the gain.
    assert float(accuracy(RateBeliefs.beta([a], [b]), samples, objective)) == pytest.approx(expected, abs=1e-11)


beliefs_of_few = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.75, 1.0]) | st.floats(0, 1),
        st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    ),
    min_size=1,
    max_size=4,
)


def by_brute_force(beliefs: RateBeliefs, budget: int, objective: Objective, ranges: list[range]) -> float:
    """The best mean accuracy of all allocations within the bounds and the budget."""
    table = torch.stack([accuracy(beliefs, n, objective) for n in range(max(r[-1] for r in ranges) + 1)]).tolist()
    return max(
        math.fsum(table[n][i] for i, n in enumerate(each)) / len(each)
        for each in itertools.product(*ranges)
        if sum(each) <= budget
    )


@settings(max_examples=150, deadline=None)
@given(rows=beliefs_of_few, objective=st.sampled_from(OBJECTIVES), data=st.data())
def test_no_allocation_is_better(rows: list[tuple[float, float]], objective: Objective, data: st.DataObject) -> None:
    beliefs = RateBeliefs(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))
    least = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    most = [low + data.draw(st.integers(0, 5)) for low in least]
    budget = data.draw(st.integers(sum(least), sum(most)))
    found = allocate(beliefs, budget, objective, minimum=least, maximum=most)
    ranges = [range(low, high + 1) for low, high in zip(least, most, strict=True)]
    assert all(n in bounds for n, bounds in zip(found.samples.tolist(), ranges, strict=True))
    assert all(n in bounds for n, bounds in zip(found.uniform.tolist(), ranges, strict=True))
    assert int(found.samples.sum()) <= budget == int(found.uniform.sum())
    assert found.accuracy == pytest.approx(by_brute_force(beliefs, budget, objective, ranges), abs=EXACT)
    assert float(expected_accuracy(beliefs, found.samples, objective).mean()) == found.accuracy

    # The saving, by trying every smaller budget; a step of two may take one sample too many.
    enough = found.uniform_accuracy - EXACT
    needed = next(n for n in range(sum(least), budget + 1) if by_brute_force(beliefs, n, objective, ranges) >= enough)
    told = budget * (1 - found.saving)
    assert needed - 1e-6 <= told <= needed + objective.stride - 1 + 1e-6


@pytest.mark.parametrize("least", [(0, 0, 0), (2, 0, 1), (2, 2, 2)])
def test_no_vote_is_wasted_where_steps_of_one_and_two_compete(least: tuple[int, int, int]) -> None:
    """From no vote, or an even number, the next step is a single one; a pair may be worth more than two of them."""
    ranges = [range(low, 8) for low in least]
    for rates in itertools.product([0.02, 0.6, 0.8], repeat=3):
        beliefs = RateBeliefs.known(list(rates))
        for budget in range(sum(least) + 1, sum(least) + 5):
            found = allocate(beliefs, budget, MajorityVote(), minimum=list(least), maximum=7)
            assert int(found.samples.sum()) <= budget
            assert (found.samples >= torch.tensor(least)).all()
            best = by_brute_force(beliefs, budget, MajorityVote(), ranges)
            assert found.accuracy == pytest.approx(best, abs=EXACT), (rates, budget)
            assert 0 <= found.saving <= 1


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_the_threshold_is_the_greedy_order(objective: Objective) -> None:
    """Many prompts, against a sort of all steps; with a minimum of one every step has the same cost."""
    g = torch.Generator().manual_seed(0)
    beliefs = RateBeliefs(torch.rand(100, generator=g).double(), torch.rand(100, generator=g).double() ** 4)
    values = torch.stack([accuracy(beliefs, n, objective) for n in range(1, 62, objective.stride)], 1)
    gains = values.diff(dim=1).flatten().clamp(min=0).sort(descending=True).values
    for budget in (100, 101, 300, 1_000):
        found = allocate(beliefs, budget, objective, maximum=61)
        best = values[:, 0].sum() + gains[: (budget - 100) // objective.stride].sum()
        assert found.accuracy == pytest.approx(float(best) / 100, abs=EXACT)
        assert 0 <= found.saving <= 1


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_equal_prompts_get_equal_shares(objective: Objective) -> None:
    beliefs = RateBeliefs.beta([3.0] * 7, [2.0] * 7)
    found = allocate(beliefs, 7 * 5, objective)
    assert found.samples.tolist() == [5] * 7
    assert found.saving == 0.0
    assert found.accuracy == found.uniform_accuracy
    more = allocate(beliefs, 7 * 5 + 2 * objective.stride, objective).samples.tolist()
    assert more == [5 + objective.stride] * 2 + [5] * 5, "ties go to the first prompts"


def test_order_and_padding_change_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    mean, correlation = torch.rand(60, generator=g).double(), torch.rand(60, generator=g).double()
    shuffle = torch.randperm(60, generator=g)
    for objective in OBJECTIVES:
        one = allocate(RateBeliefs(mean, correlation), 301, objective)
        other = allocate(RateBeliefs(mean[shuffle], correlation[shuffle]), 301, objective)
        assert torch.equal(one.samples[shuffle], other.samples)
        # Prompts that cannot be solved take their minimum and nothing else.
        none = torch.zeros(5, dtype=torch.float64)
        padded = RateBeliefs(torch.cat([mean, none]), torch.cat([correlation, none]))
        assert torch.equal(allocate(padded, 306, objective).samples, torch.cat([one.samples, torch.ones(5).long()]))


def test_hard_but_solvable_prompts_get_the_samples() -> None:
    found = allocate(RateBeliefs.known([0.0, 0.05, 0.3, 0.9, 1.0]), 50, AnyCorrect())
    hopeless, hard, middle, easy, solved = found.samples.tolist()
    assert hopeless == solved == 1
    assert hard > middle > easy > 1
    # One vote is best where wrong is likelier, none is bought where it changes nothing.
    assert allocate(RateBeliefs.known([0.49, 0.5, 0.51, 1.0]), 50, MajorityVote()).samples.tolist() == [1, 1, 47, 1]


def test_uncertain_prompts_are_worth_fewer_samples_than_known_ones() -> None:
    """The more two samples agree, the less the second tells."""
    mean = torch.full((20,), 0.3, dtype=torch.float64)
    found = allocate(RateBeliefs(mean, torch.linspace(0, 1, 20, dtype=torch.float64)), 100, AnyCorrect())
    assert found.samples[-1] == 1
    value = accuracy(RateBeliefs(mean, torch.linspace(0, 1, 20, dtype=torch.float64)), 10, AnyCorrect())
    assert (value.diff() < 0).all()


def test_a_perfect_verifier_is_any_correct() -> None:
    g = torch.Generator().manual_seed(2)
    beliefs = RateBeliefs(torch.rand(50, generator=g).double(), torch.rand(50, generator=g).double())
    for n in FEW:
        torch.testing.assert_close(
            accuracy(beliefs, n, BestOfN()), accuracy(beliefs, n, AnyCorrect()), rtol=0, atol=EXACT
        )
    useless = allocate(beliefs, 500, BestOfN(0.4, 0.4))
    assert useless.samples.tolist() == [1] * 50, "a verifier that tells nothing makes one sample as good as ten"
    assert useless.saving == pytest.approx(0.9)


def test_a_larger_budget_is_never_worse() -> None:
    g = torch.Generator().manual_seed(3)
    beliefs = RateBeliefs(torch.rand(30, generator=g).double(), torch.rand(30, generator=g).double())
    for objective in OBJECTIVES:
        accuracies = [allocate(beliefs, budget, objective, maximum=9).accuracy for budget in range(30, 271, 7)]
        assert np.diff(accuracies).min() >= -EXACT


def test_prompts_of_a_bin_share_alike() -> None:
    g = torch.Generator().manual_seed(4)
    beliefs = RateBeliefs(torch.rand(200, generator=g).double(), torch.rand(200, generator=g).double() * 0.2)
    binned = beliefs.binned(5)
    bins = (beliefs.mean * 5).long()
    for one in range(5):
        rows = bins == one
        assert binned.mean[rows].unique().numel() == 1
        assert float(binned.mean[rows][0]) == pytest.approx(float(beliefs.mean[rows].mean()))
        pair = beliefs.mean * (1 - (1 - beliefs.mean) * (1 - beliefs.correlation))  # E[p^2]
        of_bin = binned.mean * (1 - (1 - binned.mean) * (1 - binned.correlation))
        assert float(of_bin[rows][0]) == pytest.approx(float(pair[rows].mean()))
        samples = allocate(binned, 1_700, AnyCorrect()).samples[rows]
        assert samples.max() - samples.min() <= 1
    assert RateBeliefs.known([0.0, 1.0]).binned(3).mean.tolist() == [0.0, 1.0]
    torch.testing.assert_close(RateBeliefs.known([0.9, 1.0]).binned(2).mean, torch.full((2,), 0.95).double())
    coarse = expected_accuracy(beliefs, allocate(binned, 1_700, AnyCorrect()).samples, AnyCorrect()).mean()
    assert float(coarse) <= allocate(beliefs, 1_700, AnyCorrect()).accuracy + EXACT


def test_beliefs_of_posteriors() -> None:
    posterior = bp.SuccessRate().posterior(6, dtype=torch.float64, backend="reference")
    posterior.update([0, 1, 2], [8, 3, 0], 8)
    of, beta = RateBeliefs.of(posterior), RateBeliefs.beta(posterior.alpha, posterior.beta)
    torch.testing.assert_close(of.mean, beta.mean)
    torch.testing.assert_close(of.correlation, beta.correlation)
    some = RateBeliefs.of(posterior, torch.tensor([2, 0]))
    assert torch.equal(some.mean, of.mean[[2, 0]])
    assert torch.equal(allocate(posterior, 60, AnyCorrect()).samples, allocate(of, 60, AnyCorrect()).samples)
    # Success rates 0, 1/2, 1: the first two moments are those of the states.
    states = bp.SolvingProgress().posterior(2, backend="reference")
    states.update([0], [3], 8)
    told = RateBeliefs.of(states)
    second = states.belief.double() @ torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    mean = told.mean
    # Beliefs are float32.
    torch.testing.assert_close(mean**2 + told.correlation * mean * (1 - mean), second, rtol=1e-5, atol=1e-6)


def test_moments_and_beta_agree() -> None:
    beta = RateBeliefs.beta([1.0, 0.2, 30.0], [1.0, 5.0, 10.0])
    law = scipy.stats.beta([1.0, 0.2, 30.0], [1.0, 5.0, 10.0])
    moments = RateBeliefs.moments(law.mean(), law.std())
    torch.testing.assert_close(beta.mean, moments.mean)
    torch.testing.assert_close(beta.correlation, moments.correlation)
    assert RateBeliefs.moments([0.0, 1.0, 0.5], [0.0, 0.0, 0.0]).correlation.tolist() == [0.0, 0.0, 0.0]


def test_extreme_beliefs() -> None:
    extreme = RateBeliefs.beta([1e-300, 1e300, 1e-300, 1e12], [1e300, 1e-300, 1e-300, 1e12])
    for objective in OBJECTIVES:
        found = allocate(extreme, 40, objective)
        assert found.samples[:3].tolist() == [1, 1, 1]
        assert 0.25 <= found.accuracy <= 1
    tiny = RateBeliefs.known([1e-20, 1e-20])  # each sample gains the same, to rounding
    assert int(allocate(tiny, 50, AnyCorrect()).samples.sum()) == 50
    one = allocate(RateBeliefs.known([0.3]), 9, MajorityVote(), minimum=0)
    assert one.samples.tolist() == [1]
    nothing = allocate(RateBeliefs.known([0.3, 0.7]), 0, AnyCorrect(), minimum=0)
    assert (nothing.samples.tolist(), nothing.accuracy, nothing.saving) == ([0, 0], 0.0, 0.0)


def test_uniform_respects_the_bounds() -> None:
    found = allocate(RateBeliefs.known([0.5] * 4), 12, AnyCorrect(), minimum=[0, 5, 1, 1], maximum=[9, 9, 2, 9])
    assert found.uniform.tolist() == [3, 5, 2, 2]


def known(n: int = 3) -> RateBeliefs:
    return RateBeliefs.known([0.5] * n)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: allocate(known(), 2, AnyCorrect()),
            ValueError,
            "budget must be at least 3, the sum of minimum; got 2",
        ),
        (
            lambda: allocate(known(), 7, AnyCorrect(), maximum=2),
            ValueError,
            "budget must be at most 6, the sum of maximum; got 7",
        ),
        (lambda: allocate(known(), -1, AnyCorrect()), ValueError, "budget must be at least 0; got -1"),
        (lambda: allocate(known(), 7.5, AnyCorrect()), TypeError, "budget must be an integer; got float"),
        (lambda: allocate(known(), 7, AnyCorrect), TypeError, "objective must be an Objective"),
        (
            lambda: allocate(known(), 7, AnyCorrect(), minimum=[1, 1]),
            ValueError,
            "minimum must have 3 entries, one for each prompt; got 2",
        ),
        (lambda: allocate(known(), 7, AnyCorrect(), minimum=True), TypeError, "minimum must hold integers"),
        (lambda: allocate(known(), 7, AnyCorrect(), minimum=[1, -1, 1]), ValueError, r"minimum\[1\] = -1 must lie"),
        (
            lambda: allocate(known(), 7, AnyCorrect(), minimum=[1, 4, 1], maximum=3),
            ValueError,
            r"minimum\[1\] = 4 must",
        ),
        (lambda: allocate(known(), 7, AnyCorrect(), maximum=2.5), TypeError, "maximum must"),
        (lambda: allocate([0.5], 7, AnyCorrect()), TypeError, "beliefs must be"),
        (lambda: expected_accuracy(known(), torch.ones(2).long(), AnyCorrect()), ValueError, "samples must have 3"),
        (lambda: RateBeliefs.known([0.5, math.nan]), ValueError, r"rate\[1\] = nan must be finite and lie in \[0, 1\]"),
        (lambda: RateBeliefs.known([1.5]), ValueError, r"rate\[0\] = 1.5 must"),
        (lambda: RateBeliefs.known(["a"]), TypeError, "rate must hold numbers"),
        (lambda: RateBeliefs.known([True]), TypeError, "rate must hold real numbers"),
        (lambda: RateBeliefs.known([]), ValueError, "rate must have shape"),
        (lambda: RateBeliefs.beta([1.0], [0.0]), ValueError, r"beta\[0\] = 0.0 must"),
        (lambda: RateBeliefs.beta([1.0, 2.0], [1.0]), ValueError, "beta must have 2 entries"),
        (lambda: RateBeliefs.beta([math.inf], [1.0]), ValueError, r"alpha\[0\] = inf must"),
        (lambda: RateBeliefs.moments([0.5, 0.1], [0.5, 0.4]), ValueError, r"deviation\[1\] = 0.4 must be at most"),
        (lambda: known().binned(0), ValueError, "bins must be at least 1; got 0"),
        (lambda: BestOfN(1.2, 0.0), ValueError, "sensitivity must lie in"),
        (lambda: BestOfN(0.5, 0.6), ValueError, r"false_positive_rate must lie in \[0, 0.5\]; got 0.6"),
        (lambda: BestOfN("a", 0.6), TypeError, "sensitivity must be a number"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_the_prediction_is_calibrated(objective: Objective) -> None:
    """Rates drawn from the beliefs: right answers come out as predicted, to six standard errors of the simulation."""
    g = np.random.default_rng(5)
    alpha, beta = g.uniform(0.2, 4, 4_000), g.uniform(0.2, 4, 4_000)
    found: Allocation = allocate(RateBeliefs.beta(alpha, beta), 16_000, objective)
    samples = found.samples.numpy()
    right = g.binomial(samples, g.beta(alpha, beta))
    table = {(int(s), int(n)): 0.0 for s, n in zip(right, samples, strict=True)}
    chances = {key: chance_given_successes(objective, *key) for key in table}
    outcome = [chances[int(s), int(n)] for s, n in zip(right, samples, strict=True)]
    assert np.mean(outcome) == pytest.approx(found.accuracy, abs=6 * 0.5 / math.sqrt(4_000))
