"""The mode of a Pyro program's posterior, and its shape there: coordinates in which it is nearly a standard normal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

Tell = Callable[[str, int, int], None]
_MOST_STEPS = 60  # of the search for the mode
_STEP = 1e-3  # of differences, in unconstrained parameters
_FLAT = 1e-2  # the least curvature that is believed: a direction about which nothing is known gets a deviation of 10


@dataclass(frozen=True, eq=False)
class Laplace:
    """Unconstrained parameters u (D,), their mode, and a factor (D, D) of their covariance there.

    potential: -log of prior times likelihood, Jacobian included, a function of u that gradients go through.
    """

    potential: Callable[[Tensor], Tensor]
    transforms: Mapping[str, Any]
    shapes: Mapping[str, torch.Size]
    mode: Tensor
    factor: Tensor

    def at(self, z: Tensor) -> Tensor:
        """The potential () at coordinates (D,) in which the posterior is nearly a standard normal."""
        return self.potential(self.mode + self.factor @ z)

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """The parameters themselves, each (S, ...), at S such coordinates (S, D)."""
        parts = _parts(self.mode + z @ self.factor.T, self.shapes)
        return {name: self.transforms[name].inv(part).detach() for name, part in parts.items()}


def laplace(
    program: Callable[[], None], start: Mapping[str, Tensor], tell: Tell, differentiable: bool = True
) -> Laplace:
    """Find the mode by L-BFGS, and the curvature there by differences of gradients.

    Args:
        program: a Pyro program without discrete latent variables.
        start: a value for each of its latent variables, of its shape.
        tell: is called with ("mode" or "curvature", evaluations made, at most).
        differentiable: whether gradients go through the program; else they are central differences, of 2 D values.
    """
    before, joint, transforms, _ = initialize_model(program, init_strategy=init_to_value(values=dict(start)))
    shapes = {name: transforms[name](start[name].double()).shape for name in before}
    u = torch.cat([transforms[name](start[name].double()).reshape(-1) for name in before]).requires_grad_()
    search = torch.optim.LBFGS(
        [u], max_iter=_MOST_STEPS, tolerance_grad=1e-3, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def potential(place: Tensor) -> Tensor:
        value: Tensor = joint(_parts(place, shapes)) if differentiable else _Differences.apply(place, joint, shapes)
        return value

    made, highest = 0, torch.tensor(-torch.inf, dtype=torch.float64)

    def slope(place: Tensor) -> tuple[Tensor, Tensor]:
        value = potential(place)
        (gradient,) = torch.autograd.grad(value, place)
        return value.detach(), gradient

    def evaluate() -> Tensor:
        nonlocal made, highest
        made += 1
        tell("mode", made, max(made, _MOST_STEPS))
        try:
            value, u.grad = slope(u)
        except ValueError:  # a step too far, to where there is no declaration: it is a wall, and the search turns back
            if made == 1:
                raise
            value = u.grad = torch.full_like(u, torch.nan)
        if not bool(value.isfinite().all() and u.grad.isfinite().all()):
            if made == 1:
                raise FloatingPointError("the start has no finite gradient; give other priors or another start")
            value, u.grad = highest + made, torch.zeros_like(u)
        highest = torch.maximum(highest, value)
        return value

    search.step(evaluate)
    mode = u.detach().clone()
    if not bool(mode.isfinite().all()):
        raise FloatingPointError("the search for the mode left the finite numbers; give other priors or another start")
    rows = []
    for place, direction in enumerate(torch.eye(len(mode), dtype=torch.float64)):
        ends = [slope((mode + sign * _STEP * direction).requires_grad_())[1] for sign in (1, -1)]
        rows.append((ends[0] - ends[1]) / (2 * _STEP))
        tell("curvature", place + 1, len(mode))
    hessian = torch.stack(rows)
    curvature, axes = torch.linalg.eigh((hessian + hessian.T) / 2)
    covariance = axes @ torch.diag(1 / curvature.clamp(min=_FLAT)) @ axes.T
    return Laplace(potential, transforms, shapes, mode, torch.linalg.cholesky(covariance))


class _Differences(torch.autograd.Function):
    """joint(parts of u), whose gradient is made of central differences."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, joint: Callable[[dict[str, Tensor]], Tensor], shapes: Any) -> Tensor:
        ctx.save_for_backward(u)
        ctx.value = lambda place: joint(_parts(place, shapes))
        value: Tensor = ctx.value(u)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        with torch.no_grad():
            steps = _STEP * torch.eye(len(u), dtype=torch.float64)
            slopes = [(ctx.value(u + step) - ctx.value(u - step)) / (2 * _STEP) for step in steps]
        return upstream * torch.stack(slopes), None, None


def _parts(u: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A vector (..., D) as named parts (..., *shape)."""
    sizes = [shape.numel() for shape in shapes.values()]
    parts = zip(shapes.items(), u.split(sizes, -1), strict=True)
    return {name: part.reshape((*u.shape[:-1], *shape)) for (name, shape), part in parts}
