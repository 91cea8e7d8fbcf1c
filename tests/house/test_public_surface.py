"""The public surface: its names and signatures, and that all of it says what it does, in types and in words."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp

# Packages whose modules are public, but for these helpers.
OPEN = ("posteriors", "trainers", "testbed", "replays", "simulate", "fitting")
HELPERS = {"checks"}
MODULES = [
    *("history", "errors", "checkpoint", "identities", "in_flight", "metrics", "selector", "recipes", "cli"),
    *("picking", "labels", "command_line", "bench.command"),
    *("models.priors", "models.emission", "models.progress", "models.success_rate", "models.numerics"),
    *("models.difficulty", "models.networks", "models.online_svi", "models.distributions", "recent", "embedding"),
    *("acquisition.diverse", "acquisition.diversity", "acquisition.allocation", "acquisition.objectives"),
    *("acquisition", "acquisition.scores", "acquisition.thompson", "acquisition.select", "acquisition.exploration"),
    *("models.grid", "models.drift", "models.rates", "models.sharing", "models.banks", "models.kalman"),
    *("models.markov", "models.moves", "models.count_distribution"),
    *("history_files", "recorder", "observing", "books", "acquisition.batch"),
]

# Something that reads as a shape: (N,), (B, G), (K, K, N), (num_steps, ...).
SHAPE = re.compile(r"\(\w+(?:,| ?\+ ?\d+[,)])|shape")
TENSOR = re.compile(r"\b(?:Tensor|LongTensor|IntegersLike)\b")


@dataclass(frozen=True)
class Thing:
    """One public class, function, method or property."""

    name: str
    value: Any
    owner: type | None = None

    @property
    def doc(self) -> str:
        """Its own docstring; for a method, followed by those of the methods it overrides, which hold for it too."""
        if self.owner is not None:
            name = self.name.rpartition(".")[2]
            overridden = [vars(base)[name] for base in self.owner.__mro__ if name in vars(base)]
            return "\n".join(inspect.getdoc(function) or "" for function in overridden)
        generated = is_dataclass(self.value) and (self.value.__doc__ or "").startswith(f"{self.value.__name__}(")
        return "" if generated else self.value.__doc__ or ""

    @property
    def signature(self) -> inspect.Signature | None:
        """Of what is called; None for a protocol, or a class that inherits its constructor from elsewhere."""
        if inspect.isclass(self.value):
            if getattr(self.value, "_is_protocol", False):
                return None
            return inspect.signature(self.value) if "__init__" in vars(self.value) else None
        return inspect.signature(self.value)

    def types(self) -> list[str]:
        """The annotations, as written, of parameters and result."""
        signature = self.signature
        if signature is None:
            return []
        written = [p.annotation for p in signature.parameters.values()] + [signature.return_annotation]
        return [str(annotation) for annotation in written]


def public_modules() -> list[str]:
    names = [f"bayes_prompt.{name}" for name in (*MODULES, *OPEN)]
    for name in OPEN:
        package = importlib.import_module(f"bayes_prompt.{name}")
        inside = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
        names += [module for module in inside if module.rpartition(".")[2] not in HELPERS]
    return names


def named(module: ModuleType) -> Iterator[tuple[str, Any]]:
    names = getattr(module, "__all__", None)
    for name in names if names is not None else vars(module):
        value = getattr(module, name)
        is_code = inspect.isclass(value) or inspect.isroutine(value)
        if is_code and not name.startswith("_") and (names is not None or value.__module__ == module.__name__):
            yield name, value


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties that a class and its bases of ours define, unwrapped to functions."""
    for base in cls.__mro__:
        if not base.__module__.startswith("bayes_prompt"):
            continue
        for name, value in vars(base).items():
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            elif isinstance(value, property):
                value = value.fget
            elif isinstance(value, cached_property):
                value = value.func
            written = inspect.isfunction(value) and value.__module__.startswith("bayes_prompt")
            if written and not name.startswith("_") and name != "<lambda>":
                yield name, value


def things() -> list[Thing]:
    found: dict[Any, Thing] = {}  # the first name of each
    for module in (bp, *map(importlib.import_module, public_modules())):
        for name, value in named(module):
            whole = f"{module.__name__}.{name}"
            found.setdefault(value, Thing(whole, value))
            for member, function in members(value) if inspect.isclass(value) else ():
                found.setdefault(function, Thing(f"{whole}.{member}", function, value))
    return list(found.values())


@pytest.fixture(scope="module")
def surface() -> list[Thing]:
    return things()


def test_the_names_of_the_package_resolve() -> None:
    assert [name for name in bp.__all__ if getattr(bp, name, None) is None] == []
    assert set(bp.__all__) <= set(dir(bp))
    with pytest.raises(AttributeError, match="no_such_name"):
        bp.no_such_name  # noqa: B018


def test_modules_say_what_they_are_for() -> None:
    modules = ["bayes_prompt", "bayes_prompt.kernels", *public_modules()]
    silent = [name for name in modules if not importlib.import_module(name).__doc__]
    assert not silent, "\n".join(silent)


def test_everything_has_a_docstring(surface: list[Thing]) -> None:
    assert len(surface) > 100  # the walk itself found the surface
    silent = [thing.name for thing in surface if len(thing.doc.split()) < 3]
    assert not silent, "\n".join(silent)


def test_everything_is_annotated(surface: list[Thing]) -> None:
    bare = []
    for thing in surface:
        if (signature := thing.signature) is None:
            continue
        parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        bare += [f"{thing.name}: {p.name}" for p in parameters if p.annotation is p.empty]
        if not inspect.isclass(thing.value) and signature.return_annotation is signature.empty:
            bare.append(f"{thing.name}: result")
    assert not bare, "\n".join(bare)


def test_docstrings_state_the_shapes_of_tensors(surface: list[Thing]) -> None:
    vague = []
    for thing in surface:
        text = thing.doc
        if inspect.isclass(thing.value):
            text += inspect.getdoc(thing.value.__init__) or ""
            # Fields of a dataclass may say it in the comments beside them.
            text += inspect.getsource(thing.value).split("def ")[0] if is_dataclass(thing.value) else ""
        if TENSOR.search(" ".join(thing.types())) and not SHAPE.search(text):
            vague.append(thing.name)
    assert not vague, "\n".join(vague)


ANY = object()


def called(*names: str, **defaults: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Parameters in this order, then ones with these defaults (ANY: some default or none)."""
    return names, defaults


COUNTS = called("index", "successes", "trials")
RECIPE = called(num_prompts=ANY, batch_size=ANY, seed=0)
SIGNATURES = {
    "SolvingProgress": called(transition=ANY, initial=ANY, decay=ANY, learn=True, emission=None),
    "SolvingProgress.posterior": called("num_prompts", device="cpu", dtype=torch.float32, backend="auto"),
    "SolvingProgress.pyro_model": called("history"),
    "SolvingProgress.lower": called("dtype", "device"),
    "SuccessRate": called(prior=ANY, decay=ANY),
    "SuccessRate.posterior": called("num_prompts", device="cpu", dtype=torch.float32, backend="auto"),
    "SuccessRate.pyro_model": called("history"),
    "SuccessRate.lower": called("dtype", "device"),
    "priors.uniform": called("a"),
    "priors.progress": called(),
    "priors.stability": called(),
    "priors.local": called(),
    "priors.uniform_initial": called(),
    "priors.one_hot_initial": called("state"),
    "Posterior.observe": COUNTS,
    "Posterior.advance": called(elapsed=1.0),
    "Posterior.update": COUNTS,
    "Posterior.success_rate": called(),
    "Posterior.informative_probability": called("trials"),
    "Posterior.sample_success_rate": called("seed", "step"),
    "Posterior.warm_start": COUNTS,
    "Posterior.state_dict": called(),
    "Posterior.load_state_dict": called(ANY),
    "Posterior.expected_variance": called(),
    "Posterior.entropy": called(),
    "PublishedEmission": called(),
    "BetaBinomialEmission": called(ANY),
    "PartitionEmission": called("edges"),
    "History": called("successes", "trials"),
    "History.from_records": called("step", "prompt", "successes", "trials", "num_prompts", num_steps=None),
    "History.write_parquet": called("path"),
    "History.read_parquet": called("path", num_prompts=None, num_steps=None),
    "acquisition.HistoryResampling": called(),
    "acquisition.top_b": called("scores", "batch_size", seed=ANY, step=ANY, allowed=None),
    "trainers.trl.GRPOTrainer": called(selector=ANY, success=None, success_threshold=None),
    "trainers.torch.PromptSampler": called("selector", picks_per_epoch=None),
    "trainers.torch.PromptBatchSampler": called("selector", picks_per_epoch=None),
    "acquisition.Acquisition.scores": called("posterior", "seed", "step"),
    "acquisition.PartialProbability": called(),
    "acquisition.InformativeProbability": called("trials"),
    "acquisition.TargetSuccessRate": called(ANY),
    "acquisition.Threshold": called("low", "high"),
    "acquisition.ExpectedVariance": called(),
    "acquisition.EntropyBonus": called("weight"),
    "acquisition.Uniform": called(),
    "PromptSelector": called("posterior", "acquisition", "batch_size", seed=0),
    "PromptSelector.select": called(candidates=None),
    "PromptSelector.observe": called("index", "rewards", successes=None, trials=None),
    "PromptSelector.update": called("index", "rewards", successes=None, trials=None),
    "PromptSelector.advance": called(elapsed=1.0),
    "PromptSelector.release": called("index"),
    "PromptSelector.explain": called("prompt"),
    "PromptSelector.metrics": called(),
    "PromptSelector.state_dict": called(),
    "PromptSelector.load_state_dict": called(ANY),
    "PromptSelector.save": called("path"),
    "PromptSelector.load": called("path"),
    "recipes.uniform": RECIPE,
    "recipes.history_resampling": RECIPE,
    "recipes.mopps": RECIPE,
    "recipes.dps": called(num_prompts=ANY, batch_size=ANY, decay=ANY, seed=0),
}


@pytest.mark.parametrize("path", SIGNATURES)
def test_signature(path: str) -> None:
    if path.startswith("trainers."):
        importlib.import_module(f"bayes_prompt.{path.rpartition('.')[0]}")
    value: Any = bp
    for name in path.split("."):
        value = getattr(value, name)
    names, defaults = SIGNATURES[path]
    parameters = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(positional) >= len(names)
    assert [(a, b) for a, b in zip(names, positional, strict=False) if a not in (ANY, b)] == []
    by_name = {p.name: p.default for p in parameters}
    assert set(defaults) <= set(by_name)
    assert {
        name: by_name[name] for name, default in defaults.items() if default is not ANY and by_name[name] != default
    } == {}
    given = {*positional[: len(names)], *defaults}
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert required <= given, "a call as documented lacks an argument"


def posterior_of(model: Callable[[], Any]) -> Any:
    return model().posterior(num_prompts=5, device="cpu", dtype=torch.float64, backend="reference")


def progress() -> bp.SolvingProgress:
    return bp.SolvingProgress(transition=bp.priors.uniform(1.0), initial=bp.priors.uniform_initial(), decay=0.7)


def success_rate() -> bp.SuccessRate:
    return bp.SuccessRate(prior=dist.Beta(1.0, 1.0), decay=0.5)


@pytest.mark.parametrize("model", [progress, success_rate])
def test_what_every_posterior_answers(model: Callable[[], Any]) -> None:
    posterior = posterior_of(model)
    posterior.update(torch.tensor([0, 3]), torch.tensor([2, 0]), 4)
    for answer in (
        posterior.success_rate(),
        posterior.informative_probability(4),
        posterior.sample_success_rate(seed=1, step=2),
    ):
        assert answer.shape == (5,) and bool(((answer >= 0) & (answer <= 1)).all())
    assert isinstance(posterior.log_evidence, float) and isinstance(posterior.log_count_evidence, float)
    restored = posterior_of(model)
    restored.load_state_dict(posterior.state_dict())
    assert torch.equal(restored.success_rate(), posterior.success_rate())


def test_what_a_posterior_shows_of_itself() -> None:
    assert posterior_of(progress).belief.shape == (5, 3)
    assert posterior_of(progress).concentration.shape == (5, 3, 3)
    assert posterior_of(success_rate).alpha.shape == posterior_of(success_rate).beta.shape == (5,)


def test_a_step_of_the_selector() -> None:
    selector = bp.PromptSelector(posterior_of(progress), bp.acquisition.PartialProbability(), batch_size=2, seed=0)
    index = selector.select()
    assert index.dtype == torch.int64 and index.shape == (2,) and index[0] != index[1]
    selector.update(index, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert selector.posterior.step == 1
    assert all(isinstance(value, float) for value in selector.metrics().values())
