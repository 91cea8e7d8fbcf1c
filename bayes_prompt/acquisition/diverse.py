"""Any score, picked as batches of prompts that lie far from one another and from the last batches (GPS)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.acquisition.batch import Batch
from bayes_prompt.acquisition.diversity import Diversity, check_weight
from bayes_prompt.acquisition.scores import Acquisition
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior


class Diverse(Acquisition):
    """The scores of another acquisition as utilities of a diverse batch.

    Maximises, greedily, the sum of utilities plus weight * (dispersion within the batch + distance to the last
    batches): see `Diversity`. Whoever draws one prompt at a time gets the batch that one draw would have given, as long
    as scores stay the same. Source: GPS (arXiv 2602.01970); its weight is not known.

    Args:
        utility: whose scores count, finite wherever a prompt may be picked.
        embeddings: (N, D) of the pool, or a `Diversity` that was prepared with them.
        weight: in [0, 1e100]; use is .001 to .1.
        batches: H, how many earlier batches to keep away from.
        metric, variant: "cosine" or "euclidean"; "min" (no two alike) or "sum". A `Diversity` has its own.
    """

    def __init__(
        self,
        utility: Acquisition,
        embeddings: Tensor | np.ndarray | Diversity,
        *,
        weight: float = 0.01,
        batches: int = 2,
        metric: str = "cosine",
        variant: str = "min",
    ) -> None:
        if not isinstance(utility, Acquisition) or isinstance(utility, Diverse):
            raise TypeError(f"utility must be an Acquisition that is not Diverse; got {type(utility).__name__}")
        if utility.keeps_places:
            raise TypeError(f"utility must not keep places, which would be lost; got {type(utility).__name__}")
        self.utility, self.weight = utility, check_weight("weight", weight)
        self.batches = checks.integer("batches", batches, 0)
        self.pool = (
            embeddings if isinstance(embeddings, Diversity) else Diversity(embeddings, metric=metric, variant=variant)
        )
        self._digest = hashlib.sha256(self.pool.values.cpu().numpy().data).hexdigest()[:16]

    @property
    def by_batch(self) -> bool:
        """True: a pick keeps away from the others of its batch, and from the last batches."""
        return True

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), the utilities alone."""
        return self.utility.scores(posterior, seed, step)

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,), the utilities alone, for the batch where they go by that."""
        return self.utility.scores_for(posterior, seed, step, batch), None

    def choose(
        self,
        scores: Tensor,
        wanted: int,
        *,
        seed: int,
        step: int,
        allowed: Tensor | None,
        first_prompt: int,
        recent: Tensor,
        begun: int,
        whole: int,
    ) -> Tensor:
        """The rows of `wanted` prompts (wanted,) int64, in the order of their choice; -1 where nobody is allowed.

        Prompts of this batch are picked again only where all others that are allowed have been.

        recent: the last picks in order, of which the last `begun` belong to this batch of `whole` prompts. step: the
        same for all parts of a batch.
        """
        if scores.numel() != self.pool.num_prompts:
            raise ValueError(f"embeddings are of {self.pool.num_prompts} prompts; the posterior has {scores.numel()}")
        home, device = scores.device, self.pool.values.device
        split = len(recent) - begun
        chosen, history = recent[split:], recent[max(0, split - self.batches * whole) : split]
        chosen = torch.tensor(list(dict.fromkeys(chosen.tolist())), dtype=torch.int64)  # each once, however often out
        here = torch.ones(scores.numel(), dtype=torch.bool, device=device)
        if allowed is not None:
            here &= allowed.to(device)
        others = here.clone()
        others[chosen.to(device)] = False
        free = min(wanted, int(others.count_nonzero()))

        def best(size: int, allowed: Tensor, beside: Tensor) -> Tensor:
            picked = self.pool.pick(
                scores.to(device),
                size,
                weight=self.weight,
                seed=seed,
                step=step,
                history=history,
                chosen=beside,
                allowed=allowed,
                whole_batch=max(whole, len(beside) + size),
                first_prompt=first_prompt,
            )
            return picked.rows.to(home)

        rows = best(free, others, chosen) if free else torch.zeros(0, dtype=torch.int64, device=home)
        return rows if free == wanted else torch.cat([rows, best(wanted - free, here & ~others, rows)])

    def __add__(self, other: Acquisition) -> Diverse:
        """The same with the other's score added to the utility."""
        if not isinstance(other, Acquisition) or isinstance(other, Diverse):
            return NotImplemented
        return Diverse(self.utility + other, self.pool, weight=self.weight, batches=self.batches)

    def __radd__(self, other: Acquisition) -> Diverse:
        """The same, from the other side."""
        if not isinstance(other, Acquisition) or isinstance(other, Diverse):
            return NotImplemented
        return Diverse(other + self.utility, self.pool, weight=self.weight, batches=self.batches)

    def __repr__(self) -> str:
        """All that decides a pick; it goes into checkpoints."""
        return (
            f"Diverse({self.utility!r}, weight={self.weight}, batches={self.batches}, metric={self.pool.metric!r}, "
            f"variant={self.pool.variant!r}, embeddings={self._digest})"
        )
