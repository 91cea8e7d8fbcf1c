"""The transitions since each of the last steps, multiplied up: what carries a belief of then to now."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayes_prompt.models.drift import check_transition

CAPACITY = 64
"""Steps that are told apart; beliefs that are older are written forward."""


class Propagators:
    """Products of transitions T (J, K, K), for J drifts over K states, in the order of time, by slot.

    Slot 0 is of beliefs that were written forward, or known before the first step; since then they have rested. Slot
    1 + s is of those that were conditioned by a look after s transitions of this window, of which there have been `now`
    so far; the first transition since then is that of a prompt that was trained on. Where all steps have had the same
    transitions, a step costs one product.

    Args:
        transition, after_look: give T, (J, K, K) float64 [from, to], of a step of some elapsed time: of prompts that
            rest, and of those that were observed in it.
        members: J. states: K.
    """

    def __init__(
        self,
        transition: Callable[[float], Tensor],
        after_look: Callable[[float], Tensor],
        members: int,
        states: int,
        device: torch.device,
    ) -> None:
        self._laws, self._device = (transition, after_look), device
        #: By slot from behind: the last is of now (a product of none), those before it of one step ago and so on, and
        #: before them stands that of slot 0. So the slots in use lie together, and no step moves them.
        self.products = torch.zeros(members, CAPACITY + 2, states, states, dtype=torch.float64, device=device)
        self.products[:, -2:] = torch.eye(states, dtype=torch.float64, device=device)
        self.window = torch.zeros(2, dtype=torch.float64)  # now, and the elapsed time of all steps (-1: they differ)
        self._known: dict[float, tuple[Tensor, Tensor]] = {}

    @property
    def now(self) -> int:
        """Transitions of this window."""
        return int(self.window[0])

    @property
    def slot(self) -> int:
        """Of beliefs that are conditioned now."""
        return self.now + 1

    @property
    def full(self) -> bool:
        """Whether there is no room for another step."""
        return self.now == CAPACITY

    def transitions(self, elapsed: float) -> tuple[Tensor, Tensor]:
        """T (J, K, K) of prompts that rest, and of those that are looked at."""
        if elapsed not in self._known:
            resting, looked = (law(elapsed).detach() for law in self._laws)
            for each in (resting, looked):
                check_transition(each, self.products.shape[-1], elapsed)
            resting, looked = resting.to(self._device), looked.to(self._device)
            if len(self._known) >= 8:  # a trainer that tells another number each time
                self._known.pop(next(iter(self._known)))
            self._known[elapsed] = resting, looked
        return self._known[elapsed]

    def step(self, elapsed: float) -> None:
        """One transition more."""
        (resting, looked), now = self.transitions(elapsed), self.now
        same = now == 0 or float(self.window[1]) == elapsed
        slots = self.by_slot()
        rested = slots[:, 0] @ resting
        if now and same:
            slots[:, 0] = slots[:, 1] @ resting
        else:
            slots[:, : now + 1] = torch.cat([slots[:, 1:-1] @ resting[:, None], looked[:, None]], 1)
        self.window[0], self.window[1] = now + 1, elapsed if same else -1.0
        self.by_slot()[:, 0] = rested

    def forget(self, steps: int) -> None:
        """Drop the oldest steps of the window, of which nobody is left; other slots are `steps` less from now on."""
        self.window[0] -= steps
        self.by_slot()[:, 0] = self.products[:, -1]

    def by_slot(self) -> Tensor:
        """Products (J, now + 2, K, K) in the order of slots; a view."""
        return self.products[:, CAPACITY - self.now :]
