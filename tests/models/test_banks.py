"""Banks and sharing: their fields, and descriptions that tell them apart."""

from __future__ import annotations

import json
import math

import pytest
import torch

import bayes_prompt as bp

WALKS = (bp.LogitRandomWalk(0.1), bp.LogitRandomWalk(0.5))


def test_a_bank_of_drifts_takes_the_farthest_reach_and_copies_of_its_members() -> None:
    scale = torch.tensor(0.5)
    bank = bp.DriftBank([bp.Redraw(0.1), bp.LogitRandomWalk(scale)])
    assert (bank.modes, bank.reach) == (1, WALKS[0].reach)
    before = bank.describe()
    scale.fill_(9.0)
    assert bank.describe() == before and isinstance(bank.members, tuple)


def test_descriptions_tell_banks_apart() -> None:
    described = [
        each.describe()
        for each in (
            bp.DriftBank(WALKS),
            bp.DriftBank(WALKS[::-1]),
            bp.DriftBank(WALKS[:1]),
            bp.DriftBank(WALKS, memory=0.9),
            bp.DriftBank(WALKS, floor=0.0),
            bp.DriftBank(WALKS, pooling=0.0),
            bp.DecayBank(),
            bp.DecayBank((0.5,)),
            bp.DecayBank(memory=1.0),
            bp.EmpiricalBayes(),
            bp.EmpiricalBayes(pool=1.0),
            bp.EmpiricalBayes(strengths=(1.0,)),
            bp.EmpiricalBayes(strengths=(30.0, 10.0, 3.0)),
            bp.EmpiricalBayes(widths=(0.1,)),
            bp.EmpiricalBayes(memory=1.0),
        )
    ]
    texts = [json.dumps(each, sort_keys=True) for each in described]
    assert len(set(texts)) == len(texts)
    assert bp.EmpiricalBayes(pool=2).describe() == bp.EmpiricalBayes(pool=2.0).describe()
    assert bp.EmpiricalBayes(strengths=[3, 10, 30]).describe() == bp.EmpiricalBayes().describe()


def test_a_model_knows_its_bank() -> None:
    drifts, decays = bp.DriftBank(WALKS), bp.DecayBank()
    assert bp.SuccessRate(drift=drifts).bank is drifts
    assert bp.SuccessRate(decay=decays).bank is decays
    assert bp.SuccessRate(decay=decays).on_grid and bp.SuccessRate(sharing=bp.EmpiricalBayes()).on_grid
    assert bp.SuccessRate(drift=WALKS[0]).bank is None and not bp.SuccessRate().on_grid


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.DriftBank([]), ValueError, "members must be one or more; got none"),
        (lambda: bp.DriftBank(WALKS[0]), TypeError, "members must be a sequence; got"),
        (lambda: bp.DriftBank([WALKS[0], 0.3]), TypeError, r"members\[1\] must be a Drift; got float"),
        (
            lambda: bp.DriftBank([WALKS[0], bp.Mixture(0.5, WALKS[0])]),
            ValueError,
            r"members must have the same number of modes; got \[1, 2\]",
        ),
        (lambda: bp.DriftBank(WALKS, memory=1.5), ValueError, r"memory must lie in \[0, 1\]; got 1.5"),
        (lambda: bp.DriftBank(WALKS, pooling=-1.0), ValueError, r"pooling must lie in \[0, 1\]; got -1.0"),
        (lambda: bp.DecayBank(pooling=math.inf), ValueError, r"pooling must lie in \[0, 1\]; got inf"),
        (lambda: bp.DriftBank(WALKS, pooling="1"), TypeError, "pooling must be a number; got str"),
        (lambda: bp.DriftBank(WALKS, floor=1.0), ValueError, r"floor must lie in \[0, 1\); got 1.0"),
        (lambda: bp.DecayBank(floor=-0.1), ValueError, r"floor must lie in \[0, 1\); got -0.1"),
        (lambda: bp.DecayBank(floor=math.nan), ValueError, r"floor must lie in \[0, 1\); got nan"),
        (lambda: bp.DecayBank(floor=True), TypeError, "floor must be a number; got bool"),
        (lambda: bp.DecayBank([0.5, 1.5]), ValueError, r"members\[1\] must lie in \[0, 1\]; got 1.5"),
        (lambda: bp.DecayBank([0.5, "1"]), TypeError, r"members\[1\] must be a number; got str"),
        (lambda: bp.EmpiricalBayes(pool=0.0), ValueError, "pool must be positive and finite; got 0.0"),
        (lambda: bp.EmpiricalBayes(pool="9"), TypeError, "pool must be a number; got str"),
        (
            lambda: bp.EmpiricalBayes(strengths=(3.0, 0.0)),
            ValueError,
            r"strengths\[1\] must be positive and finite; got 0",
        ),
        (lambda: bp.EmpiricalBayes(strengths=()), ValueError, "strengths must hold one number or more; got none"),
        (lambda: bp.EmpiricalBayes(strengths=3.0), TypeError, "strengths must be a sequence of numbers; got 3.0"),
        (lambda: bp.EmpiricalBayes(widths="12"), TypeError, "widths must be a sequence of numbers; got '12'"),
        (
            lambda: bp.EmpiricalBayes(widths=(math.inf,)),
            ValueError,
            r"widths\[0\] must be positive and finite; got inf",
        ),
        (lambda: bp.EmpiricalBayes(widths=("1",)), TypeError, r"widths\[0\] must be a number; got str"),
        (lambda: bp.EmpiricalBayes(memory=-0.1), ValueError, r"memory must lie in \[0, 1\]; got -0.1"),
        (lambda: bp.SuccessRate(drift=0.3), TypeError, "drift must be a Drift, a DriftBank or None; got float"),
        (lambda: bp.SuccessRate(sharing=5.0), TypeError, "sharing must be an EmpiricalBayes or None; got float"),
        (lambda: bp.SuccessRate(drift=WALKS[0], decay=0.5), ValueError, "decay must be 1 with a drift"),
        (lambda: bp.SuccessRate(drift=WALKS[0], decay=bp.DecayBank()), ValueError, "decay must be 1 with a drift"),
        (lambda: bp.SuccessRate(grid=9, decay_unobserved=True), ValueError, "decay_unobserved=True needs a Beta prior"),
    ],
)
def test_bad_fields_are_named(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([0, 1], ValueError, "groups must have 3 entries"),
        ([0, -1, 0], ValueError, r"groups\[1\] = -1 must be at least 0"),
        ([0, 5, 0], ValueError, "groups must be numbered below 3, the number of prompts; got 5"),
        ([0.0, 1.0, 0.0], TypeError, "groups"),
    ],
)
def test_bad_groups_are_named(groups: list[float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bp.SuccessRate(sharing=bp.EmpiricalBayes()).posterior(3, groups=groups)
    with pytest.raises(error, match=message):
        bp.SolvingProgress(pooling="group").posterior(3, groups=groups)


def test_a_bank_weighs_its_members_for_so_many_groups() -> None:
    """Where there are more, all have the same weights; what unseen prompts share, their groups share still."""
    for bank in ({"drift": bp.DriftBank(WALKS)}, {"decay": bp.DecayBank()}):
        model = bp.SuccessRate(grid=5, sharing=bp.EmpiricalBayes(), **bank)
        few, many = (model.posterior(2 * r, groups=[row % r for row in range(2 * r)]) for r in (64, 65))
        assert (len(few.bank_weights()), len(many.bank_weights())) == (64, 1)
        for posterior in (few, many):
            posterior.update([1], [8], 8)
            rates = posterior.success_rate()
            same, other = len(rates) // 2 + 1, 2
            assert float(rates[same]) > float(rates[other]) == float(rates[3])


def test_groups_need_a_grid() -> None:
    with pytest.raises(ValueError, match="groups and embeddings need a grid"):
        bp.SuccessRate().posterior(3, groups=[0, 1, 0])
    with pytest.raises(ValueError, match="groups and embeddings need a grid"):
        bp.SuccessRate().posterior(3, embeddings=torch.eye(3))
    with pytest.raises(ValueError, match="embeddings tell which prompts are alike, for a model with sharing"):
        bp.SuccessRate(grid=5).posterior(3, embeddings=torch.eye(3))
    with pytest.raises(ValueError, match=r"embeddings must have shape \(3, D\)"):
        bp.SuccessRate(sharing=bp.EmpiricalBayes()).posterior(3, embeddings=torch.eye(4))
