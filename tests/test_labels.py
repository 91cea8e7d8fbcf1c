from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayes_prompt.labels import codes


@given(st.lists(st.one_of(st.text(max_size=2), st.integers(-2, 2), st.tuples(st.booleans())), min_size=1, max_size=12))
def test_codes_tell_apart_what_labels_do(labels: list[Any]) -> None:
    found = codes(labels, len(labels))
    for row, (label, code) in enumerate(zip(labels, found, strict=True)):
        assert [other == label for other in labels] == [other == code for other in found]
        assert code <= 1 + max(found[:row], default=-1)  # numbered as they come, without a gap
    assert codes(found, len(found)) == found


def test_arrays_are_read_as_lists_are() -> None:
    for kind in (torch.tensor, np.array, list, tuple):
        assert codes(kind([5, -1, 5, 0]), 4) == [0, 1, 0, 2]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["a"], ValueError, "kinds must have 2 entries, one for each prompt; got 1"),
        (torch.zeros(2, 1), ValueError, r"kinds must have shape \(2,\); got \(2, 1\)"),
        (["a", float("nan")], ValueError, r"kinds\[1\] = nan must be a label"),
        ("ab", TypeError, "kinds must be a sequence of labels; got str"),
        ({"a", "b"}, TypeError, "kinds must be a sequence of labels; got set"),
        (["a", ["b"]], TypeError, r"kinds\[1\] must be a label; got list"),
        (["a", (1, [2])], TypeError, r"kinds\[1\] must be a label; got tuple"),
    ],
)
def test_what_is_no_label_is_named(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codes(labels, 2, "kinds")
