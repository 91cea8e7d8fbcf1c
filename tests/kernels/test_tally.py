"""What a step adds to the books, compiled, against the reference, and against plain Python."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from bayes_prompt.kernels import backend
from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED
from bayes_prompt.kernels.tally import RECORD, Books, Observations, tensors
from bayes_prompt.metrics import BatchRecord

BACKENDS = ["reference", "cpu", "triton"]
N = 300


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


def random_books(g: torch.Generator) -> Books:
    visits = torch.randint(0, 9, (N,), generator=g, dtype=torch.int32)
    solved = (visits * torch.rand(N, generator=g)).int()
    logs, counts = torch.rand(2, generator=g, dtype=torch.float64), torch.randint(0, 99, (3,), generator=g)
    return Books(visits, solved, *logs.clone(), *counts.clone())


def random_observations(g: torch.Generator, entries: int, dtype: torch.dtype = torch.float32) -> Observations:
    """Entries outside the pool and second ones of a row are there too; unexpected ones have no finite logarithm."""
    index = torch.randint(-2, N + 3, (entries,), generator=g).sort().values
    trials = torch.randint(1, 9, (entries,), generator=g)
    successes = (torch.rand(entries, generator=g) * (trials + 1)).long()
    status = torch.randint(0, 4, (entries,), generator=g, dtype=torch.int32)
    event = -torch.rand(entries, generator=g, dtype=torch.float64)
    event[(status & UNEXPECTED) != 0] = -math.inf
    correction = -torch.rand(entries, generator=g, dtype=torch.float64)
    expected = torch.rand(2, entries, generator=g).to(dtype)
    return Observations(index, successes, trials, event, correction, status, expected[0], expected[1])


def run(name: str, seen: Observations, books: Books) -> tuple[Books, Tensor]:
    device = device_of(name)
    done = Books(*(tensor.to(device, copy=True) for tensor in tensors(books)))
    record = torch.full((len(RECORD),), math.nan, dtype=torch.float64, device=device)
    backend.load("tally", name).tally(Observations(*(tensor.to(device) for tensor in tensors(seen))), done, record)
    return Books(*(tensor.cpu() for tensor in tensors(done))), record.cpu()


def by_hand(seen: Observations, books: Books) -> tuple[Books, list[float]]:
    columns = zip(*(tensor.tolist() for tensor in tensors(seen)), strict=True)
    first = {}
    for row, *rest in columns:
        if 0 <= row < N:
            first.setdefault(row, rest)
    visits, solved = books.visits.clone(), books.solved.clone()
    event, count, sums, statuses, largest = 0.0, 0.0, [0.0] * 6, Counter[int](), 0
    for row, (successes, trials, log_event, correction, status, informative, rate) in first.items():
        visits[row] += 1
        solved[row] += successes == trials
        largest = max(largest, trials)
        statuses.update({bit: 1 for bit in (UNEXPECTED, IMPOSSIBLE) if status & bit})
        if not status & UNEXPECTED:
            event, count = event + log_event, count + log_event + correction
        figures = (1, trials, 0 < successes < trials, successes, informative, rate * trials)
        sums = [a + b for a, b in zip(sums, figures, strict=True)]
    return Books(
        visits,
        solved,
        books.log_evidence + event,
        books.log_count_evidence + count,
        books.unexpected + statuses[UNEXPECTED],
        books.impossible + statuses[IMPOSSIBLE],
        torch.tensor(largest) if largest else books.group_size,
    ), sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entries", [0, 1, 2, 511, 513, 1300])  # Triton's block has 512
@pytest.mark.parametrize("name", BACKENDS)
def test_books_equal_those_kept_by_hand(name: str, entries: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(entries)
    seen, books = random_observations(g, entries, dtype), random_books(g)
    done, record = run(name, seen, books)
    expected, sums = by_hand(seen, books)
    # Sums of at most 300 float64 numbers of at most 8, in whatever order: 300 ulps of the sum of their sizes.
    for value, wanted in zip(
        (*tensors(done), record), (*tensors(expected), torch.tensor(sums, dtype=torch.float64)), strict=True
    ):
        if value.is_floating_point():
            torch.testing.assert_close(value, wanted, rtol=0, atol=2.0**-53 * N * 8 * N)
        else:
            assert torch.equal(value, wanted.to(value.dtype))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_step_without_observations_leaves_the_books_alone(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    books, seen = random_books(g), random_observations(g, 40)
    seen = replace(seen, index=torch.full_like(seen.index, N))  # where a check on the device refused the call
    done, record = run(name, seen, books)
    assert all(torch.equal(*pair) for pair in zip(tensors(done), tensors(books), strict=True))
    assert record.tolist() == [0.0] * len(RECORD)


def test_a_record_is_read_by_the_names_of_its_figures() -> None:
    assert tuple(field.name for field in fields(BatchRecord)) == RECORD


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments_are_named_and_change_nothing(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    books, seen, record = random_books(g), random_observations(g, 5), torch.zeros(6, dtype=torch.float64)
    tally = backend.load("tally", name).tally
    cases = [
        (TypeError, "seen.index", replace(seen, index=seen.index.int()), books, record),
        (ValueError, "seen.trials", replace(seen, trials=seen.trials[:4]), books, record),
        (TypeError, "seen.log_event", replace(seen, log_event=seen.log_event.float()), books, record),
        (ValueError, "seen.correction", replace(seen, correction=seen.correction[:1].expand(5)), books, record),
        (TypeError, "seen.status", replace(seen, status=seen.status.long()), books, record),
        (TypeError, "seen.informative", replace(seen, informative=seen.informative.half()), books, record),
        (TypeError, "seen.success_rate", replace(seen, success_rate=seen.success_rate.long()), books, record),
        (ValueError, "books.solved", seen, replace(books, solved=books.solved[:9]), record),
        (TypeError, "books.log_evidence", seen, replace(books, log_evidence=torch.zeros(())), record),
        (ValueError, "books.unexpected", seen, replace(books, unexpected=torch.zeros(1, dtype=torch.int64)), record),
        (ValueError, "record", seen, books, record[:5]),
    ]
    before = [tensor.clone() for tensor in tensors(books)]
    for error, argument, *arguments in cases:
        with pytest.raises(error, match=argument):
            tally(*arguments)
    assert all(torch.equal(*pair) for pair in zip(tensors(books), before, strict=True))
