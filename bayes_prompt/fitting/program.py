"""What is to be fitted, as Pyro programs: parameters with priors, a declaration made of them, and a history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from bayes_prompt.fitting.evidence import count_filter, has_filter
from bayes_prompt.fitting.filters import Decay
from bayes_prompt.fitting.outcomes import Outcomes, occurring
from bayes_prompt.fitting.predictions import predicted
from bayes_prompt.history import History
from bayes_prompt.models.progress import SolvingProgress

DECAY = "decay"
"""The parameter of this name comes as a number, as declarations hold it; all others are float64 tensors."""
_MOVE = 1e-2  # of an unconstrained parameter, which the evidence must notice
_NOTHING = 1e-12  # of the evidence: a change that is rounding


class Undetermined(ValueError):
    """Nothing that the history shows depends on some parameters: they must be held at a value.

    Args:
        values: of these parameters at the start, each of its prior's shape, () for a number. The attribute `names`
            tells which they are.
        alone: whether there are no others, so that there is nothing to be fitted.
    """

    def __init__(self, values: Mapping[str, Tensor], alone: bool = False) -> None:
        self.names, self._told = tuple(values), (dict(values), alone)
        if alone:
            super().__init__(
                f"{', '.join(values)}: nothing that this history shows depends on any parameter that is free, so "
                "that there is nothing to fit; use a declaration with values of your own"
            )
            return
        numbers = {name: value.tolist() for name, value in values.items()}
        shown = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in numbers.items()}
        given = ", ".join(f"{name}={value}" for name, value in shown.items())
        typed = " ".join(f"--fix {name}={shown[name]}" for name, value in numbers.items() if isinstance(value, float))
        it, one = ("it", "a value") if len(values) == 1 else ("them", "values")
        super().__init__(
            f"{', '.join(values)}: nothing that this history shows depends on {it}; hold {it} at {one}: {given}"
            + (f", on the command line {typed}" if typed else "")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Undetermined, self._told


@dataclass(frozen=True, eq=False)
class Program:
    """A family of declarations, priors of its free parameters, and a history to learn them from.

    Args:
        family: makes a declaration of the parameters, which it takes by name.
        priors: of the free ones, each with batch shape ().
        fixed: values of the others, handed over as they are.
        history: counts (T, N).
        groups: numbers from 0 up, (N,), for declarations whose prompts learn by group.
        follows: whether gradients go through the evidence, by a filter; else the declaration's posterior is asked.
    """

    family: Callable[..., Any]
    priors: Mapping[str, Distribution]
    fixed: Mapping[str, Any]
    history: History
    groups: Sequence[int] | None = None
    follows: bool = True

    def declare(self, values: Mapping[str, Tensor]) -> Any:
        """The declaration of the free parameters' values, each of its prior's shape; errors of the family name them."""
        free = {name: Decay(value.reshape(())) if name == DECAY else value.double() for name, value in values.items()}
        try:
            return self.family(**self.fixed, **free)
        except (ValueError, TypeError) as error:
            shown = ", ".join(f"{name}={value.tolist()}" for name, value in values.items())
            error.add_note(f"raised by the family at {shown}")
            if isinstance(error, TypeError) and DECAY not in values:
                error.add_note(f"declarations hold a decay as a number: call that parameter {DECAY!r}")
            raise

    def log_evidence(self, values: Mapping[str, Tensor]) -> Tensor:
        """log_count_evidence at given values, each of its prior's shape: a tensor of shape ()."""
        if not self.follows:
            model = self.declare({name: value.detach() for name, value in values.items()})
            return predicted(model, self.history, self.groups)[0].sum()
        outcomes, which = self._counted
        return count_filter(self.declare(values), outcomes).run(which)[0].sum()

    def predictive(self) -> None:
        """Pyro program: the parameters, and the filter's evidence as a factor."""
        pyro.factor("predictive_likelihood", self.log_evidence(self._drawn()))

    def generative(self) -> None:
        """Pyro program: the parameters, and the declaration's own program, with its latent variables."""
        self.declare(self._drawn()).pyro_model(self.history)

    def checked(self, values: Mapping[str, Tensor]) -> tuple[Program, Any]:
        """The program, which follows gradients where they go through, and the declaration at values of the priors'
        shapes, once the evidence is known to depend on all of them.

        Raises:
            Undetermined: the evidence does not depend on some. ValueError: it does, and no gradient reaches one; or the
            evidence is not finite. TypeError: no declaration.
        """
        model = self.declare(values)
        if not hasattr(model, "posterior"):
            raise TypeError(f"family must make a declaration, with a posterior; got {type(model).__name__}")
        follows = self.history.elapsed is None and has_filter(model, self.groups is not None)
        program = replace(self, follows=follows)
        evidence, doubtful = program._followed(values) if program.follows else program._asked(values)
        idle = {name: values[name] for name in doubtful if not program._matters(name, values, evidence)}
        if idle:
            raise Undetermined(idle, alone=len(idle) == len(values))
        for name, unreached in doubtful.items():
            if unreached:
                raise ValueError(
                    f"{name}: nothing depends on it in a way that gradients follow; the family must put it where a "
                    "declaration takes a tensor, or use it as `decay`"
                )
        if not bool(evidence.isfinite()):
            raise ValueError(f"history has evidence {float(evidence)} at the start; give other priors or another start")
        return program, model

    def _followed(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, bool]]:
        """The evidence at values, and the parameters on whose gradients it does not depend; whether there are none."""
        leaves = {name: value.detach().double().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            evidence = self.log_evidence(leaves)
            reached: tuple[Tensor | None, ...] = (None,) * len(leaves)
            if evidence.requires_grad:
                reached = torch.autograd.grad(evidence, list(leaves.values()), allow_unused=True)
        evidence = evidence.detach()
        least = _NOTHING * (1 + evidence.abs())
        doubtful = {
            name: gradient is None
            for name, gradient in zip(leaves, reached, strict=True)
            if gradient is None or bool((gradient.abs() <= least).all())
        }
        return evidence, doubtful

    def _asked(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, bool]]:
        """The same where there are no gradients: all parameters are to be tried."""
        return self.log_evidence(values), dict.fromkeys(self.priors, False)

    def _matters(self, name: str, values: Mapping[str, Tensor], evidence: Tensor) -> bool:
        """Whether the evidence at values is another with the parameter moved a little."""
        support = biject_to(self.priors[name].support)
        free = support.inv(values[name].double())
        change = self.log_evidence({**values, name: support(free + _MOVE)}).detach() - evidence
        return not bool(change.abs() <= _NOTHING * (1 + evidence.abs()))

    @cached_property
    def _counted(self) -> tuple[Outcomes, Tensor]:
        return occurring(self.history)

    def _drawn(self) -> dict[str, Tensor]:
        return {name: pyro.sample(name, law) for name, law in self.priors.items()}


def forgets(model: Any) -> bool:
    """Whether a declaration has no generative counterpart: its decay, or one of its bank, is below 1."""
    if isinstance(model, SolvingProgress):
        return model.learn and bool(model.decay != 1)
    return bool(model.decay != 1)
