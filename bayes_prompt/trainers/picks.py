"""What the adapters share: the picks of an epoch, and rewards turned into counts."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from bayes_prompt.errors import CheckpointError
from bayes_prompt.selector import PromptSelector

logger = logging.getLogger(__name__)


def reuse_on_shortage(selector: PromptSelector) -> None:
    """Let a selector whose user left `on_shortage` open repeat prompts: a trainer must not stop in the middle of a run.

    Trainers read ahead, so in a small pool most prompts may be out when the next pick is due.
    """
    if not isinstance(selector, PromptSelector):
        raise TypeError(f"selector must be a PromptSelector; got {type(selector).__name__}")
    if selector.on_shortage is None:
        selector.on_shortage = "reuse"


def give_back(selector: PromptSelector, picked: Tensor) -> None:
    """Release those of the rows `picked` (M,) that are still out: nobody is going to roll them out."""
    while len(left := (out := selector.in_flight)[torch.isin(out, picked)]):
        selector.release(left)  # ends one outing of each, and a prompt may be out more than once
        logger.info("released %d prompts that were picked and never rolled out", len(left))


class Picks:
    """The picks of an epoch of num_prompts // batch_size picks: each drawn when it is first needed, and remembered.

    A resumed run goes through the remembered picks again instead of drawing them anew. So a trainer may skip the
    batches that it has trained on, and a selector that was restored with its picks left out (in_flight="keep") notices
    nothing. After the last one remembered it goes on drawing.
    """

    def __init__(self, selector: PromptSelector) -> None:
        self.selector = selector
        self.drawn: list[Tensor] = []  # of this epoch, each (B,) int64
        self.digest = 0  # of the picks drawn in this epoch: the same on all ranks, or they have drifted apart
        self.seconds = 0.0  # spent selecting so far
        self._resumed = False

    def __len__(self) -> int:
        return self.selector.num_prompts // self.selector.batch_size

    def epoch(self) -> Iterator[Tensor]:
        """The picks (B,) of an epoch: a new one, or the one that `load_state_dict` put in place.

        Picks of an earlier epoch that are still out have been dropped by the trainer: they are released first.
        """
        if not self._resumed:
            if self.drawn:
                give_back(self.selector, torch.cat(self.drawn))
            self.restart()
        self._resumed = False
        for number in range(len(self)):
            if number == len(self.drawn):
                started = time.perf_counter()
                self._remember(self.selector.select())
                self.seconds += time.perf_counter() - started
            yield self.drawn[number]

    def restart(self) -> None:
        """Forget the picks, so that the next epoch is a new one. None are released."""
        self.drawn, self.digest, self._resumed = [], 0, False

    def state_dict(self) -> dict[str, Tensor]:
        """The picks drawn in this epoch, (M, B) int64."""
        none = torch.zeros(0, self.selector.batch_size, dtype=torch.int64)
        return {"picks": torch.stack(self.drawn) if self.drawn else none}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an epoch. CheckpointError where these are not picks that this selector could have made."""
        picks = state["picks"]
        most, size, pool = len(self), self.selector.batch_size, self.selector.num_prompts
        if picks.dtype != torch.int64 or picks.ndim != 2 or picks.shape[1] != size or len(picks) > most:
            raise CheckpointError(
                f"picks must be int64 of shape (at most {most}, {size}); got {picks.dtype} of {tuple(picks.shape)}"
            )
        if ((picks < 0) | (picks >= pool)).any():
            raise CheckpointError(f"picks must lie in [0, {pool}); they reach from {picks.min()} to {picks.max()}")
        self.restart()
        for pick in picks.clone():
            self._remember(pick)
        self._resumed = True

    def _remember(self, pick: Tensor) -> None:
        self.drawn.append(pick)
        self.digest = zlib.crc32(pick.numpy().tobytes(), self.digest)


class RepeatedPicks(Sampler[int]):
    """Row numbers for trainers that spell groups out: each pick `repeats` times, each prompt in it `group` times.

    With picks [a, b], group=2, repeats=2: a a b b a a b b, then the next pick. The length is that of a whole epoch.
    """

    def __init__(self, picks: Picks, group: int, repeats: int = 1) -> None:
        self.picks = picks
        self.group = group
        self.repeats = repeats

    def __iter__(self) -> Iterator[int]:
        for pick in self.picks.epoch():
            block = pick.repeat_interleave(self.group).tolist()
            for _ in range(self.repeats):
                yield from block

    def __len__(self) -> int:
        return len(self.picks) * self.picks.selector.batch_size * self.group * self.repeats


@dataclass(frozen=True)
class GroupCounts:
    """Successes and scorable trials of each prompt, (M,) int64, sorted by row; trials may be 0."""

    index: Tensor
    successes: Tensor
    trials: Tensor
    unscorable: int  # completions that got no reward


def count_groups(rows: Tensor, rewards: Tensor, group: int, threshold: float, name: str = "rewards") -> GroupCounts:
    """Rewards of single completions as counts of their prompts.

    Args:
        rows: prompt of each completion, (C,) int64, in any order.
        rewards: of each completion, (C,) in [0, 1], NaN where it could not be scored.
        group: completions of one prompt. threshold: a reward of at least this is a success.
        name: what to call the rewards in an error.

    Raises:
        RuntimeError: a prompt's completions are not a multiple of `group`. ValueError: a reward outside [0, 1].
    """
    index, place, sizes = rows.unique(return_inverse=True, return_counts=True)
    torn = (sizes % group).nonzero()
    if len(torn):
        raise RuntimeError(
            f"prompt {index[torn[0, 0]]} has {sizes[torn[0, 0]]} completions, not a multiple of the group of {group}: "
            "the ranks picked different prompts. Give every rank the same selector: same seed, model and settings"
        )
    scorable = ~rewards.isnan()
    bad = (scorable & ~((rewards >= 0) & (rewards <= 1))).nonzero()
    if len(bad):
        first = int(bad[0, 0])
        raise ValueError(
            f"{name}[{first}] = {float(rewards[first])} (prompt {rows[first]}) must be finite and lie in [0, 1] to "
            "tell successes from failures; name another reward function, or give a callable, as success"
        )
    # Compared in the rewards' own precision: float32(0.9) is below the float64 0.9.
    succeeded = scorable & (rewards >= threshold)
    zero = torch.zeros_like(index)
    return GroupCounts(
        index=index,
        successes=zero.index_add(0, place, succeeded.long()),
        trials=zero.index_add(0, place, scorable.long()),
        unscorable=int((~scorable).sum()),
    )


def learn(selector: PromptSelector, counts: GroupCounts) -> None:
    """One step of a synchronous trainer: observe what was scored, release what was not, and let time advance."""
    seen = counts.trials > 0
    if seen.any():
        selector.observe(counts.index[seen], successes=counts.successes[seen], trials=counts.trials[seen])
    lost = counts.index[~seen]
    selector.release(lost[torch.isin(lost, selector.in_flight)])
    selector.advance()
