"""The Kalman filter on the logit: against fine grids, against eager steps of every row, and over extremes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from scipy import stats
from scipy.signal import fftconvolve
from torch import Tensor

from bayes_prompt.acquisition import ExpectedVariance, InformativeProbability, UncertaintyBonus
from bayes_prompt.errors import CheckpointError
from bayes_prompt.models.kalman import METHODS, LogitGaussian
from bayes_prompt.posteriors.kalman import KalmanPosterior
from bayes_prompt.posteriors.logit_gaussian import expectation, mixed, polya_gamma, tilted
from bayes_prompt.selector import PromptSelector

F64 = torch.float64
DRIFT, DEVIATION = 0.3, 1.5
COUNTS = st.tuples(st.sampled_from([1, 2, 8, 1000]), st.floats(0, 1)).map(lambda c: (round(c[0] * c[1]), c[0]))


def one(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=F64) for value in values]


def normal(loc: float, scale: float) -> dist.Normal:
    """In float64: torch would round plain numbers to float32 first."""
    return dist.Normal(torch.tensor(loc, dtype=F64), torch.tensor(scale, dtype=F64))


def dense(mean: float, deviation: float, successes: float = 0, trials: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """A hundred thousand equal steps of (logit - mean) over all that the belief reaches; log prior times likelihood."""
    most = deviation**2 * trials  # the mode is no farther from the mean, and less than 40 from it or from 0
    low = -min(most, max(mean, 0) + 40) - 10 * deviation
    high = min(most, max(-mean, 0) + 40) + 10 * deviation
    offset = np.linspace(low, high, 100_001)  # as offsets, narrow beliefs keep their digits
    log_density = stats.norm.logpdf(offset, 0, deviation) + math.log((high - low) / 100_000)
    logit = mean + offset
    return offset, log_density - successes * np.logaddexp(0, -logit) - (trials - successes) * np.logaddexp(0, logit)


@settings(max_examples=40, deadline=None)
@given(
    mean=st.floats(-30, 30),
    deviation=st.sampled_from([1e-4, 0.1, 0.7, 1.5, 3.0, 10.0]),
    trials=st.sampled_from([1, 2, 8, 16]),
)
def test_answers_are_integrals_over_the_gaussian(mean: float, deviation: float, trials: int) -> None:
    """Within what the declaration says of 32 points."""
    model = LogitGaussian(normal(mean, deviation))
    posterior = model.posterior(2, dtype=F64)
    offset, log_density = dense(mean, deviation)
    rate, weight = 1 / (1 + np.exp(-mean - offset)), np.exp(log_density)
    tolerance = 1e-8 if deviation <= 3 else 1e-6
    for answer, values in (
        (posterior.success_rate(), rate),
        (posterior.expected_variance(), rate * (1 - rate)),
        (posterior.informative_probability(trials), 1 - rate**trials - (1 - rate) ** trials),
        (posterior.informative_probability(torch.tensor([trials, 1])), 1 - rate**trials - (1 - rate) ** trials),
    ):
        assert float(answer[0]) == pytest.approx(weight @ values, abs=tolerance)
    assert float(posterior.informative_probability(torch.tensor([1, trials]))[0]) == 0.0
    assert float(posterior.entropy()[0]) == pytest.approx(float(stats.norm(mean, deviation).entropy()), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(mean=st.floats(-8, 8), deviation=st.sampled_from([1e-4, 0.1, 0.7, 1.5, 3.0, 10.0]), counts=COUNTS)
def test_the_product_of_belief_and_likelihood(mean: float, deviation: float, counts: tuple[int, int]) -> None:
    """Evidence and both moments, with a thousand rollouts as well as with one."""
    successes, trials = counts
    offset, terms = dense(mean, deviation, successes, trials)
    peak = terms.max()
    weight = np.exp(terms - peak)
    total = weight.sum()
    shift = offset @ weight / total
    spread = (offset - shift) ** 2 @ weight / total
    found = tilted(*one(mean, deviation**2, successes, trials), 128)
    # Up to 3 the quadrature is exact to rounding, which sums of terms of up to 1e4, and 8 + offset, leave.
    tolerance = 1e-9 if deviation <= 3 else 2e-4
    assert float(found[0]) == pytest.approx(peak + math.log(total), abs=tolerance)
    assert float(found[1]) == pytest.approx(mean + shift, abs=tolerance * math.sqrt(spread) + 1e-14)
    assert float(found[2]) == pytest.approx(spread, rel=tolerance)


@settings(max_examples=40, deadline=None)
@given(mean=st.floats(-4, 4), deviation=st.sampled_from([1e-4, 0.3, 1.0, 2.0]), counts=COUNTS)
def test_polya_gamma_is_where_its_iteration_ends(mean: float, deviation: float, counts: tuple[int, int]) -> None:
    """The updates of the variational posterior, written as they are published, leave it where it is."""
    successes, trials = counts
    found_mean, found_variance = (float(v) for v in polya_gamma(*one(mean, deviation**2, successes, trials)))
    c = math.sqrt(found_mean**2 + found_variance)
    weight = trials / (2 * c) * math.tanh(c / 2)
    variance = 1 / (1 / deviation**2 + weight)
    assert found_variance == pytest.approx(variance, rel=1e-9)
    updated = variance * (mean / deviation**2 + successes - trials / 2)
    assert found_mean == pytest.approx(updated, abs=1e-9 * max(1, abs(updated)))


def test_polya_gamma_is_where_its_iteration_gets_to() -> None:
    """From the prior, by the updates alone: of the fixed points, if there were several, this one."""
    mean, variance = torch.tensor([0.0, 1.0, -3.0, 2.0], dtype=F64), torch.tensor([2.25, 1.0, 0.5, 1e-8], dtype=F64)
    successes, trials = torch.tensor([[8.0, 0.0, 5.0, 8.0], [8.0, 8.0, 8.0, 8.0]], dtype=F64)
    m, v = mean, variance
    for _ in range(1_000):
        c = (m.square() + v).sqrt()
        v = 1 / (1 / variance + trials / (2 * c) * (c / 2).tanh())
        m = v * (mean / variance + successes - trials / 2)
    found = polya_gamma(mean, variance, successes, trials)
    torch.testing.assert_close(found[0], m, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], v, rtol=1e-9, atol=0)


@dataclass(frozen=True)
class Exact:
    """Counts of 8 rollouts and the time after each look (T, N), (T,), and what a grid filter says of them."""

    counts: np.ndarray
    elapsed: np.ndarray
    success_rate: np.ndarray  # (T, N), after each look and its time
    informative: np.ndarray
    evidence: float


@pytest.fixture(scope="module")
def exact() -> Exact:
    """150 prompts drawn from the model, 20 looks, and exact Bayes on 4,001 points of the logit."""
    prompts, looks = 150, 20
    generator = np.random.default_rng(7)
    elapsed = np.where(np.arange(looks) % 5 == 4, 3.0, 1.0)
    steps = DRIFT * np.sqrt(elapsed)[:, None] * generator.standard_normal((looks, prompts))
    logits = DEVIATION * generator.standard_normal(prompts) + np.cumsum(steps, 0) - steps
    counts = generator.binomial(8, 1 / (1 + np.exp(-logits)))
    x = np.linspace(-20, 20, 4_001)
    rate, moves = 1 / (1 + np.exp(-x)), np.arange(-600, 601) * (x[1] - x[0])
    belief = np.repeat(stats.norm.pdf(x, 0, DEVIATION)[None], prompts, 0)
    belief /= belief.sum(1, keepdims=True)
    rates, informative, evidence = [], [], 0.0
    for successes, time in zip(counts, elapsed, strict=True):
        belief = belief * stats.binom.pmf(np.arange(9)[:, None], 8, rate)[successes]
        evidence += float(np.log(belief.sum(1)).sum())
        kernel = stats.norm.pdf(moves, 0, DRIFT * math.sqrt(time))
        belief = fftconvolve(belief, kernel[None] / kernel.sum(), mode="same", axes=1).clip(min=0)
        belief /= belief.sum(1, keepdims=True)
        rates.append(belief @ rate)
        informative.append(belief @ (1 - rate**8 - (1 - rate) ** 8))
    return Exact(counts, elapsed, np.array(rates), np.array(informative), evidence)


@pytest.mark.parametrize(
    ("method", "first", "mean", "largest"),
    [("moments", 0.008, 0.004, 0.08), ("polya_gamma", 0.03, 0.025, 0.20)],
)
def test_the_error_against_exact_bayes(exact: Exact, method: str, first: float, mean: float, largest: float) -> None:
    """The errors that the docs state, with room to vary.

    Of 2,000 prompts and 20 looks with a unit of time between them, the errors of the success rate and of
    P(informative) were on average 0.0013 and 0.0026 (moments), 0.0045 and 0.016 (polya_gamma); at the largest 0.052 and
    0.044, 0.035 and 0.109.
    """
    looks, prompts = exact.counts.shape
    posterior = LogitGaussian(normal(0.0, DEVIATION), drift=DRIFT, method=method).posterior(prompts, dtype=F64)
    errors = []
    for t in range(looks):
        posterior.update(torch.arange(prompts), torch.from_numpy(exact.counts[t]), 8, elapsed=float(exact.elapsed[t]))
        rate, informative = posterior.success_rate().numpy(), posterior.informative_probability(8).numpy()
        errors.append([np.abs(rate - exact.success_rate[t]), np.abs(informative - exact.informative[t])])
    error = np.array(errors)  # (T, 2, N)
    assert error[0].max() < first
    assert (error.mean((0, 2)) < mean).all() and error.max() < largest
    assert abs(posterior.log_count_evidence - exact.evidence) / exact.counts.size < 0.01


def test_one_observation_is_exact_to_quadrature() -> None:
    """With moments, the mean and variance after a look are those of the grid."""
    posterior = LogitGaussian(normal(0.4, 1.2), drift=0.0).posterior(9, dtype=F64)
    posterior.update(torch.arange(9), torch.arange(9), 8)
    for successes in range(9):
        offset, terms = dense(0.4, 1.2, successes, 8)
        weight = np.exp(terms) / np.exp(terms).sum()
        shift = offset @ weight
        assert float(posterior.mean[successes]) == pytest.approx(0.4 + shift, abs=1e-9)
        assert float(posterior.variance[successes]) == pytest.approx((offset - shift) ** 2 @ weight, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(mean=st.floats(-10, 10), deviation=st.sampled_from([1e-4, 0.5, 2.0]), trials=st.sampled_from([1, 8, 300]))
def test_chances_of_all_counts_sum_to_one(mean: float, deviation: float, trials: int) -> None:
    """Told by the evidence that one observation of a prompt adds."""
    logs = []
    for successes in range(trials + 1) if trials <= 8 else ():
        posterior = LogitGaussian(normal(mean, deviation)).posterior(1, dtype=F64)
        posterior.update([0], [successes], trials)
        logs.append(posterior.log_count_evidence)
    if not logs:  # the same of a larger group in one call
        s = torch.arange(trials + 1, dtype=F64)
        given_ = torch.full_like(s, mean), torch.full_like(s, deviation**2), s, torch.full_like(s, trials)
        coefficient = torch.lgamma(s * 0 + trials + 1) - torch.lgamma(s + 1) - torch.lgamma(trials - s + 1)
        logs = (tilted(*given_, 128)[0] + coefficient).tolist()
    assert math.fsum(map(math.exp, logs)) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30, deadline=None)
@given(mean=st.floats(-5, 5), counts=COUNTS)
def test_failures_are_successes_of_the_mirror_image(method: str, mean: float, counts: tuple[int, int]) -> None:
    successes, trials = counts
    here = LogitGaussian(normal(mean, 1.5), trend=0.25, method=method).posterior(1, dtype=F64)
    there = LogitGaussian(normal(-mean, 1.5), trend=-0.25, method=method).posterior(1, dtype=F64)
    here.update([0], [successes], trials)
    there.update([0], [trials - successes], trials)
    torch.testing.assert_close(here.mean, -there.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(here.variance, there.variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(here.success_rate(), 1 - there.success_rate(), rtol=0, atol=1e-8)
    assert here.log_count_evidence == pytest.approx(there.log_count_evidence, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_more_successes_mean_a_higher_rate_and_any_look_narrows(method: str) -> None:
    posterior = LogitGaussian(normal(0.0, 1.5), drift=0.0, method=method).posterior(9, dtype=F64)
    posterior.update(torch.arange(9), torch.arange(9), 8)
    assert bool((posterior.mean.diff() > 0).all()) and bool((posterior.success_rate().diff() > 0).all())
    assert bool((posterior.variance < 1.5**2).all())


class Eager:
    """The published filter: every row is moved in every step. The conditioning is that of the package, row by row."""

    def __init__(self, model: LogitGaussian, prompts: int) -> None:
        tables = model.lower(F64)
        self.model = model
        self.mean, self.variance = tables.mean.expand(prompts).clone(), tables.variance.expand(prompts).clone()

    def update(self, index: list[int], successes: list[int], trials: list[int], elapsed: float) -> None:
        for row in set(index):
            s = float(sum(s for i, s in zip(index, successes, strict=True) if i == row))
            t = float(sum(t for i, t in zip(index, trials, strict=True) if i == row))
            belief = *one(float(self.mean[row]), float(self.variance[row])), *one(s, t)
            moments = tilted(*belief, 128)[1:] if self.model.method == "moments" else polya_gamma(*belief)
            self.mean[row], self.variance[row] = (float(moment) for moment in moments)
        self.mean += self.model.trend * elapsed
        self.variance += self.model.drift**2 * elapsed


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[list[int], list[int], list[int], float]]:
    """Index, successes, trials and elapsed time of a few steps; some observe nothing, some a prompt twice."""
    result = []
    for _ in range(draw(st.integers(1, 8))):
        index = draw(st.lists(st.integers(0, 5), max_size=6))
        trials = [draw(st.sampled_from([1, 2, 8, 500])) for _ in index]
        successes = [draw(st.sampled_from([0, t // 2, t])) for t in trials]
        result.append((index, successes, trials, draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))))
    return result


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(history=histories(), drift=st.sampled_from([0.0, 0.3, 2.0]), trend=st.sampled_from([-0.1, 0.0, 0.5]))
def test_a_lazy_step_is_a_step_of_every_row(method: str, history: list[Any], drift: float, trend: float) -> None:
    model = LogitGaussian(normal(0.2, 1.5), drift=drift, trend=trend, method=method)
    lazy, eager = model.posterior(6, dtype=F64), Eager(model, 6)
    for step in history:
        lazy.update(*step)
        eager.update(*step)
        # A sum of a few steps against their product: rounding alone, carried through the conditioning.
        torch.testing.assert_close(lazy.mean, eager.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(lazy.variance, eager.variance, rtol=1e-9, atol=0)


def test_a_step_writes_the_observed_rows_alone() -> None:
    posterior = LogitGaussian().posterior(1_000)
    before = posterior.state_dict()["tensors"]
    posterior.update([3, 500], [1, 8], 8, elapsed=2.5)
    after = posterior.state_dict()["tensors"]
    for name in ("mean", "variance"):
        assert (before[name] != after[name]).nonzero().flatten().tolist() == [3, 500]
    posterior.update([3], [1], 8)
    seen_at = posterior.state_dict()["tensors"]["seen_at"]
    assert seen_at.nonzero().flatten().tolist() == [3] and float(seen_at[3]) == 2.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@settings(max_examples=15, deadline=None)
@given(
    loc=st.sampled_from([0.0, -30.0, 1e6]),
    scale=st.sampled_from([1e-4, 1.5, 10.0, 1e6]),
    drift=st.sampled_from([0.0, 0.3, 1e6]),
    trend=st.sampled_from([0.0, -1e6]),
    huge=st.sampled_from([1.0, 1e-300, 1e307]),
    history=histories(),
)
def test_it_stays_a_belief(
    method: str,
    dtype: torch.dtype,
    loc: float,
    scale: float,
    drift: float,
    trend: float,
    huge: float,
    history: list[Any],
) -> None:
    posterior = LogitGaussian(normal(loc, scale), drift=drift, trend=trend, method=method).posterior(6, dtype=dtype)
    for step, (index, successes, trials, elapsed) in enumerate(history):
        posterior.update(index, successes, trials, elapsed * huge)
        assert bool(torch.isfinite(posterior.mean).all()) and bool(torch.isfinite(posterior.entropy()).all())
        assert bool(((posterior.variance > 0) & torch.isfinite(posterior.variance)).all())
        for figure in (
            posterior.success_rate(),
            posterior.informative_probability(8),
            4 * posterior.expected_variance(),
            posterior.sample_success_rate(0, step),
        ):
            # A weighted mean of numbers in [0, 1]: its sums are rounded a few times.
            assert bool(((figure >= 0) & (figure <= 1 + 4 * torch.finfo(dtype).eps)).all())
        assert math.isfinite(posterior.log_count_evidence)
    fresh = LogitGaussian(normal(loc, scale), drift=drift, trend=trend, method=method).posterior(6, dtype=dtype)
    fresh.load_state_dict(posterior.state_dict())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variance", [1e-8, 2.25, 100.0])
def test_a_thousand_failures(method: str, variance: float) -> None:
    """The belief follows where it was open, and hardly moves where it was sure."""
    model = LogitGaussian(normal(1.0, math.sqrt(variance)), drift=0.0, method=method)
    posterior = model.posterior(1, dtype=F64)
    posterior.update([0], [0], 1_000)
    rate = float(posterior.success_rate()[0])
    if variance < 1:
        pull = variance * 1_000 / (1 + math.exp(-1.0))  # what the slope of the likelihood moves a narrow belief by
        assert float(posterior.mean[0]) == pytest.approx(1.0 - pull, abs=1e-3 * pull)
        assert rate == pytest.approx(1 / (1 + math.exp(-1.0)), abs=1e-5)
    else:
        # The exact posterior ends near 1/1000. A Gaussian as wide as it is has a tail beyond, of a percent at most.
        assert 0 < rate < 0.01 and float(posterior.variance[0]) < variance
        assert float(posterior.informative_probability(8)[0]) <= 8 * rate


def test_draws_are_of_the_logit_normal() -> None:
    posterior = LogitGaussian(normal(-0.5, 0.8), drift=0.6).posterior(40_000, dtype=F64)
    posterior.advance()
    draws = posterior.sample_success_rate(seed=3, step=1).numpy()
    logits = np.log(draws) - np.log1p(-draws)
    assert stats.kstest(logits, stats.norm(-0.5, 1.0).cdf).pvalue > 1e-3
    assert not np.array_equal(draws, posterior.sample_success_rate(seed=3, step=2).numpy())
    assert not np.array_equal(draws, posterior.sample_success_rate(seed=4, step=1).numpy())
    assert np.array_equal(draws, posterior.sample_success_rate(seed=3, step=1).numpy())


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 1_099))
def test_a_chunked_pool_is_the_whole_pool(method: str, seed: int, cut: int) -> None:
    """To the last bit, wherever the pool of 1,100 is cut: blocks of rows end in one and not in the other."""
    model = LogitGaussian(trend=0.1, method=method)
    whole = model.posterior(1_100, dtype=F64)
    chunks = [model.posterior(cut, dtype=F64), model.posterior(1_100 - cut, first_prompt=cut, dtype=F64)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        index, successes = (
            torch.randint(1_100, (40,), generator=generator),
            torch.randint(9, (40,), generator=generator),
        )
        whole.update(index, successes, 8)
        for chunk, mine, offset in zip(chunks, (index < cut, index >= cut), (0, cut), strict=True):
            chunk.update(index[mine] - offset, successes[mine], 8)
    for question in ("success_rate", "expected_variance", "entropy"):
        answers = [getattr(chunk, question)() for chunk in chunks]
        assert torch.equal(torch.cat(answers), getattr(whole, question)()), question
    draws = [chunk.sample_success_rate(5, 6) for chunk in chunks]
    assert torch.equal(torch.cat(draws), whole.sample_success_rate(5, 6))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(0, 12))
def test_order_within_a_batch_does_not_matter(method: str, seed: int, cut: int) -> None:
    """To the last bit; a prompt that occurs twice counts once, with its counts added."""
    forward, shuffled, once = (LogitGaussian(method=method).posterior(30) for _ in range(3))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        index, successes = torch.randint(30, (12,), generator=generator), torch.randint(9, (12,), generator=generator)
        order = torch.randperm(12, generator=generator)
        forward.update(index, successes, 8)
        shuffled.observe(index[order[:cut]], successes[order[:cut]], 8)
        shuffled.observe(index[order[cut:]], successes[order[cut:]], 8)
        shuffled.advance()
        total = torch.zeros(30, dtype=torch.int64).index_add(0, index, successes)
        visited, times = index.unique(return_counts=True)
        once.update(visited, total[visited], 8 * times)
    for name, tensor in forward.state_dict()["tensors"].items():
        assert torch.equal(tensor, shuffled.state_dict()["tensors"][name]), name
    assert torch.equal(forward.mean, once.mean) and torch.equal(forward.variance, once.variance)


def test_rows_that_are_asked_for_get_the_answers_of_the_pool() -> None:
    posterior = LogitGaussian(trend=0.1).posterior(50)
    posterior.update(torch.arange(0, 50, 3), torch.arange(17) % 9, 8)
    posterior.advance(2.0)
    rows = torch.tensor([49, 3, 3, 0])
    for question in (posterior.success_rate, posterior.expected_variance, posterior.entropy):
        torch.testing.assert_close(question(rows), question()[rows], rtol=0, atol=2.0**-24)
    sizes = torch.arange(1, 51)
    answers = posterior.informative_probability(sizes[rows], rows)
    torch.testing.assert_close(answers, posterior.informative_probability(sizes)[rows], rtol=0, atol=2.0**-24)
    with pytest.raises(IndexError, match=r"index\[1\] = 50"):
        posterior.success_rate(torch.tensor([0, 50]))
    with pytest.raises(ValueError, match="trials must have 50 entries, one for each prompt asked about; got 3"):
        posterior.informative_probability(torch.tensor([1, 2, 3]))


def test_float32_is_float64_to_rounding() -> None:
    """Only what is stored is rounded: 2**-24 of a mean or variance for each look, which the next looks shrink."""
    narrow, wide = (LogitGaussian(drift=0.25).posterior(64, dtype=dtype) for dtype in (torch.float32, F64))
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        index, successes = torch.randperm(64, generator=generator)[:16], torch.randint(9, (16,), generator=generator)
        for posterior in (narrow, wide):
            posterior.update(index, successes, 8)
    for question in ("success_rate", "expected_variance", "entropy", "mean", "variance"):
        answers = [getattr(posterior, question) for posterior in (narrow, wide)]
        here, there = (answer() if callable(answer) else answer for answer in answers)
        torch.testing.assert_close(here.double(), there, rtol=20 * 2.0**-24, atol=20 * 2.0**-24)


def test_warm_start_is_a_look_that_counts_for_nothing() -> None:
    warm, looked = (LogitGaussian(drift=0.0).posterior(3) for _ in range(2))
    warm.warm_start([1, 1], [3, 2], 4)
    looked.update([1], [5], 8)
    assert torch.equal(warm.mean, looked.mean) and torch.equal(warm.variance, looked.variance)
    assert (warm.log_count_evidence, int(warm.visits.sum()), warm.step) == (0.0, 0, 0)
    warm.advance()
    with pytest.raises(ValueError, match="warm_start must come before"):
        warm.warm_start([0], [1], 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_goes_on_to_the_last_bit(method: str) -> None:
    model = LogitGaussian(trend=0.05, method=method)
    first, second = model.posterior(20), model.posterior(20)
    first.update([1, 2], [3, 8], 8, elapsed=1.5)
    first.observe([4], [1], 8)
    second.load_state_dict(first.state_dict())
    for posterior in (first, second):
        posterior.advance(0.5)
        posterior.update([2, 7], [0, 8], 8)
    for name, tensor in first.state_dict()["tensors"].items():
        assert torch.equal(tensor, second.state_dict()["tensors"][name]), name
    assert torch.equal(first.informative_probability(8), second.informative_probability(8))


def test_states_that_are_none_are_refused() -> None:
    posterior = LogitGaussian().posterior(4)
    posterior.update([1], [3], 8)
    for name, row, value, message in (
        ("variance", 2, 0.0, "variance must be at least"),
        ("variance", 2, math.inf, "variance must be finite"),
        ("mean", 0, math.nan, "mean must be finite"),
        ("seen_at", 3, -1.0, "seen_at must be at least 0"),
        ("seen_at", 3, 1.5, "seen_at has rows that were seen after posterior.tensors.clock"),
    ):
        state = posterior.state_dict()
        state["tensors"][name][row] = value
        before = posterior.state_dict()
        with pytest.raises(CheckpointError, match=message):
            posterior.load_state_dict(state)
        for name, tensor in before["tensors"].items():
            assert torch.equal(tensor, posterior.state_dict()["tensors"][name]), name
    for other in (LogitGaussian(drift=0.2), LogitGaussian(method="polya_gamma")):
        with pytest.raises(CheckpointError, match=r"checkpoint of another posterior\.model"):
            other.posterior(4).load_state_dict(posterior.state_dict())


def test_a_refused_update_changes_nothing() -> None:
    posterior = LogitGaussian().posterior(4)
    before = posterior.state_dict()
    for arguments in (([4], [1], 8), ([0], [9], 8), ([0], [1], 0), ([0], [1], 8, -1.0), ([0], [1], 8, math.nan)):
        with pytest.raises((IndexError, ValueError)):
            posterior.update(*arguments)
    after = posterior.state_dict()
    assert after["pending"]["index"].numel() == 0 and after["step"] == 0
    for name, tensor in before["tensors"].items():
        assert torch.equal(tensor, after["tensors"][name]), name


def test_entries_that_do_not_count_leave_every_row_alone() -> None:
    """A call that a device refused is left in the step as rows that no prompt has."""
    posterior = LogitGaussian().posterior(3)
    before = posterior.mean.clone()
    nobody = torch.full((2,), 3)
    posterior._pending.append((nobody, torch.tensor([1, 1]), torch.tensor([8, 8])))
    posterior.advance(0.0)
    assert torch.equal(posterior.mean, before) and int(posterior.visits.sum()) == 0
    posterior._pending += [
        (nobody, torch.tensor([1, 1]), torch.tensor([8, 8])),
        (torch.tensor([2]), torch.tensor([8]), torch.tensor([8])),
    ]
    posterior.advance(0.0)
    assert (posterior.mean != before).tolist() == [False, False, True]


@pytest.mark.parametrize(
    "acquisition", [InformativeProbability(), ExpectedVariance(), InformativeProbability() + UncertaintyBonus(0.5)]
)
def test_a_selector_finds_the_prompts_that_teach(acquisition: Any) -> None:
    """A pool of hopeless, solved and mixed prompts that stay as they are: the pick ends on the mixed third."""
    rate = torch.tensor([0.01, 0.5, 0.99]).repeat(40)
    selector = PromptSelector(LogitGaussian(drift=0.1).posterior(120), acquisition, batch_size=20, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        index = selector.select()
        selector.update(
            index, successes=torch.binomial(torch.full((20,), 8.0), rate[index], generator).long(), trials=8
        )
    picked = rate[selector.select()]
    # Of a mixed prompt 8 rollouts agree once in 128 looks, of another they differ in 8% of them.
    assert int((picked == 0.5).sum()) >= 17


@pytest.mark.parametrize(("drift", "trend"), [(0.0, 0.0), (0.4, 0.2)])
def test_what_a_look_is_worth(drift: float, trend: float) -> None:
    """Against the same sums over a fine grid of the belief, a step of the walk included."""
    posterior = LogitGaussian(normal(-1.5, 1.0), drift=drift, trend=trend).posterior(1, dtype=F64)
    offset, log_mass = dense(-1.5, 1.0)
    logit, mass = (-1.5 + offset)[::20], np.exp(log_mass[::20]) * 20
    chance = stats.binom.pmf(np.arange(9)[:, None], 8, 1 / (1 + np.exp(-logit)))
    step = np.linspace(-8, 8, 321)
    after = 1 / (1 + np.exp(-(logit[:, None] + trend + drift * step)))
    later = (1 - after**8 - (1 - after) ** 8) @ stats.norm.pdf(step) * (step[1] - step[0])
    outcome, worth = chance @ mass, chance @ (mass * later)
    threshold = float(mass @ later)  # a prompt of the same worth: where a look decides the most
    gain = np.maximum(worth, threshold * outcome).sum() - threshold
    # 96 points of the rate, each for what lies about it: the rule of the middles, whose error is of second order.
    assert float(posterior.look_gain(8, threshold)[0]) == pytest.approx(gain, rel=2e-3)
    now = float(posterior.informative_probability(8)[0])
    assert float(posterior.look_index(8, 0.0)[0]) == pytest.approx(now, abs=1e-3)
    assert float(posterior.look_index(8, 5.0)[0]) > now
    rate = 1 / (1 + math.exp(1.5 - stats.norm.ppf(0.7)))  # rates below 1/2: the more, the better
    level = float(posterior.informative_quantile(8, 0.7)[0])
    assert level == pytest.approx(1 - rate**8 - (1 - rate) ** 8, abs=0.02)  # one point of the 96


def test_answers_that_no_rule_can_miss() -> None:
    """Constants are integrated exactly, and a group of one is never mixed."""
    mean, variance = torch.tensor([-3.0, 0.0, 700.0], dtype=F64), torch.tensor([1e-8, 2.25, 1e10], dtype=F64)
    ones = expectation(torch.ones_like, mean, variance, 32)
    torch.testing.assert_close(ones, torch.ones(3, dtype=F64), rtol=0, atol=1e-14)
    logits = torch.linspace(-800, 800, 1601, dtype=F64)
    assert bool((mixed(logits, 1) == 0).all())
    assert bool((mixed(logits, 2) >= 0).all()) and float(mixed(torch.zeros(1, dtype=F64), 2)) == 0.5
    small = torch.tensor([-36.0, 36.0], dtype=F64)
    torch.testing.assert_close(mixed(small, 8), 8 * torch.exp(-small.abs()), rtol=1e-12, atol=0)


def test_it_is_a_posterior_of_its_own_kind() -> None:
    posterior = LogitGaussian(dist.Normal(torch.tensor([-1.0, 0.0, 2.0]), torch.ones(3))).posterior(3)
    assert isinstance(posterior, KalmanPosterior)
    assert posterior.mean.tolist() == [-1.0, 0.0, 2.0] and posterior.variance.tolist() == [1.0, 1.0, 1.0]
    learnt = LogitGaussian(dist.Normal(torch.zeros(3, requires_grad=True), torch.ones(3))).posterior(3)
    learnt.update([0], [1], 2)
    assert not learnt.success_rate().requires_grad
