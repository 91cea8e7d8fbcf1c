"""With fixed transitions the filter is exact: beliefs and evidence equal a sum over all K**T paths of the state."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp

T, N = 5, 4
EMISSIONS = {
    "published": (bp.PublishedEmission(), 3),
    "beta_binomial": (bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 7.0]), torch.tensor([6.0, 1.5]))), 2),
    "partition": (bp.PartitionEmission([0.0, 0.1, 0.5, 1.0]), 3),
    "partition with atoms": (bp.PartitionEmission([0.0, 0.0, 0.5, 1.0, 1.0]), 4),
}


def paths(initial: np.ndarray, transition: np.ndarray, log_likelihood: np.ndarray) -> tuple[float, np.ndarray]:
    """log evidence of T likelihood rows (T, K), and the belief for step T + 1, by summing over every path."""
    states = len(initial)
    evidence, following = 0.0, np.zeros(states)
    for path in itertools.product(range(states), repeat=T + 1):
        probability = initial[path[0]] * math.prod(transition[a, b] for a, b in itertools.pairwise(path))
        probability *= math.exp(sum(log_likelihood[t, path[t]] for t in range(T)))
        evidence += probability
        following[path[T]] += probability
    return math.log(evidence), following / evidence


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("kind", EMISSIONS)
def test_filter_is_exact(kind: str, backend: str) -> None:
    emission, states = EMISSIONS[kind]
    generator = torch.Generator().manual_seed(states)
    transition = torch.rand(states, states, generator=generator, dtype=torch.float64) + 0.05
    initial = torch.rand(states, generator=generator, dtype=torch.float64)
    model = bp.SolvingProgress(transition, initial / initial.sum(), learn=False, emission=emission)
    posterior = model.posterior(N, dtype=torch.float64, backend=backend)
    trials = torch.randint(2, 9, (T, N), generator=generator)
    successes = (torch.rand(T, N, generator=generator) * (trials + 1)).long()
    trials[torch.rand(T, N, generator=generator) < 0.35] = 0  # gaps
    for t in range(T):
        seen = trials[t].nonzero()[:, 0]
        posterior.update(seen, successes[t, seen], trials[t, seen])

    rows = (transition / transition.sum(1, keepdim=True)).numpy()
    start = (initial / initial.sum()).numpy()
    event_total = count_total = 0.0
    for n in range(N):
        of_event = emission.event_log_likelihood(successes[:, n].minimum(trials[:, n]), trials[:, n])
        of_count = emission.log_likelihood(successes[:, n].minimum(trials[:, n]), trials[:, n])
        evidence, belief = paths(start, rows, of_event.numpy())
        np.testing.assert_allclose(posterior.belief[n].numpy(), belief, rtol=0, atol=1e-10)
        event_total += evidence
        count_total += paths(start, rows, of_count.numpy())[0]
    assert posterior.unexpected == 0
    assert posterior.log_evidence == pytest.approx(event_total, abs=1e-10)
    assert posterior.log_count_evidence == pytest.approx(count_total, abs=1e-10)
