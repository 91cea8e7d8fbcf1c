"""The exact pick for CUDA and ROCm (and, on CPU tensors, Triton's interpreter): a radix select without host
synchronisation.

Every row has a place in the order given by three unsigned words: rank (of its score, 0 the best), tie key and row
number. The threshold is the place of the batch-th best row, found digit by digit, eight bits each from the top: a pass
counts the digits of the rows that share the digits found so far. As soon as whole buckets fill the batch exactly the
rest of the threshold is all ones, and the remaining passes, always launched, return at once: random scores take two or
three passes, and keys are computed only among rows whose score ties with the threshold's. One pass then gathers the
rows that are not beyond the threshold, in any order, and a sort of these few ends it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import rng_triton
from bayes_prompt.kernels.launch import warps
from bayes_prompt.kernels.top_b import check_arguments

COUNT_BLOCK, COUNT_THREADS = 4096, 256
GATHER_BLOCK, GATHER_THREADS = 1024, 128  # it holds keys, ranks and rows at once
LAST = 2**63 - 1
RANK, KEY, ROW = 0, 1, 2


def top_b(scores: Tensor, allowed: Tensor | None, batch: int, seed: int, step: int, first_prompt: int) -> Tensor:
    """See `reference.top_b`."""
    seed, step, first_prompt = check_arguments(scores, allowed, batch, seed, step, first_prompt)
    rows = len(scores)
    found = torch.full((3, batch), LAST, dtype=torch.int64, device=scores.device)
    if batch == 0 or rows == 0:
        return torch.full_like(found[ROW], -1)
    sizes = (scores.element_size(), 8, (rows.bit_length() + 7) // 8)  # bytes of rank, key and row number
    digits = [(word, 8 * byte) for word, size in enumerate(sizes) for byte in reversed(range(size))]

    # One row a pass, and a first one from which pass 0 starts: everything is within the threshold.
    state = torch.zeros((len(digits) + 1, 4), dtype=torch.int64, device=scores.device)
    state[0, RANK] = 2**32 - 1 if sizes[RANK] == 4 else -1
    state[0, KEY] = LAST
    state[0, ROW] = 2 ** (8 * sizes[ROW]) - 1
    state[0, 3] = batch
    counts = torch.zeros((len(digits) + 1, 256), dtype=torch.int64, device=scores.device)
    counts[0, 255] = LAST
    filled = torch.zeros(1, dtype=torch.int64, device=scores.device)
    common = (scores, scores if allowed is None else allowed.view(torch.uint8), state, counts, rows)
    numbers = (seed, step, first_prompt)
    masked = allowed is not None
    with torch.cuda.device_of(scores):
        before = (RANK, 0)
        for number, (word, shift) in enumerate(digits):
            launch = {"BLOCK": COUNT_BLOCK, "num_warps": warps(COUNT_THREADS)}
            grid = (triton.cdiv(rows, COUNT_BLOCK),)
            _count[grid](*common, *numbers, number, *before, shift, WORD=word, MASKED=masked, **launch)
            before = (word, shift)
        launch = {"BLOCK": GATHER_BLOCK, "num_warps": warps(GATHER_THREADS)}
        grid = (triton.cdiv(rows, GATHER_BLOCK),)
        _gather[grid](*common, *numbers, len(digits), *before, found, filled, batch, MASKED=masked, **launch)
    for word in (ROW, KEY, RANK):  # stable sorts, the least significant word first
        found = found[:, found[word].argsort(stable=True)]
    return torch.where(found[ROW] == LAST, -1, found[ROW])


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
def _tally(counts, value, threshold, shift, takes_part):  # type: ignore[no-untyped-def]
    """Add up the digits at `shift` of the values that have the threshold's digits above it."""
    value, threshold, shift = value.to(tl.uint64), threshold.to(tl.uint64), shift.to(tl.uint64)
    takes_part = takes_part & ((((value ^ threshold) >> shift) >> 8) == 0)
    count = tl.histogram(((value >> shift) & 255).to(tl.int32), 256, mask=takes_part)
    tl.atomic_add(counts + tl.arange(0, 256).to(tl.int64), count.to(tl.int64), mask=count > 0, sem="relaxed")


@triton.jit(do_not_specialize=["seed", "step", "first_prompt", "number", "word_before", "shift_before", "shift"])
def _count(  # type: ignore[no-untyped-def]
    scores,
    mask,
    state,
    counts,
    num_rows: tl.int64,
    seed: tl.int64,
    step: tl.int64,
    first_prompt: tl.int64,
    number: tl.int64,
    word_before: tl.int64,
    shift_before: tl.int64,
    shift: tl.int64,
    WORD: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rank_limit, key_limit, row_limit, wanted = _threshold(state, counts, number, word_before, shift_before)
    number = number.to(tl.int64) + 1
    if tl.program_id(0) == 0:
        tl.store(state + number * 4, rank_limit)
        tl.store(state + (number * 4 + 1), key_limit)
        tl.store(state + (number * 4 + 2), row_limit)
        tl.store(state + (number * 4 + 3), wanted)
    if wanted > 0:
        counts += number * 256
        row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        rank, takes_part = _places(scores, mask, row, num_rows, MASKED)
        if WORD == 0:
            _tally(counts, rank, rank_limit, shift, takes_part)
        else:
            takes_part = takes_part & (rank == rank_limit.to(tl.uint64))
            if tl.max(takes_part.to(tl.int32), axis=0) > 0:
                key = rng_triton.tie_keys(seed.to(tl.int64), step.to(tl.int64), row + first_prompt)
                if WORD == 1:
                    _tally(counts, key, key_limit, shift, takes_part)
                else:
                    _tally(counts, row, row_limit, shift, takes_part & (key == key_limit))


@triton.jit(do_not_specialize=["seed", "step", "first_prompt", "number", "word_before", "shift_before", "batch"])
def _gather(  # type: ignore[no-untyped-def]
    scores,
    mask,
    state,
    counts,
    num_rows: tl.int64,
    seed: tl.int64,
    step: tl.int64,
    first_prompt: tl.int64,
    number: tl.int64,
    word_before: tl.int64,
    shift_before: tl.int64,
    found,
    filled,
    batch: tl.int64,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rank_limit, key_limit, row_limit, _ = _threshold(state, counts, number, word_before, shift_before)
    rank_limit = rank_limit.to(tl.uint64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rank, takes_part = _places(scores, mask, row, num_rows, MASKED)
    takes_part = takes_part & (rank <= rank_limit)
    if tl.max(takes_part.to(tl.int32), axis=0) > 0:
        key = rng_triton.tie_keys(seed.to(tl.int64), step.to(tl.int64), row + first_prompt)
        within = (key < key_limit) | ((key == key_limit) & (row <= row_limit))
        takes_part = takes_part & ((rank < rank_limit) | within)
        one = takes_part.to(tl.int32)
        first = tl.atomic_add(filled, tl.sum(one, axis=0).to(tl.int64), sem="relaxed")
        place = first + tl.cumsum(one, axis=0) - 1
        takes_part = takes_part & (place < batch)  # always, unless somebody changes the scores meanwhile
        # As a signed number, in the same order.
        signed = rank.to(tl.int64)
        if scores.dtype.element_ty == tl.float64:
            signed = signed ^ -0x8000000000000000
        tl.store(found + place, signed, mask=takes_part)
        tl.store(found + batch + place, key, mask=takes_part)
        tl.store(found + 2 * batch.to(tl.int64) + place, row, mask=takes_part)


def _variant(scalar: str, word: int | None, masked: bool) -> tuple[object, dict[str, str], dict[str, int], int]:
    """The counting kernel for a word, or the gathering one."""
    pointers = {"scores": f"*{scalar}", "mask": "*u8" if masked else f"*{scalar}", "state": "*i64", "counts": "*i64"}
    sizes = ["num_rows", "seed", "step", "first_prompt", "number", "word_before", "shift_before"]
    if word is None:
        types = pointers | dict.fromkeys(sizes, "i64") | {"found": "*i64", "filled": "*i64", "batch": "i64"}
        return _gather, types, {"MASKED": masked, "BLOCK": GATHER_BLOCK}, GATHER_THREADS // 32
    types = pointers | dict.fromkeys([*sizes, "shift"], "i64")
    return _count, types, {"WORD": word, "MASKED": masked, "BLOCK": COUNT_BLOCK}, COUNT_THREADS // 32


AHEAD_OF_TIME = [
    _variant("fp32", RANK, True),
    _variant("fp32", KEY, True),
    _variant("fp32", ROW, True),
    _variant("fp32", None, True),
    _variant("fp32", RANK, False),
    _variant("fp64", RANK, True),
    _variant("fp64", None, False),
]
"""What `kernels.ahead_of_time` compiles: kernel, types of its arguments, constants, warps."""
