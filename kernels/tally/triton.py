"""What a step adds to the books, for CUDA and ROCm (and, on CPU tensors, Triton's interpreter).

One program goes over all observations, of which a step has hundreds: its sums come in one order, whatever the device,
and one launch takes the place of forty.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import progress_filter
from bayes_prompt.kernels.launch import warps
from bayes_prompt.kernels.tally import Books, Observations, check_arguments, tensors

THREADS = 256
BLOCK = 2 * THREADS
_UNEXPECTED, _IMPOSSIBLE = tl.constexpr(progress_filter.UNEXPECTED), tl.constexpr(progress_filter.IMPOSSIBLE)


def tally(seen: Observations, books: Books, record: Tensor) -> None:
    """See `reference.tally`."""
    check_arguments(seen, books, record)
    sizes = seen.index.numel(), books.visits.numel()
    with torch.cuda.device_of(record):
        _tally[(1,)](*tensors(seen), *tensors(books), record, *sizes, BLOCK=BLOCK, num_warps=warps(THREADS))


@triton.jit(do_not_specialize=["entries", "num_prompts"])
def _tally(  # type: ignore[no-untyped-def]
    index,
    successes,
    trials,
    log_event,
    correction,
    status,
    informative,
    success_rate,
    visits,
    solved,
    log_evidence,
    log_count_evidence,
    unexpected,
    impossible,
    group_size,
    record,
    entries: tl.int64,
    num_prompts: tl.int64,
    BLOCK: tl.constexpr,
):
    none = tl.zeros([BLOCK], dtype=tl.int64)
    nothing = tl.zeros([BLOCK], dtype=tl.float64)
    groups, rollouts, mixed, won, surprises, impossibles, largest = none, none, none, none, none, none, none
    event, count, mixed_expected, won_expected = nothing, nothing, nothing, nothing
    start = entries.to(tl.int64) * 0
    while start < entries:  # not a range, which some interpreters take numbers only for
        m = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = m < entries
        n = tl.load(index + m, mask=inside, other=-1)
        before = tl.load(index + m - 1, mask=inside & (m > 0), other=-1)
        counted = (n >= 0) & (n < num_prompts) & (n != before)
        s = tl.load(successes + m, mask=counted, other=0)
        t = tl.load(trials + m, mask=counted, other=0)
        flags = tl.load(status + m, mask=counted, other=0)
        possible = counted & ((flags & _UNEXPECTED) == 0)
        own = tl.load(log_event + m, mask=possible, other=0.0)
        tl.store(visits + n, tl.load(visits + n, mask=counted, other=0) + 1, mask=counted)
        solved_now = (tl.load(solved + n, mask=counted, other=0) + (s == t).to(tl.int32)).to(tl.int32)
        tl.store(solved + n, solved_now, mask=counted)
        groups += counted.to(tl.int64)
        rollouts += t
        mixed += ((s > 0) & (s < t)).to(tl.int64)
        won += s
        surprises += (counted & ((flags & _UNEXPECTED) != 0)).to(tl.int64)
        impossibles += ((flags & _IMPOSSIBLE) != 0).to(tl.int64)
        largest = tl.maximum(largest, t)
        event += own
        count += own + tl.load(correction + m, mask=possible, other=0.0)
        mixed_expected += tl.load(informative + m, mask=counted, other=0.0).to(tl.float64)
        won_expected += tl.load(success_rate + m, mask=counted, other=0.0).to(tl.float64) * t.to(tl.float64)
        start += BLOCK
    tl.store(log_evidence, tl.load(log_evidence) + tl.sum(event, axis=0))
    tl.store(log_count_evidence, tl.load(log_count_evidence) + tl.sum(count, axis=0))
    tl.store(unexpected, tl.load(unexpected) + tl.sum(surprises, axis=0))
    tl.store(impossible, tl.load(impossible) + tl.sum(impossibles, axis=0))
    most = tl.max(largest, axis=0)
    tl.store(group_size, tl.where(most > 0, most, tl.load(group_size)))
    tl.store(record, tl.sum(groups, axis=0).to(tl.float64))
    tl.store(record + 1, tl.sum(rollouts, axis=0).to(tl.float64))
    tl.store(record + 2, tl.sum(mixed, axis=0).to(tl.float64))
    tl.store(record + 3, tl.sum(won, axis=0).to(tl.float64))
    tl.store(record + 4, tl.sum(mixed_expected, axis=0))
    tl.store(record + 5, tl.sum(won_expected, axis=0))


def _variant(scalar: str) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    types = dict.fromkeys(("informative", "success_rate"), f"*{scalar}")
    types |= dict.fromkeys(("log_event", "correction", "log_evidence", "log_count_evidence", "record"), "*fp64")
    types |= dict.fromkeys(("status", "visits", "solved"), "*i32") | dict.fromkeys(("entries", "num_prompts"), "i64")
    types = {name: types.get(name, "*i64") for name in _tally.arg_names if name != "BLOCK"}
    return _tally, types, {"BLOCK": BLOCK}, THREADS // 32


AHEAD_OF_TIME = [_variant("fp32"), _variant("fp64")]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, number of warps of 32 threads."""
