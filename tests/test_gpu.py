"""What only a GPU can show: the same figures as the reference, and errors that cost no waiting."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp

pytestmark = pytest.mark.gpu
N = 5_003
MODELS = {
    "published": bp.SolvingProgress(decay=0.7),
    "own emission": bp.SolvingProgress(emission=bp.PartitionEmission([0.0, 0.2, 0.8, 1.0])),
    "fixed": bp.SolvingProgress(bp.priors.stability(), learn=False),
    "beta": bp.SuccessRate(dist.Beta(1.0, 1.0), decay=0.5, decay_unobserved=True),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_device_agrees_with_the_reference(kind: str) -> None:
    exact = MODELS[kind].posterior(N, dtype=torch.float64, backend="reference")
    fast = MODELS[kind].posterior(N, device="cuda")
    assert fast.backend == "triton"
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        index = torch.randint(N, (256,), generator=generator)
        successes = torch.randint(9, (256,), generator=generator)
        exact.update(index, successes, 8)
        fast.update(index.cuda(), successes.cuda(), 8)
    # Twenty steps of some ten roundings of 6e-8, relative to entries that grow to about ten.
    for name, tensor in exact._tensors().items():
        torch.testing.assert_close(fast._tensors()[name].double().cpu(), tensor, rtol=2e-5, atol=2e-5)
    assert fast.log_evidence == pytest.approx(exact.log_evidence, rel=1e-5)


def test_a_selector_runs_on_the_device() -> None:
    host = bp.recipes.dps(num_prompts=N, batch_size=64, seed=3)
    device = bp.recipes.dps(num_prompts=N, batch_size=64, seed=3, device="cuda")
    first = host.select()
    assert torch.equal(first, device.select())  # all tied: the keys alone decide, and they are bit-equal
    rewards = (torch.rand(64, 8, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    host.update(first, rewards)
    device.update(first.cuda(), rewards.cuda())
    figures = device.metrics()
    for name, value in host.metrics().items():
        assert figures[name] == pytest.approx(value, abs=1e-5), name
    assert device.select().numel() == 64


def test_bad_rows_on_the_device_raise_at_the_next_read() -> None:
    posterior = bp.SolvingProgress().posterior(10, device="cuda")
    posterior.observe(torch.tensor([1, 99], device="cuda"), torch.tensor([0, 0], device="cuda"), 8)
    posterior.advance()
    with pytest.raises(IndexError, match=r"index\[1\] = 99"):
        _ = posterior.log_evidence
    assert int(posterior.visits.sum()) == 0
