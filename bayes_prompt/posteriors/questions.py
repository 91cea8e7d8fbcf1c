"""What an acquisition may ask of any posterior, and what an explorer may: what a look at a prompt would teach."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks, looks

_CHUNK = 1 << 14


class Questions(ABC):
    """What is believed of N prompts. Whoever answers for the belief itself gets the explorer's answers from it."""

    num_prompts: int
    device: torch.device
    dtype: torch.dtype  # of the answers

    @property
    @abstractmethod
    def unseen(self) -> Tensor:
        """Prompts of which there is no record, (N,) bool."""

    # What an acquisition may ask; each takes rows (B,) to answer for those alone

    @abstractmethod
    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """Expected success rate of one rollout, (N,), or (B,) for the rows `index`."""

    @abstractmethod
    def informative_probability(self, trials: int | Tensor, index: Tensor | None = None) -> Tensor:
        """P(0 < successes < trials) of the coming rollouts, (N,), or (B,) for the rows `index`.

        trials: rollouts of each prompt, an integer of at least 1, or (N,) or (B,) of them.
        """

    @abstractmethod
    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)], the expected variance of one reward, (N,), or (B,) for the rows `index`; at most 1/4."""

    @abstractmethod
    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Entropy of the belief in nats, (N,), or (B,) for the rows `index`."""

    @abstractmethod
    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """One Thompson draw of every prompt's success rate, (N,): a function of (seed, step, prompt)."""

    # What an acquisition may ask for a pick of `batch` prompts: scores, which the next call or step may overwrite, and
    # where the posterior keeps one, the shortlist of the best

    def informative_scores(self, trials: int | Tensor, batch: int) -> tuple[Tensor, Shortlist | None]:
        """`informative_probability(trials)`, (N,); trials: an integer, or (1,) on the device, where it stays unread."""
        each = trials.expand(self.num_prompts) if isinstance(trials, Tensor) else trials
        return self.informative_probability(each), None

    def draw_scores(self, seed: int, step: int, low: float, high: float, batch: int) -> tuple[Tensor, Shortlist | None]:
        """Minus the distance from a Thompson draw of the success rate to [low, high], (N,)."""
        rate = self.sample_success_rate(seed, step)
        return -torch.maximum(low - rate, rate - high).clamp(min=0), None

    # What an explorer may ask: what a look at a prompt would teach

    def look_index(self, trials: int, horizon: float, new: float | None = None) -> Tensor:
        """P(0 < successes < trials), and what a look at the prompt would be worth, as a price (N,): `looks.index`.

        trials: rollouts of the look. horizon: steps that it is of use for, at least 0; with 0 nothing is added.
        new: the same for prompts that are `unseen`; None for no difference.
        """
        horizon = looks.horizon("horizon", horizon)
        new = horizon if new is None else looks.horizon("new", new)

        def within(steps: float) -> Tensor:
            return self._looked(trials, lambda now, chance, worth: looks.index(now, chance, worth, steps))

        return within(horizon) if new == horizon else torch.where(self.unseen, within(new), within(horizon))

    def look_gain(self, trials: int, threshold: float) -> Tensor:
        """What a look adds to the better of the prompt and one whose P(informative) is `threshold`, (N,): `looks.gain`.

        trials: rollouts of the look. It is at least 0, and 0 where every outcome would leave the choice as it is.
        """
        checks.number("threshold", threshold)
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite; got {threshold}")
        return self._looked(trials, lambda now, chance, worth: looks.gain(chance, worth, threshold))

    def informative_quantile(self, trials: int, level: float) -> Tensor:
        """The `level` quantile of the success rate's own P(0 < successes < trials) under the belief, (N,).

        The expectation is `informative_probability`. level: in (0, 1), above 1/2 for optimism.
        """
        checks.number("level", level)
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1); got {level}")
        worth = self._point_worth(checks.group_size("trials", trials))
        parts = [looks.quantile(self._point_mass(part), worth, level) for part in self._chunks()]
        return torch.cat(parts).to(self.dtype)

    # The belief as points, which a look would teach about

    @abstractmethod
    def _point_mass(self, index: Tensor) -> Tensor:
        """The belief as probabilities (B, Q) of Q points, such as hidden states or success rates, float64."""

    @abstractmethod
    def _point_worth(self, trials: int) -> Tensor:
        """P(0 < successes < trials) at each of these points, (Q,) float64."""

    def _point_later(self, trials: int, index: Tensor) -> Tensor:
        """The same one step later, expected at each of the points now: (Q,), or (B, Q) where prompts differ."""
        return self._point_worth(trials)

    @abstractmethod
    def _point_chance(self, trials: int) -> Tensor:
        """P(successes) at each of the points, (trials + 1, Q) float64."""

    def _looked(self, trials: int, answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """`answer` (N,) from P(informative) now (B,), and chance and worth (B, O) of the outcomes of a look."""
        trials = checks.group_size("trials", trials)
        chances = self._point_chance(min(trials, looks.MOST_ROLLOUTS))
        out = torch.empty(self.num_prompts, dtype=self.dtype, device=self.device)
        for part in self._chunks():
            mass, later = self._point_mass(part), self._point_later(trials, part)
            now = self.informative_probability(trials, part).double()
            out[part] = answer(now, mass @ chances.T, (mass * later) @ chances.T).to(self.dtype)
        return out

    def _chunks(self) -> Iterator[Tensor]:
        """Rows (B,) of so many prompts that their beliefs can be worked with at a time."""
        for start in range(0, self.num_prompts, _CHUNK):
            yield torch.arange(start, min(start + _CHUNK, self.num_prompts), device=self.device)
