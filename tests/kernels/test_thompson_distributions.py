"""Thompson draws: goodness of fit in the middle and in the tails, and how rarely backends take different attempts.

A stored draw stands for all numbers that round to it, and is compared with the distribution rounded in the same way:
more than a fifth of Beta(0.05, 0.05) is 1.0 in float32. Seeds are 0 throughout. The interpreter and the reference are
slow and draw fewer rows than the CPU's kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from bayes_prompt.kernels import backend, rng
from bayes_prompt.kernels.thompson import reference, triton_gamma
from bayes_prompt.kernels.thompson import triton as thompson_triton

# The reference computes in float64 whatever it stores: one type is enough.
CASES = [
    ("reference", torch.float64),
    ("cpu", torch.float32),
    ("cpu", torch.float64),
    ("triton", torch.float32),
    ("triton", torch.float64),
]
ROWS = {"reference": 50_000, "cpu": 1_000_000, "triton": 1_000_000 if torch.cuda.is_available() else 50_000}
LEVEL = 1e-3  # chance that a test rejects right draws, shared by all that it compares, over its cases too (Bonferroni)
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}  # half an ulp of numbers in [1, 2), relative to them

BETAS = [
    (1e-3, 1e-3),
    (1e-3, 1.0),
    (0.05, 0.05),
    (0.3, 4.0),
    (0.5, 0.5),
    (1.0, 1.0),
    (1.0, 2.0),
    (2.0, 5.0),
    (8.0, 8.0),
    (1.0, 1e4),
    (1e3, 1e3),
    (1e6, 2.0),
    (1e6, 1e6),
]
DIRICHLETS = [
    (1e-3, 1.0, 1.0),
    (0.05, 0.05, 0.05),
    (1.0, 1.0, 1.0),
    (1e6, 1.0, 1e3),
    (0.0, 1.0, 2.5),
    (0.3, 8.0, 0.0),
    (0.0, 0.0, 3.0),
]
BELIEFS = [
    (0.2, 0.0, 0.5, 0.29, 0.01, 0.0),
    (0.0, *[0.1] * 9, 0.0999, 0.0),  # in float32 the sum ends below 1
    (1e-4, 1.0, 1e-4),
    (3.0, 0.0, 0.001, 7.0),
]


@pytest.fixture(autouse=True, scope="module")
def wide_blocks() -> Iterator[None]:
    """The interpreter takes milliseconds an operation, however many rows it covers."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(thompson_triton, "BLOCK", 1 << 15)
        yield


def device(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


@functools.cache
def parameters(dtype: torch.dtype = torch.float64) -> Tensor:
    """The table, (2, 13), rounded to float32 whatever the dtype, so that all backends draw for the same."""
    return torch.tensor(BETAS).T.to(dtype)


@functools.cache
def beta_draws(name: str, dtype: torch.dtype, rows: int) -> Tensor:
    """`rows` draws of each distribution of the table, (13, rows)."""
    alpha, beta = (part.repeat_interleave(rows).to(device(name)) for part in parameters(dtype))
    out = torch.full_like(alpha, torch.nan)
    backend.load("thompson", name).sample_beta(alpha, beta, 0, 0, 0, out)
    return out.reshape(-1, rows).cpu()


@functools.cache
def dirichlet_draws(name: str, dtype: torch.dtype) -> Tensor:
    """Draws of each distribution of the table, (7, 3, rows)."""
    concentration = torch.tensor(DIRICHLETS).to(dtype)[:, :, None].repeat(1, 1, ROWS[name]).to(device(name))
    out = torch.full_like(concentration, torch.nan)
    backend.load("thompson", name).sample_dirichlet(concentration, 0, 0, 0, out)
    return out.cpu()


def cdf(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """P(X <= x) for X from Beta(alpha, beta), at long doubles, as they hold the midpoints between float64 numbers."""
    tiny, upper = x < 1e-300, x > 0.5
    low = np.clip(x, 1e-300, 0.5).astype(np.float64)
    with np.errstate(divide="ignore"):
        power = alpha * np.log(np.clip(x, 0, 1e-300)).astype(np.float64)
    # The first term of the series in x, where float64 is about to end.
    first = np.exp(power - math.log(alpha) - scipy.special.betaln(alpha, beta))
    complement = scipy.special.betainc(beta, alpha, np.clip(1 - x, 0, 0.5).astype(np.float64))
    return np.where(upper, 1 - complement, np.where(tiny, first, scipy.special.betainc(alpha, beta, low)))


def rounded_cdf(values: np.ndarray, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """P(X <= value) and P(X < value) for X from Beta(alpha, beta) rounded to the type of `values`."""
    exact = values.astype(np.longdouble)
    above, below = (np.nextafter(values, values.dtype.type(end)).astype(np.longdouble) for end in (2, -1))
    return cdf((exact + above) / 2, alpha, beta), cdf((exact + below) / 2, alpha, beta)


def kolmogorov_smirnov(draws: np.ndarray, alpha: float, beta: float) -> float:
    """The largest distance between the empirical distribution and Beta(alpha, beta) rounded to the type of the draws.

    It is looked for at, and just below, one draw in every ten-thousandth of them, which misses 1e-4 of it at most.
    """
    draws = np.sort(draws)
    values = np.unique(draws[:: len(draws) // 10_000])
    upto, below = (np.searchsorted(draws, values, side) / len(draws) for side in ("right", "left"))
    probability_upto, probability_below = rounded_cdf(values, alpha, beta)
    return float(max(abs(upto - probability_upto).max(), abs(below - probability_below).max()))


def critical(rows: int, cases: int) -> float:
    """Dvoretzky, Kiefer, Wolfowitz and Massart: P(distance > t) <= 2 exp(-2 rows t**2), for any distribution."""
    return math.sqrt(math.log(2 * cases / LEVEL) / (2 * rows))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_beta(name: str, dtype: torch.dtype) -> None:
    draws = beta_draws(name, dtype, ROWS[name]).numpy()
    distances = [kolmogorov_smirnov(*case) for case in zip(draws, *parameters().tolist(), strict=True)]
    assert max(distances) < critical(ROWS[name], len(CASES) * len(BETAS)), distances


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_tails_of_beta(name: str, dtype: torch.dtype) -> None:
    """As many draws lie beyond the quantiles 1e-4 and 1e-5, at both ends, as binomial counts may be."""
    pvalues = {}
    draws = beta_draws(name, dtype, ROWS[name]).numpy()
    for row, alpha, beta in zip(draws, *parameters().tolist(), strict=True):
        for share in (1e-4, 1e-5):
            low = np.array([scipy.stats.beta.ppf(share, alpha, beta)], row.dtype)
            high = np.array([scipy.stats.beta.isf(share, alpha, beta)], row.dtype)
            for end, count, expected in (
                ("low", (row <= low).sum(), rounded_cdf(low, alpha, beta)[0]),
                ("high", (row >= high).sum(), 1 - rounded_cdf(high, alpha, beta)[1]),
            ):
                test = scipy.stats.binomtest(int(count), len(row), float(expected[0]))
                pvalues[alpha, beta, share, end] = test.pvalue
    assert min(pvalues.values()) > LEVEL / (len(CASES) * len(pvalues)), pvalues


def test_a_slightly_wrong_distribution_is_told_apart() -> None:
    """Also where most draws are 0 or 1, or so near to them that their logarithms alone tell them apart."""
    draws = beta_draws("cpu", torch.float32, ROWS["cpu"]).numpy()
    limit = critical(ROWS["cpu"], len(CASES) * len(BETAS))
    for row, (alpha, beta) in zip(draws, BETAS, strict=True):
        assert kolmogorov_smirnov(row, 1.05 * alpha, beta) > limit, (alpha, beta)
    share = scipy.stats.beta.cdf(2.0**-25, 0.05, 0.05)  # of what rounds to 1: within half an ulp of it, by symmetry
    assert share > 0.2
    ones = int((draws[BETAS.index((0.05, 0.05))] == 1).sum())
    assert scipy.stats.binomtest(ones, ROWS["cpu"], share).pvalue > LEVEL


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_entries_of_dirichlet_rows(name: str, dtype: torch.dtype) -> None:
    """Each entry is Beta(its concentration, the others'), and certain where one of the two is 0."""
    draws = dirichlet_draws(name, dtype)
    # The sum of K roundings of numbers below 1, and of three more each in the kernels' own quotients.
    assert ((draws.double().sum(1) - 1).abs() <= 12 * UNIT[dtype]).all()
    distances = {}
    for row, concentration in zip(draws.numpy(), torch.tensor(DIRICHLETS).tolist(), strict=True):
        for k, own in enumerate(concentration):
            rest = sum(concentration) - own
            if own == 0 or rest == 0:
                assert (row[k] == (0 if own == 0 else 1)).all()
            else:
                distances[tuple(concentration), k] = kolmogorov_smirnov(row[k], own, rest)
    assert max(distances.values()) < critical(ROWS[name], len(CASES) * len(distances)), distances


@pytest.mark.parametrize("name", ROWS)
def test_covariance_of_dirichlet_entries(name: str) -> None:
    """-m m' / (sum + 1) between two entries of a row of means m and m', none between rows or prompts.

    Means of so many products are nearly normal, but for concentrations that make nearly all of them tiny.
    """
    draws = dirichlet_draws(name, torch.float64)
    scores = {}
    for row, concentration in zip(draws, torch.tensor(DIRICHLETS).double(), strict=True):
        mean = concentration / concentration.sum()
        for i, j in ((0, 1), (0, 2), (1, 2)):
            products = (row[i] - mean[i]) * (row[j] - mean[j])
            expected = -mean[i] * mean[j] / (concentration.sum() + 1)
            if expected < 0 and min(concentration[i], concentration[j]) >= 0.05:
                scores[tuple(concentration.tolist()), i, j] = (products.mean() - expected) / products.std()
    uniform = draws[DIRICHLETS.index((1.0, 1.0, 1.0))] - 1 / 3
    for other, (r, k) in {"row": (1, 0), "row and entry": (0, 1)}.items():
        across = draws[r, k] - draws[r, k].mean()
        products = uniform[0] * across
        scores["another " + other] = products.mean() / products.std()
    products = uniform[0, 1:] * uniform[0, :-1]
    scores["another prompt"] = products.mean() / products.std()
    deviations = {what: float(score) * math.sqrt(ROWS[name]) for what, score in scores.items()}
    limit = scipy.stats.norm.isf(LEVEL / (2 * len(ROWS) * len(deviations)))
    assert max(map(abs, deviations.values())) < limit, deviations


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_frequencies_of_states(name: str, dtype: torch.dtype) -> None:
    """The multinomial of the belief over its sum, whatever that is; an impossible state never."""
    rows = ROWS[name]
    for number, weights in enumerate(BELIEFS):
        belief = torch.tensor(weights, dtype=dtype)
        states = torch.full((rows,), -99, device=device(name))
        columns = belief[:, None].expand(-1, rows).to(device(name))
        backend.load("thompson", name).sample_state(columns, 0, number, 0, states)
        seen = torch.bincount(states.cpu(), minlength=len(weights)).numpy()
        expected = (belief.double() / belief.double().sum()).numpy() * rows
        assert seen.sum() == rows and (seen[expected == 0] == 0).all()
        for count, mean in zip(seen, expected, strict=True):  # exact, for some are rare
            if mean > 0:
                test = scipy.stats.binomtest(int(count), rows, min(1.0, mean / rows))
                assert test.pvalue > LEVEL / (len(CASES) * sum(map(len, BELIEFS))), (weights, seen)


def other_attempts(name: str, dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor]:
    """Of each distribution of the table: rows that show which attempts they took, rows that took another one.

    Another attempt moves the logit of a draw by about the standard deviation of log X - log Y, for gamma variates X and
    Y; rounding by far less. Draws that are next to 0 or 1 say nothing about it, nor do those where what carries X to a
    small shape is rounded more coarsely than that.
    """
    expected, draws = beta_draws("reference", torch.float64, rows), beta_draws(name, dtype, rows).double()
    unit = UNIT[torch.float64] if name == "cpu" else UNIT[dtype]  # the CPU's kernel computes in float64
    shapes = parameters()[:, :, None]
    words = rng.words(0, 0, torch.arange(expected.numel()), rng.BOOST)[:2]
    logs = torch.stack([rng.uniform(word, torch.float64).log().abs().reshape(-1, rows) for word in words])
    # log(u) / a: a rounding of u costs a unit of log u; the logarithm and the quotient cost two of each.
    boosted = torch.where(shapes < 1, unit * (1 + 4 * logs) / shapes, 0).sum(0)
    deviation = (1 / torch.where(shapes < 1, shapes + 1, shapes)).sum(0).sqrt()
    tolerance = 1e-3 * deviation + boosted + 2 * UNIT[dtype] / (1 - expected)
    telling = (expected > torch.finfo(dtype).tiny) & (tolerance < deviation / 20)
    other = telling & ~((draws.logit() - expected.logit()).abs() <= tolerance)
    return telling.sum(1), other.sum(1)


@functools.cache
def chance_of_another_attempt(dtype: torch.dtype) -> Tensor:
    """A bound of the chance that a row takes another attempt, for each distribution of the table, (13,).

    A gamma variate is accepted where log u < T with T = 3 d R(y), y = c x, and R the series of log(1 + y) from y**4 on.
    The density of log u at T is exp(T). If both sides together are known to within e, the test goes the other way with
    a chance of at most 2 e exp(T), over which we take the mean over normals x. A row has two variates with at most 1.05
    attempts each. In units of rounding, e adds up from

    - log u: 1 for u, which is relative, and 2 |T| for the logarithm, since log u = T at the boundary;
    - R: 8 of y**4 (and the first term that its series leaves out) where the series is used, 4 (1 + |log(1 + y)|)
      beyond; 3 d times that;
    - the product with 3 d: 4 |T|;
    - x = r cos: for u = exp(-r**2 / 2) is rounded, r is known to 1 / r + 2 r, and the angle and its cosine to 2 pi + 6
      of r, which with c makes 1 / r + 16 r, times |dT / dx| = 3 d c |y**3 / (1 + y)|.
    """
    unit, below = UNIT[dtype], triton_gamma.precision(dtype)["SERIES_BELOW"]
    w0, w1, _, _ = rng.words(0, 0, torch.arange(20_000), rng.BETA)
    r = (-2 * rng.uniform(w0, torch.float64).log()).sqrt()
    x = r * (2 * math.pi * rng.uniform(w1, torch.float64)).cos()
    chance = torch.zeros(len(BETAS), dtype=torch.float64)
    for shapes in parameters():
        d, c = (part[:, None] for part in reference._constants(shapes))
        y = (c * x).clamp_min(-1 + 1e-9)  # beyond, T is lower still
        log = y.log1p()
        series = sum((-1) ** (k + 1) * y**k / k for k in range(4, 20))
        t = 3 * d * torch.where(y.abs() < 1 / 8, series, log - y * (1 - y * (1 / 2 - y / 3)))
        rest = torch.where(y.abs() < below, (8 * unit + y**8 / 12) * y**4, 4 * unit * (1 + log.abs()))
        slope = 3 * d * c * (y**3 / (1 + y)).abs()
        error = 3 * d * rest + unit * (1 + 6 * t.abs() + slope * (1 / r + 16 * r))
        chance += 1.05 * (2 * error * t.exp()).mean(1)
    return chance


@pytest.mark.parametrize(("name", "dtype"), [case for case in CASES if case[0] != "reference"])
def test_backends_take_the_same_attempts(name: str, dtype: torch.dtype) -> None:
    """All but the few rows whose accept test lies within rounding error of equality."""
    telling, other = other_attempts(name, dtype, ROWS["triton"])
    assert (telling > 1_000).all()
    # The reference's own rounding counts as well: that of float64 is as large as the other's, or does not matter.
    computed = torch.float64 if name == "cpu" else dtype
    chance = 2 * chance_of_another_attempt(computed)
    assert chance.max() < (1e-5 if computed == torch.float32 else 1e-11)
    limit = scipy.stats.binom.isf(LEVEL / (4 * len(BETAS)), telling, chance)
    assert (other.numpy() <= limit).all(), other
