"""The same operations by torch on the device: eager, compiled by torch.compile, by its own distributions and topk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STATES = 3


class TorchProgress:
    """The DPS step in float32 on struct of arrays, (3, 3, N) and (3, N). Ties of a pick are torch's.

    compiled: None for eager; "rest" compiles what is done to all prompts, while the few observed ones are gathered and
    scattered eagerly (compiled together, torch 2.13 loses writes to a part of a tensor that is written as a whole too);
    "fused" compiles a form that asks every prompt for its observation, and so may be one loop.
    """

    def __init__(self, num_prompts: int, decay: float, device: str, compiled: str | None) -> None:
        self.decay = decay
        self.concentration = torch.ones(STATES, STATES, num_prompts, device=device)
        self.belief = torch.full((STATES, num_prompts), 1 / STATES, device=device)
        self.posterior = self.belief.clone()
        self.slot = torch.full((num_prompts,), -1, dtype=torch.int32, device=device) if compiled == "fused" else None
        step: Callable[..., None] = fused if compiled == "fused" else advance
        self._advance = torch.compile(step, dynamic=False) if compiled else step

    def start(self, belief: Tensor, concentration: Tensor) -> None:
        """Take over (N, 3) and (N, 3, 3)."""
        self.belief.copy_(belief.T)
        self.posterior.copy_(belief.T)
        self.concentration.copy_(concentration.permute(1, 2, 0))

    def update(self, index: Tensor, successes: Tensor, trials: int) -> None:
        """One step; index and successes (B,)."""
        state = (successes > 0).long() + (successes == trials)
        likelihood = torch.nn.functional.one_hot(state, STATES).to(self.belief.dtype)
        arrays = (self.concentration, self.posterior, self.belief)
        if self.slot is None:
            condition(*arrays, index, likelihood, self.decay)
            self._advance(*arrays, self.decay)
        else:
            self.slot[index] = torch.arange(len(index), dtype=torch.int32, device=index.device)
            self._advance(*arrays, self.slot, likelihood, self.decay)
            self.slot[index] = -1

    def select(self, batch_size: int) -> Tensor:
        """The best rows (batch_size,), best first."""
        return self.belief[1].topk(batch_size).indices

    def beliefs(self) -> Tensor:
        """(N, 3)."""
        return self.belief.T


class TorchThompson:
    """Draws of `torch.distributions.Beta` in float32 on the device."""

    def __init__(self, alpha: Tensor, beta: Tensor) -> None:
        self.alpha, self.beta = alpha.clone(), beta.clone()

    def draw(self) -> Tensor:
        """One draw of every prompt, (N,)."""
        return torch.distributions.Beta(self.alpha, self.beta, validate_args=False).sample()

    def select(self, batch_size: int) -> Tensor:
        """The rows (batch_size,) whose draws are nearest to 0.5."""
        return (self.draw() - 0.5).abs_().neg_().topk(batch_size).indices


def condition(C: Tensor, p: Tensor, b: Tensor, index: Tensor, likelihood: Tensor, decay: float) -> None:
    """The observed prompts of a step, in place: b becomes the posterior, C what decays to the learned counts.

    C (3, 3, N), p and b (3, N), index (B,), likelihood (B, 3).
    """
    seen, old = likelihood.T, C[:, :, index]
    joint = p[:, None, index] * (old / old.sum(1, keepdim=True)) * seen[None]
    C[:, :, index] = old + joint / (joint.sum((0, 1)) * decay)
    q = b[:, index] * seen
    b[:, index] = q / q.sum(0)


def advance(C: Tensor, p: Tensor, b: Tensor, decay: float) -> None:
    """The rest of the step, the same for all prompts, in place: C decays, p remembers b, and b moves on."""
    p.copy_(b)
    C.mul_(decay).add_(1.0 - decay)
    b.copy_((p[:, None] / C.sum(1, keepdim=True) * C).sum(0))


def fused(C: Tensor, p: Tensor, b: Tensor, slot: Tensor, likelihood: Tensor, decay: float) -> None:
    """The same with slot (N,) int32, the row of `likelihood` or -1; states unrolled, so that it may become one loop."""
    states = range(STATES)
    observed = slot >= 0
    entry = slot.clamp_min(0).long()
    seen = [likelihood[:, i][entry] for i in states]
    total = sum(b[i] * seen[i] for i in states)
    q = [torch.where(observed, b[i] * seen[i] / total, b[i]) for i in states]
    leaving = [C[j, 0] + C[j, 1] + C[j, 2] for j in states]
    joint = [[p[j] * (C[j, i] / leaving[j]) * seen[i] for i in states] for j in states]
    mass = sum(sum(row) for row in joint)
    new = [
        [decay * C[j, i] + (1.0 - decay) + torch.where(observed, joint[j][i] / mass, 0.0) for i in states]
        for j in states
    ]
    share = [q[j] / (new[j][0] + new[j][1] + new[j][2]) for j in states]
    predicted = [share[0] * new[0][i] + share[1] * new[1][i] + share[2] * new[2][i] for i in states]
    for j in states:
        for i in states:
            C[j, i].copy_(new[j][i])
        p[j].copy_(q[j])
        b[j].copy_(predicted[j])
