"""The exact pick for CUDA and ROCm (and, on CPU tensors, Triton's interpreter), without waiting for the device.

Every row has a place in the order given by three words: rank (of its score, 0 the best), tie key and row number. Where
a shortlist was kept its rows are offered first, and if they settle the pick nothing else is read. What follows is
launched all the same, and returns at once: whether it is needed is known on the device alone.

A radix select finds the place of the last wanted row digit by digit, eight bits each from the top: a pass counts the
digits of the rows that share the digits found so far. As soon as whole buckets fill the batch exactly the rest of the
threshold is all ones, and the remaining passes return at once: random scores take two or three passes, and keys are
computed only among rows whose score ties with the threshold's. One pass then gathers the rows that are not beyond the
threshold, in any order. The few rows that are left are put in order by counting, for each, who comes before it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import rng_triton
from bayes_prompt.kernels.launch import warps
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.top_b import check_arguments

COUNT_BLOCK, COUNT_THREADS = 4096, 256
GATHER_BLOCK, GATHER_THREADS = 1024, 128  # it holds keys, ranks and rows at once
ORDER_BLOCK, ORDER_THREADS = 32, 128  # of 32 x 32 comparisons at a time
PROGRAMS = 2048  # that go over all rows: enough to fill a GPU, and few to return at once
MOST_COMPARED = 1 << 14  # rows; above, sorting beats comparing each with each
LAST = 2**63 - 1
RANK, KEY, ROW = 0, 1, 2
LAST_ = tl.constexpr(LAST)


def top_b(
    scores: Tensor,
    allowed: Tensor | None,
    batch: int,
    seed: int | Tensor,
    step: int | Tensor,
    first_prompt: int,
    shortlist: Shortlist | None = None,
) -> Tensor:
    """See `reference.top_b`."""
    seed, step, first_prompt = check_arguments(scores, allowed, batch, seed, step, first_prompt, shortlist)
    rows, device = len(scores), scores.device
    if batch == 0 or rows == 0:
        return torch.full((batch,), -1, dtype=torch.int64, device=device)
    room = 0 if shortlist is None else shortlist.rows.numel()
    wanted = batch if shortlist is None else max(batch, shortlist.wanted)
    found = torch.full((3, room + wanted), LAST, dtype=torch.int64, device=device)
    sizes = (scores.element_size(), 4, (rows.bit_length() + 7) // 8)  # bytes of rank, key and row number
    digits = [(word, 8 * byte) for word, size in enumerate(sizes) for byte in reversed(range(size))]

    # One row a pass, and a first one from which pass 0 starts: everything is within the threshold.
    state = torch.zeros((len(digits) + 1, 4), dtype=torch.int64, device=device)
    for word, limit in {
        RANK: 2**32 - 1 if sizes[RANK] == 4 else -1,
        KEY: 2**32 - 1,
        ROW: 2 ** (8 * sizes[ROW]) - 1,
        3: wanted,
    }.items():
        state[0, word].fill_(limit)  # an assignment of a number copies it from the host, and waits for that
    counts = torch.zeros((len(digits) + 1, 256), dtype=torch.int64, device=device)
    counts[0, 255].fill_(LAST)
    filled = torch.zeros(2, dtype=torch.int64, device=device)  # rows gathered, rows offered
    masked = allowed is not None
    data = (scores, scores if allowed is None else allowed.view(torch.uint8))
    numbers = (seed, step, first_prompt)
    with torch.cuda.device_of(scores):
        if shortlist is not None:
            launch = {"BLOCK": GATHER_BLOCK, "num_warps": warps(GATHER_THREADS), "MASKED": masked}
            noted = (shortlist.rows, shortlist.count, found, filled, room, room + wanted)
            _offer[(triton.cdiv(room, GATHER_BLOCK),)](*data, rows, *numbers, *noted, **launch)
            settled = (shortlist.count <= room) & (filled[1:] >= batch)
            state[0, 3:] = torch.where(settled, 0, wanted)
            found[:, :room] = torch.where(settled, found[:, :room], LAST)
        before = (RANK, 0)
        for number, (word, shift) in enumerate(digits):
            launch = {"BLOCK": COUNT_BLOCK, "num_warps": warps(COUNT_THREADS), "MASKED": masked}
            grid = (min(PROGRAMS, triton.cdiv(rows, COUNT_BLOCK)),)
            _count[grid](*data, state, counts, rows, *numbers, number, *before, shift, WORD=word, **launch)
            before = (word, shift)
        launch = {"BLOCK": GATHER_BLOCK, "num_warps": warps(GATHER_THREADS), "MASKED": masked}
        grid = (min(PROGRAMS, triton.cdiv(rows, GATHER_BLOCK)),)
        gathered = (found, filled, room, wanted)
        _gather[grid](*data, state, counts, rows, *numbers, len(digits), *before, *gathered, **launch)
        if shortlist is None:
            return _in_order(found, scores, batch)
        short = (state[0, 3:] > 0) & (filled[:1] < wanted)  # everyone was looked at, and so few may be picked
        shortlist.threshold.copy_(torch.where(short, -torch.inf, shortlist.threshold))
        picked = _in_order(found, scores, batch, shortlist)
        # A score that more rows share than there is room for, such as that of all prompts never seen, is no threshold.
        # The last pass over ranks has counted them, if those over keys were needed: if not all of them are wanted.
        ranked = sizes[RANK]  # passes, so that this row of `counts` is what the last of them counted
        after = state[ranked + 1]
        tied = counts[ranked].gather(0, after[RANK : RANK + 1] & 255)
        above = torch.nextafter(shortlist.threshold, torch.full_like(shortlist.threshold, torch.inf))
        crowded = (after[3:] > 0) & (tied > room)
        shortlist.threshold.copy_(torch.where(crowded, above, shortlist.threshold))
        return picked


def _in_order(found: Tensor, scores: Tensor, batch: int, shortlist: Shortlist | None = None) -> Tensor:
    """The first `batch` rows of `found` (3, n), best first, -1 for none; the wanted-th one becomes the guide."""
    entries, wanted = found.shape[1], 0 if shortlist is None else shortlist.wanted
    if entries <= MOST_COMPARED:
        picked = torch.full((batch,), -1, dtype=torch.int64, device=found.device)
        launch = {"BLOCK": ORDER_BLOCK, "num_warps": warps(ORDER_THREADS), "KEEP": shortlist is not None}
        kept = (scores, picked) if shortlist is None else (shortlist.threshold, shortlist.guide)
        grid = (triton.cdiv(entries, ORDER_BLOCK),)
        _order[grid](found, scores, picked, *kept, entries, batch, wanted, **launch)
        return picked
    for word in (ROW, KEY, RANK):  # stable sorts, the least significant word first
        found = found[:, found[word].argsort(stable=True)]
    if shortlist is not None and 0 < wanted <= entries:
        row = found[ROW, wanted - 1 : wanted]
        shortlist.guide.copy_(torch.where(row == LAST, shortlist.guide, row))
        shortlist.threshold.copy_(torch.where(row == LAST, shortlist.threshold, scores[shortlist.guide]))
    row = found[ROW, :batch]
    return torch.where(row == LAST, -1, row)


@triton.jit
def _places(scores, mask, row, num_rows, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The ranks of rows, uint64 that grow as scores fall (NaN largest, -0.0 like 0.0), and which rows take part."""
    inside = row < num_rows
    score = tl.load(scores + row, mask=inside, other=0.0)
    if MASKED:
        inside = inside & (tl.load(mask + row, mask=inside, other=0) != 0)
    # On the bits alone, so that subnormal scores keep their order where arithmetic flushes them to zero.
    if scores.dtype.element_ty == tl.float32:
        bits = score.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        rank = tl.where((bits < 0) & (magnitude != 0), bits, magnitude ^ 0x7FFFFFFF)
        rank = tl.where(magnitude > 0x7F800000, -1, rank).to(tl.uint32, bitcast=True).to(tl.uint64)
    else:
        bits = score.to(tl.int64, bitcast=True)
        magnitude = bits & 0x7FFFFFFFFFFFFFFF
        rank = tl.where((bits < 0) & (magnitude != 0), bits, magnitude ^ 0x7FFFFFFFFFFFFFFF)
        rank = tl.where(magnitude > 0x7FF0000000000000, -1, rank).to(tl.uint64, bitcast=True)
    return rank, inside


@triton.jit
def _threshold(state, counts, number, word, shift):  # type: ignore[no-untyped-def]
    """The threshold's three words (undecided digits all ones) and how many rows are still to be chosen at its prefix.

    They follow from row `number` of `state`, what held before the last pass, and of `counts`, what that pass counted:
    the digits at `shift` of `word`. Every program works them out for itself, which saves a launch between two passes.
    """
    digit = tl.arange(0, 256).to(tl.int64)
    count = tl.load(counts + number * 256 + digit)
    rank, key = tl.load(state + number * 4), tl.load(state + (number * 4 + 1))
    row, wanted = tl.load(state + (number * 4 + 2)), tl.load(state + (number * 4 + 3))
    upto = tl.cumsum(count, axis=0)
    chosen = tl.sum((upto < wanted).to(tl.int64), axis=0)  # the bucket that holds the last wanted row
    bucket = tl.sum(tl.where(digit == chosen, count, 0), axis=0)
    left = wanted - tl.sum(tl.where(digit < chosen, count, 0), axis=0)
    # Nothing is narrowed once the threshold is settled, or where fewer rows take part than are wanted: then all are
    # chosen.
    narrow = (wanted > 0) & (chosen < 256)
    value = tl.where(word == 0, rank, tl.where(word == 1, key, row))
    beyond = tl.where(narrow, (((value >> shift) & 255) - chosen) << shift, 0)
    rank -= tl.where(word == 0, beyond, 0)
    key -= tl.where(word == 1, beyond, 0)
    row -= tl.where(word == 2, beyond, 0)
    return rank, key, row, tl.where(narrow & (left < bucket), left, 0)


@triton.jit
def _tally(value, threshold, shift, takes_part):  # type: ignore[no-untyped-def]
    """How often each digit occurs at `shift` of the values that have the threshold's digits above it, (256,) int64."""
    value, threshold, shift = value.to(tl.uint64), threshold.to(tl.uint64), shift.to(tl.uint64)
    takes_part = takes_part & ((((value ^ threshold) >> shift) >> 8) == 0)
    return tl.histogram(((value >> shift) & 255).to(tl.int32), 256, mask=takes_part).to(tl.int64)


@triton.jit(do_not_specialize=["seed", "step", "first_prompt", "number", "word_before", "shift_before", "shift"])
def _count(  # type: ignore[no-untyped-def]
    scores,
    mask,
    state,
    counts,
    num_rows: tl.int64,
    seed,
    step,
    first_prompt: tl.int64,
    number: tl.int64,
    word_before: tl.int64,
    shift_before: tl.int64,
    shift: tl.int64,
    WORD: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    seed, step = rng_triton.moment(seed), rng_triton.moment(step)
    here = state + number.to(tl.int64) * 4
    rank_limit, key_limit, row_limit, wanted = tl.load(here), tl.load(here + 1), tl.load(here + 2), tl.load(here + 3)
    if wanted > 0:
        rank_limit, key_limit, row_limit, wanted = _threshold(state, counts, number, word_before, shift_before)
    if tl.program_id(0) == 0:
        tl.store(here + 4, rank_limit)
        tl.store(here + 5, key_limit)
        tl.store(here + 6, row_limit)
        tl.store(here + 7, wanted)
    if wanted > 0:
        count = tl.zeros([256], dtype=tl.int64)
        start = tl.program_id(0).to(tl.int64) * BLOCK
        while start < num_rows:  # not a range, which some interpreters take numbers only for
            row = start + tl.arange(0, BLOCK).to(tl.int64)
            rank, takes_part = _places(scores, mask, row, num_rows, MASKED)
            if WORD == 0:
                count += _tally(rank, rank_limit, shift, takes_part)
            else:
                takes_part = takes_part & (rank == rank_limit.to(tl.uint64))
                if tl.max(takes_part.to(tl.int32), axis=0) > 0:
                    key = rng_triton.tie_keys(seed, step, row + first_prompt)
                    if WORD == 1:
                        count += _tally(key, key_limit, shift, takes_part)
                    else:
                        count += _tally(row, row_limit, shift, takes_part & (key == key_limit))
            start += tl.num_programs(0).to(tl.int64) * BLOCK
        place = counts + (number.to(tl.int64) + 1) * 256 + tl.arange(0, 256)
        tl.atomic_add(place, count, mask=count > 0, sem="relaxed")


@triton.jit(do_not_specialize=["seed", "step", "first_prompt", "number", "word_before", "shift_before", "wanted"])
def _gather(  # type: ignore[no-untyped-def]
    scores,
    mask,
    state,
    counts,
    num_rows: tl.int64,
    seed,
    step,
    first_prompt: tl.int64,
    number: tl.int64,
    word_before: tl.int64,
    shift_before: tl.int64,
    found,
    filled,
    room: tl.int64,
    wanted: tl.int64,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows within the threshold, into `found` from entry `room` on; none where a shortlist has settled the pick."""
    seed, step = rng_triton.moment(seed), rng_triton.moment(step)  # out here: no `if` may change what type a name has
    if tl.load(state + 3) > 0:
        rank_limit, key_limit, row_limit, _ = _threshold(state, counts, number, word_before, shift_before)
        rank_limit = rank_limit.to(tl.uint64)
        start = tl.program_id(0).to(tl.int64) * BLOCK
        while start < num_rows:  # not a range, which some interpreters take numbers only for
            row = start + tl.arange(0, BLOCK).to(tl.int64)
            rank, takes_part = _places(scores, mask, row, num_rows, MASKED)
            takes_part = takes_part & (rank <= rank_limit)
            if tl.max(takes_part.to(tl.int32), axis=0) > 0:
                key = rng_triton.tie_keys(seed, step, row + first_prompt)
                within = (key < key_limit) | ((key == key_limit) & (row <= row_limit))
                takes_part = takes_part & ((rank < rank_limit) | within)
                first = tl.atomic_add(filled, tl.sum(takes_part.to(tl.int64), axis=0), sem="relaxed")
                place = first + tl.cumsum(takes_part.to(tl.int64), axis=0) - 1
                takes_part = takes_part & (place < wanted)  # always, unless somebody changes the scores meanwhile
                _put(found, room + wanted, room + place, scores, rank, key, row, takes_part)
            start += tl.num_programs(0).to(tl.int64) * BLOCK


@triton.jit(do_not_specialize=["seed", "step", "first_prompt"])
def _offer(  # type: ignore[no-untyped-def]
    scores,
    mask,
    num_rows: tl.int64,
    seed,
    step,
    first_prompt: tl.int64,
    rows,
    count,
    found,
    filled,
    room: tl.int64,
    entries: tl.int64,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The noted rows that may be picked, into the first `room` entries of `found`; filled[1] counts them."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    noted = (place < room) & (place < tl.load(count))
    row = tl.load(rows + place, mask=noted, other=LAST_)
    rank, takes_part = _places(scores, mask, row, num_rows, MASKED)
    takes_part = takes_part & noted
    key = rng_triton.tie_keys(rng_triton.moment(seed), rng_triton.moment(step), row + first_prompt)
    _put(found, entries, place, scores, rank, key, row, takes_part)
    tl.atomic_add(filled + 1, tl.sum(takes_part.to(tl.int64), axis=0), sem="relaxed")


@triton.jit
def _put(found, entries, place, scores, rank, key, row, takes_part):  # type: ignore[no-untyped-def]
    """Rank (as a signed number in the same order), key and row at `place` of the three rows of `found`."""
    signed = rank.to(tl.int64)
    if scores.dtype.element_ty == tl.float64:
        signed = signed ^ -0x8000000000000000
    tl.store(found + place, signed, mask=takes_part)
    tl.store(found + entries + place, key, mask=takes_part)
    tl.store(found + 2 * entries + place, row, mask=takes_part)


@triton.jit(do_not_specialize=["entries", "batch", "wanted"])
def _order(  # type: ignore[no-untyped-def]
    found,
    scores,
    picked,
    threshold,
    guide,
    entries: tl.int64,
    batch: tl.int64,
    wanted: tl.int64,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each of the entries goes where as many come before it as are smaller."""
    entries = entries.to(tl.int64)
    mine = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rank, key, row = _entry(found, entries, mine)
    place = tl.zeros([BLOCK], dtype=tl.int64)
    start = entries * 0
    while start < entries:
        other_rank, other_key, other_row = _entry(found, entries, start + tl.arange(0, BLOCK).to(tl.int64))
        tied = other_rank[None, :] == rank[:, None]
        smaller = (other_key[None, :] < key[:, None]) | (
            (other_key[None, :] == key[:, None]) & (other_row[None, :] < row[:, None])
        )
        before = (other_rank[None, :] < rank[:, None]) | (tied & smaller)
        place += tl.sum(before.to(tl.int64), axis=1)
        start += BLOCK
    there = row != LAST_
    tl.store(picked + place, row, mask=there & (place < batch))
    if KEEP:
        last = there & (place == wanted - 1)
        tl.store(threshold + place * 0, tl.load(scores + row, mask=last, other=0.0), mask=last)
        tl.store(guide + place * 0, row, mask=last)


@triton.jit
def _entry(found, entries, place):  # type: ignore[no-untyped-def]
    inside = place < entries
    return (
        tl.load(found + place, mask=inside, other=LAST_),
        tl.load(found + entries + place, mask=inside, other=LAST_),
        tl.load(found + 2 * entries + place, mask=inside, other=LAST_),
    )


_INTEGERS = ("num_rows", "seed", "step", "first_prompt", "number", "word_before", "shift_before", "shift")
_INTEGERS += ("room", "wanted", "entries", "batch")
_TENSORS = ("state", "counts", "found", "filled", "rows", "count", "picked", "guide")


def _variant(
    kernel: Any, scalar: str, block: int, threads: int, masked: bool | None = None, **constants: Any
) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    types = dict.fromkeys(_INTEGERS, "i64") | dict.fromkeys(_TENSORS, "*i64")
    types |= dict.fromkeys(("seed", "step"), "i32")  # as Triton has numbers that fit, where nothing is annotated
    types |= dict.fromkeys(("scores", "threshold"), f"*{scalar}") | {"mask": "*u8" if masked else f"*{scalar}"}
    constants |= {"BLOCK": block} | ({} if masked is None else {"MASKED": masked})
    return kernel, {name: types[name] for name in kernel.arg_names if name in types}, constants, threads // 32


AHEAD_OF_TIME = [
    _variant(_count, "fp32", COUNT_BLOCK, COUNT_THREADS, True, WORD=RANK),
    _variant(_count, "fp32", COUNT_BLOCK, COUNT_THREADS, True, WORD=KEY),
    _variant(_count, "fp32", COUNT_BLOCK, COUNT_THREADS, True, WORD=ROW),
    _variant(_count, "fp32", COUNT_BLOCK, COUNT_THREADS, False, WORD=RANK),
    _variant(_count, "fp64", COUNT_BLOCK, COUNT_THREADS, True, WORD=RANK),
    _variant(_gather, "fp32", GATHER_BLOCK, GATHER_THREADS, True),
    _variant(_gather, "fp64", GATHER_BLOCK, GATHER_THREADS, False),
    _variant(_offer, "fp32", GATHER_BLOCK, GATHER_THREADS, True),
    _variant(_order, "fp32", ORDER_BLOCK, ORDER_THREADS, KEEP=True),
]
"""What `kernels.ahead_of_time` compiles: kernel, types of its arguments, constants, warps."""
