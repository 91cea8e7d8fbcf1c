"""Lines to Parquet and back by their steps: what tables of all steps and prompts would give, byte by byte."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_prompt import history_copies, history_files
from bayes_prompt.history import History
from bayes_prompt.recorder import Recorder

NAMES = {"rows": [0, 1, 2, 3], "integers": [7, -5, 10**12, 0], "strings": ["b", "ä\n", "a", ""]}
# A step: its number, its time, and the rows of the prompts, successes and failures of what was observed.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from([1.0, 0.1, 0.0, 1e300]),
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda step: step[0],
).map(sorted)


def lines(steps: list[Any], names: list[Any], clock: str = "step") -> str:
    return "".join(
        history_files.line(names[row], step, right, right + wrong, clock=clock, elapsed=time)
        for step, time, observed in steps
        for row, right, wrong in observed
    )


@settings(max_examples=80, deadline=None)
@given(STEPS, st.sampled_from(sorted(NAMES)), st.booleans(), st.sampled_from([history_copies.PIECE, 1, 3]))
def test_parquet_of_lines_is_what_a_history_of_them_writes(steps: Any, kind: str, given: bool, piece: int) -> None:
    """given: whether the pool is known, or made of the names that occur."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        log, path, expected = (Path(folder) / name for name in ("h.jsonl", "h.parquet", "expected.parquet"))
        log.write_text(lines(steps, NAMES[kind]))
        if given and kind == "rows":
            options: dict[str, Any] = {"num_prompts": 4}
            History.read_jsonl(log, num_prompts=4).write_parquet(expected)
        else:
            options = {"ids": tuple(NAMES[kind])} if given else {}
            History.read(log, **options).write_parquet(expected)
        patch.setattr(history_copies, "PIECE", piece)
        history_copies.write_parquet(log, path, **options)
        found, wanted = pyarrow.parquet.read_table(path), pyarrow.parquet.read_table(expected)
        assert found.equals(wanted, check_metadata=True)
        if len(wanted) <= piece:
            assert path.read_bytes() == expected.read_bytes()
        else:
            assert pyarrow.parquet.ParquetFile(path).num_row_groups == -(-len(wanted) // piece)


@settings(max_examples=80, deadline=None)
@given(STEPS, st.sampled_from(sorted(NAMES)), st.sampled_from(["step", "visit"]), st.booleans(), st.randoms())
def test_lines_of_parquet_are_what_a_history_of_it_writes(
    steps: Any, kind: str, clock: str, noted: bool, random: Any
) -> None:
    """noted: whether it is a file of ours; else one of somebody else's, in any order."""
    with tempfile.TemporaryDirectory() as folder:
        log, path, found = (Path(folder) / name for name in ("h.jsonl", "h.parquet", "found.jsonl"))
        log.write_text(lines(steps, NAMES[kind], clock))
        if noted:
            history = History.read(log, ids=NAMES[kind], num_steps=12)
            history.write_parquet(path)
        else:
            table = history_files.read_jsonl(log)
            order = random.sample(range(len(table.columns["trials"])), len(table.columns["trials"]))
            assert table.elapsed is not None
            columns = {name: column[order] for name, column in (table.columns | {"elapsed": table.elapsed}).items()}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        replace(History.read(path), clock="step").write_jsonl(log)
        history_copies.write_jsonl(path, found)
        assert found.read_bytes() == log.read_bytes()


def test_what_no_table_could_hold_becomes_parquet_and_lines_again(tmp_path: Path) -> None:
    """A million steps of a pool of a hundred thousand: the table would have 10^11 cells."""
    last, most = 10**6 - 1, 10**5 - 1
    log = "".join(history_files.line(*each, 8) for each in [(most, 0, 3), (0, 1, 4), (17, last, 5), (most, last, 6)])
    (tmp_path / "h.jsonl").write_text(log)
    path, again = tmp_path / "h.parquet", tmp_path / "again.jsonl"
    history_copies.write_parquet(tmp_path / "h.jsonl", path, num_prompts=most + 1)
    table = history_files.read_parquet(path)
    assert table.notes == {"num_steps": last + 1, "num_prompts": most + 1}
    assert [column.tolist() for column in table.columns.values()] == [
        *([most, 0, 17, most], [0, 1, last, last], [3, 4, 5, 6], [8] * 4)
    ]
    history_copies.write_jsonl(path, again)
    text = again.read_text()
    assert text.startswith(log) and text.count("\n") == 4 + most - 2
    with Recorder(tmp_path / "r.parquet") as recorder:
        recorder.record(last, [most], [1], 2)
        recorder.record(10**7, [0, 2**62], [1, 1], 2)
        for row in range(100):
            recorder.record(10**7 + 1 + row, [3 * row], [1], 2)
    assert pyarrow.parquet.read_table(recorder.path)["prompt_id"].to_pylist()[:3] == [most, 0, 2**62]


GOOD = '{"prompt_id": 1, "step": 1, "successes": 1, "trials": 2}\n'


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        (GOOD.replace('"step": 1', '"step": 0'), ValueError, "step = 0 comes after 1; steps must ascend"),
        (GOOD.replace('"successes": 1', '"successes": 3'), ValueError, "successes = 3 of step 1 must lie in"),
        (GOOD.replace("}", ', "elapsed": 2}'), ValueError, r"elapsed = 2.0 must be that .* of step 1; another has 1.0"),
        (GOOD.replace("2", str(2**63 - 1)), ValueError, r"add up to 2\*\*63 or more"),
        (GOOD.replace("1", '"a"', 1), TypeError, "prompt_id must hold integers alone or strings alone"),
        (GOOD.replace("step", "visit"), ValueError, "line 2 of the history needs a key 'step'"),
    ],
)
def test_lines_that_are_not_a_recorders_are_refused(
    tmp_path: Path, line: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "h.jsonl").write_text(GOOD + line)
    with pytest.raises(error, match=message):
        history_copies.write_parquet(tmp_path / "h.jsonl", tmp_path / "h.parquet")


def test_prompts_of_no_pool_and_no_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text(GOOD)
    for options in ({"num_prompts": 1}, {"ids": (2, 3)}, {"ids": ("a",)}):
        with pytest.raises(ValueError, match="prompt_id = 1 of step 1 is none of the"):
            history_copies.write_parquet(tmp_path / "h.jsonl", tmp_path / "h.parquet", **options)  # type: ignore[arg-type]
    (tmp_path / "h.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="the history has no records"):
        history_copies.write_parquet(tmp_path / "h.jsonl", tmp_path / "h.parquet")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": [0, 0.5]}, TypeError, "step must hold integers"),
        ({"step": [0, -1]}, ValueError, r"step\[1\] = -1 must lie in"),
        ({"successes": [0, 3]}, ValueError, "successes = 3 of step 0 must lie in"),
        ({"elapsed": [1.0, 2.0]}, ValueError, "elapsed = .* must be that of all records of step 0"),
        ({"elapsed": ["a", "b"]}, TypeError, "elapsed must hold numbers"),
        ({name: [] for name in ("prompt_id", "step", "successes", "trials")}, ValueError, "has no records"),
    ],
)
def test_parquet_that_is_no_history_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    columns = {"prompt_id": [4, 9], "step": [0, 0], "successes": [0, 1], "trials": [2, 2]} | change
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "h.parquet")
    with pytest.raises(error, match=message):
        history_copies.write_jsonl(tmp_path / "h.parquet", tmp_path / "h.jsonl")
