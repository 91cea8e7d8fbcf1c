"""A small world that has every part."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from bayes_prompt import simulate


@pytest.fixture(scope="session")
def full_world() -> simulate.World:
    """40 prompts of four families, with texts of three numbers; batches of 8 prompts, of 8 rollouts each."""
    return simulate.World(
        40,
        dist.Normal(0.5, 1.5),
        family=dist.Normal(0.0, 1.0),
        slope=dist.Normal(0.0, 1.0),
        never=0.2,
        always=0.1,
        learning=simulate.Growth(0.2, 3.0),
        transfer=simulate.Transfer(1.0, kin=0.1, everyone=0.01),
        forgetting=simulate.Forgetting(0.1),
        noise=dist.Normal(0.0, 0.2),
        groups=torch.arange(40) % 4,
        embeddings=torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        batch_size=8,
        steps=12,
    )
