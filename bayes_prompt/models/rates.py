"""Distributions of a success rate that Pyro does not have: with atoms at 0 and 1."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from bayes_prompt.errors import CannotLower
from bayes_prompt.models import checks


class Inflated(TorchDistribution):
    """A distribution over (0, 1), with probabilities of exactly 0 and exactly 1 besides: prompts that never change.

    Densities are with respect to the length of (0, 1) plus a unit mass at each end.

    Args:
        base: over (0, 1), of batch shape () and event shape ().
        zero, one: probabilities of the atoms, numbers or tensors (); their sum is below 1.

    Raises:
        CannotLower: `base` has another shape. ValueError, TypeError: a probability is out of range.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch has it
    support = constraints.unit_interval
    has_rsample = False

    def __init__(self, base: Distribution, zero: float | Tensor = 0.0, one: float | Tensor = 0.0) -> None:
        if not isinstance(base, Distribution) or base.batch_shape or base.event_shape:
            raise CannotLower(f"base must be a distribution of batch shape () and event shape (); got {base!r}")
        if isinstance(base, Inflated):
            raise CannotLower("base must be a distribution over (0, 1) without atoms; got one that is inflated already")
        self.base = base
        self.zero, self.one = checks.scalar("zero", zero), checks.scalar("one", one)
        for name, value in (("zero", self.zero), ("one", self.one)):
            checks.entries(name, value, (value >= 0) & (value < 1), "must lie in [0, 1)")
        total = self.zero + self.one
        checks.entries("zero + one", total, total < 1, "must be below 1")
        super().__init__(validate_args=False)

    def atoms(self) -> Tensor:
        """Probabilities of 0 and of 1, (2,) float64."""
        return torch.stack([self.zero, self.one])

    @property
    def mean(self) -> Tensor:
        """The mean rate, of shape ()."""
        return self.one + (1 - self.zero - self.one) * self.base.mean

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as torch has it
        """Rates of shape sample_shape + batch shape."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            which = torch.rand(shape, dtype=torch.float64)
            inner = self.base.sample(shape).double()
            return torch.where(which < self.zero, 0.0, torch.where(which > 1 - self.one, 1.0, inner))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of an atom's probability, or of the density between them; -inf outside [0, 1]."""
        wide = value.double()
        between = (wide > 0) & (wide < 1)
        inner = self.base.log_prob(torch.where(between, wide, 0.5)) + torch.log1p(-self.zero - self.one)
        atom = torch.where(wide == 0, self.zero, torch.where(wide == 1, self.one, 0.0))
        return torch.where(between, inner, atom.log())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same, independently for each of a batch; only the plain sampling and density are needed there."""
        new = self._get_checked_instance(Inflated, _instance)
        new.base, new.zero, new.one = self.base, self.zero, self.one
        Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        return new


def logit_normal(mean: float | Tensor, deviation: float | Tensor) -> Any:
    """The law of a rate whose logit is Normal; `mean` and `deviation` are numbers or tensors of shape ()."""
    location, scale = checks.scalar("mean", mean), checks.scalar("deviation", deviation)
    checks.entries("mean", location, location.isfinite(), "must be finite")
    checks.entries("deviation", scale, scale.isfinite() & (scale > 0), "must be positive and finite")
    return dist.TransformedDistribution(dist.Normal(location, scale), [dist.transforms.SigmoidTransform()])


def histogram(weights: Tensor, edges: Tensor | None = None) -> Any:
    """A rate that is uniform within each of B bins: a learned histogram, say of recorded pass rates.

    Args:
        weights: (B,) at least 0, with a positive sum; gradients reach them.
        edges: (B + 1,) ascending from 0 to 1; None: B equal bins.

    Raises ValueError or TypeError for a shape or an entry out of range.
    """
    weight = checks.real("weights", weights).double()
    if weight.ndim != 1 or len(weight) < 1:
        raise ValueError(f"weights must have shape (B,), B >= 1; got {tuple(weight.shape)}")
    checks.entries("weights", weight, weight.isfinite() & (weight >= 0), "must be finite and at least 0")
    checks.entries("the sum of weights", weight.sum(), weight.sum() > 0, "must be positive")
    bins = len(weight)
    edge = torch.linspace(0, 1, bins + 1).double() if edges is None else checks.real("edges", edges).double()
    if edge.shape != (bins + 1,) or edge[0] != 0 or edge[-1] != 1:
        raise ValueError(f"edges must have shape ({bins + 1},), from 0 to 1; got {edge.tolist()}")
    checks.entries("edges", edge[1:], edge.diff() > 0, "must be greater than the edge before it")
    return Histogram(weight / weight.sum(), edge)


class Histogram(TorchDistribution):
    """Uniform within bins of probabilities (B,), between edges (B + 1,) from 0 to 1; made by `histogram`."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch has it
    support = constraints.unit_interval
    has_rsample = False

    def __init__(self, weights: Tensor, edges: Tensor, batch_shape: Any = torch.Size()) -> None:  # noqa: B008
        self.weights, self.edges = weights, edges
        super().__init__(torch.Size(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean rate, of shape ()."""
        return (self.weights * (self.edges[1:] + self.edges[:-1]) / 2).sum()

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as torch has it
        """Rates of shape sample_shape + batch shape."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            bins = dist.Categorical(self.weights).sample(shape)
            return self.edges[bins] + self.edges.diff()[bins] * torch.rand(shape, dtype=torch.float64)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; -inf in bins without weight, and outside [0, 1]."""
        wide = value.double().contiguous()
        place = torch.searchsorted(self.edges, wide, right=True).clamp(1, len(self.weights)) - 1
        density = (self.weights / self.edges.diff())[place]
        return torch.where((wide >= 0) & (wide <= 1), density, 0.0).log()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same, independently for each of a batch."""
        return Histogram(self.weights, self.edges, batch_shape)
