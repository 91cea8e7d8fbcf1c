"""Compare declarations by how well each predicted a history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from bayes_prompt.fitting.laplace import Tell
from bayes_prompt.fitting.outcomes import judged, small_operations
from bayes_prompt.fitting.predictions import predicted, replicate
from bayes_prompt.fitting.statistics import Check, checks
from bayes_prompt.history import History
from bayes_prompt.labels import Labels, codes
from bayes_prompt.models import checks as model_checks


@dataclass(frozen=True)
class Score:
    """A declaration, judged.

    Attributes:
        name: as it was given.
        log_count_evidence: the sum of log predictive probabilities of all looks (nats).
        unexpected: looks that had probability zero, which are left out of it. A declaration that has some ranks behind
            all that have fewer.
        per_look: mean log predictive probability of a look. error: its standard error, over prompts.
        difference: per_look less the best declaration's. difference_error: its standard error, over prompts, each
            compared with itself.
        checks: posterior predictive checks.
    """

    name: str
    log_count_evidence: float
    unexpected: int
    per_look: float
    error: float
    difference: float
    difference_error: float
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Comparison:
    """Declarations in the order of their evidence, the best first.

    Attributes:
        scores: of each declaration.
        prompts, looks: what of the history was predicted.
        replicates: histories that each declaration's checks come from.
    """

    scores: tuple[Score, ...]
    prompts: int
    looks: int
    replicates: int

    @property
    def best(self) -> str:
        """The name of the declaration that predicted best."""
        return self.scores[0].name

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able numbers; those that there are not are None."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def compare(
    history: History,
    models: Mapping[str, Any],
    *,
    groups: Labels | None = None,
    replicates: int = 40,
    seed: int = 0,
    progress: Tell | None = None,
) -> Comparison:
    """Tell which declaration predicted a history best, how sure that is, and what each gets wrong.

    Each look is predicted from the looks before it alone; parameters that were fitted to the same history have seen it
    all, so fit them to some prompts and compare on others.

    Args:
        history: counts (T, N), and how much time each step took, if it says so.
        models: declarations by name: anything with a `posterior(num_prompts, ...)`.
        groups: labels of the prompts (N,), such as their data set, for declarations that learn by group:
            `SolvingProgress(pooling="group")`, which needs them, and `SuccessRate` with sharing or a bank. The others
            do without.
        replicates: histories with the same trials that are drawn from each declaration's own predictions, for the
            checks; 0 leaves these out.
        seed: of the draws.
        progress: is called with (name, done, in all).

    Raises:
        ValueError: no models, a history without successes or without looks, groups of another number of prompts, or
            none where a model needs them. TypeError: something that is no model, no history, or no labels.
    """
    replicates = model_checks.whole("replicates", replicates, 0)
    if not models:
        raise ValueError("models must be one declaration or more; got none")
    for name, model in models.items():
        if not hasattr(model, "posterior"):
            raise TypeError(f"models[{name!r}] must be a declaration, with a posterior; got {type(model).__name__}")
    judged(history)
    numbers = None if groups is None else codes(groups, history.num_prompts)
    assert history.successes is not None
    looked = history.trials.cpu() > 0
    tell = progress or (lambda stage, done, total: None)
    successes, trials = history.successes.cpu(), history.trials.cpu()
    found: dict[str, tuple[Tensor, int]] = {}
    checked: dict[str, tuple[Check, ...]] = {}
    with small_operations(history):
        for name, model in models.items():
            tell(name, 0, replicates + 1)
            chances, unexpected = predicted(model, history, numbers)
            found[name] = chances.sum(0), int(unexpected.sum())
            tell(name, 1, replicates + 1)
            drawn = []
            for number in range(replicates):
                drawn.append(replicate(model, trials, seed + number, numbers, history.elapsed))
                tell(name, number + 2, replicates + 1)
            checked[name] = checks(successes, drawn, trials) if drawn else ()
    looks = looked.sum(0)
    order = sorted(found, key=lambda name: (found[name][1], -float(found[name][0].sum())))
    best = found[order[0]][0]
    scores = []
    for name in order:
        by_prompt, missed = found[name]
        mean, error = _mean(by_prompt, looks)
        difference = _mean(by_prompt - best, looks)
        scores.append(Score(name, float(by_prompt.sum()), missed, mean, error, *difference, checked[name]))
    return Comparison(tuple(scores), int((looks > 0).sum()), int(looks.sum()), replicates)


def _mean(by_prompt: Tensor, looks: Tensor) -> tuple[float, float]:
    """The mean of a look, and its standard error with prompts as clusters, of sums (N,) over looks (N,)."""
    total = float(looks.sum())
    mean = float(by_prompt.sum()) / total
    # In float64: integers times a number would be float32.
    prompts = int((looks > 0).sum())
    if prompts < 2:
        return mean, math.nan
    spread = float((by_prompt - mean * looks.double()).square().sum())
    return mean, math.sqrt(prompts / (prompts - 1) * spread) / total


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
