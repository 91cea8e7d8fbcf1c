"""Samplers that let a selector choose the rows of a PyTorch `DataLoader`, or of torchdata's `StatefulDataLoader`.

```python
loader = DataLoader(dataset, batch_sampler=PromptBatchSampler(selector))
for batch in loader:
    ...                                    # roll out and score: rewards (B, G) of the prompts `rows`
    selector.update(rows, rewards)
```
A run is resumed from two states, saved together after an `update`: the selector's (`selector.save`), which knows the
picks that are out, and the sampler's (`sampler.state_dict()`; a StatefulDataLoader's state contains it), which is a
place in the epoch. Restore the selector first, with in_flight="redraw", its default. Then nothing is drawn twice and
nothing is lost. The resumed pass begins with the prompts that were out, oldest first, each pick by itself: what the
loader had read ahead, and all else that had no rewards yet, be it of the epoch before or of another user of the
selector who has not asked for it first. It goes on with what the unbroken pass had still to draw, which is nothing if
that had drawn all of it. Of a pick that was observed in part, the rest comes again, as a smaller one.

torchdata must then be left to save its state at every step (`snapshot_every_n_steps=1`, its default): from an older one
it would go through batches again that have been trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import Sampler

from bayes_prompt.errors import CheckpointError
from bayes_prompt.selector import PromptSelector
from bayes_prompt.trainers.picks import Outing, check_selector, draw, give_back, reuse_on_shortage, still_out

T = TypeVar("T")


class _Epoch(Iterator[T], Generic[T]):
    """One pass over a sampler, its place counted in rows drawn. Nothing is drawn before the first item is asked for.

    A state is the number of rows drawn so far, and that of the next selection. Outings that a restored selector hands
    out again do not count where their selection was an earlier one: they had been counted when they were drawn first.
    """

    def __init__(self, sampler: _PromptSampler[T]) -> None:
        self.sampler = sampler
        self.drawn = 0
        self.rest: list[int] = []  # rows that were drawn and not yet handed out
        self.outings = torch.zeros(0, 2, dtype=torch.int64)  # of what was drawn in this process and is still out
        self.waiting: list[Outing] = []  # to be handed out again, oldest first
        self._counted = 0  # the first selection whose prompts count when they are handed out again

    def __iter__(self) -> _Epoch[T]:
        return self

    @property
    def finished(self) -> bool:
        """All of it has been handed out."""
        return not self.rest and not self.waiting and self.drawn >= self.sampler.rows_per_epoch

    def state_dict(self) -> dict[str, int]:
        """Rows drawn so far, and the number of the selection that comes next."""
        following = (number for number, _ in self.waiting if number >= self._counted)
        return {
            "drawn": min(self.drawn, self.sampler.rows_per_epoch),  # more, where another user's prompts counted
            "selections": next(following, self.sampler.selector.selections),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the rows that had been drawn; the selector must have been restored."""
        self.drawn, self._counted = _place(state, self.sampler.rows_per_epoch)
        self.waiting = _waiting(self.sampler.selector)
        self.rest, self.outings = [], self.outings[:0]
        self.sampler.forget()

    def take(self) -> list[int]:
        """The rows that are next, drawn if need be; StopIteration at the end of the epoch."""
        if not self.rest:
            self._strike_out()
            if self.finished:
                raise StopIteration
            self.sampler.leave_for(self)
            self.rest = self._draw()
            self.sampler.began(self)
        return self.rest

    def _strike_out(self) -> None:
        """Wait no more for what has been observed, released or handed to another user; the epoch has had it, then."""
        if self.waiting:
            waiting = set(still := _waiting(self.sampler.selector))
            self.drawn += sum(outing not in waiting and outing[0] >= self._counted for outing in self.waiting)
            self.waiting = still

    def _draw(self) -> list[int]:
        selector = self.sampler.selector
        size, waiting = selector.batch_size, self.waiting
        if waiting:  # exactly what is left of one pick, so that nothing new is picked beside it
            wanted = min(size, sum(number == waiting[0][0] for number, _ in waiting))
        else:  # up to the next multiple of the batch size, where a pick was cut in two
            wanted = size - self.drawn % size
        pick = draw(selector, wanted, waiting)
        picked = {(number, prompt) for number, prompt in pick.tolist()}
        again = picked.intersection(waiting)
        self.outings = still_out(selector, torch.cat([self.outings, pick]))
        self.drawn += len(picked) - sum(number < self._counted for number, _ in again)
        self.waiting = [outing for outing in waiting if outing not in again]
        return pick[:, 1].tolist()


class _Rows(_Epoch[int]):
    def __next__(self) -> int:
        return self.take().pop(0)


class _Lists(_Epoch[list[int]]):
    def __next__(self) -> list[int]:
        rows, self.rest = self.take(), []
        return rows


class _PromptSampler(Sampler[T], Generic[T]):
    _epoch: type[_Epoch[T]]

    def __init__(self, selector: PromptSelector, picks_per_epoch: int | None = None) -> None:
        check_selector(selector)
        if picks_per_epoch is None:
            picks_per_epoch = selector.num_prompts // selector.batch_size
        if isinstance(picks_per_epoch, bool) or not isinstance(picks_per_epoch, int):
            raise TypeError(f"picks_per_epoch must be an integer; got {type(picks_per_epoch).__name__}")
        if picks_per_epoch < 1:
            raise ValueError(f"picks_per_epoch must be at least 1; got {picks_per_epoch}")
        reuse_on_shortage(selector)
        self.selector = selector
        self.picks_per_epoch = picks_per_epoch
        self._current: _Epoch[T] | None = None  # the last that drew: loaders make iterators that they never use
        self._resume_at: dict[str, int] | None = None

    @property
    def rows_per_epoch(self) -> int:
        """Rows that one pass over the sampler draws."""
        return self.picks_per_epoch * self.selector.batch_size

    def __iter__(self) -> _Epoch[T]:
        epoch = self._epoch(self)
        if self._resume_at is not None:
            epoch.load_state_dict(self._resume_at)
        # The end of an epoch is the beginning of the next.
        return self._epoch(self) if epoch.finished else epoch

    def leave_for(self, epoch: _Epoch[T]) -> None:
        """Release what another epoch left out, if that was not gone through to its end."""
        left = self._current
        if left is None or left is epoch:
            return
        if not left.finished:
            waiting = torch.tensor(left.waiting, dtype=torch.int64).reshape(-1, 2)
            give_back(self.selector, torch.cat([left.outings, waiting]))
        self._current = None

    def began(self, epoch: _Epoch[T]) -> None:
        """Note that an epoch has drawn."""
        self._current, self._resume_at = epoch, None

    def forget(self) -> None:
        """Leave alone what was drawn so far: the state of another time or process is about to be restored."""
        self._current = None

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch: rows drawn, and the number of the selection that comes next."""
        if self._current is not None:
            return self._current.state_dict()
        return dict(self._resume_at or {"drawn": 0, "selections": self.selector.selections})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch go on at a place; at the end of an epoch a new one begins."""
        drawn, selections = _place(state, self.rows_per_epoch)
        self._resume_at = {"drawn": drawn, "selections": selections}
        self.forget()


class PromptSampler(_PromptSampler[int]):
    """Row numbers, one at a time: `DataLoader(dataset, sampler=PromptSampler(selector), batch_size=...)`.

    Args:
        selector: picks as many rows at once as its batch_size says, whatever the loader's batch size is.
        picks_per_epoch: picks in one pass over the sampler; None for num_prompts // batch_size.
    """

    _epoch = _Rows

    def __len__(self) -> int:
        return self.rows_per_epoch


class PromptBatchSampler(_PromptSampler[list[int]]):
    """Whole picks, as lists of row numbers: `DataLoader(dataset, batch_sampler=PromptBatchSampler(selector))`.

    Args:
        selector: picks the rows, batch_size at once.
        picks_per_epoch: picks in one pass over the sampler; None for num_prompts // batch_size.
    """

    _epoch = _Lists

    @property
    def batch_size(self) -> int:
        """Prompts in a batch."""
        return self.selector.batch_size

    def __len__(self) -> int:
        return self.picks_per_epoch


def _waiting(selector: PromptSelector) -> list[Outing]:
    """Outings that a restored selector has still to hand out again, oldest first."""
    return [(number, prompt) for number, prompt in selector.waiting.tolist()]


def _place(state: Mapping[str, Any], length: int) -> tuple[int, int]:
    drawn, selections = state.get("drawn"), state.get("selections")
    if isinstance(drawn, bool) or not isinstance(drawn, int) or not 0 <= drawn <= length:
        raise CheckpointError(f"drawn must be an integer in [0, {length}], the rows of an epoch; got {drawn!r}")
    if isinstance(selections, bool) or not isinstance(selections, int) or selections < 0:
        raise CheckpointError(f"selections must be an integer of at least 0; got {selections!r}")
    return drawn, selections
