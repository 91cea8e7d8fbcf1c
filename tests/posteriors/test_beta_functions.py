"""Functions of Beta beliefs against exact rational arithmetic, and against limits where that is out of reach."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from bayes_prompt.posteriors.beta_functions import entropy, log_beta_binomial, mean, mixed_probability

EPS = float(np.finfo(np.float64).eps)
# Below and above 16, where the series of Stirling takes over, and far beyond where 1 + a is a.
SIZES = [1e-300, 1e-38, 1e-6, 0.1, 1.0, 3.7, 15.9, 16.1, 100.0, 1e8, 1e16, 1e30, 3e38]
PAIRS = list(product(SIZES, SIZES))


def columns(*rows: tuple[float, ...]) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def exact_mixed(alpha: float, beta: float, trials: int) -> Fraction:
    a, b = Fraction(alpha), Fraction(beta)
    right = math.prod(((a + i) / (a + b + i) for i in range(trials)), start=Fraction(1))
    wrong = math.prod(((b + i) / (a + b + i) for i in range(trials)), start=Fraction(1))
    return 1 - right - wrong


@pytest.mark.parametrize("trials", [1, 2, 8, 16, 17, 40])
def test_mixed_probability_equals_exact_arithmetic(trials: int) -> None:
    """To rounding relative to the chance itself, which is as small as 1e-300 here: a difference of ones would be 0."""
    alpha, beta = columns(*PAIRS)
    expected = np.array([float(exact_mixed(*pair, trials)) for pair in PAIRS])
    # At most 16 terms of some 6 roundings each, and the two dozen of the closed form that follows them.
    for group in (trials, torch.full((len(PAIRS),), trials)):
        value = mixed_probability(alpha, beta, group)
        assert value.dtype == torch.float64
        assert ((value >= 0) & (value <= 1)).all()
        # A chance below the normal numbers is known to their spacing only.
        np.testing.assert_allclose(value.numpy(), expected, rtol=128 * EPS, atol=1e-307)


def test_mixed_probability_of_many_rollouts() -> None:
    """Beta(1, b) with b whole: E[(1 - p)^G] = b / (b + G), and E[p^G] = 1 / C(b + G, G)."""
    trials = 10**6
    alpha, beta = columns((1.0, 1.0), (1.0, 2.0), (1.0, 40.0), (40.0, 1.0), (1.0, 10.0**6), (1.0, 2.0**70))
    expected = []
    for a, b in zip(alpha.tolist(), beta.tolist(), strict=True):
        whole = int(max(a, b))
        right = Fraction(1, math.comb(whole + trials, whole)) if whole < 100 else 0  # below 1e-300
        expected.append(float(1 - Fraction(whole, whole + trials) - right))
    np.testing.assert_allclose(mixed_probability(alpha, beta, trials).numpy(), expected, rtol=128 * EPS)
    # Beta(a, 1) with a tiny, to first order in a: P(some success) = a (1 + 1/2 + ... + 1/G), P(all succeed) = a / G.
    tiny = 2.0**-100
    harmonic = math.fsum(1 / i for i in range(1, trials + 1))
    value = mixed_probability(*columns((tiny, 1.0)), trials).item()
    assert value == pytest.approx(tiny * (harmonic - 1 / trials), rel=128 * EPS)


def test_group_sizes_may_differ() -> None:
    """Rows of more than one part, each with its own group size, against one size at a time."""
    rows, sizes = 40_000, torch.tensor([1, 2, 8, 15, 16, 17, 64, 1000])
    alpha, beta = (torch.rand(rows, dtype=torch.float64) * 9 + 0.1 for _ in range(2))
    trials = sizes[torch.arange(rows) % len(sizes)]
    together = mixed_probability(alpha, beta, trials)
    for size in sizes.tolist():
        of_size = trials == size
        alone = mixed_probability(alpha[of_size], beta[of_size], size)
        torch.testing.assert_close(together[of_size], alone, rtol=128 * EPS, atol=0)


def test_mixed_probability_takes_a_numpy_integer_and_float32() -> None:
    alpha, beta = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    value = mixed_probability(alpha, beta, np.int64(2))  # type: ignore[arg-type]
    # 2 a b / ((a + b) (a + b + 1))
    torch.testing.assert_close(value, torch.tensor([1 / 3, 0.4], dtype=torch.float64), rtol=128 * EPS, atol=0)


def exact_entropy(a: int, b: int) -> float:
    """Whole parameters: digammas are harmonic numbers less Euler's constant, which cancels."""

    def harmonic(n: int) -> Fraction:
        return sum((Fraction(1, i) for i in range(1, n)), start=Fraction(0))

    rational = (a + b - 2) * harmonic(a + b) - (a - 1) * harmonic(a) - (b - 1) * harmonic(b)
    # B(a, b) = 1 / (a C(a + b - 1, a))
    with localcontext() as context:
        context.prec = 60
        log_beta = -Decimal(a * math.comb(a + b - 1, a)).ln()
        return float(log_beta + Decimal(rational.numerator) / Decimal(rational.denominator))


def test_entropy_of_whole_parameters() -> None:
    pairs = list(product([1, 2, 5, 15, 16, 17, 60, 400], repeat=2))
    value = entropy(*columns(*((float(a), float(b)) for a, b in pairs))).numpy()
    expected = np.array([exact_entropy(*pair) for pair in pairs])
    # Below 16 log Γ(z) and (z - 1) ψ(z) are subtracted, of up to 50 each; a few roundings of that.
    assert np.abs(value - expected).max() <= 4 * 50 * EPS
    assert abs(entropy(*columns((1.0, 1.0))).item()) <= 8 * EPS


def test_entropy_of_small_parameters() -> None:
    """The textbook formula, which does not cancel there: the entropy goes like -1/a - 1/b."""
    pairs = list(product([1e-38, 1e-30, 1e-6, 0.01, 0.3], [1e-38, 1e-30, 1e-6, 0.01, 0.3, 2.0, 9.0]))
    a, b = np.array(pairs).T
    terms = [special.betaln(a, b), (1 - a) * special.psi(a), (1 - b) * special.psi(b), (a + b - 2) * special.psi(a + b)]
    error = np.abs(entropy(*columns(*pairs)).numpy() - sum(terms))
    assert (error <= 16 * EPS * sum(np.abs(term) for term in terms)).all()


def test_entropy_of_large_parameters() -> None:
    """The normal law where both are large, corrections of 1 / a; p b is Gamma(a) where one is, of a^2 / b."""
    for a in (1e10, 1e16, 1e30, 3e38):
        for ratio in (1.0, 0.01):
            b = a * ratio
            variance = (a / (a + b)) * (b / (a + b)) / (a + b)
            normal = (math.log(2 * math.pi * variance) + 1) / 2
            assert entropy(*columns((a, b))).item() == pytest.approx(normal, abs=4 / b + 4 * 200 * EPS)
    for small in (0.01, 0.5, 2.5, 15.0):
        gamma = small + math.lgamma(small) + (1 - small) * float(special.psi(small))
        for large in (1e18, 1e30, 3e38):
            expected = gamma - math.log(large)
            for pair in ((small, large), (large, small)):
                assert entropy(*columns(pair)).item() == pytest.approx(expected, abs=4 * 200 * EPS)


def test_log_beta_binomial_equals_exact_arithmetic() -> None:
    counts = [(0, 1), (0, 8), (3, 8), (8, 8), (20, 64)]
    cases = [(*pair, *count) for pair in product(SIZES[1:], SIZES[1:]) for count in counts]

    def exact(alpha: float, beta: float, s: int, t: int) -> float:
        def rising(a: Fraction, n: int) -> Fraction:
            return math.prod((a + i for i in range(n)), start=Fraction(1))

        a, b = Fraction(alpha), Fraction(beta)
        chance = math.comb(t, s) * rising(a, s) * rising(b, t - s) / rising(a + b, t)
        with localcontext() as context:
            context.prec = 100
            return float(Decimal(chance.numerator).ln() - Decimal(chance.denominator).ln())

    value = log_beta_binomial(*columns(*cases)).numpy()
    expected = np.array([exact(*case) for case in cases])
    # Sums of up to 64 logarithms that are as large as that of 3e38.
    bound = [16 * EPS * t * math.log(3e38) for *_, t in cases]
    assert (np.abs(value - expected) <= bound).all()
    # Beta(1e16, 1e16) is all but a fair coin; differences of lgamma gave a probability of 55 here.
    fair = log_beta_binomial(*columns((1e16, 1e16, 3.0, 8.0))).item()
    assert fair == pytest.approx(math.log(math.comb(8, 3) / 2**8), abs=1e-12)


def test_mean_does_not_overflow() -> None:
    alpha, beta = torch.tensor([3e38, 3e38, 1.0, 1e-30, 2.0]), torch.tensor([3e38, 1e38, 3e38, 1e-30, 4.0])
    value = mean(alpha, beta)
    assert value.dtype == torch.float32
    expected = (alpha.double() / (alpha.double() + beta.double())).float()
    torch.testing.assert_close(value, expected, rtol=2 * torch.finfo(torch.float32).eps, atol=1e-45)
    # Where nothing overflows, it is the plain quotient, bit by bit.
    alpha, beta = torch.rand(1000) + 0.1, torch.rand(1000) + 0.1
    assert torch.equal(mean(alpha, beta), alpha / (alpha + beta))
