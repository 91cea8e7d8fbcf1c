"""Drifts: transition matrices against generators written down by hand, their moments, and their algebra."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models import grid
from bayes_prompt.models.drift import own
from bayes_prompt.models.grid import Points

WIDE = grid.lower(dist.Beta(1.0, 1.0), 121, 6.0)  # logits 0.1 or more apart, without atoms
ATOMS = grid.lower(bp.priors.inflated(dist.Beta(1.0, 1.0), zero=0.2, one=0.1), 23, 4.0)
UNEVEN = grid.lower(dist.Beta(2.0, 1.0), torch.tensor([0.0, 0.01, 0.1, 0.15, 0.5, 0.8, 0.99, 1.0]), 6.0)
ALL = {"wide": WIDE, "atoms": ATOMS, "uneven": UNEVEN}


def bernoulli(x: float) -> float:
    return 1.0 if x == 0 else x / math.expm1(x)


def walk_by_hand(points: Points, scale: float, trend: float, repulsion: float, elapsed: float) -> np.ndarray:
    """The exponential of a birth-death generator, entry by entry; atoms stay."""
    logit = points.logit.numpy()
    inner = [k for k in range(len(logit)) if math.isfinite(logit[k])]
    generator = np.zeros((len(logit), len(logit)))
    for a, b in pairwise(inner):
        gap = logit[b] - logit[a]
        push = trend + repulsion * math.tanh((logit[a] + logit[b]) / 4)
        for j, k, sign in ((a, b, 1), (b, a, -1)):
            left = logit[j] - logit[j - 1] if j - 1 in inner else gap
            right = logit[j + 1] - logit[j] if j + 1 in inner else gap
            rate = scale**2 / 2 / gap / ((left + right) / 2) * bernoulli(-sign * 2 * push * gap / scale**2)
            generator[j, k] += rate
            generator[j, j] -= rate
    return scipy.linalg.expm(generator * elapsed)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("scale", "trend", "repulsion"), [(0.3, 0.0, 0.0), (0.3, 0.1, 0.0), (0.5, -0.2, 0.3)])
@pytest.mark.parametrize("elapsed", [0.0, 0.03125, 0.4, 1.0, 7.0])
def test_a_walk_is_the_exponential_of_its_generator(
    name: str, scale: float, trend: float, repulsion: float, elapsed: float
) -> None:
    moves = bp.LogitRandomWalk(scale, trend, repulsion).transition(ALL[name], elapsed)
    expected = walk_by_hand(ALL[name], scale, trend, repulsion, elapsed)
    # Two implementations of the exponential, each good to some roundings of the largest entry, times its squarings.
    np.testing.assert_allclose(moves, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("scale", "trend", "elapsed"), [(0.3, 0.0, 1.0), (0.3, 0.05, 2.0), (0.2, -0.1, 3.0)])
def test_a_walk_has_its_mean_and_variance(scale: float, trend: float, elapsed: float) -> None:
    """Far from the ends, on an even grid: the mean is exact; a trend adds to the variance what the scheme says."""
    moves = bp.LogitRandomWalk(scale, trend).transition(WIDE, elapsed)
    middle = len(WIDE.logit) // 2
    offset = WIDE.logit - WIDE.logit[middle]
    mean = float(moves[middle] @ offset)
    variance = float(moves[middle] @ (offset - mean).square())
    x = trend * float(WIDE.logit.diff()[0]) / scale**2
    excess = 1.0 if x == 0 else x / math.tanh(x)
    # The ends are ten standard deviations away: what they take is below 1e-20, the rest is rounding of numbers to 8.
    assert mean == pytest.approx(trend * elapsed, abs=1e-11)
    assert variance == pytest.approx(scale**2 * elapsed * excess, abs=1e-11)
    assert excess < 1.05


def test_repulsion_pushes_to_the_ends() -> None:
    scale, strength, gap = 0.3, 0.1, float(WIDE.logit.diff()[0])
    brief = 1e-4
    moves = bp.LogitRandomWalk(scale, repulsion=strength).transition(WIDE, brief)
    pushed = ((moves @ WIDE.logit - WIDE.logit) / brief)[20:-20]
    wanted = strength * torch.tanh(WIDE.logit[20:-20] / 2)
    # The push is averaged over two gaps and, as it changes, adds a little of the diffusion: with |push| <= strength,
    # |push'| <= strength / 2, |push''| <= strength / 5, second order in the gap; doubled for the orders beyond.
    error = gap**2 * (strength / 5 / 8 + strength**2 / 2 / (3 * scale**2)) + brief * strength
    assert float((pushed - wanted).abs().max()) < 2 * error < strength / 20


@given(
    scale=st.floats(0.0, 3.0),
    trend=st.floats(-2.0, 2.0),
    repulsion=st.floats(-1.0, 1.0),
    elapsed=st.floats(0.0, 10.0),
    name=st.sampled_from(sorted(ALL)),
)
@settings(max_examples=60, deadline=None)
def test_rows_sum_to_one(scale: float, trend: float, repulsion: float, elapsed: float, name: str) -> None:
    points = ALL[name]
    moves = bp.LogitRandomWalk(scale, trend, repulsion).transition(points, elapsed)
    assert bool((moves >= 0).all())
    # The exponential squares itself up to 20 times, which doubles its rounding each time: 2**20 * 2**-53 and a reserve.
    torch.testing.assert_close(moves.sum(1), torch.ones(len(points.logit)).double(), rtol=0, atol=1e-9)
    for k in (~points.logit.isfinite()).nonzero().flatten():
        assert float(moves[k, k]) == 1.0


@given(first=st.floats(0.0, 3.0), second=st.floats(0.0, 3.0), trend=st.floats(-0.5, 0.5))
@settings(max_examples=25, deadline=None)
def test_two_steps_are_one_of_both_times(first: float, second: float, trend: float) -> None:
    drifts = [bp.LogitRandomWalk(0.4, trend, 0.1), bp.Redraw(0.2), bp.Mixture(0.3, bp.LogitRandomWalk(0.4, trend))]
    for drift in drifts:
        both = drift.transition(ATOMS, first) @ drift.transition(ATOMS, second)
        torch.testing.assert_close(both, drift.transition(ATOMS, first + second), rtol=0, atol=1e-12)


def test_a_walk_without_trend_is_reversible() -> None:
    """In balance with the widths of the points' cells, so that it favours no rate."""
    logit = UNEVEN.logit[UNEVEN.inner]
    gaps = torch.cat([logit.diff()[:1], logit.diff(), logit.diff()[-1:]])
    width = (gaps[1:] + gaps[:-1]) / 2
    flow = width[:, None] * bp.LogitRandomWalk(0.7).transition(UNEVEN)[UNEVEN.inner, UNEVEN.inner]
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-13)


def test_a_walk_that_stands_still() -> None:
    moves = bp.LogitRandomWalk(0.0).transition(WIDE)
    # Its variance is 1e-12 a unit of time, in place of none.
    torch.testing.assert_close(moves, torch.eye(121).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 0.01, 0.3])
def test_gradients_reach_a_walk(scale: float) -> None:
    """Also where one jump is certain to follow the trend, and the rates of the others underflow."""
    names = ("scale", "trend", "repulsion")
    values = [torch.tensor(value, dtype=torch.float64) for value in (scale, 0.3, 0.05)]

    def expected(*parameters: Tensor) -> Tensor:
        walk = bp.LogitRandomWalk(**dict(zip(names, parameters, strict=True)))
        return (ATOMS.mass @ walk.transition(ATOMS)) @ ATOMS.rate

    leaves = [value.clone().requires_grad_() for value in values]
    expected(*leaves).backward()
    for k, leaf in enumerate(leaves):
        step = 1e-6 * max(1.0, abs(float(values[k]))) if k else 1e-3 * scale
        higher, lower = (expected(*(v + sign * step * (j == k) for j, v in enumerate(values))) for sign in (1, -1))
        assert leaf.grad is not None
        # Central differences: their own rounding, 1e-15 over the step, and a thousandth for the curvature.
        slope = float((higher - lower) / (2 * step))
        assert float(leaf.grad) == pytest.approx(slope, rel=1e-3, abs=1e-14 / step + 1e-9)


@pytest.mark.parametrize("elapsed", [0.0, 0.5, 1.0, 3.0])
def test_redraw_keeps_or_draws_anew(elapsed: float) -> None:
    kept = 0.8**elapsed
    moves = bp.Redraw(0.2).transition(ATOMS, elapsed)
    for j in range(23):
        row = [(1 - kept) * float(ATOMS.mass[k]) + (kept if j == k else 0.0) for k in range(23)]
        np.testing.assert_allclose(moves[j], row, rtol=0, atol=1e-15)
    torch.testing.assert_close(ATOMS.mass @ moves, ATOMS.mass, rtol=0, atol=1e-15)  # the prior is in balance


def test_a_mixture_changes_over_and_then_moves() -> None:
    walk = bp.LogitRandomWalk(0.5, 0.1)
    drift = bp.Mixture(0.25, walk, thaw=0.1, freeze=0.02)
    moves, size = drift.transition(ATOMS), 23
    inner = walk.transition(ATOMS)
    torch.testing.assert_close(moves[:size, :size], 0.9 * torch.eye(size).double())
    torch.testing.assert_close(moves[:size, size:], 0.1 * inner)
    torch.testing.assert_close(moves[size:, :size], 0.02 * torch.eye(size).double())
    torch.testing.assert_close(moves[size:, size:], 0.98 * inner)
    first = drift.initial(ATOMS.mass)
    torch.testing.assert_close(first, torch.cat([0.25 * ATOMS.mass, 0.75 * ATOMS.mass]))
    # A step of two units changes over as often as two of one.
    share = [float(each[:size].sum()) for each in (first @ drift.transition(ATOMS, 2.0), first @ moves @ moves)]
    assert share[0] == pytest.approx(share[1], abs=1e-12)
    torch.testing.assert_close(drift.transition(ATOMS, 1.0 + 1e-12), moves, rtol=0, atol=1e-11)  # both of its formulas


def test_active_prompts_move_in_another_way() -> None:
    active, passive = bp.LogitRandomWalk(0.5, 0.3), bp.Redraw(0.1)
    drift = bp.ActivePassive(active, passive)
    assert torch.equal(drift.transition(ATOMS, 2.0), passive.transition(ATOMS, 2.0))
    assert torch.equal(drift.after_look(ATOMS, 2.0), active.transition(ATOMS, 2.0))
    assert drift.reach == active.reach
    mixed = bp.Mixture(0.3, drift)  # the moving ones are trained on, too
    torch.testing.assert_close(mixed.after_look(ATOMS)[23:, 23:], active.transition(ATOMS))
    torch.testing.assert_close(mixed.transition(ATOMS)[23:, 23:], passive.transition(ATOMS))


def test_a_matrix_of_ones_own() -> None:
    matrix = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.9, 0.1], [0.2, 0.0, 0.8]])
    points = grid.lower(dist.Beta(1.0, 1.0), 3, 0.0)
    drift = bp.FixedTransition(matrix)
    torch.testing.assert_close(drift.transition(points, 3), torch.linalg.matrix_power(matrix.double(), 3))
    assert torch.equal(drift.transition(points, 0.0), torch.eye(3).double())
    matrix.fill_(0.0)
    assert float(drift.transition(points).sum()) == pytest.approx(3.0, abs=1e-14)
    with pytest.raises(
        ValueError, match=r"elapsed must be a whole number below 2\*\*31 for a FixedTransition; got 0.5"
    ):
        drift.transition(points, 0.5)
    with pytest.raises(ValueError, match=r"matrix must have shape \(K, K\) for a grid of K = 9 points"):
        bp.SuccessRate(drift=drift, grid=9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.LogitRandomWalk(-0.1), ValueError, r"scale = -0.1 must be finite and at least 0"),
        (lambda: bp.LogitRandomWalk(math.nan), ValueError, r"scale = nan must be finite"),
        (lambda: bp.LogitRandomWalk("1"), TypeError, "scale must be a number; got str"),
        (lambda: bp.LogitRandomWalk(torch.ones(2)), ValueError, r"scale must be a single number; got shape \(2,\)"),
        (lambda: bp.LogitRandomWalk(trend=math.inf), ValueError, "trend = inf must be finite"),
        (lambda: bp.LogitRandomWalk(repulsion=math.inf), ValueError, "repulsion = inf must be finite"),
        (lambda: bp.Redraw(1.0), ValueError, r"probability = 1.0 must lie in \[0, 1\)"),
        (lambda: bp.Mixture(0.0, bp.Redraw()), ValueError, r"frozen = 0.0 must lie in \(0, 1\)"),
        (lambda: bp.Mixture(0.5, bp.Mixture(0.5, bp.Redraw())), TypeError, "moving must be a Drift of one mode"),
        (lambda: bp.Mixture(0.5, bp.Redraw(), thaw=0.5), ValueError, r"thaw must lie in \[0, 1/2\); got 0.5"),
        (lambda: bp.Mixture(0.5, bp.Redraw(), freeze=-0.1), ValueError, r"freeze must lie in \[0, 1/2\); got -0.1"),
        (lambda: bp.ActivePassive(bp.Redraw(), 1.0), TypeError, "passive must be a Drift; got float"),
        (
            lambda: bp.ActivePassive(bp.Redraw(), bp.Mixture(0.5, bp.Redraw())),
            ValueError,
            "active and passive must have as many modes; got 1, 2",
        ),
        (lambda: bp.FixedTransition(torch.ones(2, 3)), ValueError, r"matrix must have shape \(K, K\); got \(2, 3\)"),
        (lambda: bp.FixedTransition(torch.tensor([[1.5, -0.5], [0, 1]])), ValueError, r"matrix\[0, 1\] = -0.5 must be"),
        (
            lambda: bp.FixedTransition(torch.tensor([[1.0, 0.0], [0.5, 0.4]])),
            ValueError,
            r"the sum of matrix\[1\] = 0.9.* must be 1 within 1e-6",
        ),
    ],
)
def test_bad_drifts_are_named(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


def test_descriptions_tell_drifts_apart() -> None:
    described = [
        each.describe()
        for each in (
            bp.LogitRandomWalk(0.3),
            bp.LogitRandomWalk(0.3, 0.1),
            bp.LogitRandomWalk(0.3, repulsion=0.1),
            bp.Redraw(0.1),
            bp.Redraw(0.2),
            bp.Mixture(0.3, bp.Redraw(0.1)),
            bp.Mixture(0.3, bp.Redraw(0.2)),
            bp.Mixture(0.3, bp.Redraw(0.1), thaw=0.1),
            bp.ActivePassive(bp.Redraw(0.1), bp.Redraw(0.2)),
            bp.ActivePassive(bp.Redraw(0.2), bp.Redraw(0.1)),
            bp.FixedTransition(torch.eye(3)),
            bp.FixedTransition(torch.eye(3).roll(1, 0)),
        )
    ]
    assert all(a != b for i, a in enumerate(described) for b in described[:i])
    assert bp.LogitRandomWalk(torch.tensor(0.5)).describe() == bp.LogitRandomWalk(0.5).describe()


def test_a_declaration_keeps_its_own_numbers() -> None:
    scale, share = torch.tensor(0.5, requires_grad=True), torch.tensor(0.25)
    mine = own(bp.Mixture(share, bp.LogitRandomWalk(scale)))
    before = mine.describe()
    with torch.no_grad():
        scale.fill_(9.0)
        share.fill_(0.5)
    assert mine.describe() == before
    model = bp.SuccessRate(drift=bp.LogitRandomWalk(scale), grid=9)
    model.lower_grid().transition(1.0)[0, 0, 0].backward()
    assert scale.grad is not None and bool(scale.grad.isfinite())


class Wrong(bp.Drift):
    """A drift that is none."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def transition(self, points: Points, elapsed: float = 1.0) -> torch.Tensor:
        return self.matrix

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("matrix", "error", "words"),
    [
        (2 * torch.eye(9).double(), ValueError, "rows of at least 0 that sum to 1"),
        (-torch.eye(9).double(), ValueError, "rows of at least 0 that sum to 1"),
        (torch.full((9, 9), torch.nan).double(), ValueError, "rows of at least 0 that sum to 1"),
        (torch.eye(8).double(), ValueError, r"shape \(9, 9\); a drift's gave \(8, 8\)"),
        (torch.eye(9), TypeError, "float64; a drift's gave torch.float32"),
    ],
)
def test_drifts_of_ones_own_are_checked(matrix: torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bp.SuccessRate(grid=9, drift=Wrong(matrix))


@pytest.mark.parametrize("elapsed", [1e12, 1e100, sys.float_info.max])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("trend", "repulsion"), [(0.0, 0.0), (0.02, -0.1), (-0.05, 0.05)])
def test_a_walk_ends_where_detailed_balance_has_it(name: str, trend: float, repulsion: float, elapsed: float) -> None:
    points = ALL[name]
    one = walk_by_hand(points, 0.3, trend, repulsion, 1e-6)  # whose neighbours are the generator's, times 1e-6
    inner = [k for k in range(len(one)) if math.isfinite(float(points.logit[k]))]
    ratios = [one[a, b] / one[b, a] for a, b in pairwise(inner)]
    share = np.cumprod([1.0, *ratios])
    moves = bp.LogitRandomWalk(0.3, trend, repulsion).transition(points, elapsed).numpy()
    # Jumps of two within 1e-6 change a ratio by less than 1e-5 of itself; ratios multiply along the points.
    np.testing.assert_allclose(moves[np.ix_(inner, inner)], [share / share.sum()] * len(inner), rtol=1e-5 * len(inner))
    assert all(moves[k, k] == 1 for k in range(len(one)) if k not in inner)
    mixed = bp.Mixture(0.5, bp.LogitRandomWalk(0.3, trend, repulsion), thaw=0.1, freeze=0.3).transition(points, elapsed)
    frozen = mixed.numpy()[:, : len(one)].sum(1)
    np.testing.assert_allclose(frozen, 0.75, rtol=1e-12)  # they thaw at a third of the rate that they freeze at


@pytest.mark.parametrize("elapsed", [50.0, 1e4, 3e6])
def test_long_walks_are_their_own_square(elapsed: float) -> None:
    walk = bp.LogitRandomWalk(0.3, 0.02, 0.05)
    half, whole = walk.transition(UNEVEN, elapsed / 2), walk.transition(UNEVEN, elapsed)
    assert torch.allclose(half @ half, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("elapsed", [1e12, 1e100, sys.float_info.max])
def test_posteriors_outlive_any_time(elapsed: float) -> None:
    for model in (bp.SuccessRate(drift=bp.LogitRandomWalk(0.3)), bp.recipes.best(num_prompts=2, batch_size=1)):
        posterior = model.posterior(2) if isinstance(model, bp.SuccessRate) else model.posterior
        posterior.update([0], [8], 8, elapsed)
        posterior.update([1], [1], 8, 1.0)
        rate = posterior.success_rate()
        assert bool(((rate > 0) & (rate < 1)).all()) and math.isfinite(posterior.log_count_evidence)
    with pytest.raises(ValueError, match=r"elapsed must be a whole number below 2\*\*31"):
        bp.FixedTransition(torch.eye(UNEVEN.logit.numel())).transition(UNEVEN, elapsed)


@pytest.mark.parametrize("elapsed", [1e6, 1e12, 1e15])
def test_long_rests_keep_probabilities(elapsed: float) -> None:
    points = bp.SuccessRate(grid=21, drift=bp.LogitRandomWalk(0.3)).points()
    moves = bp.LogitRandomWalk(0.3, 0.02, 0.05).transition(points, elapsed)
    assert float((moves.sum(1) - 1).abs().max()) < 1e-12 and float(moves.min()) >= 0
