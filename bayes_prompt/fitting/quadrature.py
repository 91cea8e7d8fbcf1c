"""The grid of a declaration as a function of its prior's parameters, which gradients go through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.models.grid import _SLOPE, Points, _density, _finely
from bayes_prompt.models.rates import Inflated
from bayes_prompt.models.success_rate import SuccessRate


def differentiable_points(model: SuccessRate) -> Points:
    """The points and masses of a declaration's grid. Gradients of the prior reach both, where both follow from it.

    Without a drift, or with one that redraws, and with a number of points, the points are a Gauss quadrature of the
    prior (see `models.grid.lower`), whose derivative is exact here. Otherwise they lie even in the logit: there the
    masses follow the prior, and that the ends of the grid do too is left out.
    """
    points = model.points()
    if isinstance(model.grid, Tensor) or (model.drift is not None and model.drift.reach):
        return points
    prior = model.prior.base if isinstance(model.prior, Inflated) else model.prior
    fine, fine_mass = _finely(prior)
    followed = _followed(prior, fine)
    if not followed.requires_grad:
        return points
    inner = points.inner
    share = points.mass[inner]
    node, weight = torch.tanh(points.logit[inner] / 2), share.detach() / share.detach().sum()
    known = (fine_mass > 0) & (followed.detach() > 0)
    d_log = torch.zeros_like(fine_mass).masked_scatter(known, _no_value(followed[known].log()))
    d_node, d_weight = _derivatives(fine, fine_mass, node, weight, d_log)
    logit = points.logit.clone()
    logit[inner] = points.logit[inner] + d_node * 2 / (1 - node.square())
    mass = torch.cat([points.mass[: inner.start], share + share.detach().sum() * d_weight, points.mass[inner.stop :]])
    return replace(points, logit=logit, mass=mass)


def _derivatives(fine: Tensor, fine_mass: Tensor, node: Tensor, weight: Tensor, d_log: Tensor) -> tuple[Tensor, Tensor]:
    """What a change of the log masses d_log (M,) at logits `fine` (M,) does to a Gauss rule of them: d node, d weight.

    The rule integrates polynomials of degree 2 K - 1 exactly, so also those that Hermite interpolation at its nodes is
    made of: with l the Lagrange polynomial of node x, d weight = ∫ (1 - 2 (t - x) l'(x)) l(t)^2 dp(t), and weight times
    d node = ∫ (t - x) l(t)^2 dp(t). By Christoffel and Darboux l(t)^2 p(t) is weight times `kernel`, which is stable.
    """
    x, root = torch.tanh(fine / 2), fine_mass.sqrt()
    size = len(node)
    basis = torch.zeros(size, len(x), dtype=torch.float64)  # orthonormal polynomials, times root
    at_node = torch.ones_like(node)  # the same at the nodes, times the roots of their weights
    rows, q, before, beside = [], root, torch.zeros_like(node), 0.0
    for k in range(size):
        basis[k] = q
        rows.append(at_node)
        centre = (q * x * q).sum()
        q = x * q
        for _ in range(2):
            q = q - basis[: k + 1].T @ (basis[: k + 1] @ q)
        norm = float(q.norm())
        if k + 1 < size:
            q = q / norm
            at_node, before = ((node - centre) * at_node - beside * before) / norm, at_node
            beside = norm
    kernel = ((torch.stack(rows) * weight.sqrt()).T @ basis).square()  # (K, M)
    apart = node[:, None] - node
    slope = torch.where(apart == 0, 0.0, 1 / torch.where(apart == 0, 1.0, apart)).sum(1)  # l' at its own node
    change = kernel * d_log
    reach = x - node[:, None]
    return (change * reach).sum(1), weight * (change * (1 - 2 * reach * slope[:, None])).sum(1)


def _followed(prior: Any, fine: Tensor) -> Tensor:
    """The masses of `_finely` (M,), its tails included, as a function of the prior's parameters."""
    density = _density(prior, fine)
    mass = [density]
    for end, before, place in ((density[0], density[_SLOPE], 0), (density[-1], density[-1 - _SLOPE], -1)):
        if 0 < float(end.detach()) < float(before.detach()):
            beyond = torch.zeros_like(fine)
            beyond[place] = 1.0
            mass.append(beyond * end / torch.expm1((before / end).log() / _SLOPE))
    total = torch.stack(mass).sum(0)
    return total / total.sum()


def _no_value(values: Tensor) -> Tensor:
    """Zeros with the gradients of `values`."""
    return values - values.detach()
