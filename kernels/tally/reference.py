"""The definition of what a step adds to the books, in float64 torch."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED
from bayes_prompt.kernels.tally import Books, Observations, check_arguments


@torch.no_grad()
def tally(seen: Observations, books: Books, record: Tensor) -> None:
    """Add M observations to the books of N prompts, and write the figures of the step into `record` (6,) float64.

    Counted are the first entries of prompts in [0, N). Of these, unexpected ones are left out of both evidences, which
    would be minus infinity. Raises TypeError or ValueError for a wrong dtype, shape, device or layout.
    """
    check_arguments(seen, books, record)
    counted = (seen.index >= 0) & (seen.index < books.visits.numel())
    counted[1:] &= seen.index[1:] != seen.index[:-1]
    rows, successes, trials = seen.index[counted], seen.successes[counted], seen.trials[counted]
    status = seen.status[counted]
    books.visits[rows] += 1
    books.solved[rows] += (successes == trials).int()
    possible = (status & UNEXPECTED) == 0
    event, correction = seen.log_event[counted][possible], seen.correction[counted][possible]
    books.log_evidence.add_(event.sum())
    books.log_count_evidence.add_((event + correction).sum())
    books.unexpected.add_((~possible).sum())
    books.impossible.add_(((status & IMPOSSIBLE) != 0).sum())
    if len(rows):
        books.group_size.copy_(trials.max())
    record[0], record[1], record[3] = len(rows), trials.sum(), successes.sum()
    record[2] = ((successes > 0) & (successes < trials)).sum()
    record[4] = seen.informative[counted].double().sum()
    record[5] = (seen.success_rate[counted].double() * trials).sum()
