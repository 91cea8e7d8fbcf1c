"""Distributions that a user hands in: told apart by all that they are made of, moved whole, copied at any time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models import distributions
from bayes_prompt.models.difficulty import Batches
from bayes_prompt.models.online_svi import OnlineSVI

T, B, D, Z = 2, 5, 3, 4


def mixture(spread: float = 1.0, weight: float = 0.5, scale: float = 1.0) -> Any:
    mixed = dist.Categorical(torch.tensor([weight, 1 - weight]))
    return dist.MixtureSameFamily(mixed, dist.Normal(torch.tensor([-spread, spread]), torch.tensor([scale, scale])))


def flow(*parts: Any) -> Any:
    return dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([Z]).to_event(1), list(parts))


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def affine(scale: float) -> Any:
    return dist.transforms.IndependentTransform(dist.transforms.AffineTransform(0.0, scale), 1)


def test_a_name_tells_all_that_a_law_is_made_of() -> None:
    normal = dist.Normal(0.0, 1.0)
    laws = [
        normal,
        dist.Normal(5.0, 1.0),
        mixture(),
        mixture(spread=5.0),
        mixture(weight=0.1),
        mixture(scale=2.0),
        normal.mask(True),
        normal.mask(False),
        dist.Normal(5.0, 1.0).mask(True),
        mixture().mask(True),
        dist.StudentT(4.0),
        dist.StudentT(5.0),
        *(seeded(lambda bound=bound: flow(flows.Spline(Z, bound=bound))) for bound in (3.0, 5.0)),
        *(
            seeded(lambda bound=bound: flow(flows.spline_coupling(Z, hidden_dims=[8], bound=bound)))
            for bound in (3.0, 5.0)
        ),
        *(flow(affine(scale)) for scale in (1.0, 2.0)),
    ]
    names = [distributions.name(law) for law in laws]
    assert len(set(names)) == len(names)
    assert [distributions.name(law) for law in laws] == names  # asked again
    assert distributions.name(mixture()) == distributions.name(mixture())
    spline = seeded(lambda: flow(flows.Spline(Z)))
    name = distributions.name(spline)
    spline.log_prob(torch.zeros(Z))
    spline.transforms[0].eval()
    assert distributions.name(spline) == name  # neither what it was asked nor its mode is a part of it


def test_a_model_with_another_mixture_is_another_model() -> None:
    one, other = (
        bp.GenerativeDifficulty(output=mixture(spread), gradient_steps=1).posterior(embeddings=torch.eye(6))
        for spread in (1.0, 5.0)
    )
    with pytest.raises(bp.CheckpointError, match=r"posterior\.model\.output"):
        one.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "law",
    [
        mixture().mask(True),
        mixture(),
        dist.StudentT(4.0),
        dist.Normal(0.0, 1.0).mask(True),
    ],
    ids=["mask of mixture", "mixture", "student", "mask"],
)
def test_all_that_a_law_is_made_of_moves(law: Any) -> None:
    """A wider type shows, on any machine, that its numbers follow; another device, that none stays behind."""
    made = bp.GenerativeDifficulty(output=law).program(D).to(torch.float64)
    assert made.output is not None and made.output.log_prob(torch.zeros((), dtype=torch.float64)).dtype == torch.float64
    assert made.output.sample().dtype == torch.float64
    made.to("meta")
    for each in distributions.laws(made.output):
        assert {value.device.type for value in vars(each).values() if isinstance(value, Tensor)} <= {"meta"}
    assert law.log_prob(torch.zeros(())).device.type == "cpu"  # the declaration stays what it was


def batches() -> Batches:
    g = torch.Generator().manual_seed(0)
    return Batches(
        embeddings=torch.randn(T, B, D, generator=g),
        successes=torch.randint(9, (T, B), generator=g).float(),
        trials=torch.full((T, B), 8.0),
        record=torch.rand(T, B, 4, 2, generator=g),
        present=torch.ones(T, B, dtype=torch.bool),
        weight=torch.ones(T),
        before=(torch.randn(T, B, D, generator=g), torch.rand(T, B, generator=g), torch.ones(T, B, dtype=torch.bool)),
    )


FLOWS = {
    "spline": lambda: {"latent": flow(flows.Spline(Z))},
    "coupling": lambda: {"latent": flow(flows.affine_coupling(Z, hidden_dims=[8]))},
    "spline coupling": lambda: {"latent": flow(flows.spline_coupling(Z, hidden_dims=[8]))},
    "autoregressive": lambda: {"latent": flow(flows.affine_autoregressive(Z, hidden_dims=[8]))},
    "composed": lambda: {"latent": flow(dist.transforms.ComposeTransform([flows.Spline(Z), flows.Spline(Z)]))},
    "output": lambda: {
        "output": dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(0.0, 10.0, cache_size=1)]
        )
    },
}


@pytest.mark.parametrize("name", FLOWS)
def test_what_a_flow_remembers_is_no_hindrance_to_copies(name: str) -> None:
    settings = seeded(FLOWS[name])
    for law in settings.values():
        law.log_prob(torch.zeros(law.event_shape, requires_grad=True))  # by its owner, who may differentiate it
    fit = OnlineSVI(bp.GenerativeDifficulty(**settings).program(D))
    for step in range(2):
        other = copy.deepcopy(fit)
        assert fit.learn(batches, 2, seed=step) == other.learn(batches, 2, seed=step)
        mine, theirs = fit.state()["networks"], other.state()["networks"]
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


def test_a_step_that_fails_leaves_what_can_be_copied() -> None:
    fit = OnlineSVI(bp.GenerativeDifficulty(**seeded(FLOWS["spline"])).program(D))
    calls = []

    def once() -> Batches:
        calls.append(1)
        return batches() if len(calls) == 1 else 1 // 0  # type: ignore[return-value]

    with pytest.raises(ZeroDivisionError):
        fit.learn(once, 2, seed=0)
    assert not fit.program.training
    copy.deepcopy(fit).learn(batches, 1, seed=0)
