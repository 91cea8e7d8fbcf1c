"""Transition matrices as sites of the program: which there are, and the hierarchical prior of groups."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models.banks import StrengthBank

PRIORS = {"uniform": bp.priors.uniform(1.0), "local": bp.priors.local()}
ROWS = {"uniform": [("", 3)], "local": [("_0", 2), ("_1", 3), ("_2", 2)]}
BETA = bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 3.0, 9.0]), torch.tensor([6.0, 3.0, 0.5])))
HISTORY = bp.History(None, torch.full((3, 4), 8))
GROUPS = torch.tensor([0, 1, 1, 0])


def traced(groups: Tensor | None, prior: str = "uniform", **fields: Any) -> Any:
    model = bp.SolvingProgress(PRIORS[prior], emission=BETA, pooling="pool" if groups is None else "group", **fields)
    return poutine.trace(model.pyro_model).get_trace(HISTORY, groups)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(
    ("groups", "strength", "sites"),
    [
        (None, None, ["transition"]),
        (GROUPS, 0.0, ["transition"]),
        (GROUPS, 5.0, ["pool", "transition"]),
        (GROUPS, math.inf, ["pool"]),
    ],
)
def test_the_program_shares_its_transitions(
    prior: str, groups: Tensor | None, strength: float | None, sites: list[str]
) -> None:
    pyro.set_rng_seed(3)
    trace = traced(groups, prior, strength=strength)
    found = {
        name: tuple(node["value"].shape)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name.startswith(("transition", "pool"))
    }
    expected = {}
    for site in sites:
        for end, size in ROWS[prior]:
            of_groups = (2,) if groups is not None and site == "transition" else ()
            expected[site + end] = (*of_groups, *((3, 3) if not end else (size,)))
    assert found == expected and list(found) == list(expected)
    assert trace.nodes["successes_2"]["value"].shape == (4,)
    assert math.isfinite(float(trace.log_prob_sum()))


def test_groups_are_asked_for_where_they_matter() -> None:
    for pooling, groups in (("pool", GROUPS), ("group", None)):
        with pytest.raises(ValueError, match="groups go with"):
            bp.SolvingProgress(pooling=pooling).pyro_model(HISTORY, groups)


def test_matrices_of_groups_have_the_hierarchical_prior() -> None:
    pyro.set_rng_seed(4)
    trace = traced(GROUPS, strength=7.0)
    law, pool = trace.nodes["transition"]["fn"].base_dist, trace.nodes["pool"]
    assert torch.equal(pool["fn"].base_dist.concentration, torch.ones(3, 3).double())
    assert torch.equal(law.concentration, (1 + 7 * pool["value"]).expand(2, 3, 3))


def test_a_bank_draws_its_strength() -> None:
    bank, seen = StrengthBank((0.0, 2.0, math.inf)), set()
    for seed in range(12):
        pyro.set_rng_seed(seed)
        trace = traced(GROUPS, strength=bank)
        drawn = bank.members[int(trace.nodes["strength"]["value"])]
        assert ("pool" in trace.nodes) == (drawn > 0) and ("transition" in trace.nodes) == (drawn < math.inf)
        seen.add(drawn)
    assert seen == set(bank.members)  # one of three is missing of twelve with a chance of 3 * (2 / 3) ** 12 = 0.02


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"decay": bp.DecayBank()}, ValueError, r'decay must be a number .* pooling="prompt"; a DecayBank works with'),
        ({"decay": bp.DriftBank([bp.Redraw(0.1)])}, TypeError, "decay must be a number; got DriftBank"),
        ({"strength": 3.0}, ValueError, "strength goes with pooling=\"group\"; pooling is 'prompt'"),
        ({"strength": StrengthBank(), "pooling": "pool"}, ValueError, "strength goes with pooling=\"group\"; .*'pool'"),
        ({"strength": -1.0, "pooling": "group"}, ValueError, "strength must be at least 0; got -1.0"),
        ({"strength": math.nan, "pooling": "group"}, ValueError, "strength must be at least 0; got nan"),
        ({"strength": "3", "pooling": "group"}, TypeError, "strength must be a number; got str"),
        ({"strength": bp.DecayBank(), "pooling": "group"}, TypeError, "strength must be a number; got DecayBank"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bp.SolvingProgress(**fields)


def test_bad_strengths_of_a_bank_are_named() -> None:
    with pytest.raises(ValueError, match=r"members\[1\] must be at least 0; got -2"):
        StrengthBank((1.0, -2.0))
    with pytest.raises(TypeError, match=r"members\[0\] must be a number; got bool"):
        StrengthBank((True,))


def test_descriptions_tell_strengths_and_banks_apart() -> None:
    described = [
        str(bp.SolvingProgress(pooling="group", **fields).describe())
        for fields in (
            {},
            {"strength": 0.0},
            {"strength": math.inf},
            {"strength": StrengthBank((0.0,))},
            {"strength": StrengthBank(pooling=0.5)},
            {"decay": bp.DecayBank()},
            {"decay": bp.DecayBank((0.7,))},
        )
    ]
    assert len(set(described)) == len(described)
    assert bp.SolvingProgress(decay=bp.DecayBank((0.5, 1.0)), pooling="pool").lower().decay == (0.5, 1.0)
    assert bp.SolvingProgress(pooling="group").describe() == (
        bp.SolvingProgress(pooling="group", strength=StrengthBank()).describe()
    )
