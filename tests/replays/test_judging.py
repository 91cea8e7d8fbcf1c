"""Figures of P(informative) and of absences, against their definitions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_prompt.replays.judging import BINS, LEAST, Absences, Judge, auc, calibration_error, pooled

PAIRS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.55, 0.9, 1.0]), st.booleans()), min_size=1)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in pairs]), np.array([y for _, y in pairs])


def auc_by_definition(pairs: list[tuple[float, bool]]) -> float:
    against = [(p, q) for (p, mixed), (q, other) in product(pairs, pairs) if mixed and not other]
    return float(np.mean([(p > q) + (p == q) / 2 for p, q in against])) if against else math.nan


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_auc(pairs: list[tuple[float, bool]]) -> None:
    chance, true = arrays(pairs)
    assert auc(chance, true) == pytest.approx(auc_by_definition(pairs), abs=1e-12, nan_ok=True)
    # Of the same order: the same. Turned round: the rest to one.
    assert auc(chance**3, true) == pytest.approx(auc(chance, true), abs=1e-12, nan_ok=True)
    assert auc(-chance, true) == pytest.approx(1 - auc(chance, true), abs=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_a_judge_of_several_visits(visits: list[list[tuple[float, bool]]]) -> None:
    judge = Judge()
    for pairs in visits:
        judge.add(*arrays(pairs))
    every = [pair for pairs in visits for pair in pairs]
    loss = [-math.log(max(LEAST, p if mixed else 1 - p)) for p, mixed in every]
    assert judge.log_loss == pytest.approx(np.mean(loss))
    assert judge.brier == pytest.approx(np.mean([(p - mixed) ** 2 for p, mixed in every]))
    orders = [value for value in map(auc_by_definition, visits) if not math.isnan(value)]
    assert judge.auc == pytest.approx(np.mean(orders) if orders else math.nan, nan_ok=True)
    assert len(judge.bins) == BINS and sum(each.count for each in judge.bins) == len(every)
    gaps = 0.0
    for place in range(BINS):
        inside = [(p, mixed) for p, mixed in every if min(int(p * BINS), BINS - 1) == place]
        each = judge.bins[place]
        assert each.count == len(inside)
        if inside:
            assert each.predicted == pytest.approx(np.mean([p for p, _ in inside]))
            assert each.observed == pytest.approx(np.mean([mixed for _, mixed in inside]))
            gaps += abs(sum(p - mixed for p, mixed in inside))
        else:
            assert math.isnan(each.predicted) and math.isnan(each.observed)
    assert calibration_error(judge.bins) == pytest.approx(gaps / len(every))
    twice = pooled((judge.bins, (), judge.bins))
    assert [each.count for each in twice] == [2 * each.count for each in judge.bins]
    assert calibration_error(twice) == pytest.approx(gaps / len(every))


def test_what_cannot_be_judged() -> None:
    judge = Judge()
    assert not judge.judged and math.isnan(judge.log_loss) and judge.bins == ()
    judge.add(np.array([0.5, 0.2]), np.array([True, False]))
    assert judge.judged
    judge.add(np.array([0.5, np.nan]), np.array([True, False]))
    judge.add(np.array([0.5, 0.2]), np.array([True, False]))
    assert not judge.judged
    assert all(math.isnan(value) for value in (judge.log_loss, judge.brier, judge.auc))
    assert math.isnan(calibration_error(judge.bins)) and pooled((judge.bins, ())) == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=9))
def test_absences(picks: list[set[int]]) -> None:
    absences = Absences(5)
    for picked in picks:
        absences.add(np.array(sorted(picked), np.int64))
    for prompt in range(5):
        row = "".join("x" if prompt in picked else "." for picked in picks)
        assert absences.longest[prompt] == max(map(len, row.split("x")))
    assert absences.coverage == pytest.approx(len(set().union(*picks)) / 5)
