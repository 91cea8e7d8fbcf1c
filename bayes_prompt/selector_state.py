"""What a selector's saved state must be before anything of it is taken over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_integer, require_keys, require_no_less, require_rows, require_same
from bayes_prompt.errors import CheckpointError
from bayes_prompt.in_flight import COLUMNS
from bayes_prompt.metrics import Metrics
from bayes_prompt.posteriors import checks
from bayes_prompt.recent import RecentPicks

STATE_VERSION = 4
_ENTRIES = ("selections", "reused", "posterior", "in_flight", "last_pick", "recent", "metrics")


def check_state(state: Mapping[str, Any], agreed: dict[str, Any], num_prompts: int) -> None:
    """CheckpointError for whatever the posterior's own check does not see; nothing is changed.

    agreed: what the checkpoint and the selector that loads it must share. num_prompts: N.
    """
    require_keys("selector", state, ("version", *agreed, *_ENTRIES))
    require_integer("selector.version", state["version"], STATE_VERSION, STATE_VERSION)
    require_same("selector", {name: state[name] for name in agreed}, agreed)
    require_integer("selector.selections", state["selections"], high=2**32 - 1)
    require_integer("selector.reused", state["reused"])
    require_keys("selector.in_flight", state["in_flight"], COLUMNS)
    require_keys("selector.last_pick", state["last_pick"], ("index", "cut"))
    for name, values in (*state["in_flight"].items(), ("last_pick", state["last_pick"]["index"])):
        require_rows(f"selector.{name}", values)
        require_no_less(f"selector.{name}", values, 0)
    if len({len(column) for column in state["in_flight"].values()}) != 1:
        raise CheckpointError("selector.in_flight has columns of different lengths")
    if not isinstance(state["last_pick"]["cut"], float) or math.isnan(state["last_pick"]["cut"]):
        raise CheckpointError(f"selector.last_pick.cut must be a number; got {state['last_pick']['cut']!r}")
    _check_outings(state["in_flight"], state["selections"])
    Metrics().restore(state["metrics"])
    RecentPicks.check(state["recent"], num_prompts)
    try:
        checks.rows("in_flight.prompt", state["in_flight"]["prompt"], num_prompts)
        checks.rows("last_pick.index", state["last_pick"]["index"], num_prompts)
    except IndexError as error:
        raise CheckpointError(f"selector state names prompts that cannot be: {error}") from error


def _check_outings(columns: Mapping[str, Tensor], selections: int) -> None:
    """CheckpointError unless the outings (M,) are such as `selections` picks can have sent out."""
    if bool((columns["waiting"] > 1).any()):
        raise CheckpointError("selector.in_flight.waiting must be 0 or 1")
    if bool((columns["selection"] >= selections).any()):
        raise CheckpointError(f"selector.in_flight.selection must lie in [0, {selections}), the picks made so far")
    places = torch.stack([columns["selection"], columns["place"]], dim=1)
    if len(places.unique(dim=0)) != len(places):
        raise CheckpointError("selector.in_flight has two prompts in one place of one selection")
