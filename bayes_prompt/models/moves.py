"""The transitions of all drifts of a bank, resting and after a look, worked out together for any elapsed time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from bayes_prompt.models.banks import DriftBank
from bayes_prompt.models.drift import (
    ActivePassive,
    Drift,
    LogitRandomWalk,
    Mixture,
    Redraw,
    check_transition,
    switched,
    switches,
)
from bayes_prompt.models.grid import Points
from bayes_prompt.models.markov import exponential


class Moves:
    """What `GridTables.transition` and `GridTables.after_look` give, for those who ask for one time after the other.

    Random walks are exponentials of rates that do not change with the time: these are kept, each once, however many
    drifts of a bank walk alike, and one batched exponential gives the transitions of all; so it does of those that walk
    within mixtures, whose modes are put together for all at once. Other drifts, those of your own among them, are asked
    one by one. Drifts must not change meanwhile; gradients do not reach them.

    Args:
        drift: one, or a bank of J, or None, which never moves. points: the grid's.
    """

    def __init__(self, drift: Drift | DriftBank | None, points: Points) -> None:
        members = drift.members if isinstance(drift, DriftBank) else [Redraw(0.0) if drift is None else drift]
        rates: dict[Hashable, Tensor] = {}
        self._others: dict[Hashable, Callable[[float], Tensor]] = {}
        self._mixed: dict[Hashable, tuple[Mixture, Hashable]] = {}
        self._wanted: list[list[Hashable]] = []
        for looked in (False, True):
            self._wanted.append([])
            for member in members:
                mixture, moving, law = _parts(member, looked)
                key: Hashable = id(moving), law
                if isinstance(moving, LogitRandomWalk) and _kept(moving, law, LogitRandomWalk):
                    found = moving.generator(points).detach()
                    key = found.numpy().tobytes()
                    rates[key] = found
                else:
                    self._others[key] = partial(getattr(moving, law), points)
                if mixture is not None:
                    key, within = (id(mixture), key), key
                    self._mixed[key] = mixture, within
                self._wanted[-1].append(key)
        self._points, self._modes = len(points.logit), 1 if drift is None else drift.modes
        self._walks = list(rates)
        self._rates = torch.stack(list(rates.values())) if rates else None

    @torch.no_grad()
    def __call__(self, elapsed: float) -> tuple[Tensor, Tensor]:
        """Transitions (J, S, S) [from, to] of a step of this time: of prompts that rest, and of those looked at."""
        found = {key: law(elapsed) for key, law in self._others.items()}
        within = {key for _, key in self._mixed.values()}
        for key, matrix in found.items():
            check_transition(matrix, self._points * (1 if key in within else self._modes), elapsed)
        if self._rates is not None:
            found |= zip(self._walks, exponential(self._rates, elapsed), strict=True)
        if self._mixed:
            mixtures, moving = zip(*self._mixed.values(), strict=True)
            moves = torch.stack([found[key] for key in moving])
            found |= zip(self._mixed, switched(switches(mixtures, elapsed), moves), strict=True)
        resting, looked = (torch.stack([found[key] for key in keys]) for keys in self._wanted)
        return resting, looked


def _parts(member: Drift, looked: bool) -> tuple[Mixture | None, Drift, str]:
    """The mixture, if it is one that moves prompts of one kind; the drift by which they move, and which of its laws."""
    member, law = _law(member, looked)
    if isinstance(member, Mixture) and _kept(member, law, Mixture) and _kept(member, "_switched", Mixture):
        return member, *_law(member.moving, law == "after_look")
    return None, member, law


def _law(member: Drift, looked: bool) -> tuple[Drift, str]:
    """The drift that moves prompts of one kind, and which of its methods tells how."""
    if isinstance(member, ActivePassive) and _kept(member, "after_look" if looked else "transition", ActivePassive):
        return (member.active if looked else member.passive), "transition"
    return member, "after_look" if looked and not _kept(member, "after_look", Drift) else "transition"


def _kept(member: Drift, method: str, base: type) -> bool:
    """Whether its method is still that of a base, which one of your own that derives from it may have replaced."""
    return getattr(type(member), method) is getattr(base, method)
