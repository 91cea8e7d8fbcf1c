"""Rollout histories: validation, records, names, and files there and back."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_prompt.history import COLUMNS, History

RECORDS = {"step": [0, 0, 2, 2], "prompt": [1, 3, 0, 1], "successes": [2, 0, 8, 1], "trials": [8, 4, 8, 1]}


def write(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_records_become_tables() -> None:
    history = History.from_records(**RECORDS, num_prompts=4)
    assert (history.num_steps, history.num_prompts) == (3, 4)
    assert history.successes is not None
    assert history.successes.tolist() == [[0, 2, 0, 0], [0, 0, 0, 0], [8, 1, 0, 0]]
    assert history.trials.tolist() == [[0, 8, 0, 4], [0, 0, 0, 0], [8, 1, 0, 0]]
    assert History.from_records(**RECORDS, num_prompts=4, num_steps=9).num_steps == 9


def test_records_of_one_prompt_in_one_step_are_added() -> None:
    step, prompt = np.array([1, 1, 0]), torch.tensor([2, 2, 2])
    history = History.from_records(step, prompt, [3, 0, 1], np.array([8, 4, 2], dtype=np.uint8), num_prompts=3)
    assert history.successes is not None
    assert history.successes[:, 2].tolist() == [1, 3]
    assert history.trials[:, 2].tolist() == [2, 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": [0, -1, 2, 2]}, r"step\[1\] = -1 must lie in \[0, 3\)"),
        ({"prompt": [1, 3, 4, 1]}, r"prompt\[2\] = 4 must lie in \[0, 4\)"),
        ({"trials": [8, 0, 8, 1]}, r"trials\[1\] = 0 must be at least 1"),
        ({"successes": [2, 0, 9, 1]}, r"successes\[2\] = 9 must lie in \[0, trials\]"),
        ({"successes": [-2, 0, 8, 1]}, r"successes\[0\] = -2 must lie in \[0, trials\]"),
        ({"successes": [2, 0]}, r"same number of records"),
        ({"step": [[0, 0, 2, 2]]}, r"step must have shape \(R,\); got \(1, 4\)"),
        ({"num_prompts": 0}, r"num_prompts must be at least 1; got 0"),
        ({"num_steps": 0}, r"num_steps must be at least 1; got 0"),
        ({"num_steps": 2}, r"step\[2\] = 2 must lie in \[0, 2\)"),
        ({"step": [-1, -1, -2, -2]}, r"step\[0\] = -1 must lie in \[0, 1\)"),
        ({"step": [0, 0, 0, 2**60]}, r"step and prompt span a table of \(1152921504606846977, 4\); number both"),
        ({"num_prompts": 2**60}, r"step and prompt span a table of \(3, 1152921504606846976\)"),
    ],
)
def test_bad_records_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        History.from_records(**{**RECORDS, "num_prompts": 4, **change})  # type: ignore[arg-type]


def test_records_must_hold_integers() -> None:
    with pytest.raises(TypeError, match="successes must hold integers; got float64"):
        History.from_records(**{**RECORDS, "successes": [0.5, 0, 1, 1]}, num_prompts=4)


@pytest.mark.parametrize("name", ["num_prompts", "num_steps"])
def test_sizes_must_be_integers(name: str) -> None:
    for wrong in (5.5, "5", True):
        with pytest.raises(TypeError, match=f"{name} must be an integer; got {type(wrong).__name__}"):
            History.from_records(**{**RECORDS, "num_prompts": 4, name: wrong})  # type: ignore[arg-type]
    assert History.from_records(**{**RECORDS, "num_prompts": 5, name: np.int64(5)}).num_prompts == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("successes", "trials", "error", "message"),
    [
        ([[0]], [[1.0]], TypeError, "trials must hold integers; got torch.float32"),
        ([[True]], [[1]], TypeError, "successes must hold integers; got torch.bool"),
        ([[0, 0]], [[1]], ValueError, r"successes must have shape \(1, 1\) like trials; got \(1, 2\)"),
        ([0], [1], ValueError, r"trials must have shape \(T, N\) with T, N >= 1; got \(1,\)"),
        ([[0, 2]], [[1, 1]], ValueError, r"successes\[0, 1\] = 2 must lie in \[0, trials\]"),
        ([[0, -1]], [[1, 1]], ValueError, r"successes\[0, 1\] = -1 must lie in \[0, trials\]"),
        ([[0, 0]], [[1, -1]], ValueError, r"trials\[0, 1\] = -1 must be at least 0"),
    ],
)
def test_bad_tables_are_named(
    successes: list[object], trials: list[object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        History(torch.tensor(successes), torch.tensor(trials))


def test_tables_must_be_tensors_and_not_empty() -> None:
    with pytest.raises(TypeError, match="trials must be a tensor; got list"):
        History(None, [[1]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        History(None, torch.zeros(0, 3, dtype=torch.int64))


def test_counts_are_kept_as_int64() -> None:
    history = History(torch.tensor([[1]], dtype=torch.int8), torch.tensor([[2]], dtype=torch.int32))
    assert history.successes is not None
    assert history.successes.dtype == history.trials.dtype == torch.int64


def test_parquet_there_and_back(tmp_path: Path) -> None:
    trials = torch.randint(0, 3, (5, 7)) * 4
    trials[-1] = 0  # the last step and the last prompt were never observed
    trials[:, -1] = 0
    history = History((torch.rand(5, 7) * (trials + 1)).long().clamp(max=trials), trials)
    history.write_parquet(tmp_path / "history.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "history.parquet")
    assert table.column_names == ["prompt_id", "step", "successes", "trials"]
    assert table.num_rows == int((trials > 0).sum())
    again = History.read_parquet(tmp_path / "history.parquet")
    assert history.successes is not None
    assert again.successes is not None
    assert torch.equal(again.successes, history.successes)
    assert torch.equal(again.trials, trials)
    assert History.read_parquet(tmp_path / "history.parquet", num_prompts=9, num_steps=6).trials.shape == (6, 9)


def test_a_history_in_which_nothing_was_observed(tmp_path: Path) -> None:
    nothing = torch.zeros(2, 3, dtype=torch.int64)
    History(nothing, nothing).write_parquet(tmp_path / "empty.parquet")
    assert History.read_parquet(tmp_path / "empty.parquet").trials.tolist() == nothing.tolist()


def test_foreign_files_may_lack_the_shape_and_have_more_columns(tmp_path: Path) -> None:
    columns = {"step": [1], "prompt_id": [2], "successes": [1], "trials": [4], "reward": [0.25]}
    assert History.read_parquet(write(tmp_path / "f.parquet", columns)).trials.tolist() == [[0, 0, 0], [0, 0, 4]]


def test_bad_files_are_named(tmp_path: Path) -> None:
    good: dict[str, list[int]] = {"step": [1], "prompt_id": [2], "successes": [1], "trials": [4]}
    with pytest.raises(ValueError, match="needs a column 'trials'"):
        History.read_parquet(write(tmp_path / "a.parquet", {k: v for k, v in good.items() if k != "trials"}))
    with pytest.raises(ValueError, match="column 'step' has 1 missing values"):
        History.read_parquet(write(tmp_path / "b.parquet", {**good, "step": [None]}))
    with pytest.raises(TypeError, match="successes must hold integers; got float64"):
        History.read_parquet(write(tmp_path / "c.parquet", {**good, "successes": [0.5]}))
    with pytest.raises(ValueError, match=r"successes\[0\] = 5 must lie in \[0, trials\]"):
        History.read_parquet(write(tmp_path / "d.parquet", {**good, "successes": [5]}))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("prompt_id", [-1], r"prompt_id\[0\] = -1 must lie in \[0, 1\)"),
        ("step", [-3], r"step\[0\] = -3 must lie in \[0, 1\)"),
        ("step", [2**63 - 1], r"step and prompt_id span a table of \(9223372036854775808, 3\)"),
        ("prompt_id", [2**40], r"step and prompt_id span a table of \(2, 1099511627777\)"),
        ("prompt_id", np.array([2**63 + 5], np.uint64), r"prompt_id\[0\] = 9223372036854775813 must be below 2\*\*63"),
        ("trials", np.array([2**64 - 1], np.uint64), r"trials\[0\] = 18446744073709551615 must be below 2\*\*63"),
        ("successes", [5], r"successes\[0\] = 5 must lie in \[0, trials\]"),
    ],
)
def test_values_that_no_history_has_are_named_by_their_column(
    tmp_path: Path, column: str, values: Any, message: str
) -> None:
    good: dict[str, Any] = {"step": [1], "prompt_id": [2], "successes": [1], "trials": [4]}
    with pytest.raises(ValueError, match=message):
        History.read_parquet(write(tmp_path / "f.parquet", {**good, column: values}))


@pytest.mark.parametrize("name", [2**63, -(2**63) - 1, 2**70])
def test_ids_beyond_64_bits_are_refused_in_writing_and_reading(tmp_path: Path, name: int) -> None:
    counts = torch.ones(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"ids\[1\] = {name} must be an integer of 64 bits"):
        History(counts, counts, (0, name))
    (tmp_path / "h.jsonl").write_text(f'{{"prompt_id": {name}, "step": 0, "successes": 0, "trials": 1}}\n')
    with pytest.raises(ValueError, match=f"line 1: prompt_id = {name} must be a string or an integer of 64 bits"):
        History.read(tmp_path / "h.jsonl")
    if name == 2**63:
        columns: dict[str, Any] = {each: np.array([1], np.uint64) for each in COLUMNS}
        write(tmp_path / "f.parquet", {**columns, "prompt_id": np.array([name], np.uint64)})
        with pytest.raises(ValueError, match=rf"prompt_id\[0\] = {name} must be an integer of 64 bits"):
            History.read(tmp_path / "f.parquet")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_widest_ids_come_back(tmp_path: Path, suffix: str) -> None:
    counts, ids = torch.ones(1, 2, dtype=torch.int64), (-(2**63), 2**63 - 1)
    history, path = History(counts, counts, ids), tmp_path / f"h.{suffix}"
    history.write_jsonl(path) if suffix == "jsonl" else history.write_parquet(path)
    assert History.read(path).ids == ids


def test_unsigned_columns_are_read(tmp_path: Path) -> None:
    columns = {name: np.array([value], np.uint64) for name, value in zip(COLUMNS, (2, 1, 3, 4), strict=True)}
    assert History.read_parquet(write(tmp_path / "f.parquet", columns)).trials.tolist() == [[0, 0, 0], [0, 0, 4]]


@pytest.mark.parametrize(
    "note",
    [
        b"not json",
        b"\xff",
        b"[1]",
        b"{}",
        b'{"num_steps": 2}',
        b'{"num_steps": "2", "num_prompts": 3}',
        b'{"num_steps": 0, "num_prompts": 3}',
    ],
)
def test_a_note_that_cannot_be_read_is_named(tmp_path: Path, note: bytes) -> None:
    path = tmp_path / "f.parquet"
    one = torch.ones(2, 3, dtype=torch.int64)
    History(one, one).write_parquet(path)
    table = pyarrow.parquet.read_table(path)
    (key,) = table.schema.metadata
    pyarrow.parquet.write_table(table.replace_schema_metadata({key: note}), path)
    with pytest.raises(ValueError, match=r"metadata 'bayes_prompt.history' must be a JSON object"):
        History.read_parquet(path)


def test_a_history_to_be_sampled_has_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="successes is None"):
        History(None, torch.ones(1, 1, dtype=torch.int64)).write_parquet(tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())


def test_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    one = torch.ones(1, 1, dtype=torch.int64)
    with pytest.raises(ImportError, match=r"bayes-prompt\[history\]"):
        History(one, one).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(ImportError, match=r"bayes-prompt\[history\]"):
        History.read_parquet(tmp_path / "x.parquet")


# Names of prompts, and files of anybody's

HISTORIES = st.integers(1, 5).flatmap(
    lambda steps: st.integers(1, 6).flatmap(
        lambda prompts: st.lists(
            st.lists(st.integers(0, 4), min_size=prompts, max_size=prompts), min_size=steps, max_size=steps
        )
    )
)


def of_trials(trials: list[list[int]], ids: Any = None) -> History:
    """A history with these trials, and successes that differ from cell to cell."""
    of = torch.tensor(trials)
    return History(torch.arange(of.numel()).reshape(of.shape) % (of + 1), of, ids)


def assert_same(found: History, wanted: History) -> None:
    assert wanted.successes is not None and found.successes is not None
    assert torch.equal(found.trials, wanted.trials) and torch.equal(found.successes, wanted.successes)
    assert found.ids == wanted.ids and found.clock == wanted.clock
    if wanted.elapsed is None:
        assert found.elapsed is None
    else:
        assert found.elapsed is not None and torch.equal(found.elapsed, wanted.elapsed)


TIMES = st.sampled_from([0.0, 0.1, 1.0, 1 / 3, 1e-300, 1e300])


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.sampled_from(["rows", "integers", "strings"]), st.sampled_from(["step", "visit"]), st.data())
def test_every_format_there_and_back(trials: list[list[int]], kind: str, clock: str, data: st.DataObject) -> None:
    number = len(trials[0])
    ids = {"rows": None, "integers": [7 * n - 9 for n in range(number)], "strings": [f"ä{n}\n" for n in range(number)]}
    times = data.draw(st.none() | st.lists(TIMES, min_size=len(trials), max_size=len(trials)))
    elapsed = None if times is None else torch.tensor(times, dtype=torch.float64)
    history = replace(of_trials(trials, ids[kind]), clock=clock, elapsed=elapsed)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("parquet", "jsonl", "ndjson"):
            path = Path(folder) / f"history.{suffix}"
            history.write_parquet(path) if suffix == "parquet" else history.write_jsonl(path)
            assert_same(History.read(path), history)
        if kind != "integers":
            assert_same(History.read_parquet(Path(folder) / "history.parquet"), history)
            assert_same(History.read_jsonl(Path(folder) / "history.jsonl"), history)


def test_what_is_not_in_order_comes_back_sorted_or_as_asked_for(tmp_path: Path) -> None:
    history = of_trials([[1, 2, 3]], ["b", "c", "a"])
    history.write_jsonl(tmp_path / "h.jsonl")
    history.write_parquet(tmp_path / "h.parquet")
    assert_same(History.read(tmp_path / "h.parquet"), history)  # which notes them
    assert_same(History.read(tmp_path / "h.jsonl", ids=["b", "c", "a"]), history)
    by_name = History.read(tmp_path / "h.jsonl")
    assert by_name.ids == ("a", "b", "c")
    assert by_name.trials.tolist() == [[3, 1, 2]]
    wider = History.read(tmp_path / "h.jsonl", ids=["z", "a", "b", "c"], num_steps=2)
    assert wider.trials.tolist() == [[0, 3, 1, 2], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"prompt_id\[1\] = 'c' is none of the 2 ids"):
        History.read(tmp_path / "h.jsonl", ids=["a", "b"])


def test_gaps_between_integers_are_closed_by_read_alone(tmp_path: Path) -> None:
    columns = {"prompt_id": [2**40, -3, 5, 5], "visit": [0, 1, 1, 1], "successes": [1, 2, 0, 1], "trials": [4, 4, 2, 2]}
    path = write(tmp_path / "f.parquet", columns)
    history = History.read(path)
    assert history.ids == (-3, 5, 2**40)
    assert history.trials.tolist() == [[0, 0, 4], [4, 4, 0]]  # two records of one prompt are added
    with pytest.raises(ValueError, match=r"prompt_id\[0\] = 1099511627776 must lie in \[0, 8\)"):
        History.read_parquet(path, num_prompts=8)
    assert History.read(write(tmp_path / "g.parquet", {**columns, "prompt_id": [1, 0, 2, 2]})).ids is None


def test_categories_are_names(tmp_path: Path) -> None:
    names = pyarrow.array(["b", "a", "b"]).dictionary_encode()
    path = write(
        tmp_path / "f.parquet", {"prompt_id": names, "step": [0, 0, 1], "successes": [0, 0, 1], "trials": [1, 1, 1]}
    )
    for history in (History.read(path), History.read_parquet(path)):
        assert history.ids == ("a", "b")
        assert history.trials.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a"], ValueError, r"ids must have 2 entries, one for each prompt; got 1"),
        (["a", "a"], ValueError, r"ids\[1\] = 'a' is also ids\[0\]"),
        (["a", 1], TypeError, r"ids\[1\] = 1 must be a string or an integer, and all of them alike"),
        ([0, 1.5], TypeError, r"ids\[1\] = 1.5 must be"),
        ([0, True], TypeError, r"ids\[1\] = True must be"),
        ("ab", TypeError, "ids must be a sequence"),
        ({"a", "b"}, TypeError, "ids must be a sequence"),
    ],
)
def test_bad_ids_are_named(ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        of_trials([[1, 1]], ids)
    assert of_trials([[1, 1]], np.array([5, 3])).ids == (5, 3)


GOOD = '{"prompt_id": 1, "step": 0, "successes": 1, "trials": 2}\n'


def test_bad_clocks_and_times_are_named() -> None:
    for change, error, message in (
        ({"clock": "epoch"}, ValueError, "clock must be one of 'step', 'visit'; got 'epoch'"),
        ({"elapsed": torch.ones(3)}, ValueError, r"elapsed must have shape \(2,\)"),
        ({"elapsed": torch.tensor([1.0, np.inf])}, ValueError, r"elapsed\[1\] = inf must be finite"),
        ({"elapsed": [1.0, 1.0]}, TypeError, "elapsed must be a tensor of numbers; got list"),
    ):
        with pytest.raises(error, match=message):
            replace(of_trials([[1], [1]]), **change)  # type: ignore[arg-type]


def test_other_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.parquet, \.jsonl, \.ndjson; got 'h\.csv'"):
        History.read("h.csv")
    path = tmp_path / "h.jsonl"
    path.write_text('{"prompt": 1}\n')
    with pytest.raises(ValueError, match="needs a column 'prompt_id'; the file has"):
        History.read(path)
    path.write_text(GOOD + GOOD.replace('_id": 1', '_id": "one"'))
    with pytest.raises(TypeError, match="prompt_id must hold integers alone or strings alone; got int"):
        History.read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="the history has no records"):
        History.read_jsonl(path)
    floats = write(tmp_path / "f.parquet", {"prompt_id": [0.5], "step": [0], "successes": [0], "trials": [1]})
    with pytest.raises(TypeError, match="prompt_id must hold integers or strings; got float64"):
        History.read(floats)


def test_the_recorded_histories_are_read_as_they_are(shared: Path) -> None:
    history = History.read(shared / "data" / "one_shot_rlvr_histories.parquet")
    prompts = pyarrow.parquet.read_table(shared / "data" / "one_shot_rlvr_prompts.parquet")["prompt_id"].to_pylist()
    assert history.num_prompts == 716
    assert history.ids == tuple(sorted(prompts))
    small = History.read(shared / "data" / "small_grpo_histories.parquet")
    assert small.trials.eq(8).all()
    assert history.clock == small.clock == "visit" and history.elapsed is small.elapsed is None
