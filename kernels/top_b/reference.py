"""The exact pick of the B best rows with random ties: the definition, one full sort."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.top_b import check_arguments


def top_b(
    scores: Tensor,
    allowed: Tensor | None,
    batch: int,
    seed: int | Tensor,
    step: int | Tensor,
    first_prompt: int,
    shortlist: Shortlist | None = None,
) -> Tensor:
    """The `batch` best allowed rows of `scores`, best first, as (batch,) int64 on the device of `scores`.

    Order: score descending, then the tie key of prompt first_prompt + row ascending, then row ascending. NaN ranks
    below -inf, and -0.0 equals 0.0. Where fewer than `batch` rows are allowed the tail is -1.

    scores: (N,) float32 or float64. allowed: (N,) bool, or None for all rows. seed, step: numbers, or (1,) int64
    tensors on the device of the scores. shortlist: what was noted when the scores were written; it never changes the
    pick, and its threshold is moved to where it should note `wanted` rows of the next scores, with a row that scores as
    much for its guide. (A backend may aim at fewer, where more tie than there is room for.) Raises ValueError when
    batch is negative or seed, step or first_prompt is out of range.
    """
    seed, step, first_prompt = check_arguments(scores, allowed, batch, seed, step, first_prompt, shortlist)
    rows = torch.arange(len(scores)) if allowed is None else allowed.cpu().nonzero().squeeze(1)
    value = scores.detach().cpu()[rows].double().numpy()
    keys = rng.tie_keys(seed, step, first_prompt + rows).numpy()
    missing = np.isnan(value)
    order = np.lexsort((rows.numpy(), keys, -np.where(missing, 0.0, value), missing))
    if shortlist is not None and shortlist.wanted:
        last = order[shortlist.wanted - 1 : shortlist.wanted]
        shortlist.threshold.fill_(value[last[0]] if len(last) else -np.inf)
        shortlist.guide.fill_(int(rows[last[0]]) if len(last) else 0)
    order = order[:batch]
    picked = torch.full((batch,), -1, dtype=torch.int64)
    picked[: len(order)] = rows[torch.from_numpy(order)]
    return picked.to(scores.device)
