"""The counts of one step, as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counts:
    """The counts of one step, sorted by prompt. Entries of one prompt are added up in the first of them, its leader.

    All tensors have one entry for each observation, so that their sizes are known without asking the device.
    """

    index: Tensor  # (M,) int64, num_prompts where a device-side check refused the call
    successes: Tensor  # (M,) int64, totals at the leaders
    trials: Tensor  # (M,) int64, totals at the leaders, 1 elsewhere
    leader: Tensor  # (M,) bool
    largest: Tensor  # () int64, trials of the prompt with the most; 0 where there are none


def counted(
    entries: list[tuple[Tensor, Tensor, Tensor]], num_prompts: int, device: torch.device, unread: bool = False
) -> Counts:
    """The counts of several calls, index, successes and trials (B,) each.

    Sorting makes the result independent of the order in which prompts were observed, to the last bit.
    unread: nothing on the device is waited for.
    """
    if not entries:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Counts(none, none, none, none.bool(), none.sum())
    index, successes, trials = entries[0]
    if len(entries) > 1:
        index, successes, trials = (torch.cat(parts) for parts in zip(*entries, strict=True))
    index, order = index.sort()
    distinct = not unread and int(index[-1]) < num_prompts and bool((index[1:] != index[:-1]).all())
    if distinct:  # the usual case, where nobody has to wait to see it
        trials = trials[order]
        return Counts(index, successes[order], trials, torch.ones_like(index, dtype=torch.bool), trials.amax())
    entry = torch.arange(index.numel(), device=device)
    first = torch.where(index.diff(prepend=index[:1] - 1) != 0, entry, 0).cummax(0).values
    leader = (first == entry) & (index < num_prompts)
    total = torch.zeros_like(index)
    trials = total.index_add(0, first, trials[order])
    return Counts(
        index,
        total.index_add(0, first, successes[order]),
        torch.where(leader, trials, 1),
        leader,
        torch.where(leader, trials, 0).amax(),
    )
