"""How the compiled CPU kernels are compiled and spread over threads.

Kernels are compiled without `parallel=True`: they release the GIL and Python threads call them on ranges of rows.
Numba's own threading layers end the process when two threads call at once (workqueue) or when a process that used them
forks (GNU OpenMP), both of which a trainer does; and a kernel without them compiles several times faster.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import torch

Result = TypeVar("Result")
MIN_ROWS = 1 << 14  # below this a range is not worth handing to a thread (tens of microseconds)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with numba when first called: releases the GIL, IEEE arithmetic, cached where there is a place for it."""
    try:
        kernel = numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # nowhere to write: numba raises already here
        return numba.njit(function, nogil=True, error_model="numpy")
    if not isinstance(kernel, numba.core.dispatcher.Dispatcher):  # NUMBA_DISABLE_JIT=1: the function itself
        return kernel
    # Numba asks whether the kernel's own file has changed. It is made of functions of other files as well.
    file = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    if file is None or not hasattr(file, "_source_stamp"):  # another numba: better no cache than a stale one
        return numba.njit(function, nogil=True, error_model="numpy")
    file._source_stamp = (file._source_stamp, _sources())
    return kernel


@cache
def _sources() -> str:
    """A digest of the sources of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into whoever calls it, so that a loop around the call can become vector instructions."""
    return numba.njit(function, forceinline=True, error_model="numpy")


def over_rows(
    rows: int, task: Callable[[int, int], Result], pieces_a_thread: int = 1, min_rows: int = MIN_ROWS
) -> list[Result]:
    """Call task(start, stop) on consecutive ranges that make up range(rows), in `torch.get_num_threads()` threads.

    Returns the results in the order of the ranges; more pieces than one a thread even out rows of unequal cost. `task`
    must not depend on how the rows are split. A thread is not woken for fewer than `min_rows`.
    """
    threads = min(torch.get_num_threads(), max(1, rows // min_rows))
    if threads == 1:
        return [task(0, rows)]
    pieces = threads * pieces_a_thread
    edges = [rows * piece // pieces for piece in range(pieces + 1)]
    results: list[Any] = [None] * pieces
    turns = itertools.count()

    def work() -> None:
        while (piece := next(turns)) < pieces:
            results[piece] = task(edges[piece], edges[piece + 1])

    # The caller works too: a thread that sleeps takes long to wake, and what it would do may be done by then.
    pool = _pool(os.getpid(), torch.get_num_threads())
    helpers: list[Future[None]] = []
    try:
        helpers += (pool.submit(work) for _ in range(threads - 1))
        work()
    finally:  # an interrupted caller must not find its arrays still being written
        wait([helper for helper in helpers if not helper.cancel()])
    for helper in helpers:
        if not helper.cancelled():
            helper.result()
    return results


@lru_cache(maxsize=8)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # For each process, as a forked child has none of its parent's threads, and for each of the few numbers of threads
    # that its own threads may see in torch. The threads of a pool that is dropped end.
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="bayes_prompt")
