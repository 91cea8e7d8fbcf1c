"""What any declaration predicts, look by look, and histories replicated from its own predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.fitting.evidence import count_filter, has_filter, log_chances, uses_groups
from bayes_prompt.fitting.outcomes import Outcomes, possible
from bayes_prompt.history import History
from bayes_prompt.kernels import rng
from bayes_prompt.kernels.progress_filter import UNEXPECTED
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.models.progress import SolvingProgress
from bayes_prompt.posteriors.base import Posterior

REPLICATE = 252
"""The stream of random words (see `kernels.rng`) that counts are drawn with. It counts down from the last."""


def predicted(model: Any, history: History, groups: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Log predictive probabilities of the recorded counts (T, N) float64, and where these had probability zero (T, N).

    They are 0 there, and where nothing was observed. A declaration without a filter of `fitting.filters` is asked
    through its posterior, and so are all where steps took other times than 1, which filters do not know.

    groups: numbers from 0 up, (N,), for declarations whose prompts learn by group; others do without.
    """
    with torch.no_grad():
        if history.elapsed is None and has_filter(model, groups is not None):
            return log_chances(model, history)
        return _asked(_posterior(model, history.num_prompts, groups), history)


def replicate(
    model: Any, trials: Tensor, seed: int, groups: Sequence[int] | None = None, elapsed: Tensor | None = None
) -> Tensor:
    """Successes (T, N) int64 of trials (T, N), drawn from a declaration's own predictions.

    Each count is drawn from the predictive distribution given what was drawn before, and fed back. Where the filter is
    exact inference, these are draws from the declaration's Pyro program; with forgetting, which has none, they are what
    the declaration takes the future to be. A draw is a function of (seed, step, prompt). groups: as in `predicted`.
    elapsed: how much time each step took (T,); None: 1.
    """
    with torch.no_grad():
        trials = trials.cpu()
        if elapsed is None and has_filter(model, groups is not None):
            return _by_filter(model, trials, seed)
        return _by_posterior(_posterior(model, trials.shape[1], groups), trials, seed, elapsed)


def _posterior(model: Any, num_prompts: int, groups: Sequence[int] | None) -> Posterior:
    """Its posterior, in float64, which is told of groups where it learns by them; ValueError where it needs them."""
    if isinstance(model, SolvingProgress) and model.pooling == "group" and groups is None:
        raise ValueError('groups must be given for a SolvingProgress with pooling="group"; got none')
    told: dict[str, Any] = {} if groups is None or not uses_groups(model) else {"groups": groups}
    posterior: Posterior = model.posterior(num_prompts, dtype=torch.float64, backend="reference", **told)
    return posterior


def _by_filter(model: Any, trials: Tensor, seed: int) -> Tensor:
    outcomes = possible(trials)
    filter = count_filter(model, outcomes)
    state, drawn = filter.start(trials.shape[1]), torch.empty_like(trials)
    for step, each in enumerate(trials):
        which = _draw(filter.chance(state), outcomes, each, seed, step)
        drawn[step] = outcomes.successes[which]
        *_, state = filter.step(state, which)
    return drawn


def _by_posterior(posterior: Posterior, trials: Tensor, seed: int, elapsed: Tensor | None = None) -> Tensor:
    outcomes = possible(trials)
    sizes = [size for size in outcomes.trials.unique().tolist() if size]
    chance_of = {size: posterior._point_chance(size) for size in sizes}
    everyone, drawn = torch.arange(trials.shape[1]), torch.empty_like(trials)
    times = _times(elapsed, len(trials))
    for step, each in enumerate(trials):
        mass = posterior._point_mass(everyone)
        chance = torch.ones(len(everyone), len(outcomes.trials), dtype=torch.float64)
        for size in sizes:
            chance[:, outcomes.trials == size] = mass @ chance_of[size].T
        drawn[step] = outcomes.successes[_draw(chance, outcomes, each, seed, step)]
        rows = each.nonzero()[:, 0]
        posterior.update(rows, drawn[step, rows], each[rows], times[step])
    return drawn


def _times(elapsed: Tensor | None, steps: int) -> list[float]:
    return [1.0] * steps if elapsed is None else elapsed.tolist()


def _draw(chance: Tensor, outcomes: Outcomes, trials: Tensor, seed: int, step: int) -> Tensor:
    """An outcome (N,) of as many trials (N,) as there are, by chances (N, U)."""
    right = outcomes.trials == trials[:, None]
    below = (chance * right).cumsum(1)
    word, *_ = rng.words(seed, step, torch.arange(len(trials)), REPLICATE)
    place = (below <= rng.uniform(word, torch.float64)[:, None] * below[:, -1:]).sum(1)
    last = torch.where(right, torch.arange(right.shape[1]), 0).amax(1)
    return torch.minimum(place, last)  # where rounding leaves nothing above


def _asked(posterior: Posterior, history: History) -> tuple[Tensor, Tensor]:
    """`predicted`, as the posterior tells it while it is fed the history."""
    if history.successes is None:
        raise ValueError("history must have successes; these are to be sampled")
    heard: list[Observations] = []
    apply = posterior._apply

    def listen(counts: Any, elapsed: float) -> Observations:
        heard.append(apply(counts, elapsed))
        return heard[-1]

    posterior._apply = listen  # type: ignore[method-assign]
    chances = torch.zeros(history.trials.shape, dtype=torch.float64)
    unexpected = torch.zeros(history.trials.shape, dtype=torch.bool)
    times = _times(history.elapsed, history.num_steps)
    for step, (successes, trials) in enumerate(zip(history.successes.cpu(), history.trials.cpu(), strict=True)):
        rows = trials.nonzero()[:, 0]
        posterior.update(rows, successes[rows], trials[rows], times[step])
        seen = heard.pop()
        missed = (seen.status & UNEXPECTED) != 0
        chances[step, seen.index] = torch.where(missed, 0.0, seen.log_event + seen.correction)
        unexpected[step, seen.index] = missed
    return chances, unexpected
