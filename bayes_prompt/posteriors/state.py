"""What the saved state of a posterior must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayes_prompt.checkpoint import (
    require_integer,
    require_keys,
    require_like,
    require_no_less,
    require_rows,
    require_same,
)
from bayes_prompt.errors import CheckpointError
from bayes_prompt.posteriors import checks

STATE_VERSION = 6
PENDING = ("index", "successes", "trials")


def check_state(
    state: Mapping[str, Any],
    version: int,
    description: Mapping[str, Any],
    counters: Mapping[str, Tensor],
    belief: Mapping[str, Tensor],
    num_prompts: int,
) -> None:
    """CheckpointError unless a posterior of this version and description can take the state.

    counters, belief: what it has now, by name, whose shapes and types the saved ones must have; that these are a belief
    is the model's to say.
    """
    require_keys("posterior", state, ("version", "model", "step", "pending", "tensors"))
    require_integer("posterior.version", state["version"], version, version)
    require_same("posterior", _description(state["model"]), json.loads(json.dumps(description)))
    require_integer("posterior.step", state["step"])
    tensors = state["tensors"]
    require_keys("posterior.tensors", tensors, {**counters, **belief})
    for name, mine in {**counters, **belief}.items():
        require_like(f"posterior.tensors.{name}", tensors[name], mine)
        if name in counters and "evidence" not in name:
            require_no_less(f"posterior.tensors.{name}", tensors[name], 0)
    for name in ("group_size", "told_group_size"):
        require_integer(f"posterior.tensors.{name}", int(tensors[name]), 0, checks.MAX_TRIALS)
    if "last_observed" in counters and bool((tensors["last_observed"] > state["step"]).any()):
        raise CheckpointError("posterior.tensors.last_observed names a step that has not been")
    for name in ("visits", "solved"):
        most = state["step"] if name == "visits" else tensors["visits"]
        if bool((tensors[name] > most).any()):
            raise CheckpointError(f"posterior.tensors.{name} counts more than there have been")
    require_keys("posterior.pending", state["pending"], PENDING)
    for name in PENDING:
        require_rows(f"posterior.pending.{name}", state["pending"][name])
    try:
        index, successes, trials = (state["pending"][name] for name in PENDING)
        checks.counts(index, successes, trials, num_prompts)
    except (IndexError, ValueError) as error:
        raise CheckpointError(f"posterior.pending holds counts that cannot be: {error}") from error


def _description(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"posterior.model must be a description in JSON; got {text!r}") from error
