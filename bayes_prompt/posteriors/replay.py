"""The last batches of observed prompts, from which a model that all prompts share keeps learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_keys, require_like, require_rows
from bayes_prompt.errors import CheckpointError
from bayes_prompt.models.difficulty import Batches

BEFORE = -1  # the step of what was known before training
_COLUMNS = ("rows", "successes", "trials", "record")


@dataclass(frozen=True, eq=False)
class Batch:
    """The prompts observed in one step. rows, successes, trials: (B,) int64. record: (B, M, 2), as it was before."""

    step: int
    rows: Tensor
    successes: Tensor
    trials: Tensor
    record: Tensor


class Replay:
    """Up to `capacity` batches to learn from, oldest first, and the one before them.

    Args:
        capacity: batches to learn from. memories: M, rates at which records are forgotten. device: where they live.
        embeddings: gives the standardised embeddings, of shape (..., D), of rows of shape (...).
    """

    def __init__(
        self, capacity: int, memories: int, device: torch.device, embeddings: Callable[[Tensor], Tensor]
    ) -> None:
        self.capacity, self.memories, self.device, self._embeddings = capacity, memories, device, embeddings
        self.batches: list[Batch] = []

    def with_newest(self, batch: Batch) -> Replay:
        """Another replay, with one batch more, and without the oldest where there is no room."""
        other = Replay(self.capacity, self.memories, self.device, self._embeddings)
        other.batches = [*self.batches, batch][-(self.capacity + 1) :]
        return other

    def draw(self, wanted: int, recency: float) -> Batches:
        """The newest batch, of weight 1, and `wanted` earlier ones, drawn by recency ** age from torch's generator.

        Their weights add up to the sum of recency ** age over all earlier ones, so that the expected sum over a drawn
        stack is the sum over all batches, the newer counting more.
        """
        newest = len(self.batches) - 1
        earlier = range(len(self.batches))[-self.capacity : -1]
        age = torch.tensor([self.batches[-1].step - self.batches[i].step for i in earlier], dtype=torch.float64)
        share = recency**age
        total = float(share.sum())
        drawn = torch.multinomial(share, wanted, replacement=True).tolist() if total > 0 and wanted else []
        old = [earlier[place] for place in drawn]
        return self._stack([newest, *old], [1.0, *[total / max(1, len(old))] * len(old)])

    def last(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (1, B, D), rates (1, B) and presence (1, B) of the newest batch; one absent prompt without one."""
        return self._seen([len(self.batches) - 1])

    def _stack(self, numbers: list[int], weight: list[float]) -> Batches:
        batches = [self.batches[number] for number in numbers]
        rows, successes, trials, record = (
            self._padded([getattr(batch, name) for batch in batches]) for name in _COLUMNS
        )
        return Batches(
            embeddings=self._embeddings(rows),
            successes=successes.float(),
            trials=trials.float(),
            record=record,
            present=trials > 0,
            weight=torch.tensor(weight, dtype=torch.float32, device=self.device),
            before=self._seen([number - 1 for number in numbers]),
        )

    def _seen(self, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What batches by number showed; before the first one, nothing."""
        nobody = torch.zeros(1, dtype=torch.int64, device=self.device)
        known = [self.batches[number] if number >= 0 else None for number in numbers]
        rows, successes, trials = (
            self._padded([nobody if batch is None else getattr(batch, name) for batch in known])
            for name in _COLUMNS[:3]
        )
        return self._embeddings(rows), successes.float() / trials.clamp_min(1), trials > 0

    @staticmethod
    def _padded(parts: list[Tensor]) -> Tensor:
        out = parts[0].new_zeros(len(parts), max(len(part) for part in parts), *parts[0].shape[1:])
        for place, part in enumerate(parts):
            out[place, : len(part)] = part
        return out

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """All batches, one after the other."""
        none = torch.zeros(0, dtype=torch.int64)
        parts = self.batches or [Batch(0, none, none, none, torch.zeros(0, self.memories, 2, dtype=torch.float32))]
        return {
            **{name: torch.cat([getattr(batch, name) for batch in parts]).clone() for name in _COLUMNS},
            "size": torch.tensor([len(batch.rows) for batch in self.batches], dtype=torch.int64),
            "step": torch.tensor([batch.step for batch in self.batches], dtype=torch.int64),
        }

    def check(self, state: Mapping[str, Any], num_prompts: int, step: int) -> None:
        """CheckpointError unless `restore` can take all of it, for a posterior that has made `step` steps."""
        require_keys("replay", state, (*_COLUMNS, "size", "step"))
        for name in ("rows", "successes", "trials", "size", "step"):
            require_rows(f"replay.{name}", state[name])
        rows, successes, trials, size, when = (state[name] for name in ("rows", "successes", "trials", "size", "step"))
        entries = len(rows)
        require_like("replay.record", state["record"], torch.zeros(entries, self.memories, 2, dtype=torch.float32))
        good = (
            len(successes) == len(trials) == entries == int(size.sum())
            and len(size) == len(when) <= self.capacity + 1
            and bool((size > 0).all())
            and bool(
                ((rows >= 0) & (rows < num_prompts) & (successes >= 0) & (successes <= trials) & (trials > 0)).all()
            )
            and bool(((when.diff() > 0) | ((when[1:] == BEFORE) & (when[:-1] == BEFORE))).all())
            and bool(((when >= BEFORE) & (when < step)).all())
            and bool((torch.isfinite(state["record"]) & (state["record"] >= 0)).all())
        )
        if not good:
            raise CheckpointError("replay holds batches that cannot be: rows, counts, sizes or steps are out of range")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` gave."""
        sizes = state["size"].tolist()
        columns = [state[name].to(self.device).clone().split(sizes) for name in _COLUMNS]
        self.batches = [Batch(*entries) for entries in zip(state["step"].tolist(), *columns, strict=True)]
