"""Published ways of choosing prompts, by name. Each gives a `PromptSelector` that is ready for a trainer.

Every recipe takes, beside its own arguments, `device`, `dtype`, `backend` and `first_prompt` (of the posterior),
`success_threshold`, `on_shortage`, `allow_in_flight` and `ids` (of the selector), and `prior_rates`: N success rates of
another model, or of this one before training, in [0, 1], with None or NaN for those that are not known. They shape the
belief as four to six rollouts of each prompt would, whichever come nearest; how long they last is for the model to say
(by `dps`' default any move is as likely as any other, so that they are lost in a step).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from bayes_prompt import embedding
from bayes_prompt.acquisition import (
    Acquisition,
    Diverse,
    EntropyBonus,
    ExpectedVariance,
    HistoryResampling,
    InformativeProbability,
    LookIndex,
    PartialProbability,
    QuadraticUtility,
    Survey,
    TargetSuccessRate,
    UncertaintyBonus,
    Uniform,
)
from bayes_prompt.acquisition.diversity import check_weight
from bayes_prompt.labels import codes as label_codes
from bayes_prompt.models import priors
from bayes_prompt.models.difficulty import GenerativeDifficulty
from bayes_prompt.models.kalman import LogitGaussian
from bayes_prompt.models.progress import SolvingProgress
from bayes_prompt.models.sharing import EmpiricalBayes
from bayes_prompt.models.success_rate import SuccessRate
from bayes_prompt.posteriors import checks as posterior_checks
from bayes_prompt.selector import PromptSelector


class PosteriorOptions(TypedDict, total=False):
    """What every recipe hands on to its posterior."""

    device: torch.device | str
    dtype: torch.dtype
    backend: str
    first_prompt: int


class Options(PosteriorOptions, total=False):
    """That, what every recipe hands on to its selector, and what is known beforehand; ids and prior_rates have N."""

    success_threshold: float
    on_shortage: str | None
    allow_in_flight: bool
    ids: Sequence[Hashable] | None
    prior_rates: Sequence[float | None] | Tensor | np.ndarray | None


PRIOR_TRIALS = (4, 5, 6)
"""Rollouts that a known rate counts as, of however many it comes: of another model it says no more (docs/recipe.md).
Many rollouts of this very model leave beliefs wider than need be: central halves hold 70%."""


def uniform(*, num_prompts: int, batch_size: int, seed: int = 0, **options: Unpack[Options]) -> PromptSelector:
    """Uniformly random prompts: the baseline. A Beta posterior (decay 0.5) watches, so that the metrics are there too.

    num_prompts: N. batch_size: prompts in a pick. seed: of every random choice.
    """
    return _selector(SuccessRate(dist.Beta(1.0, 1.0), decay=0.5), Uniform(), num_prompts, batch_size, seed, options)


def history_resampling(
    *, num_prompts: int, batch_size: int, seed: int = 0, **options: Unpack[Options]
) -> PromptSelector:
    """Shuffled epochs; a prompt that was fully solved sits out the next one.

    num_prompts: N. batch_size: prompts in a pick. seed: of every random choice.
    """
    # With decay 0 the posterior is the prior plus the last counts alone: what this method remembers.
    model = SuccessRate(dist.Beta(1.0, 1.0), decay=0.0)
    return _selector(model, HistoryResampling(), num_prompts, batch_size, seed, options)


def mopps(
    *,
    num_prompts: int,
    batch_size: int,
    seed: int = 0,
    decay: float = 0.5,
    target: float = 0.5,
    prior: Any = None,
    **options: Unpack[Options],
) -> PromptSelector:
    """MoPPS (arXiv 2507.04632): Beta posteriors with forgetting, Thompson draws nearest to a target success rate.

    num_prompts: N. batch_size: prompts in a pick. seed: of every random choice. decay: in [0, 1], 1 never forgets.
    target: in [0, 1]. prior: a Beta, by default the uniform one.
    """
    model = SuccessRate(dist.Beta(1.0, 1.0) if prior is None else prior, decay=decay)
    return _selector(model, TargetSuccessRate(target), num_prompts, batch_size, seed, options)


def dps(
    *,
    num_prompts: int,
    batch_size: int,
    seed: int = 0,
    decay: float = 0.7,
    transition: Any = None,
    initial: Any = None,
    entropy_weight: float = 0.0,
    **options: Unpack[Options],
) -> PromptSelector:
    """DPS (arXiv 2603.10887): a hidden Markov model of each prompt's progress; those most surely partially solved.

    num_prompts: N. batch_size: prompts in a pick. seed: of every random choice. decay: in [0, 1], 1 never forgets.
    transition, initial: priors of `SolvingProgress`, by default uniform. entropy_weight: of "topk+entropy".
    """
    both = {"transition": transition, "initial": initial}
    given = {name: prior for name, prior in both.items() if prior is not None}
    acquisition: Acquisition = PartialProbability()
    if entropy_weight:
        acquisition = acquisition + EntropyBonus(entropy_weight)
    return _selector(SolvingProgress(decay=decay, **given), acquisition, num_prompts, batch_size, seed, options)


def kgps(
    *,
    num_prompts: int,
    batch_size: int,
    seed: int = 0,
    drift: float = 0.3,
    trend: float = 0.0,
    prior: Any = None,
    method: str = "moments",
    **options: Unpack[Options],
) -> PromptSelector:
    """KGPS (arXiv 2607.27610): a Kalman filter on the logit of each success rate; greedy on the expected E[p (1 - p)].

    Pass what the policy changed by to `advance(elapsed=...)`. The paper's noises and utility are not known to us.

    num_prompts: N. batch_size: prompts in a pick. seed: of every random choice. drift: at least 0, standard deviation
    of the logit's walk in a unit of elapsed time. trend: of its mean. prior: a Normal of the logit, by default
    Normal(0, 1.5). method: "moments" or "polya_gamma".
    """
    given = {} if prior is None else {"prior": prior}
    model = LogitGaussian(drift=drift, trend=trend, method=method, **given)
    return _selector(model, ExpectedVariance(), num_prompts, batch_size, seed, options)


def gps(
    *,
    num_prompts: int,
    batch_size: int,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    embeddings: Tensor | np.ndarray | None = None,
    embedder: embedding.Embedder | None = None,
    cache: bool | str | None = None,
    progress: bool = False,
    size: str = "small",
    storage: torch.dtype = torch.float32,
    published: bool = False,
    optimism: float | None = None,
    diversity: float = 0.01,
    **options: Unpack[Options],
) -> PromptSelector:
    """GPS (arXiv 2602.01970): difficulty that all prompts share, read from their texts, and diverse batches.

    A prompt's own record joins in, and the score is P(0 < successes < trials) plus `optimism` times the standard
    deviation of the success rate: without it a greedy pick never looks at prompts that seem a little worse.

    num_prompts: N. batch_size: prompts in a pick. seed: of every random choice, of weights too.
    texts, embeddings: one of the two: N strings, embedded by `embedder` (default: WordLlama where it is installed) with
    surface features beside, or (N, D) numbers. cache, progress: of `embedding.embed`, for long jobs.
    size: of the networks, "small", "base" or "paper". storage: torch.float32, or torch.bfloat16 for half the memory.
    published: as in the paper: counts are Binomial, there is no own record, and the utility is -(rate - 1/2) ** 2.
    optimism: at least 0, by default 0.5; not with `published`. diversity: weight of distances in a batch and to the
    last two, in [0, 1e100]; 0 picks the best.

    Raises ValueError where not one of texts and embeddings is given, they are not of num_prompts prompts, or an
    argument comes with one that leaves it without effect.
    """
    if published and optimism is not None:
        raise ValueError(f"optimism = {optimism} is not published: its utility has no such term")
    if optimism is None:
        optimism = 0.0 if published else 0.5
    posterior_checks.number("optimism", optimism)
    if not 0 <= optimism < math.inf:
        raise ValueError(f"optimism must be finite and at least 0; got {optimism}")
    check_weight("diversity", diversity)
    found = _features(num_prompts, texts, embeddings, embedder, cache, progress)
    utility: Acquisition = QuadraticUtility() if published else InformativeProbability()
    if optimism:
        utility = utility + UncertaintyBonus(optimism)
    acquisition = Diverse(utility, found, weight=diversity) if diversity else utility
    model = GenerativeDifficulty(
        size=size, likelihood="binomial" if published else "beta_binomial", own_record=not published, seed=seed
    )
    return _selector(model, acquisition, num_prompts, batch_size, seed, options, embeddings=found, storage=storage)


def best(
    *,
    num_prompts: int,
    batch_size: int,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    embeddings: Tensor | np.ndarray | None = None,
    groups: Sequence[Hashable] | Tensor | np.ndarray | None = None,
    embedder: embedding.Embedder | None = None,
    cache: bool | str | None = None,
    progress: bool = False,
    num_steps: int | None = None,
    **options: Unpack[Options],
) -> PromptSelector:
    """What we recommend, with nothing to set: docs/recipe.md tells how it was chosen, and what did not help.

    Beliefs are exact histograms of the success rate on a grid of 41 points, moved by twelve drifts that are weighted
    online (`priors.training`). Prompts that nobody has looked at learn from the first looks at others, at those with a
    like text or of the same group above all. Picked is by what a look is worth (`LookIndex`), after five and a half
    batches of new prompts.

    num_prompts: N. batch_size: prompts in a pick. seed: of every random choice.
    texts, embeddings: one of the two or neither: N strings, embedded by `embedder` (default: WordLlama where it is
    installed) with surface features beside, or (N, D) numbers. cache, progress: of `embedding.embed`, for long jobs.
    groups: N labels, such as the data set or the task of each prompt.
    num_steps: of the whole run, if it is known: batches that the posterior learns from, from its first one on. (In TRL
    these are generation batches, of which there are fewer than `max_steps` where each serves several of these.) What
    there is no time to use is not looked for then: in a run of 50 steps or less the search for new prompts takes 11% of
    it, and in the last steps what is best now is picked. A run may be resumed with another number.

    Raises ValueError where texts and embeddings are both given, or are not of num_prompts prompts.
    """
    features = None
    if texts is not None or embeddings is not None:
        features = _features(num_prompts, texts, embeddings, embedder, cache, progress)
    elif embedder is not None:
        raise ValueError("embedder reads texts; none were given")
    codes = None if groups is None else label_codes(groups, num_prompts)
    model = SuccessRate(priors.logit_normal(0.0, 3.0), drift=priors.training(), sharing=EmpiricalBayes())
    # Labels and texts tell which of the new prompts are worth it; the others are left for a reason.
    told = features is not None or len(set(codes or ())) > 1
    index = LookIndex(16.0, new=None if told else 32.0, num_steps=num_steps)
    acquisition = Survey(index, batches=5.5, familiar=True, num_steps=num_steps)
    return _selector(model, acquisition, num_prompts, batch_size, seed, options, groups=codes, embeddings=features)


def _features(
    num_prompts: int,
    texts: Sequence[str] | None,
    embeddings: Tensor | np.ndarray | None,
    embedder: embedding.Embedder | None,
    cache: bool | str | None,
    progress: bool,
) -> Tensor | np.ndarray:
    """Features (N, D) of the prompts, from one of texts and embeddings."""
    if (texts is None) == (embeddings is None):
        raise ValueError("give texts or embeddings of the prompts, one of the two")
    if texts is not None:
        if len(texts) != num_prompts:
            raise ValueError(f"texts are {len(texts)}, not num_prompts = {num_prompts}")
        return embedding.features(texts, embedder, cache=cache, progress=progress)
    if embedder is not None:
        raise ValueError("embedder reads texts; embeddings were given")
    assert embeddings is not None
    given = posterior_checks.embeddings("embeddings", embeddings, num_prompts)
    return given if given.is_floating_point() else given.float()


def _selector(
    model: SolvingProgress | SuccessRate | GenerativeDifficulty | LogitGaussian,
    acquisition: Acquisition,
    num_prompts: int,
    batch_size: int,
    seed: int,
    options: Options,
    **more: Any,
) -> PromptSelector:
    unknown = sorted(options.keys() - Options.__optional_keys__)
    if unknown:
        accepted = ", ".join(sorted(Options.__optional_keys__))
        raise TypeError(f"recipes have no option {unknown[0]!r}; beside their own arguments they take {accepted}")
    given: dict[str, Any] = dict(options)
    rates = given.pop("prior_rates", None)
    more |= {name: given.pop(name) for name in PosteriorOptions.__optional_keys__ & options.keys()}
    posterior = model.posterior(num_prompts, **more)
    if rates is not None:
        posterior.warm_start(*_as_rollouts(posterior_checks.rates("prior_rates", rates, num_prompts)))
    return PromptSelector(posterior, acquisition, batch_size, seed, **given)


def _as_rollouts(rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (M,) of the rates (N,) that are numbers, and the successes and trials that come nearest to each."""
    known = rates.isfinite().nonzero()[:, 0]
    trials = torch.tensor(PRIOR_TRIALS)
    successes = (rates[known, None] * trials).round()
    nearest = (successes / trials - rates[known, None]).abs().argmin(1)
    return known, successes.long()[torch.arange(len(known)), nearest], trials[nearest]
