"""Transition matrices as sites of a Pyro program: of the pool, of prompts, or of groups that lean on the pool."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayes_prompt.models.banks import StrengthBank


def sample_transition(name: str, concentration: Tensor, allowed: Tensor) -> Tensor:
    """A transition matrix for everyone in the plate, (N, K, K), or (K, K) where no row has a choice.

    concentration, allowed: (K, K), allowed where it is positive. The site is `name`, or where moves are forbidden one
    for each row j that has a choice, `name_j`.
    """
    if bool(allowed.all()):
        return pyro.sample(name, dist.Dirichlet(concentration).to_event(1))
    rows = []
    for j, moves in enumerate(allowed):
        place = torch.eye(len(moves), dtype=torch.float64, device=moves.device)[moves]  # (moves, K) one-hot
        if len(place) == 1:
            rows.append(place[0])
        else:
            rows.append(pyro.sample(f"{name}_{j}", dist.Dirichlet(concentration[j][moves])) @ place)
    return torch.stack(torch.broadcast_tensors(*rows), dim=-2)


def sample_of_groups(concentration: Tensor, allowed: Tensor, strength: float | StrengthBank, groups: Tensor) -> Tensor:
    """The transition matrices of prompts of groups (N,) int64, (N, K, K), or (K, K) where all have the same.

    Hierarchical: pool ~ Dirichlet(concentration), and of each group transition ~ Dirichlet(concentration + strength *
    pool). The site `pool` is left out with strength 0, `transition` with strength infinity.
    """
    if isinstance(strength, StrengthBank):
        even = torch.ones(len(strength.members), dtype=torch.float64, device=groups.device)
        strength = strength.members[int(pyro.sample("strength", dist.Categorical(even)))]
    if strength > 0:
        pool = sample_transition("pool", concentration, allowed)
        if math.isinf(strength):
            return pool
        concentration = concentration + strength * pool
    with pyro.plate("groups", int(groups.max()) + 1, dim=-1):
        transition = sample_transition("transition", concentration, allowed)
    return transition[groups] if transition.ndim == 3 else transition


def log(probabilities: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Logarithms that are -inf where the probability is zero for good, without a gradient of 1 / 0 there."""
    allowed = probabilities.detach() > 0 if allowed is None else allowed
    return torch.where(allowed, probabilities, 1.0).log().masked_fill(~allowed, -torch.inf)
