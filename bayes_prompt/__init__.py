"""Choose which prompts to roll out next when finetuning a reasoning model by RL.

A model says what we believe about how prompts evolve (declared in Pyro), a posterior what we know now about N prompts
(tensors, updated online), an acquisition what we want next (scores, draws, picks). `PromptSelector` joins the three for
a trainer; `recipes` has the published methods by name.

Everything is loaded when it is first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import bayes_prompt.acquisition as acquisition
    import bayes_prompt.embedding as embedding
    import bayes_prompt.recipes as recipes
    import bayes_prompt.simulate as simulate
    from bayes_prompt.errors import CannotLower, CheckpointError, PromptShortage
    from bayes_prompt.fitting.compare import Comparison, compare
    from bayes_prompt.fitting.evidence import log_count_evidence
    from bayes_prompt.fitting.fit import fit
    from bayes_prompt.fitting.results import FitResult
    from bayes_prompt.history import History
    from bayes_prompt.kernels.backend import BackendUnavailable
    from bayes_prompt.models import priors
    from bayes_prompt.models.banks import DecayBank, DriftBank, StrengthBank
    from bayes_prompt.models.difficulty import GenerativeDifficulty
    from bayes_prompt.models.drift import ActivePassive, Drift, FixedTransition, LogitRandomWalk, Mixture, Redraw
    from bayes_prompt.models.emission import BetaBinomialEmission, Emission, PartitionEmission, PublishedEmission
    from bayes_prompt.models.kalman import LogitGaussian
    from bayes_prompt.models.progress import SolvingProgress
    from bayes_prompt.models.sharing import EmpiricalBayes
    from bayes_prompt.models.success_rate import SuccessRate
    from bayes_prompt.posteriors.base import Posterior
    from bayes_prompt.recorder import Recorder
    from bayes_prompt.replays.protocol import replay
    from bayes_prompt.replays.results import ReplayResults
    from bayes_prompt.selector import PromptSelector

__version__ = "0.1.0"

__all__ = [
    "ActivePassive",
    "BackendUnavailable",
    "BetaBinomialEmission",
    "CannotLower",
    "CheckpointError",
    "Comparison",
    "DecayBank",
    "Drift",
    "DriftBank",
    "Emission",
    "EmpiricalBayes",
    "FitResult",
    "FixedTransition",
    "GenerativeDifficulty",
    "History",
    "LogitGaussian",
    "LogitRandomWalk",
    "Mixture",
    "PartitionEmission",
    "Posterior",
    "PromptSelector",
    "PromptShortage",
    "PublishedEmission",
    "Recorder",
    "Redraw",
    "ReplayResults",
    "SolvingProgress",
    "StrengthBank",
    "SuccessRate",
    "acquisition",
    "compare",
    "embedding",
    "fit",
    "log_count_evidence",
    "priors",
    "recipes",
    "replay",
    "simulate",
]

_HOME = {
    "ActivePassive": "bayes_prompt.models.drift",
    "BackendUnavailable": "bayes_prompt.kernels.backend",
    "BetaBinomialEmission": "bayes_prompt.models.emission",
    "CannotLower": "bayes_prompt.errors",
    "CheckpointError": "bayes_prompt.errors",
    "Comparison": "bayes_prompt.fitting.compare",
    "DecayBank": "bayes_prompt.models.banks",
    "Drift": "bayes_prompt.models.drift",
    "DriftBank": "bayes_prompt.models.banks",
    "Emission": "bayes_prompt.models.emission",
    "EmpiricalBayes": "bayes_prompt.models.sharing",
    "FitResult": "bayes_prompt.fitting.results",
    "FixedTransition": "bayes_prompt.models.drift",
    "GenerativeDifficulty": "bayes_prompt.models.difficulty",
    "History": "bayes_prompt.history",
    "LogitGaussian": "bayes_prompt.models.kalman",
    "LogitRandomWalk": "bayes_prompt.models.drift",
    "Mixture": "bayes_prompt.models.drift",
    "PartitionEmission": "bayes_prompt.models.emission",
    "Posterior": "bayes_prompt.posteriors.base",
    "PromptSelector": "bayes_prompt.selector",
    "PromptShortage": "bayes_prompt.errors",
    "PublishedEmission": "bayes_prompt.models.emission",
    "Recorder": "bayes_prompt.recorder",
    "Redraw": "bayes_prompt.models.drift",
    "ReplayResults": "bayes_prompt.replays.results",
    "SolvingProgress": "bayes_prompt.models.progress",
    "StrengthBank": "bayes_prompt.models.banks",
    "SuccessRate": "bayes_prompt.models.success_rate",
    "compare": "bayes_prompt.fitting.compare",
    "fit": "bayes_prompt.fitting.fit",
    "log_count_evidence": "bayes_prompt.fitting.evidence",
    "replay": "bayes_prompt.replays.protocol",
}
_MODULES = {
    "acquisition": "bayes_prompt.acquisition",
    "embedding": "bayes_prompt.embedding",
    "priors": "bayes_prompt.models.priors",
    "recipes": "bayes_prompt.recipes",
    "simulate": "bayes_prompt.simulate",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(_MODULES[name])
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'bayes_prompt' has no attribute {name!r}")
    globals()[name] = value
    return value


def _find_kernels_of_a_clone() -> None:
    """Started in a clone, Python finds this folder before an installed package; there the kernels lie beside it."""
    import sys
    from importlib.util import find_spec, module_from_spec, spec_from_file_location
    from pathlib import Path

    name, folder = f"{__name__}.kernels", Path(__file__).resolve().parent.parent / "kernels"
    if not (folder / "progress_filter").is_dir() or find_spec(name) is not None:
        return
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec and spec.loader
    sys.modules[name] = globals()["kernels"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_find_kernels_of_a_clone()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
