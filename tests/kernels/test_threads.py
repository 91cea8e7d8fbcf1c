"""Ranges of rows in threads: complete, in order, and usable after a fork; compilation with and without a cache."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
import torch

from bayes_prompt.kernels.threads import MIN_ROWS, compiled, over_rows


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [0, 1, MIN_ROWS - 1, 2 * MIN_ROWS, 7 * MIN_ROWS + 3])
@pytest.mark.parametrize("pieces", [1, 4])
def test_ranges_make_up_the_rows(monkeypatch: pytest.MonkeyPatch, threads: int, rows: int, pieces: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ranges = over_rows(rows, lambda start, stop: (start, stop), pieces)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ranges))
    assert len(ranges) == 1 or len(ranges) == pieces * min(threads, rows // MIN_ROWS)


def test_as_many_threads_as_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = threading.Barrier(3, timeout=60)  # breaks unless three tasks are under way at once
    assert len(set(over_rows(3 * MIN_ROWS, lambda start, stop: together.wait()))) == 3


def test_an_error_in_a_range_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def task(start: int, stop: int) -> None:
        if start > 0:
            raise ValueError(f"rows from {start}")

    with pytest.raises(ValueError, match=f"rows from {MIN_ROWS}"):
        over_rows(2 * MIN_ROWS, task)


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data loaders fork: the threads of the parent do not exist in the child, which must not wait for them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    expected = [(0, MIN_ROWS), (MIN_ROWS, 2 * MIN_ROWS)]
    assert over_rows(2 * MIN_ROWS, lambda start, stop: (start, stop)) == expected
    child = os.fork()
    if child == 0:
        status = 1
        try:
            threading.Timer(60, os._exit, [2]).start()  # instead of waiting for ever
            status = 0 if over_rows(2 * MIN_ROWS, lambda start, stop: (start, stop)) == expected else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_function_without_a_place_for_its_cache_is_compiled_all_the_same() -> None:
    names: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", names)  # of no file, so that numba finds nowhere to keep a cache
    assert compiled(names["double"])(21) == 42  # type: ignore[arg-type]
