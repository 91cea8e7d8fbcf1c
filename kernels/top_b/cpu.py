"""The exact pick on the CPU: from the rows of a shortlist where it settles the pick, else by a search of all scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.top_b import check_arguments
from bayes_prompt.kernels.top_b.cpu_heap import tie_keys
from bayes_prompt.kernels.top_b.cpu_search import Found, cut, search


def top_b(
    scores: Tensor,
    allowed: Tensor | None,
    batch: int,
    seed: int | Tensor,
    step: int | Tensor,
    first_prompt: int,
    shortlist: Shortlist | None = None,
) -> Tensor:
    """See `reference.top_b`."""
    _, _, first_prompt = check_arguments(scores, allowed, batch, seed, step, first_prompt, shortlist)
    numbers = (*rng.known(seed, step), first_prompt)
    value = scores.detach().numpy()
    mask = None if allowed is None else allowed.numpy()
    rows, found = None if shortlist is None else _noted(shortlist, mask), None
    if rows is None or len(rows) < batch:
        wanted = batch if shortlist is None else max(batch, shortlist.wanted)
        found = search(value, mask, batch, wanted, *numbers)
        rows = found.rows
    likely = rows
    if len(rows) > batch > 0:  # whoever scores less than the last one is out, whatever the keys
        likely = rows[~(value[rows] < cut(value[rows], batch))]
    score = value[likely]
    missing = np.isnan(score)
    order = np.lexsort((likely, tie_keys(likely, *numbers), -np.where(missing, 0, score), missing))[:batch]
    best = likely[order]
    if shortlist is not None:
        _carry_over(shortlist, value, best, rows, found)
    picked = torch.full((batch,), -1, dtype=torch.int64)
    picked[: len(best)] = torch.from_numpy(best)
    return picked


def _noted(shortlist: Shortlist, allowed: np.ndarray | None) -> np.ndarray | None:
    """Those who reached the threshold and may be picked, (M,); None where there was no room for all of them."""
    count = int(shortlist.count)
    if count > shortlist.rows.numel():
        return None
    rows = shortlist.rows.numpy()[:count]
    return rows.copy() if allowed is None else rows[allowed[rows]]


def _carry_over(
    shortlist: Shortlist, value: np.ndarray, picked: np.ndarray, rows: np.ndarray, found: Found | None
) -> None:
    """Move the threshold to where it should note `wanted` rows of the next scores, if the best of these are any guide.

    A score that more rows share than there is room for, such as that of all prompts never seen, is no threshold; the
    next one above it is. rows: from whom the picked ones were taken; found: by what search, None where they were noted.
    """
    wanted = max(1, shortlist.wanted)
    if found is not None and found.plateau is not None:
        shortlist.threshold.fill_(float(found.plateau.above))
        row = found.plateau.row(picked)
        if row is not None:  # else the guide stays, which may lead astray: it costs a search
            shortlist.guide.fill_(row)
        return
    if found is not None and found.everyone:
        shortlist.threshold.fill_(-np.inf)
        return
    # A guide goes on as it is where fewer than wanted were noted, unless it is picked: what is observed goes elsewhere.
    if found is None and len(rows) < wanted and not (picked == int(shortlist.guide)).any():
        return
    if len(rows):
        score = value[rows]
        level = cut(score, min(len(rows), wanted))
        shortlist.threshold.fill_(float(level))
        if (score == level).any():  # which it is not where that is NaN
            shortlist.guide.fill_(int(rows[score == level][-1]))
