"""The transitions since each of the last steps, multiplied up: what carries a belief of then to now."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_no_less
from bayes_prompt.errors import CheckpointError
from bayes_prompt.models.drift import check_transition

CAPACITY = 64
"""Steps that are told apart; beliefs that are older are written forward."""
_KEPT = 8  # elapsed times whose transitions are kept
_AT_ONCE = 8  # slots that are multiplied at a time, and then moved: their products are still at hand


class Propagators:
    """Products of transitions T (J, K, K), for J drifts over K states, in the order of time, by slot.

    Slot 0 is of beliefs that were written forward, or known before the first step; since then they have rested. Slot
    1 + s is of those that were conditioned by a look after s transitions of this window, of which there have been `now`
    so far; the first transition since then is that of a prompt that was trained on. A step costs a product for each
    slot, apart from those since which all steps have taken the same time: these cost one altogether.

    Args:
        moves: gives T, (J, K, K) float64 [from, to], of a step of some elapsed time: of prompts that rest, and of
            those that were observed in it.
        members: J. states: K.
    """

    def __init__(
        self,
        moves: Callable[[float], tuple[Tensor, Tensor]],
        members: int,
        states: int,
        device: torch.device,
    ) -> None:
        self._moves, self._device = moves, device
        #: By slot from behind: the last is of now (a product of none), those before it of one step ago and so on, and
        #: before them stands that of slot 0. So the slots in use lie together, and no step moves them.
        self.products = torch.zeros(members, CAPACITY + 2, states, states, dtype=torch.float64, device=device)
        self.products[:, -2:] = torch.eye(states, dtype=torch.float64, device=device)
        #: now; the elapsed time of the last step; how many of the last steps of the window took as long.
        self.window = torch.zeros(3, dtype=torch.float64)
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
        found = self._known.pop(elapsed, None)
        if found is None:
            resting, looked = self._moves(elapsed)
            for each in (resting, looked):
                check_transition(each, self.products.shape[-1], elapsed, self.products.shape[:1])
            found = resting.detach().to(self._device), looked.detach().to(self._device)
            if len(self._known) >= _KEPT:  # the one that was asked for longest ago goes
                self._known.pop(next(iter(self._known)))
        self._known[elapsed] = found
        return found

    def step(self, elapsed: float) -> None:
        """One transition more."""
        (resting, looked), now = self.transitions(elapsed), self.now
        same = int(self.window[2]) if float(self.window[1]) == elapsed else 0
        slots = self.by_slot()
        rested = slots[:, 0] @ resting
        # A slot moves on by one place. Where steps take the same time, what is to stand there stands there already.
        changed = min(now, now - same + 1)
        for first in range(0, changed, _AT_ONCE):
            last = min(first + _AT_ONCE, changed)
            products = slots[:, first + 1 : last + 1].flatten(1, 2) @ resting  # of K rows of each slot: long matrices
            slots[:, first:last] = products.unflatten(1, (last - first, -1))
        if not same:
            slots[:, now] = looked
        self.window.copy_(torch.tensor([now + 1, elapsed, same + 1], dtype=torch.float64))
        self.by_slot()[:, 0] = rested

    def forget(self, steps: int) -> None:
        """Drop the oldest steps of the window, of which nobody is left; other slots are `steps` less from now on."""
        self.window[0] -= steps
        self.window[2].clamp_(max=self.window[0])
        self.by_slot()[:, 0] = self.products[:, -1]

    def by_slot(self) -> Tensor:
        """Products (J, now + 2, K, K) in the order of slots; a view."""
        return self.products[:, CAPACITY - self.now :]


def check_products(window: Tensor, products: Tensor) -> int:
    """The steps of a saved `window` (3,); CheckpointError unless they and `products` (J, CAPACITY + 2, K, K) can be."""
    now, elapsed, same = window.tolist()
    if not 0 <= now <= CAPACITY or now != int(now):
        raise CheckpointError(f"posterior.tensors.window must start with a number of steps; got {now}")
    if not 0 <= same <= now or same != int(same) or elapsed < 0:
        raise CheckpointError(f"posterior.tensors.window has {now} steps, {same} of them of {elapsed}")
    require_no_less("posterior.tensors.propagators", products, 0)
    require_ones("propagators of row", products[:, CAPACITY - int(now) :].flatten(0, -2))  # those in use
    return int(now)


def require_ones(name: str, rows: Tensor, where: Tensor | None = None, within: float = 1e-3) -> None:
    """CheckpointError unless rows (R, states) sum to one, of which those count that a mask (R,) names."""
    total = rows.double().sum(1)
    bad = (total - 1).abs() > within
    bad = bad if where is None else bad & where
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise CheckpointError(f"posterior.tensors.{name} {row} sums to {float(total[row])}, not to 1")
