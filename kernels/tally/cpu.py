"""What a step adds to the books, compiled for the CPU (numba): one loop over the observations."""

from __future__ import annotations

from torch import Tensor

from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED
from bayes_prompt.kernels.tally import Books, Observations, check_arguments, tensors
from bayes_prompt.kernels.threads import compiled


def tally(seen: Observations, books: Books, record: Tensor) -> None:
    """See `reference.tally`."""
    check_arguments(seen, books, record)
    if books.visits.device.type != "cpu":
        raise ValueError(f"books.visits must be on the CPU for this backend, got {books.visits.device}")
    _tally(*(tensor.detach().numpy() for tensor in (*tensors(seen), *tensors(books), record)))


@compiled
def _tally(  # type: ignore[no-untyped-def]
    index, successes, trials, log_event, correction, status, informative, success_rate,
    visits, solved, log_evidence, log_count_evidence, unexpected, impossible, group_size, record
):  # fmt: skip
    record[:] = 0.0
    event, count, surprises, impossibles, largest = 0.0, 0.0, 0, 0, 0
    for m in range(len(index)):
        n = index[m]
        if n < 0 or n >= len(visits) or (m > 0 and index[m - 1] == n):
            continue
        visits[n] += 1
        solved[n] += successes[m] == trials[m]
        largest = max(largest, trials[m])
        if status[m] & UNEXPECTED:
            surprises += 1
        else:
            event += log_event[m]
            count += log_event[m] + correction[m]
        impossibles += (status[m] & IMPOSSIBLE) != 0
        record[0] += 1.0
        record[1] += trials[m]
        record[2] += 0 < successes[m] < trials[m]
        record[3] += successes[m]
        record[4] += informative[m]
        record[5] += success_rate[m] * float(trials[m])
    log_evidence[()] += event
    log_count_evidence[()] += count
    unexpected[()] += surprises
    impossible[()] += impossibles
    if largest > 0:
        group_size[()] = largest
