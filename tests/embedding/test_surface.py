"""Surface features: what is counted, and what a text's neighbours do not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_prompt.embedding import SURFACE_FEATURES, surface_features


def counts(text: str) -> dict[str, int]:
    found = np.expm1(surface_features([text])[0].astype(np.float64))
    # log1p in float32 is off by 6e-8 of at most 12: a count below 10,000 by less than 0.01.
    return {name: round(count) for name, count in zip(SURFACE_FEATURES, found, strict=True)}


def test_by_hand() -> None:
    text = (
        "Let $ABC$ be a triangle with $x^2 \\leq 12.5$.\nHow many integers $n$ are there, if 3 < n < 7 and "
        "\\frac{1}{2} = 3/6? Find the largest!"
    )
    found = counts(text)
    by_hand = {
        **{"characters": len(text), "words": len(text.split()), "lines": 1, "dollars": 6, "backslashes": 2},
        **{"sentences": 3, "questions": 1, "commas": 1, "equalities": 1, "powers": 1, "subscripts": 0},
        **{"numbers": 8, "digits": 10, "distinct_numbers": 7, "longest_number": 2, "fractions": 2, "roots": 0},
        **{"capitals": 6, "short_names": 1, "variables": 4, "braces": 4, "brackets": 0, "commands": 2},
        **{"comparisons": 3, "operators": 5, "longest_word": 8, "long_words": 2, "foreign": 0},
        **{"how": 1, "what": 0, "find": 1, "premises": 1, "conditions": 1, "connectives": 1, "extremes": 1},
        **{"geometry": 1, "arithmetic": 1, "prove": 0, "chance": 0, "units": 0, "quantifiers": 0},
    }
    assert {name: found[name] for name in by_hand} == by_hand


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("PROVE it", "prove"),
        ("points", "geometry"),
        ("maximize", "extremes"),
        ("probability", "chance"),
        ("[asy] draw [/asy]", "figures"),
        ("\\sqrt{2}", "roots"),
        ("1, 2, ...", "long_sums"),
        ("5 % of 10", "percents"),
        ("é", "foreign"),
    ],
)
def test_columns_that_are_alive(text: str, column: str) -> None:
    assert counts(text)[column] > 0
    assert counts("q")[column] == 0


@pytest.mark.parametrize(("text", "column"), [("Lettuce", "premises"), ("finding", "find"), ("minus", "extremes")])
def test_words_are_whole(text: str, column: str) -> None:
    assert counts(text)[column] == 0


def test_names_are_unique_and_one_for_each_column() -> None:
    assert len(set(SURFACE_FEATURES)) == len(SURFACE_FEATURES) == surface_features(["a"]).shape[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_rows_stand_alone_and_are_finite(texts: list[str]) -> None:
    found = surface_features(texts)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    for row, text in zip(found, texts, strict=True):
        np.testing.assert_array_equal(row, surface_features([text])[0])


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_more_text_has_no_less(first: str, second: str) -> None:
    """Characters, words and what is a character keep their counts in a longer text."""
    alone, both = counts(first), counts(first + "\n" + second)
    for name in ("characters", "words", "distinct_words", "letters", "digits", "commas", "capitals", "braces"):
        assert both[name] >= alone[name]
    assert both["words"] == alone["words"] + counts(second)["words"]


def test_degenerate_texts() -> None:
    assert not surface_features([""]).any()
    long = surface_features(["(" * 200_000 + "a" * 200_000 + "1" * 200_000, "\ud800", "\x00"])
    assert np.isfinite(long).all()
