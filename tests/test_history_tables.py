"""Records as tables: sums within 64 bits, and times that all records of a step share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bayes_prompt.history import History

GOOD = '{"prompt_id": 1, "step": 0, "successes": 1, "trials": 2}\n'


def write(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_times_of_steps_are_read_and_must_agree(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"prompt_id": [0, 1, 0], "step": [0, 0, 2], "successes": [0, 1, 1], "trials": [1, 2, 2]}
    history = History.read(write(tmp_path / "f.parquet", {**columns, "elapsed": [2, 2, 0]}))
    assert history.elapsed is not None and history.elapsed.tolist() == [2, 1, 0]
    assert History.read(write(tmp_path / "f.parquet", {**columns, "elapsed": [1.0] * 3})).elapsed is None
    for wrong, message in (
        ([2.0, 3.0, 1.0], r"elapsed\[0\] = 2.0 must be that of all records of step 0; another has 3.0"),
        ([1.0, 1.0, -1.0], r"elapsed\[2\] = -1.0 must be finite and at least 0"),
        ([1.0, 1.0, np.nan], r"elapsed\[2\] = nan must be finite and at least 0"),
        ([np.nan, 2.0, 1.0], r"elapsed\[0\] = nan must be finite and at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            History.read(write(tmp_path / "f.parquet", {**columns, "elapsed": wrong}))
    with pytest.raises(TypeError, match="elapsed must hold numbers"):
        History.read(write(tmp_path / "f.parquet", {**columns, "elapsed": ["a", "b", "c"]}))
    path = tmp_path / "h.jsonl"
    for text in ("true", '"1"', "-1", "NaN", "1e999", "1" + "0" * 400):
        path.write_text(GOOD + GOOD.replace("}", f', "elapsed": {text}}}'))
        with pytest.raises(ValueError, match=r"line 2: elapsed = .* must be a number, finite and at least 0"):
            History.read(path)
    path.write_text(GOOD + GOOD.replace("}", ', "elapsed": 0.5}'))  # a line that does not say means 1
    with pytest.raises(ValueError, match="elapsed"):
        History.read(path)


@pytest.mark.parametrize("parts", [[2**62, 2**62], [2**63 - 1, 1], [2**61] * 4])
def test_sums_beyond_64_bits_are_refused(parts: list[int]) -> None:
    zeros, row = [0] * len(parts), r"trials\[1\] = .* and others of this prompt and step add up to 2\*\*63 or more"
    with pytest.raises(ValueError, match=row):
        History.from_records([1, *zeros], [0] * (len(parts) + 1), [0, *zeros], [5, *parts], num_prompts=1)


def test_the_largest_sums_are_exact() -> None:
    parts = [2**62, 2**62 - 1, 2**63 - 1]
    history = History.from_records([0, 0, 1], [0, 0, 0], parts, parts, num_prompts=1)
    assert history.trials.tolist() == [[2**63 - 1], [2**63 - 1]]
