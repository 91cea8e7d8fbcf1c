"""What a fit found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.files import whole


@dataclass(frozen=True, eq=False)
class Estimate:
    """A parameter's posterior. draws: (S, ...) float64, where ... is the parameter's shape, () for a number."""

    draws: Tensor

    @property
    def mean(self) -> Tensor:
        """Posterior mean, of the parameter's shape."""
        return self.draws.mean(0)

    @property
    def sd(self) -> Tensor:
        """Posterior standard deviation, of that shape; 0 for a mode, which is a single draw."""
        return self.draws.std(0, correction=0)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The central interval of this probability: its two ends, of that shape."""
        tail = (1 - level) / 2
        return torch.quantile(self.draws, tail, dim=0), torch.quantile(self.draws, 1 - tail, dim=0)


@dataclass(frozen=True, eq=False)
class FitResult:
    """A declaration to use as it is, and how sure its parameters are.

    Attributes:
        model: the declaration at the parameters' posterior means (method "map": at the mode).
        parameters: by name, each with its draws.
        fixed: what was given as a value, by name.
        log_count_evidence: of `model` on the history (nats).
        observations: looks in the history.
        elbo: the evidence lower bound at each step of SVI, else empty.
        method: "svi", "nuts" or "map". likelihood: "predictive" or "generative".
        effective_draws: of NUTS, the effective sample size of each parameter's worst entry, nan of fewer than four
            draws; else empty.
        family: the name of the family, where it has one.
    """

    model: Any
    parameters: Mapping[str, Estimate]
    fixed: Mapping[str, Any]
    log_count_evidence: float
    observations: int
    elbo: tuple[float, ...]
    method: str
    likelihood: str
    effective_draws: Mapping[str, float]
    family: str | None = None

    def rows(self) -> Iterator[tuple[str, float, float, float, float]]:
        """Name, mean, standard deviation, and the ends of the 95% interval, of every number that was free."""
        for name, estimate in self.parameters.items():
            columns = (estimate.mean, estimate.sd, *estimate.interval())
            entries = zip(*(column.reshape(-1).tolist() for column in columns), strict=True)
            for place, numbers in enumerate(entries):
                yield (name if estimate.mean.ndim == 0 else f"{name}[{place}]"), *numbers

    def table(self) -> str:
        """The same as text, with a line on the evidence."""
        lines = [f"{'parameter':<16}{'mean':>10}{'sd':>10}{'2.5%':>10}{'97.5%':>10}"]
        lines += [f"{name:<16}" + "".join(f"{number:>10.4g}" for number in numbers) for name, *numbers in self.rows()]
        each = self.log_count_evidence / max(self.observations, 1)
        lines.append(f"log evidence {self.log_count_evidence:.2f} of {self.observations} looks, {each:.4f} each")
        return "\n".join(lines)

    def python(self) -> str | None:
        """The line of Python that makes the declaration, to 6 digits; None where the family has no name."""
        if self.family is None:
            return None
        from bayes_prompt.fitting.families import FAMILIES

        means = {name: estimate.mean.tolist() for name, estimate in self.parameters.items()}
        return FAMILIES[self.family].code.format(**self.fixed, **means)

    def to_json(self) -> dict[str, Any]:
        """All of it but the draws, as JSON-able numbers, strings and lists; None where there is no number."""
        numbers = {
            name: {key: value.tolist() for key, value in zip(_KEYS, _summary(estimate), strict=True)}
            for name, estimate in self.parameters.items()
        }
        fixed = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in self.fixed.items()}
        return {
            "family": self.family,
            "parameters": numbers,
            "fixed": fixed,
            "python": self.python(),
            "model": self.model.describe(),
            "method": self.method,
            "likelihood": self.likelihood,
            "log_count_evidence": self.log_count_evidence,
            "observations": self.observations,
            "elbo": list(self.elbo),
            "effective_draws": {name: None if size != size else size for name, size in self.effective_draws.items()},
        }

    def write(self, path: str | PathLike[str]) -> None:
        """Write `to_json` to a file, whole or not at all.

        `families.read` makes the declaration of it again, where the family has a name.
        """
        with whole(Path(path)) as scratch:
            scratch.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


_KEYS = ("mean", "sd", "low", "high")


def _summary(estimate: Estimate) -> tuple[Tensor, ...]:
    return estimate.mean, estimate.sd, *estimate.interval()
