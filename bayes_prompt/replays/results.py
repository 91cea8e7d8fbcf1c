"""What came out of a replay: figures of every run, with means and errors over seeds, as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from bayes_prompt.files import whole
from bayes_prompt.replays.judging import Bin, calibration_error, pooled

FORMAT = "bayes-prompt replay 1"

#: What is told of every method, and what it means.
FIGURES = {
    "effective_sample_ratio": "share of the picks of which some rollouts succeeded and some failed, mean over visits",
    "second_half": "the same over the second half of the visits",
    "regret": "what the oracle's ratio has more; the oracle picks prompts that will be mixed, as many as there are",
    "log_loss": "of P(informative) over the pool before each pick, in nats",
    "brier": "its mean squared distance to what came out",
    "calibration_error": "its mean gap to the share that came out, in ten bins",
    "auc": "chance that it is higher for a prompt that comes out mixed than for one that does not",
    "coverage": "share of the pool that was ever picked",
    "mean_absence": "longest run of visits at which a prompt was not picked, mean over the pool",
    "longest_absence": "the longest one of all prompts",
    "seconds_picking": "to pick a batch, median over visits",
    "seconds_learning": "to learn from what came out, median over visits",
}


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    ratio, oracle: of T visits: the share of the picks that was informative, and the most that could have been.
    log_loss, brier, auc, bins: of P(informative) over the pool (see `judging.Judge`); NaN and () where it could not be
    judged. coverage, mean_absence, longest_absence, seconds_picking, seconds_learning: see `FIGURES`.
    """

    seed: int
    ratio: tuple[float, ...]
    oracle: tuple[float, ...]
    log_loss: float
    brier: float
    auc: float
    bins: tuple[Bin, ...]
    coverage: float
    mean_absence: float
    longest_absence: int
    seconds_picking: float
    seconds_learning: float

    def figures(self) -> dict[str, float]:
        """The figures of `FIGURES`, by name; the second half begins at visit T // 2, counted from 0."""
        derived = {
            "effective_sample_ratio": float(np.mean(self.ratio)),
            "second_half": float(np.mean(self.ratio[len(self.ratio) // 2 :])),
            "regret": float(np.mean(self.oracle) - np.mean(self.ratio)),
            "calibration_error": calibration_error(self.bins),
        }
        return {name: derived[name] if name in derived else float(getattr(self, name)) for name in FIGURES}


@dataclass(frozen=True)
class Figure:
    """A mean over seeds. error: its standard error; low, high: its 95% interval (Student's t). NaN for one seed."""

    mean: float
    error: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of one value for each seed; NaN all over where one is NaN."""
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean, math.nan, math.nan, math.nan)
        error = float(np.std(values, ddof=1)) / math.sqrt(count)
        half = float(stdtrit(count - 1, 0.975)) * error
        return cls(mean, error, mean - half, mean + half)


@dataclass(frozen=True)
class Method:
    """All runs of one method, a seed each."""

    name: str
    runs: tuple[Run, ...]

    @property
    def figures(self) -> dict[str, Figure]:
        """Means over seeds, by the names of `FIGURES`."""
        each = [run.figures() for run in self.runs]
        return {name: Figure.of([figures[name] for figures in each]) for name in FIGURES}

    @property
    def ratio(self) -> tuple[float, ...]:
        """Effective sample ratio of each of the T visits, mean over seeds."""
        return tuple(np.mean([run.ratio for run in self.runs], axis=0).tolist())

    @property
    def oracle(self) -> tuple[float, ...]:
        """The most that could have been, of each of the T visits: the same for every method."""
        return self.runs[0].oracle

    @property
    def bins(self) -> tuple[Bin, ...]:
        """P(informative) against what came out, all seeds together; () where it could not be judged."""
        return pooled(tuple(run.bins for run in self.runs))


@dataclass(frozen=True)
class ReplayResults:
    """What came out of a replay.

    num_prompts: N that were kept. visits: T that were replayed. batch_size: prompts in a pick. first_visit: the first,
    counted from 0, before which P(informative) was judged. methods: in the order that was asked for.
    """

    num_prompts: int
    visits: int
    batch_size: int
    first_visit: int
    methods: tuple[Method, ...]

    def __getitem__(self, name: str) -> Method:
        """A method by its name; KeyError tells which there are."""
        for method in self.methods:
            if method.name == name:
                return method
        raise KeyError(f"{name!r} is none of {', '.join(method.name for method in self.methods)}")

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries: every run, and the figures of every method; NaN is None."""
        methods = [
            {
                "name": method.name,
                "figures": {name: asdict(figure) for name, figure in method.figures.items()},
                "runs": [asdict(run) for run in method.runs],
            }
            for method in self.methods
        ]
        sizes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "methods"}
        return {"format": FORMAT, **sizes, "methods": _replaced(methods, lambda value: math.isnan(value), None)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ReplayResults:
        """What `to_json` gave; ValueError for another format, or where something is missing."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(
                f"format must be {FORMAT!r}; got {data.get('format') if isinstance(data, dict) else data!r}"
            )
        try:
            methods = tuple(_method(each) for each in _replaced(data["methods"], lambda value: value is None, math.nan))
            sizes = {field.name: data[field.name] for field in fields(cls) if field.name != "methods"}
        except (KeyError, TypeError) as error:
            raise ValueError(f"the results lack something, or have too much: {error!r}") from error
        return cls(**sizes, methods=methods)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON, whole or not at all."""
        with whole(Path(path)) as scratch:
            scratch.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReplayResults:
        """Read what `write` wrote; ValueError for another format, or where something is missing."""
        return cls.from_json(json.loads(Path(path).read_text()))


def _method(data: dict[str, Any]) -> Method:
    """A method of what `ReplayResults.to_json` gave."""
    runs = []
    for run in data["runs"]:
        curves = {name: tuple(run[name]) for name in ("ratio", "oracle")}
        runs.append(Run(**{**run, **curves, "bins": tuple(Bin(**each) for each in run["bins"])}))
    return Method(data["name"], tuple(runs))


def _replaced(data: Any, wanted: Callable[[Any], bool], value: float | None) -> Any:
    """A copy in which every number or None that is `wanted` is `value`."""
    if isinstance(data, dict):
        return {name: _replaced(each, wanted, value) for name, each in data.items()}
    if isinstance(data, list | tuple):
        return [_replaced(each, wanted, value) for each in data]
    return value if (data is None or isinstance(data, float)) and wanted(data) else data
