"""Samplers that let a selector choose the rows of a PyTorch `DataLoader`, or of torchdata's `StatefulDataLoader`.

```python
loader = DataLoader(dataset, batch_sampler=PromptBatchSampler(selector))
for batch in loader:
    ...                                    # roll out and score: rewards (B, G) of the prompts `rows`
    selector.update(rows, rewards)
```
A run is resumed from two states, saved together after an `update`: the selector's (`selector.save`), which knows the
picks that are out, and the sampler's (`sampler.state_dict()`; a StatefulDataLoader's state contains it), which is a
position in the epoch. Restore the selector first, with in_flight="redraw", its default. Then nothing is drawn twice and
nothing is lost: picks that the loader had read ahead are handed out again, the same in the same order.

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
from bayes_prompt.trainers.picks import give_back, reuse_on_shortage

T = TypeVar("T")


class _Epoch(Iterator[T], Generic[T]):
    """One pass over a sampler, its position counted in rows. Nothing happens before it is asked for its first item.

    Loaders make iterators that they never use, so a sampler takes note of one only when it begins to draw.
    """

    def __init__(self, sampler: _PromptSampler[T], yielded: int) -> None:
        self.sampler = sampler
        self.yielded = yielded
        self.rest: list[int] = []  # rows that were drawn and not yet handed out
        self.drawn: list[torch.Tensor] = []

    def __iter__(self) -> _Epoch[T]:
        return self

    def state_dict(self) -> dict[str, int]:
        """Rows handed out so far."""
        return {"yielded": self.yielded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the rows that had been handed out."""
        self.yielded = _position(state, self.sampler.rows_per_epoch)
        self.sampler.forget()

    def take(self) -> list[int]:
        """The rows that are next, drawn if need be; StopIteration at the end of the epoch."""
        if not self.rest:
            if self.yielded >= self.sampler.rows_per_epoch:
                raise StopIteration
            self.sampler.begin(self)
            # Up to the next multiple of the batch size, so that picks keep their bounds where a resume cut one in two.
            size = self.sampler.selector.batch_size
            self.drawn.append(self.sampler.selector.select(batch_size=size - self.yielded % size))
            self.rest = self.drawn[-1].tolist()
        return self.rest


class _Rows(_Epoch[int]):
    def __next__(self) -> int:
        row = self.take().pop(0)
        self.yielded += 1
        return row


class _Lists(_Epoch[list[int]]):
    def __next__(self) -> list[int]:
        rows, self.rest = self.take(), []
        self.yielded += len(rows)
        return rows


class _PromptSampler(Sampler[T], Generic[T]):
    _epoch: type[_Epoch[T]]

    def __init__(self, selector: PromptSelector, picks_per_epoch: int | None = None) -> None:
        reuse_on_shortage(selector)
        if picks_per_epoch is None:
            picks_per_epoch = selector.num_prompts // selector.batch_size
        if isinstance(picks_per_epoch, bool) or not isinstance(picks_per_epoch, int):
            raise TypeError(f"picks_per_epoch must be an integer; got {type(picks_per_epoch).__name__}")
        if picks_per_epoch < 1:
            raise ValueError(f"picks_per_epoch must be at least 1; got {picks_per_epoch}")
        self.selector = selector
        self.picks_per_epoch = picks_per_epoch
        self._current: _Epoch[T] | None = None
        self._resume_at = 0

    @property
    def rows_per_epoch(self) -> int:
        """Rows that one pass over the sampler hands out."""
        return self.picks_per_epoch * self.selector.batch_size

    def __iter__(self) -> _Epoch[T]:
        return self._epoch(self, self._resume_at)

    def begin(self, epoch: _Epoch[T]) -> None:
        """Note that an epoch draws; what another left out, that was not gone through to its end, is released."""
        left, self._current, self._resume_at = self._current, epoch, 0
        if left is not None and left is not epoch and left.yielded < self.rows_per_epoch:
            give_back(self.selector, torch.cat(left.drawn))

    def forget(self) -> None:
        """Leave alone what was drawn so far: the state of another time or process is about to be restored."""
        self._current = None

    def state_dict(self) -> dict[str, int]:
        """Position in the epoch, in rows. Prompts that are out do not count: they will be handed out again."""
        if self._current is None:
            return {"yielded": self._resume_at}
        taken = self._current.yielded + len(self._current.rest)
        return {"yielded": max(0, taken - len(self.selector.in_flight))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch go on at a position; at the end of an epoch a new one begins."""
        self._resume_at = _position(state, self.rows_per_epoch) % self.rows_per_epoch
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


def _position(state: Mapping[str, Any], length: int) -> int:
    yielded = state.get("yielded")
    if isinstance(yielded, bool) or not isinstance(yielded, int) or not 0 <= yielded <= length:
        raise CheckpointError(f"yielded must be an integer in [0, {length}], the rows of an epoch; got {yielded!r}")
    return yielded
