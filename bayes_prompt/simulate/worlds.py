"""Ten worlds by name, for judging a recipe: never tune it in one of them alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pyro.distributions as dist
import torch
from torch import Tensor

from bayes_prompt.simulate.dynamics import Forgetting, Growth, SimilarTransfer, Transfer
from bayes_prompt.simulate.world import World


def _texts(num_prompts: int, width: int) -> Tensor:
    """Embeddings (N, D), of length 1 or so; they are data, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_prompts, width, generator=generator, dtype=torch.float64) / width**0.5


# Worlds share these where their names promise nothing else. Difficulties are so spread that a third or so of the pool
# is informative at the start: a uniform pick then has an effective sample ratio between 0.2 and 0.5 in each of them.
_NOISE = dist.Normal(0.0, 0.1)
_USUAL = Transfer(own=1.0, everyone=0.004)
_GROWTH = Growth(rate=0.1, saturation=6.0)

WORLDS: Mapping[str, World] = MappingProxyType(
    {
        "fast learning": World(
            600, dist.Normal(2.5, 3.0), learning=Growth(0.3, 8.0), transfer=_USUAL, noise=_NOISE, batch_size=60
        ),
        "forgetting": World(
            600,
            dist.Normal(1.5, 4.0),
            learning=Growth(0.5, 6.0),
            transfer=_USUAL,
            forgetting=Forgetting(0.08),
            noise=_NOISE,
            batch_size=60,
        ),
        "mostly unsolved": World(
            800, dist.Normal(4.0, 2.5), never=0.3, learning=_GROWTH, transfer=_USUAL, noise=_NOISE, batch_size=40
        ),
        "mostly solved": World(
            800, dist.Normal(-3.5, 2.5), always=0.3, learning=_GROWTH, transfer=_USUAL, noise=_NOISE, batch_size=40
        ),
        "batch 1%": World(
            1000, dist.Normal(1.5, 4.0), learning=_GROWTH, transfer=_USUAL, noise=_NOISE, batch_size=10, steps=100
        ),
        "batch 30%": World(
            500, dist.Normal(1.5, 4.0), learning=_GROWTH, transfer=_USUAL, noise=_NOISE, batch_size=150, steps=60
        ),
        "4 rollouts": World(
            600, dist.Normal(1.5, 3.0), learning=_GROWTH, transfer=_USUAL, noise=_NOISE, trials=4, batch_size=60
        ),
        "16 rollouts": World(
            600, dist.Normal(1.5, 6.0), learning=_GROWTH, transfer=_USUAL, noise=_NOISE, trials=16, batch_size=60
        ),
        "families": World(
            900,
            dist.Normal(1.5, 1.5),
            family=dist.Normal(0.0, 4.0),
            learning=_GROWTH,
            transfer=Transfer(own=1.0, kin=0.02),
            noise=_NOISE,
            groups=torch.arange(900) % 20,
            batch_size=45,
        ),
        "text": World(
            900,
            dist.Normal(1.5, 2.0),
            slope=dist.Normal(0.0, 3.0),
            learning=_GROWTH,
            transfer=SimilarTransfer(own=1.0, similar=0.02, length=0.5),
            noise=_NOISE,
            embeddings=_texts(900, 16),
            batch_size=45,
        ),
    }
)
