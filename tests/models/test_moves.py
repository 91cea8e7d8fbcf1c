"""Transitions of a whole bank: those of its drifts one by one, each distinct walk worked out once."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models import moves as moves_module
from bayes_prompt.models.drift import switched, switches
from bayes_prompt.models.grid import Points
from bayes_prompt.models.moves import Moves

POINTS = bp.SuccessRate(bp.priors.inflated(bp.priors.logit_normal(0.0, 1.5), zero=0.1, one=0.1), grid=15).points()
WALK = bp.LogitRandomWalk(0.4, 0.1)
ODD = [0.0, 1e-300, 1e-8, 0.37, 1.0, 1e4, 1e300]


class Told(bp.Drift):
    """A drift of one's own that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        self.asked.append(elapsed)
        return bp.Redraw(0.1).transition(points, elapsed)

    def describe(self) -> dict[str, Any]:
        return {}


class Leaping(Told):
    """Another, in which looks count."""

    def after_look(self, points: Points, elapsed: float = 1.0) -> Tensor:
        self.asked.append(-elapsed)
        return bp.LogitRandomWalk(1.0).transition(points, elapsed)


class Halting(bp.LogitRandomWalk):
    """A walk that rests when looked at."""

    def after_look(self, points: Points, elapsed: float = 1.0) -> Tensor:
        return torch.eye(len(points.logit), dtype=torch.float64)


class Doubled(bp.LogitRandomWalk):
    """A walk that goes twice as long."""

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        return super().transition(points, 2 * elapsed)


class Contrary(bp.ActivePassive):
    """The other way round."""

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        return self.active.transition(points, elapsed)


class Late(bp.Mixture):
    """Prompts that take a unit of time longer to move, or to change over, when they rest."""

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        return super().transition(points, max(0.0, elapsed - 1))


SINGLE = [
    WALK,
    bp.LogitRandomWalk(0.0),
    bp.Redraw(0.1),
    bp.ActivePassive(WALK, bp.Redraw(0.1)),
    bp.ActivePassive(bp.ActivePassive(bp.Redraw(0.3), WALK), WALK),
    bp.ActivePassive(Leaping(), Leaping()),
    Told(),
    Leaping(),
    Halting(0.3),
    Doubled(0.3),
    Contrary(WALK, bp.Redraw(0.2)),
]
BANKS: dict[str, bp.Drift | bp.DriftBank] = {
    "training": bp.priors.training(),
    "of all kinds": bp.DriftBank(SINGLE),
    "mixtures": bp.DriftBank([bp.Mixture(0.3, each, thaw=0.1, freeze=0.05) for each in SINGLE]),
    "two modes": bp.DriftBank(
        [
            bp.Mixture(0.3, WALK),
            bp.Mixture(0.3, WALK, thaw=0.2),
            bp.Mixture(0.1, bp.ActivePassive(WALK, bp.LogitRandomWalk(0.2)), thaw=0.4, freeze=0.1),
            bp.ActivePassive(bp.Mixture(0.3, bp.LogitRandomWalk(0.7), thaw=0.3), bp.Mixture(0.3, Leaping(), thaw=0.01)),
            bp.ActivePassive(bp.Mixture(0.3, WALK), Late(0.3, WALK, freeze=0.1)),
            Late(0.5, Halting(0.3), thaw=0.1, freeze=0.2),
        ]
    ),
    "one": WALK,
    "one mixture": bp.Mixture(0.5, WALK, thaw=0.1),
}


@given(elapsed=st.one_of(st.sampled_from(ODD), st.floats(0.0, 50.0)), name=st.sampled_from(sorted(BANKS)))
@settings(max_examples=40, deadline=None)
def test_they_are_those_of_each_drift(elapsed: float, name: str) -> None:
    drift = BANKS[name]
    members = drift.members if isinstance(drift, bp.DriftBank) else [drift]
    resting, looked = Moves(drift, POINTS)(elapsed)
    for place, member in enumerate(members):
        # Products of several matrices may be added up in another order than those of one: some roundings a squaring.
        for found, wanted in ((resting, member.transition), (looked, member.after_look)):
            torch.testing.assert_close(found[place], wanted(POINTS, elapsed), rtol=0, atol=1e-14)
        for each in (resting[place], looked[place]):
            assert bool((each >= 0).all()) and float((each.sum(1) - 1).abs().max()) < 1e-14


def test_without_a_drift_nothing_moves() -> None:
    for elapsed in ODD:
        for each in Moves(None, POINTS)(elapsed):
            assert torch.equal(each, torch.eye(15).double()[None])


def test_walks_that_are_alike_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, plain = [], moves_module.exponential

    def counted(rates: Tensor, elapsed: float) -> Tensor:
        sizes.append(len(rates))
        return plain(rates, elapsed)

    monkeypatch.setattr(moves_module, "exponential", counted)
    mixtures = bp.DriftBank([bp.Mixture(0.3, each, thaw=0.1) for each in bp.priors.training().members])
    for drift in (bp.priors.training(), bp.DriftBank([bp.LogitRandomWalk(0.4, 0.1), WALK]), WALK, bp.Redraw(0.1)):
        Moves(drift, POINTS)(0.7)
    assert sizes == [12, 1, 1]
    for drift in (mixtures, bp.DriftBank([bp.Mixture(0.3, WALK, thaw=each) for each in (0.1, 0.2)])):
        Moves(drift, POINTS)(0.7)
    assert sizes == [12, 1, 1, 12, 1]


@given(elapsed=st.one_of(st.sampled_from(ODD), st.floats(0.0, 50.0)))
@settings(max_examples=20, deadline=None)
def test_a_mixture_is_made_of_four_blocks(elapsed: float) -> None:
    """Prompts change over first, and then stay or move: to the last bit, for nothing is added up."""
    mixtures = [bp.Mixture(0.3, WALK, thaw=0.1, freeze=0.4), bp.Mixture(0.3, bp.LogitRandomWalk(0.2), thaw=0.3)]
    moves = torch.stack([each.moving.transition(POINTS, elapsed) for each in mixtures])
    chances = switches(mixtures, elapsed)
    stays = torch.eye(moves.shape[-1], dtype=torch.float64)
    for chance, walk, found in zip(chances, moves, switched(chances, moves), strict=True):
        blocks = [torch.cat([frozen * stays, moving * walk], 1) for frozen, moving in chance]
        assert torch.equal(found, torch.cat(blocks))
    for chance, each in zip(chances, mixtures, strict=True):  # each on its own: some roundings a squaring
        torch.testing.assert_close(chance, switches([each], elapsed)[0], rtol=0, atol=1e-14)


def test_drifts_of_ones_own_are_asked_one_by_one() -> None:
    same, looking = Told(), Leaping()
    bank = bp.DriftBank([same, looking])
    same, looking = bank.members  # type: ignore[assignment]
    moves = Moves(bank, POINTS)
    same.asked.clear()
    looking.asked.clear()
    for elapsed in (0.5, 2.0):
        moves(elapsed)
    assert (same.asked, looking.asked) == ([0.5, 2.0], [0.5, -0.5, 2.0, -2.0])


def test_gradients_flow_where_they_are_wanted_alone() -> None:
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    model = bp.SuccessRate(drift=bp.LogitRandomWalk(scale), grid=9)
    assert not any(each.requires_grad for each in Moves(model.drift, model.points())(0.5))
    model.lower_grid().transition(0.5)[0, 4, 4].backward()
    assert scale.grad is not None and float(scale.grad) < 0


@pytest.mark.parametrize(
    ("matrix", "kind", "message"),
    [
        (torch.eye(3).double(), ValueError, r"transition must give shape \(17, 17\); a drift's gave \(3, 3\)"),
        (torch.eye(17), TypeError, "transition must give float64"),
        (2 * torch.eye(17).double(), ValueError, "transition must have rows of at least 0 that sum to 1"),
    ],
)
def test_what_is_no_transition_is_named_in_a_bank_too(matrix: Tensor, kind: type[Exception], message: str) -> None:
    class Own(Told):
        def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
            return matrix

    bank = bp.DriftBank([WALK, Own()])
    with pytest.raises(kind, match=message):
        bp.SuccessRate(grid=17, drift=bank).lower_grid().transition(1.0)
    with pytest.raises(kind, match=message):
        Moves(bank, bp.SuccessRate(grid=17).points())(1.0)
