"""The transitions since each of the last steps, multiplied up: what carries a belief of then to now."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CAPACITY = 64
"""Steps that are told apart; beliefs that are older are written forward."""


class Propagators:
    """For J drifts over K states, P[j, a] = T[j] of the last `a` steps, multiplied in the order of time.

    A belief of slot s was conditioned after s transitions of this window, of which there have been `now` so far: its
    age is now - s. Where all steps have the same transitions the matrices are powers, and a step costs one product.

    Args:
        transition: gives T, (J, K, K) float64 [from, to], of a step of some elapsed time.
        members: J. states: K.
    """

    def __init__(self, transition: Callable[[float], Tensor], members: int, states: int, device: torch.device) -> None:
        self._transition, self._device = transition, device
        self.by_age = torch.zeros(members, CAPACITY + 1, states, states, dtype=torch.float64, device=device)
        self.by_age[:, 0] = torch.eye(states, dtype=torch.float64, device=device)
        self.window = torch.zeros(2, dtype=torch.float64)  # now, and the elapsed time of all steps (nan: they differ)
        self._known: dict[float, Tensor] = {}

    @property
    def now(self) -> int:
        """Transitions of this window."""
        return int(self.window[0])

    @property
    def full(self) -> bool:
        """Whether there is no room for another step."""
        return self.now == CAPACITY

    def transition(self, elapsed: float) -> Tensor:
        """T (J, K, K)."""
        if elapsed not in self._known:
            if len(self._known) >= 8:  # a trainer that tells another number each time
                self._known.pop(next(iter(self._known)))
            self._known[elapsed] = self._transition(elapsed).detach().to(self._device)
        return self._known[elapsed]

    def step(self, elapsed: float) -> None:
        """One transition more."""
        moves, now = self.transition(elapsed), self.now
        same = now == 0 or float(self.window[1]) == elapsed
        if same:
            self.by_age[:, now + 1] = self.by_age[:, now] @ moves
        else:
            self.by_age[:, 1 : now + 2] = self.by_age[:, : now + 1] @ moves[:, None]
        self.window[0], self.window[1] = now + 1, elapsed if same else torch.nan

    def forget(self, steps: int) -> None:
        """Drop the oldest steps of the window; slots that are kept are `steps` less from now on."""
        self.window[0] -= steps

    def by_slot(self) -> Tensor:
        """P (J, now + 1, K, K) in the order of slots."""
        return self.by_age[:, : self.now + 1].flip(1)
