"""Named priors over how prompts move between solving states; and over success rates, from `models.rates`.

Source of the named transition priors and of both initial ones: DPS, Dynamics-Predictive Sampling (arXiv 2603.10887),
code maoyixiu/DPS, `recipe/dps/task_sampler.py`. The code stores them column-stochastic, `[to, from]`; here they are
transposed to `[from, to]`: row j holds the pseudo-counts of moves out of state j. States run from unsolved to solved.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import Dirichlet
from torch import Tensor

from bayes_prompt.models import checks
from bayes_prompt.models.banks import DriftBank
from bayes_prompt.models.drift import ActivePassive, LogitRandomWalk
from bayes_prompt.models.rates import Inflated as inflated
from bayes_prompt.models.rates import histogram, logit_normal

__all__ = [
    "histogram",
    "inflated",
    "local",
    "logit_normal",
    "one_hot_initial",
    "progress",
    "stability",
    "training",
    "uniform",
    "uniform_initial",
]


def training() -> DriftBank:
    """How success rates move while a policy is trained: twelve drifts, weighted online.

    Slow and fast random walks of the logit, each with little or more repulsion from the middle (a prompt that is half
    solved becomes solved, or is lost again), and either a slight rise of all prompts, or a leap of those that are
    trained on alone, or neither. Chosen on recorded and simulated training: docs/recipe.md.
    """
    walks = [(0.12, 0.01), (0.12, 0.05), (0.6, 0.06), (0.6, 0.12)]
    return DriftBank(
        [
            ActivePassive(
                active=LogitRandomWalk(scale, trend + leap, repulsion),
                passive=LogitRandomWalk(scale, trend, repulsion),
            )
            for scale, repulsion in walks
            for trend, leap in ((0.03, 0.0), (0.0, 0.3), (0.0, 0.0))
        ]
    )


def uniform(a: float = 1.0, num_states: int = 3) -> Dirichlet:
    """Every move equally likely, with `a` pseudo-counts each: the prior of the published runs (a = 1).

    Source: DPS (arXiv 2603.10887), `recipe/dps/task_sampler.py`, prior "uniform".

    Args:
        a: pseudo-counts of each move, positive and finite.
        num_states: K >= 2.

    Returns:
        Dirichlet with concentration (K, K), float64.

    Raises:
        ValueError: `a` is not positive and finite, or `num_states` is below 2.
        TypeError: `a` is not a number, or `num_states` not an integer.
    """
    checks.number("a", a)
    if not (math.isfinite(a) and a > 0):
        raise ValueError(f"a must be positive and finite; got {a!r}")
    k = checks.whole("num_states", num_states, 2)
    return Dirichlet(torch.full((k, k), float(a), dtype=torch.float64))


def progress() -> Dirichlet:
    """Prompts tend to be solved: half a pseudo-count for each step back, one for each other move.

    Source: DPS (arXiv 2603.10887), `recipe/dps/task_sampler.py`, prior "progress", transposed to [from, to].

    Returns:
        Dirichlet with concentration (3, 3), float64.
    """
    return Dirichlet(torch.tensor([[1.0, 1.0, 1.0], [0.5, 1.0, 1.0], [0.5, 0.5, 1.0]], dtype=torch.float64))


def stability() -> Dirichlet:
    """Prompts tend to stay where they are: one pseudo-count for staying, half a one for each other move.

    Source: DPS (arXiv 2603.10887), `recipe/dps/task_sampler.py`, prior "stability", transposed to [from, to].

    Returns:
        Dirichlet with concentration (3, 3), float64.
    """
    return Dirichlet(torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]], dtype=torch.float64))


def local() -> Tensor:
    """Prompts move to a neighbouring state only: unsolved and solved never follow each other directly.

    The zeros are forbidden moves. No Dirichlet has zero concentrations, so this prior is a tensor; the Pyro program
    uses a smaller Dirichlet for each row.

    Source: DPS (arXiv 2603.10887), `recipe/dps/task_sampler.py`, prior "local", transposed to [from, to].

    Returns:
        Concentration (3, 3), float64.
    """
    return torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)


def uniform_initial(num_states: int = 3) -> Tensor:
    """Nothing is known about a new prompt: every state is equally likely.

    Source: DPS (arXiv 2603.10887), `recipe/dps/task_sampler.py`, initial "uniform".

    Args:
        num_states: K >= 2.

    Returns:
        Probabilities (K,), float64.

    Raises:
        ValueError: `num_states` is below 2.
        TypeError: `num_states` is not an integer.
    """
    k = checks.whole("num_states", num_states, 2)
    return torch.full((k,), 1.0 / k, dtype=torch.float64)


def one_hot_initial(state: int, num_states: int = 3) -> Tensor:
    """Every new prompt is known to be in `state`.

    Source: DPS (arXiv 2603.10887), `recipe/dps/task_sampler.py`, one-hot initials; states count from 1 there.

    Args:
        state: 0 (unsolved) to K - 1 (solved).
        num_states: K >= 2.

    Returns:
        Probabilities (K,), float64.

    Raises:
        ValueError: `num_states` is below 2, or `state` lies outside [0, K - 1].
        TypeError: either is not an integer.
    """
    k = checks.whole("num_states", num_states, 2)
    state = checks.whole("state", state, least=None)
    if not 0 <= state < k:
        raise ValueError(f"state must lie in [0, {k - 1}]; got {state!r}")
    return torch.eye(k, dtype=torch.float64)[state]
