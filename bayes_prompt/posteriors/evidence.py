"""What observed counts say about the hidden states, as the filter takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_prompt.models.emission import Emission, check_table
from bayes_prompt.posteriors.base import Counts

MOST_LISTED = 1024  # rollouts of a group, up to which all its counts are worked out once


@dataclass(frozen=True)
class Evidence:
    """Of M observed counts and K states."""

    likelihood: Tensor  # (M, K) in the dtype of the beliefs; the largest of a row is 1, so that nothing underflows
    scale: Tensor  # (M,) float64, the logarithm of what a row was divided by
    correction: Tensor  # (M,) float64, what turns the emission's own event into the counts
    absurd: Tensor  # (M,) bool: counts that no state can produce say nothing about the state, and were not expected
    mixed: Tensor  # (M, K), or (K,) for all: P(0 < successes < trials | state), whatever the successes


class CountTables:
    """The evidence of counts under an emission; looked up where, on the CPU, all groups of a step have one size."""

    def __init__(self, emission: Emission, device: torch.device, dtype: torch.dtype) -> None:
        self._emission, self._device, self._dtype = emission, device, dtype
        self._mixed: dict[int, Tensor] = {}  # by group size: the same few are asked for at every step
        self._tables: dict[int, Evidence | None] = {}  # by group size; None where some count of it has no evidence

    def of(self, counts: Counts, unread: bool) -> Evidence:
        """The evidence of M counts, whose errors the emission may raise: `check_table` names its first bad row.

        unread: the counts lie on a device, which is not to be waited for.
        """
        size, group = counts.index.numel(), 0 if unread else self._group(counts)
        table = self._table(group) if 0 < group < min(2 * size, MOST_LISTED + 1) else None  # else it would not pay
        if table is None:
            mixed = self.mixed(group) if group else self.mixed_each(counts.trials) if size else None
            return self._of(counts.successes, counts.trials, mixed)
        parts = (table.likelihood, table.scale, table.correction, table.absurd)
        likelihood, scale, correction, absurd = (part.index_select(0, counts.successes) for part in parts)
        return Evidence(likelihood, scale, correction, absurd, table.mixed)

    def log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """(M, K) float64 of the emission, which may be a user's own and wrong; on a device nothing is read back."""
        table = self._emission.event_log_likelihood(successes, trials)
        check_table(self._emission, table, successes, trials)
        return table

    def mixed(self, trials: int) -> Tensor:
        """P(0 < successes < trials | state), (K,)."""
        if trials not in self._mixed:
            with torch.inference_mode(False), torch.no_grad():  # kept beyond this call
                self._mixed[trials] = self._emission.informative(trials).to(self._device, self._dtype)
        return self._mixed[trials]

    def mixed_each(self, trials: Tensor) -> Tensor:
        """The same for trials (M,) on the device, (M, K)."""
        ends = [self._emission.log_likelihood(end, trials).exp() for end in (torch.zeros_like(trials), trials)]
        return (1 - ends[0] - ends[1]).clamp(min=0).masked_fill((trials == 1)[:, None], 0).to(self._dtype)

    @staticmethod
    def _group(counts: Counts) -> int:
        """The rollouts of each group, where all have as many; else 0."""
        group = int(counts.largest)
        return group if bool((counts.trials == group).all()) else 0

    def _table(self, group: int) -> Evidence | None:
        if group not in self._tables:
            mixed = self.mixed(group)
            with torch.inference_mode(False), torch.no_grad():  # kept beyond this call
                every = torch.arange(group + 1)
                try:
                    self._tables[group] = self._of(every, torch.full_like(every, group), mixed)
                except Exception:  # an emission that fails on some count is only at fault once that is observed
                    self._tables[group] = None
        return self._tables[group]

    def _of(self, successes: Tensor, trials: Tensor, mixed: Tensor | None) -> Evidence:
        log_likelihood = self.log_likelihood(successes, trials)
        scale = log_likelihood.amax(1)
        absurd = ~torch.isfinite(scale)
        log_likelihood, scale = log_likelihood.masked_fill(absurd[:, None], 0), scale.masked_fill(absurd, 0)
        likelihood = (log_likelihood - scale[:, None]).exp().to(self._dtype)
        correction = self._emission.count_correction(successes, trials).to(scale.dtype).expand(scale.shape).contiguous()
        return Evidence(likelihood, scale, correction, absurd, torch.zeros_like(likelihood) if mixed is None else mixed)
