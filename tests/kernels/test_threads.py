"""Ranges of rows in threads: complete, in order, and usable after a fork; compilation with and without a cache."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_prompt.kernels import threads
from bayes_prompt.kernels.threads import MIN_ROWS, compiled, over_rows


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rows", [0, 1, MIN_ROWS - 1, 2 * MIN_ROWS, 7 * MIN_ROWS + 3])
@pytest.mark.parametrize("pieces", [1, 4])
def test_ranges_make_up_the_rows(monkeypatch: pytest.MonkeyPatch, count: int, rows: int, pieces: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    ranges = over_rows(rows, lambda start, stop: (start, stop), pieces)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ranges))
    assert len(ranges) == 1 or len(ranges) == pieces * min(count, rows // MIN_ROWS)


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


def test_a_cache_from_before_a_change_to_any_kernel_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "kernel.py"
    source.write_text("def double(x):\n    return 2 * x\n")

    def compile_anew() -> Any:
        spec = importlib.util.spec_from_file_location("kernel_of_a_test", source)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "kernel_of_a_test", module)  # where numba looks for it
        spec.loader.exec_module(module)
        kernel = threads.compiled(module.double)
        assert kernel(21) == 42
        return kernel

    assert not compile_anew().stats.cache_hits
    assert compile_anew().stats.cache_hits
    monkeypatch.setattr(threads, "_sources", lambda: "another digest")  # as after a change to a file of kernels/
    assert not compile_anew().stats.cache_hits
    assert compile_anew().stats.cache_hits


def test_threads_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of all sizes come from how many threads torch uses, not from how many rows there are."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    before = threading.active_count()
    for pieces in range(2, 30):
        over_rows(pieces * MIN_ROWS, lambda start, stop: None)
    assert threading.active_count() <= before + 5


def test_without_compilation_kernels_are_plain_functions() -> None:
    code = (
        "import bayes_prompt as bp; make = lambda b: bp.recipes.dps(num_prompts=600, batch_size=2, backend=b)\n"
        "for selector in (make('cpu'), make('reference')):\n"
        "    picks = [selector.select()]\n"
        "    selector.update(picks[0], successes=[1, 1], trials=2)\n"
        "    print(*picks[0].tolist(), *selector.select().tolist())"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here, reference = done.stdout.splitlines()
    assert len(here.split()) == 4 and here == reference


def test_a_failed_range_leaves_no_other_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    started, finished = threading.Event(), threading.Event()

    def task(start: int, stop: int) -> None:
        if start == 0:
            assert started.wait(60)
            raise ValueError("at once")
        started.set()
        time.sleep(0.2)
        finished.set()

    with pytest.raises(ValueError, match="at once"):
        over_rows(2 * MIN_ROWS, task)
    assert finished.is_set()


def test_a_function_without_a_place_for_its_cache_is_compiled_all_the_same() -> None:
    names: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", names)  # of no file, so that numba finds nowhere to keep a cache
    assert compiled(names["double"])(21) == 42  # type: ignore[arg-type]
