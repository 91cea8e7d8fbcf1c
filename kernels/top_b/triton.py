"""The exact pick for CUDA and ROCm (and, on CPU tensors, Triton's interpreter): a radix select without host synchronisation.

Every row has a place in the order given by three unsigned words: rank (of its score, 0 the best), tie key and row number. The
threshold is the place of the batch-th best row, found digit by digit, eight bits each from the top: a pass counts the digits
of the rows that share the digits found so far. As soon as whole buckets fill the batch exactly the rest of the threshold is
all ones, and the remaining passes, always launched, return at once: random scores take two or three passes, and keys are
computed only among rows whose score ties with the threshold's. One pass then gathers the rows that are not beyond the
threshold, in any order, and a sort of these few ends it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import rng_triton
from bayes_prompt.kernels.top_b import check_arguments

BLOCK = 4096
NUM_WARPS = 8
LAST = 2**63 - 1
RANK, KEY, ROW = 0, 1, 2
_KEY, _ROW = tl.constexpr(KEY), tl.constexpr(ROW)


def top_b(scores: Tensor, allowed: Tensor | None, batch: int, seed: int, step: int, first_prompt: int) -> Tensor:
    """See `reference.top_b`."""
    check_arguments(scores, allowed, batch, seed, step, first_prompt)
    rows = len(scores)
    found = torch.full((3, batch), LAST, dtype=torch.int64, device=scores.device)
    if batch == 0 or rows == 0:
        return torch.full_like(found[ROW], -1)
    rank_bytes, row_bytes = scores.element_size(), (rows.bit_length() + 7) // 8
    digits = [(word, 8 * byte) for word, size in enumerate((rank_bytes, 8, row_bytes)) for byte in reversed(range(size))]

    state = torch.empty((len(digits) + 1, 4), dtype=torch.int64, device=scores.device)
    for column, value in enumerate((2 ** (8 * rank_bytes) - 1 if rank_bytes < 8 else -1, LAST, 2 ** (8 * row_bytes) - 1)):
        state[0, column].fill_(value)
    state[0, 3].fill_(batch)
    counts = torch.zeros((len(digits) + 1, 256), dtype=torch.int64, device=scores.device)
    count = torch.zeros(1, dtype=torch.int64, device=scores.device)
    mask = scores if allowed is None else allowed.view(torch.uint8)
    common = (scores, mask, state, counts, rows, seed, step, first_prompt)
    grid = (triton.cdiv(rows, BLOCK),)
    constants = {"MASKED": allowed is not None, "BLOCK": BLOCK, "num_warps": NUM_WARPS}
    before = (RANK, 0)
    with torch.cuda.device_of(scores):
        for number, (word, shift) in enumerate(digits):
            _count[grid](*common, number, *before, shift, WORD=word, **constants)
            before = (word, shift)
        _gather[grid](*common, len(digits), *before, found, count, batch, **constants)
    for word in (ROW, KEY, RANK):  # stable sorts, the last word first
        found = found[:, found[word].argsort(stable=True)]
    return torch.where(found[ROW] == LAST, -1, found[ROW])


@triton.jit
def _ranks(score):  # type: ignore[no-untyped-def]
    """uint64 that grow as scores fall: NaN largest, -0.0 like 0.0."""
    if score.dtype == tl.float32:
        bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
        rank = tl.where(bits < 0, bits, bits ^ 0x7FFFFFFF)
        return tl.where(score == score, rank, -1).to(tl.uint32, bitcast=True).to(tl.uint64)
    else:
        bits = tl.where(score == 0.0, 0.0, score).to(tl.int64, bitcast=True)
        rank = tl.where(bits < 0, bits, bits ^ 0x7FFFFFFFFFFFFFFF)
        return tl.where(score == score, rank, -1).to(tl.uint64, bitcast=True)


@triton.jit
def _threshold(state, counts, number, word, shift):  # type: ignore[no-untyped-def]
    """The threshold's three words and how many rows its prefix still lacks (0: settled), before pass `number`.

    They follow from what held before the previous pass, which counted the digit at `shift` of `word`, and from its counts.
    """
    previous = state + (number - 1) * 4
    rank, key, row = tl.load(previous), tl.load(previous + 1), tl.load(previous + 2)
    lacking = tl.load(previous + 3)
    digit = tl.arange(0, 256).to(tl.int64)
    count = tl.load(counts + number * 256 + digit)
    upto = tl.cumsum(count, axis=0)
    chosen = tl.sum((upto < lacking).to(tl.int64), axis=0)  # the first digit with enough rows
    if (lacking > 0) & (chosen < 256):
        at = digit == chosen
        left = lacking - tl.sum(tl.where(at, upto - count, 0), axis=0)
        lacking = tl.where(left == tl.sum(tl.where(at, count, 0), axis=0), 0, left)
        beyond = (255 - chosen) << shift  # the digit was all ones
        rank -= tl.where(word == 0, beyond, 0)
        key -= tl.where(word == 1, beyond, 0)
        row -= tl.where(word == 2, beyond, 0)
    else:
        lacking = lacking * 0  # settled already, or fewer allowed rows than wanted: all of them
    return rank.to(tl.uint64, bitcast=True), key, row, lacking
