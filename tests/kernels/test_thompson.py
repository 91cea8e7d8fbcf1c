"""Thompson draws: distributions against scipy, backends against the reference, independence of how a pool is cut."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import backend, rng
from bayes_prompt.kernels.thompson import triton as thompson_triton

BACKENDS = ["reference", "cpu", "triton"]
COMPILED = ["cpu", "triton"]
DTYPES = [torch.float32, torch.float64]
LEVEL = (
    1e-3  # chance that a test of a distribution rejects a right one, shared by all the cases of that test (Bonferroni)
)
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}  # half an ulp of numbers in [1, 2), relative to them
SEED, STEP, FIRST = 2**40 + 7, 2**31 + 3, 2**33 + 5  # each beyond 32 signed bits

PARAMETERS = [
    (0.05, 0.05),
    (1e-3, 1e-3),
    (1e-3, 2.0),
    (0.5, 3.0),
    (1.0, 1.0),
    (30.0, 2.0),
    (1e6, 1e6),
    (3e6, 1e4),
    (1e10, 1e10),
]


@pytest.fixture(autouse=True)
def wide_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes milliseconds an operation, however many rows it covers."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(thompson_triton, "BLOCK", 4096)


def sample_beta(
    name: str, alpha: Tensor, beta: Tensor, seed: int = SEED, step: int = STEP, first: int = FIRST
) -> Tensor:
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    out = torch.full_like(alpha, torch.nan, device=device)
    backend.load("thompson", name).sample_beta(alpha.to(device), beta.to(device), seed, step, first, out)
    return out.cpu()


def sample_state(name: str, belief: Tensor, seed: int = SEED, step: int = STEP, first: int = FIRST) -> Tensor:
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    out = torch.full((belief.shape[1],), -99, device=device)
    backend.load("thompson", name).sample_state(belief.to(device), seed, step, first, out)
    return out.cpu()


def log_uniform(low: float, high: float, rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    u = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (math.log(low) + u * math.log(high / low)).exp().to(dtype)


def random_belief(states: int, rows: int, dtype: torch.dtype) -> Tensor:
    """Beliefs with many zeros, at both ends and in between, never all zero."""
    g = torch.Generator().manual_seed(states)
    belief = torch.rand(states, rows, generator=g, dtype=torch.float64)
    belief[torch.rand(states, rows, generator=g) < 0.4] = 0
    belief[torch.randint(states, (rows,), generator=g), torch.arange(rows)] += 0.1
    return (belief / belief.sum(0)).to(dtype)


def kolmogorov_smirnov(draws: np.ndarray, alpha: float, beta: float) -> float:
    """The largest distance between the empirical distribution and Beta(alpha, beta) rounded to the type of the draws.

    A stored number stands for all numbers that round to it, up to the midpoints to its neighbours.
    """
    values, counts = np.unique(draws, return_counts=True)
    upto = np.cumsum(counts) / len(draws)
    exact = values.astype(np.float64)
    above = np.nextafter(values, values.dtype.type(2)).astype(np.float64)
    below = np.nextafter(values, values.dtype.type(-1)).astype(np.float64)
    probability_upto = scipy.stats.beta.cdf((exact + above) / 2, alpha, beta)
    probability_below = scipy.stats.beta.cdf((exact + below) / 2, alpha, beta)
    return float(max(abs(upto - probability_upto).max(), abs(upto - counts / len(draws) - probability_below).max()))


@pytest.mark.parametrize(("alpha", "beta"), PARAMETERS)
def test_distribution_of_beta_draws(alpha: float, beta: float) -> None:
    rows = 200_000
    parameters = torch.tensor([alpha, beta])
    draws = sample_beta("cpu", *(p.expand(rows).contiguous() for p in parameters), seed=0, step=0, first=0).numpy()
    # Dvoretzky, Kiefer, Wolfowitz and Massart: P(distance > t) <= 2 exp(-2 rows t**2), for any distribution.
    critical = math.sqrt(math.log(2 * len(PARAMETERS) / LEVEL) / (2 * rows))
    assert kolmogorov_smirnov(draws, *parameters.double().tolist()) < critical


def test_the_atom_at_one_of_float32() -> None:
    """What rounds to 1 of Beta(0.05, 0.05) is more than a fifth of it: the test above must see it as such."""
    draws = sample_beta("cpu", torch.full((200_000,), 0.05), torch.full((200_000,), 0.05))
    share = scipy.stats.beta.cdf(2.0**-25, 0.05, 0.05)  # within half an ulp of 1, by symmetry
    assert share > 0.2
    assert scipy.stats.binomtest(int((draws == 1).sum()), len(draws), share).pvalue > LEVEL
    assert kolmogorov_smirnov(draws.numpy(), 0.0525, 0.0525) > 0.005  # and a slightly wrong one is told apart


def test_the_two_draws_of_a_row_and_neighbouring_rows_are_uncorrelated() -> None:
    rows = 200_000
    ones = torch.ones(rows, dtype=torch.float64)
    draws = {
        "row": sample_beta("cpu", ones, ones, seed=0, step=0, first=0),
        "next row": sample_beta("cpu", ones, ones, seed=0, step=0, first=1),
        "next step": sample_beta("cpu", ones, ones, seed=0, step=1, first=0),
        "next seed": sample_beta("cpu", ones, ones, seed=1, step=0, first=0),
    }
    correlation = np.corrcoef(np.stack([draw.numpy() for draw in draws.values()]))[0, 1:]
    # Independent draws have a correlation of standard deviation rows**-0.5; 4.5 of them leave 7e-6 for each.
    assert abs(correlation).max() < 4.5 / math.sqrt(rows)


def boost_error(alpha: Tensor, seed: int, step: int, first: int, word: int, unit: float) -> Tensor:
    """A bound of the error of log(u) / alpha, which is 0 for alpha >= 1.

    Rounding u costs `unit` of log u, the logarithm and the division cost two of each of them.
    """
    words = rng.words(seed, step, torch.arange(first, first + len(alpha)), rng.BOOST)
    log = rng.uniform(words[word], torch.float64).log().abs()
    return torch.where(alpha < 1, unit * (1 + 4 * log) / alpha.double(), 0)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e10), (1e-3, 1.0), (1.0, 1e10), (0.1, 100.0)])
def test_beta_draws_agree(name: str, dtype: torch.dtype, low: float, high: float) -> None:
    rows = 20_000
    alpha, beta = log_uniform(low, high, rows, dtype), log_uniform(low, high, rows, dtype, seed=1)
    beta[::2] = alpha[::2]  # of very unequal parameters nearly all draws are 0 or 1
    expected = sample_beta("reference", alpha, beta).double()
    draws = sample_beta(name, alpha, beta)
    assert draws.isfinite().all()
    # The normal's part of the logit is off by 3 c (1/r + 2 r) roundings of u, sine and logarithm, with c < 0.41 and r
    # the radius, which is below 0.004 in one row of 10**5, divided by v, which is below 1/16 in one of 6,000: 128 units
    # of the logit cover all but a few rows, and change a draw by a quarter of that at most. Storing costs one unit.
    unit = UNIT[torch.float64] if name == "cpu" else UNIT[dtype]
    boost = boost_error(alpha, SEED, STEP, FIRST, 0, unit) + boost_error(beta, SEED, STEP, FIRST, 1, unit)
    tolerance = 128 * unit / 4 + boost / 4 + UNIT[dtype]
    # An accept test within rounding error of equality may go the other way. It compares log u, of density at most 1,
    # with a sum that is known to 3 d units < 250 units (`precision`): that is at most one row of 30,000 in float32
    # (none of 6 million was met), none in float64. With the rows left out above, fewer than two are expected at most.
    beyond = int(((draws.double() - expected).abs() > tolerance).sum())
    assert beyond <= (10 if name == "triton" and dtype == torch.float32 else 0)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_parameters_never_make_nan(name: str, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1e-38, 1e-30, 1e-10, 1e-6, 1e-3, 0.999999, 1.0, 7.0, 1e6, 1e10, 1e20], dtype=dtype)
    alpha, beta = (part.reshape(-1).repeat(50).contiguous() for part in torch.meshgrid(values, values, indexing="ij"))
    draws = sample_beta(name, alpha, beta)
    assert ((draws >= 0) & (draws <= 1)).all()
    # Means of the ones that are next to certain: alpha / (alpha + beta) within 1e-5 of 0 or 1.
    assert (draws[(beta >= 1e6) & (alpha <= 7)] < 1e-3).all()
    assert (draws[(alpha >= 1e6) & (beta <= 7)] > 0.999).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_draws_do_not_depend_on_chunks_or_threads(name: str) -> None:
    rows = 40_000 if name == "cpu" else 5_000  # enough for two threads
    alpha, beta = log_uniform(0.1, 100, rows, torch.float32), log_uniform(0.1, 100, rows, torch.float32, seed=1)
    belief = random_belief(4, rows, torch.float32)
    draws, states = sample_beta(name, alpha, beta), sample_state(name, belief)
    for start, stop in ((0, 1), (1, 33), (33, 4500), (4500, rows)):
        part = sample_beta(name, alpha[start:stop], beta[start:stop], first=FIRST + start)
        assert torch.equal(part, draws[start:stop])
        assert torch.equal(sample_state(name, belief[:, start:stop], first=FIRST + start), states[start:stop])
    threads = torch.get_num_threads()
    for count in (1, 3) if name == "cpu" else ():
        torch.set_num_threads(count)
        try:
            assert torch.equal(sample_beta(name, alpha, beta), draws)
            assert torch.equal(sample_state(name, belief), states)
        finally:
            torch.set_num_threads(threads)


def test_two_threads_may_draw_at_once() -> None:
    alpha = log_uniform(0.1, 100, 40_000, torch.float32)
    expected = [sample_beta("cpu", alpha, alpha, step=step) for step in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            drawn = list(pool.map(lambda step: sample_beta("cpu", alpha, alpha, step=step), range(4)))
            assert all(map(torch.equal, drawn, expected))


@pytest.mark.parametrize("name", BACKENDS)
def test_empty_pools(name: str) -> None:
    assert sample_beta(name, torch.empty(0), torch.empty(0)).shape == (0,)
    assert sample_state(name, torch.empty(3, 0)).shape == (0,)


def test_frequencies_of_states() -> None:
    rows = 200_000
    share = torch.tensor([0.2, 0.0, 0.5, 0.29, 0.01, 0.0])
    states = sample_state("cpu", share[:, None].expand(-1, rows), seed=0, step=0, first=0)
    seen = torch.bincount(states, minlength=6).numpy()
    assert seen[1] == seen[5] == 0
    expected = share.double().numpy() * rows / share.double().sum().item()
    assert scipy.stats.chisquare(seen[expected > 0], expected[expected > 0]).pvalue > LEVEL


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("states", [1, 3, 33])
def test_states_agree(name: str, dtype: torch.dtype, states: int) -> None:
    rows = 5_000
    belief = random_belief(states, rows, dtype)
    expected, drawn = sample_state("reference", belief), sample_state(name, belief)
    assert (belief[drawn, torch.arange(rows)] > 0).all()
    if name == "cpu" or dtype == torch.float64:
        assert torch.equal(drawn, expected)
        return
    # In float32 a target may lie on the other side of a boundary only where it is within the rounding of u and of the
    # sums: K additions each of half an ulp of at most 1, for the boundary and for the total.
    word, *_ = rng.words(SEED, STEP, torch.arange(FIRST, FIRST + rows), rng.STATE)
    cumulative = belief.double().cumsum(0)
    target = rng.uniform(word, torch.float64) * cumulative[-1]
    distance = (cumulative - target).abs()
    lower = torch.minimum(drawn, expected)
    assert (distance[lower, torch.arange(rows)][drawn != expected] <= (2 * states + 2) * UNIT[dtype]).all()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prompt", [61915544, 243895815])
def test_a_uniform_number_next_to_one_draws_the_last_possible_state(name: str, dtype: torch.dtype, prompt: int) -> None:
    word, *_ = rng.words(0, 0, torch.tensor([prompt]), rng.STATE)
    assert (
        rng.uniform(word, torch.float32).item() == 1.0
    )  # so that no cumulative sum in float32 is larger than u * total
    # Ten times 0.1 and then less than that in float32: the sum ends below 1. The last states are impossible.
    belief = torch.tensor([0.0, *[0.1] * 9, 0.0999, 0.0, 0.0], dtype=dtype)[:, None]
    assert belief.sum() < 1
    assert sample_state(name, belief, 0, 0, prompt).tolist() == [10]


@pytest.mark.parametrize("name", BACKENDS)
def test_beliefs_need_not_be_normalised_or_contiguous(name: str) -> None:
    belief = random_belief(3, 1_000, torch.float64)
    expected = sample_state(name, belief)
    assert torch.equal(sample_state(name, 8 * belief), expected)  # a power of two changes no rounding
    assert torch.equal(sample_state(name, belief.T.contiguous().T), expected)
    wide = torch.full((3, 3_000), torch.nan, dtype=torch.float64)
    wide[:, 1_000:2_000] = belief
    assert torch.equal(sample_state(name, wide[:, 1_000:2_000]), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_column_without_belief_draws_no_state(name: str) -> None:
    belief = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert sample_state(name, belief).tolist() == [-1, 1]


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments(name: str) -> None:
    module = backend.load("thompson", name)
    a, out = torch.ones(4), torch.full((4,), 7.0)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\), got -1"):
        module.sample_beta(a, a, -1, 0, 0, out)
    with pytest.raises(ValueError, match=r"beta must have shape \(4,\), got \(3,\)"):
        module.sample_beta(a, torch.ones(3), 0, 0, 0, out)
    with pytest.raises(TypeError, match="alpha must be float32 or float64"):
        module.sample_beta(a.half(), a, 0, 0, 0, out)
    with pytest.raises(TypeError, match=r"out must be torch\.float32, got torch\.float64"):
        module.sample_beta(a, a, 0, 0, 0, out.double())
    assert (out == 7).all()
    states = torch.full((4,), 7)
    with pytest.raises(ValueError, match="step must be in"):
        module.sample_state(torch.ones(3, 4), 0, 2**32, 0, states)
    with pytest.raises(ValueError, match=r"belief must have shape \(K, N\)"):
        module.sample_state(torch.ones(4), 0, 0, 0, states)
    with pytest.raises(TypeError, match=r"out must be torch\.int64"):
        module.sample_state(torch.ones(3, 4), 0, 0, 0, out)
    with pytest.raises(ValueError, match=r"out must have shape \(4,\), got \(5,\)"):
        module.sample_state(torch.ones(3, 4), 0, 0, 0, torch.zeros(5, dtype=torch.int64))
    assert (states == 7).all()


@triton.jit
def _trigonometry(u, cos, sin, size, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    x = tl.load(u + row, mask=row < size, other=0.0)
    c, s = thompson_triton._cos_sin(x, TERMS)
    tl.store(cos + row, c, mask=row < size)
    tl.store(sin + row, s, mask=row < size)


@triton.jit
def _logarithm(y, rest, log, size, BELOW: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    x = tl.load(y + row, mask=row < size, other=0.0)
    r, g = thompson_triton._rest(x, BELOW)
    tl.store(rest + row, r, mask=row < size)
    tl.store(log + row, g, mask=row < size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_series_of_the_triton_kernel(dtype: torch.dtype) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = thompson_triton.precision(dtype)
    words = torch.linspace(0, 2**32 - 1, 2001, dtype=torch.float64).long()
    u = torch.cat(
        [rng.uniform(words, dtype), torch.tensor([0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1], dtype=dtype)]
    )
    cos, sin = torch.full_like(u, torch.nan, device=device), torch.full_like(u, torch.nan, device=device)
    _trigonometry[(1,)](u.to(device), cos, sin, len(u), int(precision["TRIG_TERMS"]), 4096)
    angle = 2 * math.pi * u.double()
    # A few roundings of numbers up to 1, and the angle's own in float64: 2 pi units.
    assert (cos.cpu() - angle.cos()).abs().max() < 8 * UNIT[dtype]
    assert (sin.cpu() - angle.sin()).abs().max() < 8 * UNIT[dtype]

    y = torch.linspace(-0.999, 3, 3001, dtype=torch.float64).to(dtype)
    rest, log = torch.full_like(y, torch.nan, device=device), torch.full_like(y, torch.nan, device=device)
    _logarithm[(1,)](y.to(device), rest, log, len(y), precision["SERIES_BELOW"], 4096)
    wide = y.double()
    assert (log.cpu() - wide.log1p()).abs().max() < 16 * UNIT[dtype]
    series = sum((-1) ** (k + 1) * wide**k / k for k in range(4, 60))
    # The kernel's series is off by a few units and its first missing term, both relative to y**4 / 4; beyond its range
    # 1 + y has been rounded, and numbers up to 1/2 cancel.
    near = wide.abs() < precision["SERIES_BELOW"]
    bound = torch.where(near, (8 * UNIT[dtype] + wide**8) * wide**4, torch.tensor(4 * UNIT[dtype], dtype=torch.float64))
    error = (rest.cpu() - series).abs()
    assert (error <= bound)[wide.abs() < 0.5].all()
