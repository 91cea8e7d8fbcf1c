"""An emission as a distribution of Pyro's, for its programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

if TYPE_CHECKING:
    from bayes_prompt.models.emission import Emission


class CountDistribution(TorchDistribution):
    """An emission as a Pyro distribution of the number of successes, given the state; see `Emission.distribution`.

    state, trials: integers of shapes that broadcast to the batch shape.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own convention)

    def __init__(self, emission: Emission, state: Tensor, trials: Tensor, validate_args: bool | None = None) -> None:
        self.emission = emission
        self.state, self.trials = torch.broadcast_tensors(state, trials)
        super().__init__(self.state.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The integers 0..trials."""
        return constraints.integer_interval(0, self.trials)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> CountDistribution:
        """The same law, broadcast to `batch_shape`."""
        shape = torch.Size(batch_shape)
        return CountDistribution(
            self.emission, self.state.expand(shape), self.trials.expand(shape), validate_args=False
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Successes as float64, shape sample_shape + batch_shape."""
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.emission.sample(self.state.expand(shape), self.trials.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value | state, trials), broadcast over all three."""
        if self._validate_args:
            self._validate_sample(value)
        # One row of the table for each count, not for each enumerated state: the state only picks the column.
        value, trials, state = torch.broadcast_tensors(value, self.trials, self.state)
        table = self.emission.log_likelihood(value.flatten().long(), trials.flatten().long())
        return table.gather(-1, state.flatten()[:, None]).reshape(value.shape)
