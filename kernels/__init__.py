"""What the posteriors and acquisitions compute, at memory speed: one folder an operation.

    grid_filter       an exact histogram filter of N success rates that share their drift, lazily evaluated
    progress_filter   condition, learn and predict N hidden Markov models of solving progress in one pass
    beta_filter       decayed Beta counts of N success rates
    tally             what a step adds to the books: visits, evidence, figures
    thompson          posterior draws of rates, states and transitions; rates are scored while they are drawn
    top_b             the B best of N scores, ties broken by random keys

Each folder holds `reference` (float64 torch, the definition), `cpu` (compiled) and `triton` (CUDA and ROCm), which
share function names and signatures. `shortlist` notes rows that score well while scores are written, `rng` makes the
random words that draws are made from, `backend` picks the implementation that runs.

This folder is installed as `bayes_prompt.kernels`. Python finds it under the name `kernels` too where the root of the
repository is on `sys.path`, and there `kernels` is the name of a Hugging Face package that transformers and TRL import.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def _other_kernels() -> ModuleSpec | None:
    """The package that `import kernels` would find if this folder were not on `sys.path`."""
    for entry in sys.path:
        spec = PathFinder.find_spec("kernels", [entry])
        # A namespace package (a plain folder that happens to be called kernels) has no origin and no claim to the name.
        if spec and spec.loader and spec.origin and not Path(spec.origin).samefile(__file__):
            return spec
    return None


def _hand_over() -> None:
    """Put the other `kernels` package in this one's place, or leave this one there, empty."""
    this = sys.modules[__name__]
    this.__path__ = []  # our operations are not to be had under this name
    try:
        spec = _other_kernels()
        if spec is None or spec.loader is None:
            return
        other = importlib.util.module_from_spec(spec)
        sys.modules[__name__] = other
        spec.loader.exec_module(other)
    except Exception as error:  # who imports `kernels` treats it as optional: a broken one must look like a missing one
        sys.modules[__name__] = this
        logging.getLogger("bayes_prompt").warning("the installed package `kernels` cannot be imported: %r", error)


if __name__ == "kernels":
    _hand_over()
