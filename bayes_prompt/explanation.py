"""Why a prompt was or was not picked, in one sentence."""

from __future__ import annotations

from typing import Any


def why(standing: dict[str, Any]) -> str:
    """The sentence for a standing in numbers, as `PromptSelector.explain` gathers them."""
    rank = f"in the next one its score {standing['score']:.4g} would rank {standing['rank']}"
    rank += f" (tied with {standing['tied']} others)" if standing["tied"] else ""
    if standing["waits_to_be_redrawn"]:
        return f"out since selection {standing['in_flight_since']} before a resume: it is handed out again next"
    if not standing["may_be_picked"]:
        since = standing["in_flight_since"]
        return f"in flight since selection {since}, so it is not picked before it is back; {rank}"
    if standing["last_pick_cut"] is None:
        return f"no pick was made yet; {rank}"
    if standing["in_last_pick"]:
        return f"in the last pick, whose lowest score was {standing['last_pick_cut']:.4g}; {rank}"
    return f"not in the last pick, whose lowest score was {standing['last_pick_cut']:.4g}; {rank}"
