"""What comes back to a selector: rewards of what was rolled out, time that passes, and picks that never will be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from threading import RLock
from typing import TypeAlias

import numpy as np
from torch import Tensor

from bayes_prompt.books import Books
from bayes_prompt.identities import Identities
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior
from bayes_prompt.posteriors.checks import IntegersLike

RewardsLike: TypeAlias = Tensor | np.ndarray | Sequence[Sequence[float]]


class Observing:
    """The half of a selector that learns. Its prompts are named by rows (B,) or by their ids."""

    posterior: Posterior
    num_prompts: int
    success_threshold: float
    _books: Books
    _identities: Identities
    _lock: RLock

    def observe(
        self,
        index: IntegersLike | None = None,
        rewards: RewardsLike | None = None,
        *,
        ids: Sequence[Hashable] | None = None,
        successes: IntegersLike | None = None,
        trials: IntegersLike | int | None = None,
    ) -> None:
        """Learn what came of rolled-out prompts; they count at the next `advance`, and are no longer in flight.

        Prompts that were never picked may be observed too. Observations of one prompt within a step are one group, and
        the first of them ends its being in flight: hand groups over whole if it must not be picked again before.

        Args:
            index: row numbers (B,), or ids: their names (B,). One of the two.
            rewards: (B, G) in [0, 1], turned into counts by success_threshold. Or the counts themselves:
            successes: (B,) integers in [0, trials]; trials: (B,) integers or one for all, at least 1.

        Raises:
            IndexError, TypeError, ValueError: named after the first bad argument and row; nothing has changed then.
        """
        with self._lock:
            landed = self._observe(index, rewards, ids, successes, trials)
            self._books.land(landed, self.posterior)

    def advance(self, elapsed: float = 1.0) -> None:
        """Let one training step pass. `elapsed` scales forgetting and drift; finite and at least 0."""
        with self._lock:
            elapsed = checks.elapsed_time(elapsed)
            self.posterior.advance(elapsed)
            self._books.metrics.close(self.posterior.record)

    def update(
        self,
        index: IntegersLike | None = None,
        rewards: RewardsLike | None = None,
        *,
        ids: Sequence[Hashable] | None = None,
        successes: IntegersLike | None = None,
        trials: IntegersLike | int | None = None,
        elapsed: float = 1.0,
    ) -> None:
        """`observe`, then `advance`; arguments, shapes and errors of the two. If it is refused, nothing has changed."""
        with self._lock:
            checks.elapsed_time(elapsed)
            with self.posterior.all_or_nothing():
                landed = self._observe(index, rewards, ids, successes, trials)
                self.advance(elapsed)
            self._books.land(landed, self.posterior)

    def release(self, index: IntegersLike | None = None, *, ids: Sequence[Hashable] | None = None) -> None:
        """Give back picks that will never be rolled out: rows (B,) or ids (B,). ValueError where one is not out."""
        with self._lock:
            rows = self._rows(index, ids)
            asked: Counter[int] = Counter()
            for place, row in enumerate(rows.tolist()):
                asked[row] += 1
                if asked[row] > self._books.in_flight.times(row):
                    name = f"index[{place}] = {row}" if ids is None else f"ids[{place}] = {ids[place]!r}"
                    raise ValueError(f"{name} is not in flight, so it cannot be released")
            self._books.give_back(rows)

    def rows_of(self, ids: Sequence[Hashable]) -> Tensor:
        """Row numbers (B,) int64 of prompts by name; IndexError names the first that is unknown."""
        return self._identities.rows(ids)

    def ids_of(self, index: IntegersLike) -> list[Hashable]:
        """Names of the prompts in rows (B,); the row numbers themselves where the selector was given no ids."""
        return self._identities.names(checks.rows("index", index, self.num_prompts).tolist())

    # Inner workings

    def _observe(
        self,
        index: IntegersLike | None,
        rewards: RewardsLike | None,
        ids: Sequence[Hashable] | None,
        successes: IntegersLike | None,
        trials: IntegersLike | int | None,
    ) -> Tensor:
        """Hand counts to the posterior; the rows (B,) that they are of, on the device if they were observed there."""
        unread = index is not None and ids is None and self.posterior.defers_checks(index)
        rows = checks.integers("index", index) if unread and index is not None else self._rows(index, ids)
        if rewards is not None:
            if successes is not None or trials is not None:
                raise ValueError("give rewards, or successes and trials, not both")
            successes, trials = checks.counts_from_rewards(rewards, self.success_threshold, len(rows), unread)
        elif successes is None or trials is None:
            raise ValueError("give rewards of shape (B, G), or both successes and trials")
        if unread:
            return self.posterior.observe_unread(rows, successes, trials)
        self.posterior.observe(rows, successes, trials)
        return rows

    def _rows(self, index: IntegersLike | None, ids: Sequence[Hashable] | None) -> Tensor:
        if (index is None) == (ids is None):
            raise ValueError("name the prompts by index or by ids, one of the two")
        if ids is not None:
            return self._identities.rows(ids)
        assert index is not None
        return checks.rows("index", index, self.num_prompts)
