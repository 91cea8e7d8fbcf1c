"""What of a history is compared with replicated ones: figures that a selector's success depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOWS = 5
"""Parts of a history of equal length, in each of which the informative share is told."""
GAPS = ((1, 1), (2, 2), (3, 5), (6, None))
"""Visits since a prompt was last solved, from and to."""
_STATES = ("unsolved", "partial", "solved")


@dataclass(frozen=True)
class Check:
    """A figure as observed, and in replicated histories.

    Attributes:
        group: "informative share", "transitions" or "solved again". label: which of them.
        observed: the figure. expected: its mean over the replicates. low, high: their 5% and 95% quantiles.
        p_value: two-sided, twice the smaller share of replicates at least as extreme, the observed one counted among
            them. outside: whether it is beyond all of them, for which p_value is the least that it can be.
    """

    group: str
    label: str
    observed: float
    expected: float
    low: float
    high: float
    p_value: float
    outside: bool


def checks(observed: Tensor, replicates: Sequence[Tensor], trials: Tensor) -> tuple[Check, ...]:
    """Compare successes (T, N) with replicated ones, given trials (T, N). Figures that nothing tells of are left out.

    - informative share: of the looks in each part of the history, those with 0 < successes < trials
    - transitions: how often each of unsolved, partial and solved is followed by each at the prompt's next look
    - solved again: of the looks at prompts that were solved before, by visits since, those that are solved
    """
    labels, steps = _labels(len(trials)), _windows(len(trials))
    true = _figures(observed, trials, steps)
    drawn = torch.stack([_figures(each, trials, steps) for each in replicates])
    found = []
    for (group, label), value, values in zip(labels, true.tolist(), drawn.T, strict=True):
        values = values[values.isfinite()]
        if value != value or not len(values):
            continue
        ends = [(int((values <= value).sum()) + 1), (int((values >= value).sum()) + 1)]
        low, high = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        p_value = min(1.0, 2 * min(ends) / (len(values) + 1))
        outside = value < float(values.min()) or value > float(values.max())
        found.append(Check(group, label, value, float(values.mean()), low, high, p_value, outside))
    return tuple(found)


def _windows(steps: int) -> Tensor:
    """The part (T,) of the history that each step lies in."""
    return torch.arange(steps) * min(WINDOWS, steps) // steps


def _labels(steps: int) -> list[tuple[str, str]]:
    windows = _windows(steps)
    parts = [(windows == part).nonzero()[:, 0].tolist() for part in range(int(windows.max()) + 1)]
    shares = [("informative share", f"steps {part[0]}-{part[-1]}") for part in parts]
    moves = [("transitions", f"{before} -> {after}") for before in _STATES for after in _STATES]
    return shares + moves + [("solved again", _gap(*gap)) for gap in GAPS]


def _gap(low: int, high: int | None) -> str:
    if low == high:
        return f"after {low} visit{'s' * (low > 1)}"
    return f"after {low}+ visits" if high is None else f"after {low}-{high} visits"


def _figures(successes: Tensor, trials: Tensor, window: Tensor) -> Tensor:
    """The figures in the order of `_labels`, float64; nan where nothing tells of one."""
    prompt, step = trials.T.nonzero(as_tuple=True)  # looks, prompt by prompt, in the order of time
    won, made = successes[step, prompt], trials[step, prompt]
    state = torch.where(won == 0, 0, torch.where(won == made, 2, 1))
    part = window[step]
    shares = _mean_by(part, (state == 1).double(), int(window.max()) + 1)
    follows = prompt[1:] == prompt[:-1]
    moves = torch.bincount(3 * state[:-1][follows] + state[1:][follows], minlength=9).double()
    look = torch.arange(len(state))
    solved_at = torch.where(state == 2, look, -1).cummax(0).values  # the last solved look up to here
    last = torch.cat([solved_at.new_tensor([-1]), solved_at[:-1]])[: len(look)]
    first = torch.searchsorted(prompt, prompt)  # the prompt's first look
    since = torch.where(last >= first, look - last, 0)
    again = []
    for low, high in GAPS:
        here = (since >= low) & (since <= (high or len(look)))
        again.append((state[here] == 2).double().mean())
    return torch.cat([shares, moves, torch.stack(again)])


def _mean_by(group: Tensor, values: Tensor, groups: int) -> Tensor:
    """Means (groups,) of values (M,) by group (M,); nan where there are none."""
    total = torch.zeros(groups, dtype=torch.float64).index_add(0, group, values)
    return total / torch.bincount(group, minlength=groups)
