"""Scaling: shares of blocks, and invariance to the units of what is counted."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_prompt.embedding import Scaling
from bayes_prompt.embedding import scaling as scaling_module

RNG = np.random.default_rng(0)
EMBEDDING = RNG.normal(size=(200, 5)).astype(np.float32) * [5, 1, 1, 0.1, 1] + 3
COUNTS = RNG.poisson(4, size=(200, 3)).astype(np.float32)
POOL = np.concatenate([EMBEDDING, COUNTS], axis=1).astype(np.float32)
ROUNDING = 2e-5  # float32 numbers of up to 20, less their mean


def test_blocks_have_equal_shares_and_rows_length_one() -> None:
    found = Scaling.of(POOL, (5, 3))(POOL)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(0), 0, atol=ROUNDING)
    shares = (found.astype(np.float64) ** 2).sum(1)
    assert shares.mean() == pytest.approx(1, abs=ROUNDING)
    assert (found[:, :5].astype(np.float64) ** 2).sum(1).mean() == pytest.approx(0.5, abs=ROUNDING)
    np.testing.assert_allclose(found[:, 5:].var(0), 0.5 / 3, atol=ROUNDING)
    # Within the embedding proportions are kept.
    np.testing.assert_allclose(
        found[:, :5].std(0) / found[:, 1].std(), POOL[:, :5].std(0) / POOL[:, 1].std(), rtol=1e-4
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), st.floats(0.01, 100), st.floats(-10, 10))
def test_units_do_not_matter(units: list[float], size: float, shift: float) -> None:
    changed = POOL * np.array([size] * 5 + units) + shift
    np.testing.assert_allclose(Scaling.of(changed, (5, 3))(changed), Scaling.of(POOL, (5, 3))(POOL), atol=1e-2)


def test_prompts_to_come_are_scaled_as_the_pool_was() -> None:
    scaling = Scaling.of(POOL[:150], (5, 3))
    np.testing.assert_array_equal(scaling(POOL)[150:], scaling(POOL[150:]))


def test_constant_columns_and_single_prompts_become_zero() -> None:
    pool = POOL.copy()
    pool[:, 6] = 0.1
    found = Scaling.of(pool, (5, 3))(pool)
    assert not found[:, 6].any()
    assert (found.astype(np.float64) ** 2).sum(1).mean() == pytest.approx(1, abs=ROUNDING)
    assert not Scaling.of(POOL[:1], (5, 3))(POOL[:1]).any()
    other = Scaling.of(np.ones((4, 2)), (1, 1))(np.full((3, 2), 7.0))
    assert not other.any()
    still = np.concatenate([np.ones((200, 2), np.float32), COUNTS], axis=1)  # the embedding says nothing
    assert (Scaling.of(still, (2, 3))(still).astype(np.float64) ** 2).sum(1).mean() == pytest.approx(1, abs=ROUNDING)


def test_one_column_and_no_embedding() -> None:
    one = Scaling.of(POOL[:, :1])(POOL[:, :1])
    assert one.std() == pytest.approx(1, abs=ROUNDING)
    np.testing.assert_allclose(Scaling.of(COUNTS, (0, 3))(COUNTS).var(0), 1 / 3, atol=ROUNDING)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize(("first", "second"), [(1e9 + 128, 1e9), (3, 1), (0, -(2.0**30))])
def test_far_from_zero_is_no_matter(first: float, second: float, kind: type) -> None:
    pool = np.array([[first], [second]], kind)
    assert Scaling.of(pool)(pool).tolist() == [[1], [-1]]


def test_the_mean_is_that_of_float64() -> None:
    pool = np.array([[1e9 + 1], [1e9]])
    assert Scaling.of(pool)(pool).tolist() == [[1], [-1]]


@pytest.mark.parametrize(("kind", "size"), [("f4", 1e-42), ("f4", 1e38), ("f8", 1e-140), ("f8", 1e150), ("i8", 1e18)])
def test_sizes_near_the_ends_of_what_a_type_holds(kind: str, size: float) -> None:
    pool = np.array([[1], [-1]]) * np.array([size]).astype(kind)
    for blocks in ((1,), (0, 1)):
        np.testing.assert_allclose(Scaling.of(pool, blocks)(pool), [[1], [-1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("ends", "blocks"), [((1e300, 2e300), (3,)), ((-1e308, 1e308), (1, 2)), ((0.0, 1e-320), (1, 2))]
)
def test_a_spread_that_cannot_be_scaled_is_refused(ends: tuple[float, float], blocks: tuple[int, ...]) -> None:
    pool = np.array([[1.0, 5.0, ends[0]], [2.0, 5.0, ends[1]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=re.escape(f"in column 2 from {ends[0]} to {ends[1]}")):
            Scaling.of(pool, blocks)


def test_prompts_too_far_from_the_pool_are_refused() -> None:
    scaling = Scaling.of(np.array([[1e-30], [2e-30]]))
    with pytest.raises(ValueError, match="scaled features must be finite; got inf in row 1, column 0"):
        scaling(np.array([[0.0], [1e30]]))


def test_blocks_of_rows_change_nothing_but_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Scaling.of(POOL, (5, 3))
    expected = whole(POOL)
    monkeypatch.setattr(scaling_module, "_NUMBERS", 56)  # seven rows at a time
    np.testing.assert_array_equal(whole(POOL), expected)
    parts = Scaling.of(POOL, (5, 3))
    np.testing.assert_allclose(parts.factor, whole.factor, rtol=1e-13)
    np.testing.assert_array_equal(parts.mean, whole.mean)


@pytest.mark.parametrize(
    ("features", "blocks", "error", "message"),
    [
        (POOL, (5, 2), ValueError, r"blocks must add up to 8 columns; got \[5, 2\]"),
        (POOL, (9, -1), ValueError, "blocks must be at least 0"),
        (POOL[0], None, ValueError, r"features must have shape \(N, D\)"),
        (POOL[:0], None, ValueError, "N >= 1"),
        (np.array([["a"]]), None, TypeError, "features must be real numbers"),
        (np.array([[1.0], [np.nan]]), None, ValueError, "features must be finite; got nan in row 1, column 0"),
    ],
)
def test_bad_arguments(features: Any, blocks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Scaling.of(features, blocks)
    with pytest.raises(ValueError, match="features must have 8 columns; got 5"):
        Scaling.of(POOL)(EMBEDDING)
