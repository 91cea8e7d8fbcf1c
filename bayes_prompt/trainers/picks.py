"""What the adapters share: the picks of an epoch, and rewards turned into counts."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Sampler

from bayes_prompt.errors import CheckpointError
from bayes_prompt.selector import PromptSelector

logger = logging.getLogger(__name__)

Outing: TypeAlias = tuple[int, int]  # the selection's number, and the prompt


def reuse_on_shortage(selector: PromptSelector) -> None:
    """Let a selector whose user left `on_shortage` open repeat prompts: a trainer must not stop in the middle of a run.

    Trainers read ahead, so in a small pool most prompts may be out when the next pick is due.
    """
    check_selector(selector)
    if selector.on_shortage is None:
        selector.on_shortage = "reuse"


def check_selector(selector: PromptSelector) -> None:
    """TypeError for anything else."""
    if not isinstance(selector, PromptSelector):
        raise TypeError(f"selector must be a PromptSelector; got {type(selector).__name__}")


def draw(selector: PromptSelector, batch_size: int | None = None, waiting: Sequence[Outing] = ()) -> Tensor:
    """Select, and note which outings the picked prompts now have: rows (selection number, prompt), (B, 2) int64.

    Args:
        selector: on_shortage may make it raise PromptShortage, as `selector.select` says.
        batch_size: B; None for the selector's.
        waiting: outings that a restored selector has to hand out again, oldest first. They tell which one is meant
            where a prompt is out more than once.
    """
    first = selector.selections
    pick = selector.select(batch_size=batch_size)
    numbers: dict[int, int] = {}
    for number, prompt in [*waiting, *selector.outings.tolist()]:
        if number >= first or prompt not in numbers:
            numbers[prompt] = number
    return torch.stack([torch.tensor([numbers.get(row, first) for row in pick.tolist()]), pick], dim=1)


def give_back(selector: PromptSelector, outings: Tensor) -> None:
    """Release those of the outings (M, 2) that are not over yet: nobody is going to roll them out.

    Outings of other holders stay. Where a prompt is out for them too, the selector ends the oldest of its outings,
    whosever that is: their number is right all the same.
    """
    left = still_out(selector, outings)[:, 1]
    if len(left):
        logger.info("released %d picked prompts that were never rolled out", len(left))
    while len(left):
        rows, counts = left.unique(return_counts=True)
        selector.release(rows)
        left = rows.repeat_interleave(counts - 1)


def still_out(selector: PromptSelector, outings: Tensor) -> Tensor:
    """Those of the outings (M, 2) that are not over yet, oldest first."""
    out = selector.outings
    return out[torch.isin(_keys(out, selector), _keys(outings, selector))]


def _keys(outings: Tensor, selector: PromptSelector) -> Tensor:
    return outings[:, 0] * selector.num_prompts + outings[:, 1]


class Picks:
    """The picks of an epoch of num_prompts // batch_size picks: each drawn when it is first needed, and remembered.

    A resumed run goes through the remembered picks again instead of drawing them anew. So a trainer may skip the
    batches that it has trained on, and a selector that was restored with its picks left out (in_flight="keep") notices
    nothing. After the last one remembered it goes on drawing.
    """

    def __init__(self, selector: PromptSelector) -> None:
        self.selector = selector
        self.drawn: list[Tensor] = []  # of this epoch, each (B,) int64
        self._numbers: list[Tensor] = []  # of the selections that sent those prompts out, each (B,) int64
        self.digest = 0  # of the picks drawn in this epoch: the same on all ranks, or they have drifted apart
        self.seconds = 0.0  # spent selecting so far
        self.resumed = False  # whether the next epoch goes on with a restored one

    def __len__(self) -> int:
        return self.selector.num_prompts // self.selector.batch_size

    def epoch(self) -> Iterator[Tensor]:
        """The picks (B,) of an epoch: a new one, or the one that `load_state_dict` put in place.

        Picks of an earlier epoch that are still out have been dropped by the trainer: they are released first.
        """
        if not self.resumed:
            if self.drawn:
                give_back(self.selector, torch.stack([torch.cat(self._numbers), torch.cat(self.drawn)], dim=1))
            self.restart()
        self.resumed = False
        for number in range(len(self)):
            if number == len(self.drawn):
                started = time.perf_counter()
                self._remember(*draw(self.selector).unbind(dim=1))
                self.seconds += time.perf_counter() - started
            yield self.drawn[number]

    def restart(self) -> None:
        """Forget the picks, so that the next epoch is a new one. None are released."""
        self.drawn, self._numbers, self.digest, self.resumed = [], [], 0, False

    def state_dict(self) -> dict[str, Tensor]:
        """The picks drawn in this epoch, and the numbers of the selections they are from: each (M, B) int64."""
        none = torch.zeros(0, self.selector.batch_size, dtype=torch.int64)
        return {
            "picks": torch.stack(self.drawn) if self.drawn else none,
            "selections": torch.stack(self._numbers) if self._numbers else none.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an epoch. CheckpointError where these are not picks that this selector could have made."""
        picks, numbers = state["picks"], state.get("selections")
        most, size, pool = len(self), self.selector.batch_size, self.selector.num_prompts
        if picks.dtype != torch.int64 or picks.ndim != 2 or picks.shape[1] != size or len(picks) > most:
            raise CheckpointError(
                f"picks must be int64 of shape (at most {most}, {size}); got {picks.dtype} of {tuple(picks.shape)}"
            )
        if ((picks < 0) | (picks >= pool)).any():
            raise CheckpointError(f"picks must lie in [0, {pool}); they reach from {picks.min()} to {picks.max()}")
        if not isinstance(numbers, Tensor) or numbers.dtype != torch.int64 or numbers.shape != picks.shape:
            raise CheckpointError(f"selections must be int64 of the shape of picks, {tuple(picks.shape)}")
        self.restart()
        for pick, number in zip(picks.clone(), numbers.clone(), strict=True):
            self._remember(number, pick)
        self.resumed = True

    def _remember(self, numbers: Tensor, pick: Tensor) -> None:
        pick = pick.contiguous()
        self.drawn.append(pick)
        self._numbers.append(numbers)
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
