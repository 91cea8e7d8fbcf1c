"""Samplers that let a selector choose the rows of a PyTorch `DataLoader`, or of torchdata's `StatefulDataLoader`.

```python
sampler = PromptBatchSampler(selector)
for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=list):
    ...                                   # roll out, score
    selector.update(rows, rewards)
```
Resuming takes two states: the selector's, which has the picks that are out, and the sampler's (or, with torchdata, the
loader's, which contains it), which is a position. Save both after an `update`, with `selector.save(path)` and
`sampler.state_dict()` or `loader.state_dict()`; restore the selector first, with `selector.load(path)`. Nothing is
fast-forwarded: picks that a loader had read ahead are handed out again by the selector, the same ones in the same order,
and those that were observed are not drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler

from bayes_prompt.selector import PromptSelector
from bayes_prompt.trainers.picks import give_back, reuse_on_shortage

T = TypeVar("T", int, list[int])


class _Epoch(Iterator[T]):
    """One pass over a sampler, counted in rows. Nothing is drawn before it is asked for."""

    def __init__(self, selector: PromptSelector, length: int, yielded: int, before: _Epoch[T] | None) -> None:
        self.selector = selector
        self.length = length
        self.yielded = yielded
        self.drawn: list[torch.Tensor] = []
        self._before = before

    def state_dict(self) -> dict[str, int]:
        """Rows handed out so far."""
        return {"yielded": self.yielded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the rows that were handed out."""
        self.yielded = _position(state, self.length)

    def _draw(self) -> list[int]:
        if self.yielded >= self.length:
            raise StopIteration
        if self._before is not None:
            self._before.abandon()
            self._before = None
        # Up to the next multiple of the batch size, so that picks keep their boundaries when a resume cut one.
        size = self.selector.batch_size
        pick = self.selector.select(batch_size=size - self.yielded % size)
        self.drawn.append(pick)
        rows: list[int] = pick.tolist()
        return rows

    def abandon(self) -> None:
        """Give back what is out, if the loop over this epoch was left before its end."""
        if self.yielded < self.length and self.drawn:
            give_back(self.selector, torch.cat(self.drawn))


class _Rows(_Epoch[int]):
    _rest: Iterator[int] = iter(())

    def __next__(self) -> int:
        row = next(self._rest, None)
        if row is None:
            self._rest = iter(self._draw())
            row = next(self._rest)
        self.yielded += 1
        return row


class _Lists(_Epoch[list[int]]):
    def __next__(self) -> list[int]:
        rows = self._draw()
        self.yielded += len(rows)
        return rows
