"""Why a prompt was or was not picked, in one sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayes_prompt.posteriors.base import Posterior


def belief_about(row: int, scores: Tensor, posterior: Posterior) -> dict[str, Any]:
    """How a prompt stands among the scores (N,) of the next pick, and what is believed of it."""
    one, score = torch.tensor([row]), float(scores[row])
    return {
        "score": score,
        "rank": int((scores > score).count_nonzero()) + 1,
        "tied": int((scores == score).count_nonzero()) - 1,
        "visits": int(posterior.visits[row]),
        "solved_visits": int(posterior.solved[row]),
        "success_rate": float(posterior.success_rate(one)[0]),
        "informative_probability": float(posterior.informative_probability(posterior.group_size, one)[0]),
        "entropy": float(posterior.entropy(one)[0]),
    }


def why(standing: dict[str, Any]) -> str:
    """The sentence for a standing in numbers, as `PromptSelector.explain` gathers them."""
    rank = f"in the next one its score {standing['score']:.4g} would rank {standing['rank']}"
    rank += f" (tied with {standing['tied']} others)" if standing["tied"] else ""
    if standing["waits_to_be_redrawn"]:
        return f"out since selection {standing['in_flight_since']} before a resume: it is handed out again next"
    if not standing["may_be_picked"]:
        since = f"in flight since selection {standing['in_flight_since']}"
        if standing["may_be_reused"]:
            return f"{since}, so it is picked again only where too few others are left; {rank}"
        return f"{since}, so it is not picked before it is back; {rank}"
    if standing["last_pick_cut"] is None:
        return f"no pick was made yet; {rank}"
    if standing["in_last_pick"]:
        return f"in the last pick, whose lowest score was {standing['last_pick_cut']:.4g}; {rank}"
    return f"not in the last pick, whose lowest score was {standing['last_pick_cut']:.4g}; {rank}"
