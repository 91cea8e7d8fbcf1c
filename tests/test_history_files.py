"""Lines of history files: torn, wrong, and as some editors write them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from bayes_prompt import command_line, history_files, history_tables
from bayes_prompt.history import History
from bayes_prompt.recorder import Recorder

GOOD = '{"prompt_id": 1, "step": 0, "successes": 1, "trials": 2}\n'


@pytest.mark.parametrize("torn", ['{"prompt_id": 1, "st', "\0\0\0", '{"prompt_id": "\udcc3'])
def test_a_torn_last_line_is_told_and_skipped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(GOOD + "\n" + torn, errors="surrogateescape")
    with pytest.warns(UserWarning, match=r"h\.jsonl: line 3, the last one, is torn off"):
        assert History.read_jsonl(path).trials.tolist() == [[0, 2]]
    path.write_text(GOOD + torn + "\n" + GOOD, errors="surrogateescape")
    with pytest.raises(ValueError, match="line 2 of the history must be a JSON object"):
        History.read_jsonl(path)
    path.write_text(GOOD.strip())  # only the end of the line is missing, which others may not write
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert History.read(path).trials.tolist() == [[2]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", r"line 2 of the history must be a JSON object; got '\[1\]'"),
        ('{"prompt_id": 1, "step": 0, "successes": 1}', r"line 2 of the history needs a key 'trials'"),
        (GOOD.replace("2", "2.5"), r"line 2: trials = 2.5 must be an integer"),
        (GOOD.replace("2", "true"), r"line 2: trials = True must be an integer"),
        (GOOD.replace("2", str(2**63)), r"line 2: trials = 9223372036854775808 must be an integer of 64 bits"),
        (GOOD.replace('_id": 1', '_id": null'), r"line 2: prompt_id = None must be a string or an integer"),
        (GOOD.replace('"successes": 1', '"successes": 3'), r"successes\[1\] = 3 must lie in \[0, trials\]"),
        (GOOD.replace("2", "-1"), r"trials\[1\] = -1 must be at least 0"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(GOOD + line.strip() + "\n" + GOOD)
    with pytest.raises(ValueError, match=message):
        History.read(path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert History.read(path).trials.tolist() == [[2]]


def test_a_line_nested_beyond_reading_is_named(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(GOOD + "[" * 100_000 + "\n" + GOOD)
    with pytest.raises(ValueError, match="line 2 of the history must be a JSON object"):
        History.read(path)


def test_sizes_that_a_file_notes_are_not_taken_on_trust(tmp_path: Path) -> None:
    """One odd step number stands in the lines and in the notes of the table that was made of them."""
    with Recorder(tmp_path / "h.parquet") as recorder:
        recorder.record(0, list(range(100)), [1] * 100, 8)
        recorder.record(10**9, [1], [1], 8)
    for path in (recorder.path, recorder.lines):
        for read in (History.read, History.read_parquet if path == recorder.path else History.read_jsonl):
            with pytest.raises(ValueError, match=r"step and prompt_id span a table of \(1000000001, 100\)"):
                read(path)
    with pytest.raises(ValueError, match=r"step\[100\] = 1000000000 must lie in \[0, 9\)"):
        History.read(recorder.path, num_steps=9)


def test_whoever_gives_the_number_of_steps_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.int64))
    history.write_parquet(tmp_path / "h.parquet")
    monkeypatch.setattr(history_tables, "_MOST_CELLS", 11)
    for read in (History.read, History.read_parquet):
        with pytest.raises(ValueError, match=r"span a table of \(3, 4\)"):
            read(tmp_path / "h.parquet")
        assert read(tmp_path / "h.parquet", num_steps=3).num_prompts == 4


@pytest.mark.parametrize("suffix", [*history_files.SUFFIXES, ".NDJSON"])
def test_a_name_of_a_history_is_none_for_json(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ValueError, match=r"--json: .* is named like a table, and JSON is written"):
        command_line.writable(str(tmp_path / f"h{suffix}"), "--json", {})
