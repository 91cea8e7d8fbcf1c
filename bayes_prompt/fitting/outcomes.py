"""The distinct counts that a history holds: what a filter looks up, instead of working it out for every cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_prompt.history import History

_FEW = 1 << 12  # prompts, whose states a single core steps sooner than several do


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Pairs of counts, (U,) int64 each; `trials` is 0 in the outcome that nothing was observed."""

    successes: Tensor
    trials: Tensor

    @property
    def looked(self) -> Tensor:
        """Whether there was an observation, (U,) bool."""
        return self.trials > 0


def occurring(history: History) -> tuple[Outcomes, Tensor]:
    """The outcomes that occur in a history, and which of them stands in each cell, (T, N) int64.

    Raises ValueError where the history has no successes.
    """
    if history.successes is None:
        raise ValueError("history must have successes; these are to be sampled")
    base = int(history.trials.max()) + 1
    pairs, which = torch.unique(history.successes.cpu() * base + history.trials.cpu(), return_inverse=True)
    return Outcomes(pairs // base, pairs % base), which


def possible(trials: Tensor) -> Outcomes:
    """Every count of every group size that occurs in trials (T, N), those of one size side by side, ascending."""
    sizes = trials.unique().tolist()
    return Outcomes(
        torch.cat([torch.arange(size + 1) for size in sizes]),
        torch.cat([torch.full((size + 1,), size) for size in sizes]),
    )


def judged(history: History) -> None:
    """TypeError or ValueError unless it is a history with successes and looks, from which models are judged."""
    if not isinstance(history, History):
        raise TypeError(f"history must be a History; got {type(history).__name__}")
    if history.successes is None or not bool((history.trials > 0).any()):
        raise ValueError("history must have successes and looks; got none")


@contextmanager
def small_operations(history: History) -> Iterator[None]:
    """A block in which torch works on one core where there are few prompts: it has thousands of small operations, and
    on a busy machine each waits for all cores.
    """
    before = torch.get_num_threads()
    try:
        if history.num_prompts < _FEW:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
