"""Evidence: how probable a declaration held what was then observed, look by look; gradients reach its parameters."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from torch import Tensor

from bayes_prompt.fitting.filters import BetaFilter, CountFilter, Decay
from bayes_prompt.fitting.grid import GridFilter
from bayes_prompt.fitting.outcomes import Outcomes, occurring
from bayes_prompt.fitting.progress import ProgressFilter
from bayes_prompt.history import History
from bayes_prompt.models.progress import SolvingProgress
from bayes_prompt.models.success_rate import SuccessRate

WHAT_WORKS = 'SolvingProgress with pooling="prompt" works, and so does SuccessRate without sharing'


def log_count_evidence(model: SolvingProgress | SuccessRate, history: History, decay: Tensor | None = None) -> Tensor:
    """The sum of the log predictive probabilities of the recorded counts (nats), a tensor () in float64.

    What `model.posterior(N).log_count_evidence` comes to when it is fed the history step by step, as a function that
    gradients go through: to concentrations, emission, prior and drift, wherever these are tensors, and to `decay`.
    Counts that had probability zero are left out, as there.

    Args:
        model: a declaration.
        history: counts (T, N).
        decay: a tensor () in [0, 1] that takes the place of the model's, which is a plain number.

    Raises:
        TypeError: another kind of declaration, or one whose prompts learn from each other. ValueError: `history` has no
            successes, or steps that took other times than 1, or `decay` is out of range.
    """
    return log_chances(model if decay is None else with_decay(model, decay), history)[0].sum()


def evidence_by_observation(
    model: SolvingProgress | SuccessRate, history: History, decay: Tensor | None = None
) -> Tensor:
    """The terms of `log_count_evidence`, (M,) float64, in the order of `history.trials.nonzero()`: by step and row."""
    chances, _ = log_chances(model if decay is None else with_decay(model, decay), history)
    return chances[history.trials.cpu() > 0]


def with_decay(model: SolvingProgress | SuccessRate, decay: Tensor) -> SolvingProgress | SuccessRate:
    """The declaration with a decay that gradients reach, a tensor of shape () in [0, 1]."""
    if not isinstance(decay, Tensor) or decay.numel() != 1:
        raise TypeError(f"decay must be a tensor of a single number; got {decay!r}")
    return replace(model, decay=Decay(decay.reshape(())))


def log_chances(model: SolvingProgress | SuccessRate, history: History) -> tuple[Tensor, Tensor]:
    """Log predictive probabilities (T, N), 0 where nothing was observed, or what had probability zero; and where (T, N)
    bool it had. ValueError where steps took other times than 1.
    """
    if history.elapsed is not None:
        raise ValueError("history.elapsed must be None here: these filters take each step for one unit of time")
    outcomes, which = occurring(history)
    return count_filter(model, outcomes).run(which)


def has_filter(model: Any, grouped: bool = False) -> bool:
    """Whether there is a filter of this declaration that gradients go through. grouped: prompts have groups."""
    if isinstance(model, SolvingProgress):
        return model.pooling == "prompt"
    alone = isinstance(model, SuccessRate) and model.sharing is None
    return alone and not (grouped and uses_groups(model))


def uses_groups(model: Any) -> bool:
    """Whether a declaration believes otherwise where it is told of groups; others are not told of them."""
    if isinstance(model, SolvingProgress):
        return model.pooling == "group"
    if isinstance(model, SuccessRate):
        return model.sharing is not None or model.bank is not None
    return "groups" in inspect.signature(model.posterior).parameters


def check_filter(model: Any, grouped: bool = False) -> None:
    """TypeError unless the declaration has a filter that gradients go through."""
    if not has_filter(model, grouped):
        shared = ""
        if isinstance(model, SuccessRate):
            shared = " with sharing" if model.sharing is not None else " with a bank that is weighted by group"
        elif isinstance(model, SolvingProgress):
            shared = f" with pooling={model.pooling!r}"
        raise TypeError(f"model is a {type(model).__name__}{shared}; {WHAT_WORKS}")


def count_filter(model: Any, outcomes: Outcomes) -> CountFilter:
    """The differentiable filter of a declaration; TypeError where there is none."""
    check_filter(model)
    if isinstance(model, SolvingProgress):
        return ProgressFilter(model, outcomes)
    return GridFilter(model, outcomes) if model.on_grid else BetaFilter(model, outcomes)
