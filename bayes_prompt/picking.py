"""What a pick does: who may be picked, how they are ranked, and the best of them, fewer where prompts are out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.acquisition import Acquisition, Batch, Diverse, top_b
from bayes_prompt.errors import PromptShortage
from bayes_prompt.in_flight import InFlight
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior
from bayes_prompt.recent import OpenBatch, RecentPicks
from bayes_prompt.transfer import sent


@dataclass(frozen=True)
class Picked:
    """What a pick came to, on the CPU, in the order in which it is handed out.

    Attributes:
        again: (selection, place, prompt) of outings of an earlier process that are handed out once more.
        fresh: (F,) int64, the best of those that may be picked.
        reused: prompts that are out already, longest out first.
        missing: how many the first two left to the third, which may have had fewer.
        cut: the lowest score of a fresh one; None where there is none.
    """

    again: list[tuple[int, int, int]]
    fresh: Tensor
    reused: list[int]
    missing: int
    cut: float | None

    @property
    def redrawn(self) -> list[int]:
        """The prompts of `again`."""
        return [prompt for *_, prompt in self.again]


@dataclass(frozen=True)
class Picking:
    """The next pick of a selector as things stand now; it notes nothing of what it finds.

    Attributes:
        posterior, acquisition, seed, batch_size, on_shortage, allow_in_flight: of the selector.
        step: picks made so far, the step of this one's draws.
        in_flight, recent: its books.
    """

    posterior: Posterior
    acquisition: Acquisition
    seed: int
    step: int
    batch_size: int
    on_shortage: str | None
    allow_in_flight: bool
    in_flight: InFlight
    recent: RecentPicks

    def candidates(self, candidates: Tensor | np.ndarray | Sequence[int] | None) -> tuple[Tensor | None, int | None]:
        """Who may be picked, (N,) on the device or None for all, and how many: None where the device alone knows."""
        num_prompts = self.posterior.num_prompts
        if candidates is None:
            return None, num_prompts
        mask = isinstance(candidates, Tensor) and candidates.dtype == torch.bool
        if mask and self.posterior.defers_checks(candidates) and self.on_shortage != "reuse":
            assert isinstance(candidates, Tensor)
            if not self.in_flight.waiting():
                checks.mask_shape("candidates", candidates, num_prompts)
                return candidates.to(self.posterior.device), None
        chosen = checks.mask("candidates", candidates, num_prompts)
        return sent(chosen, self.posterior.device), int(chosen.count_nonzero())

    def may_stay_unread(self, wanted: int, size: int) -> bool:
        """Whether `wanted` of `size` candidates are there for sure, so that a device may pick and nobody waits."""
        self.in_flight.settle(wait=False)
        enough = size - self.in_flight.most_out() >= wanted
        return self.posterior.on_device and not self.in_flight.waiting() and enough

    def unread(self, wanted: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best `wanted` prompts, (wanted,) on the device, -1 where there are too few; and the scores (N,)."""
        allowed = mask
        if not self.allow_in_flight:
            allowed = self.in_flight.available if mask is None else mask & self.in_flight.available
        batch = self.recent.batch(wanted)
        scores, shortlist = self.ranking(allowed, batch, wanted)
        return self._best(scores, wanted, batch, allowed, shortlist if mask is None else None), scores

    def read(self, wanted: int, mask: Tensor | None) -> Picked:
        """The best `wanted` prompts among the candidates, (N,) bool or None for all, on the CPU.

        Raises:
            PromptShortage: prompts in flight leave too few, and on_shortage is not "reuse". ValueError: a score is NaN.
        """
        self.in_flight.settle()
        again = self.in_flight.redraw(wanted, mask)
        redrawn = [prompt for *_, prompt in again]
        fresh, cut = self._fresh(wanted - len(redrawn), mask, redrawn)
        missing = wanted - len(redrawn) - len(fresh)
        reused = self._reused(missing, mask, {*redrawn, *fresh.tolist()}) if missing else []
        return Picked(again, fresh, reused, missing, cut)

    def ranking(self, allowed: Tensor | None, begun: OpenBatch, wanted: int) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,) of `wanted` further prompts of a batch, those allowed (N,) bool, and the shortlist with them."""
        batch = Batch(self.batch_size)
        if self.acquisition.by_batch:
            self.in_flight.settle()
            size = max(self.batch_size, begun.begun + wanted)
            batch = Batch(size, allowed, begun.mates, self.in_flight.total())
        scores, shortlist = self.acquisition.ranking(self.posterior, self.seed, self.step, batch)
        num_prompts, device = self.posterior.num_prompts, self.posterior.device
        if scores.shape != (num_prompts,) or scores.device != device:
            raise ValueError(
                f"{self.acquisition!r} must give scores of shape ({num_prompts},) on {device}; got "
                f"{tuple(scores.shape)} on {scores.device}"
            )
        return scores, shortlist

    def scores(self) -> Tensor:
        """Scores (N,) of all prompts, those in flight included, by which the whole pool would be picked from."""
        if self.acquisition.by_batch:
            return self.ranking(self._allowed(None, [])[0], self.recent.batch(1), 1)[0]
        return self.acquisition.scores(self.posterior, self.seed, self.step)

    def _best(
        self, scores: Tensor, wanted: int, batch: OpenBatch, allowed: Tensor | None, shortlist: Shortlist | None
    ) -> Tensor:
        """The best `wanted` prompts, (wanted,) on the device, for a batch; -1 where fewer are allowed."""
        first_prompt = self.posterior.first_prompt
        if isinstance(self.acquisition, Diverse):
            return self.acquisition.choose(
                scores,
                wanted,
                seed=self.seed,
                step=batch.number,
                allowed=allowed,
                first_prompt=first_prompt,
                recent=batch.rows,
                begun=batch.begun,
                whole=self.batch_size,
            )
        return top_b(
            scores,
            wanted,
            seed=self.seed,
            step=self.step,
            allowed=allowed,
            first_prompt=first_prompt,
            backend=self.posterior.backend,
            shortlist=shortlist,
        )

    def _fresh(self, wanted: int, mask: Tensor | None, taken: list[int]) -> tuple[Tensor, float | None]:
        """The best `wanted` prompts that may be picked beside those taken, (F,) on the CPU, and the lowest score.

        They are fewer where fewer there are.
        """
        nobody = torch.zeros(0, dtype=torch.int64)
        if not wanted:
            return nobody, None
        allowed, free = self._allowed(mask, taken)
        if free < wanted and self.on_shortage != "reuse":
            raise PromptShortage(
                f"{wanted} prompts are wanted and {free} are free: {len(self.in_flight)} are in flight. Observe or "
                "release some, pass on_shortage='reuse', or allow_in_flight=True"
            )
        if not free:
            return nobody, None
        batch = self.recent.batch(wanted, taken)
        scores, shortlist = self.ranking(allowed, batch, wanted)
        # A shortlist's threshold is one for the whole pool.
        picked = self._best(scores, min(wanted, free), batch, allowed, shortlist if mask is None else None)
        values = scores[picked].cpu()
        if torch.isnan(values).any():
            prompt = int(picked.cpu()[values.isnan()][0])
            raise ValueError(f"{self.acquisition!r} gave the score NaN to prompt {prompt}")
        return picked.cpu(), float(values.min())

    def _allowed(self, mask: Tensor | None, taken: list[int]) -> tuple[Tensor | None, int]:
        """Who may be picked, (N,) or None for everyone, and how many they are: counted only where a mask is given."""
        self.in_flight.settle()
        away, here = len(self.in_flight), self.in_flight.available
        if self.allow_in_flight:
            away, here = len(taken), torch.ones_like(here) if taken else here
            here[torch.tensor(taken, dtype=torch.int64, device=here.device)] = False
        if not away:
            return mask, self.posterior.num_prompts if mask is None else int(mask.count_nonzero())
        if mask is None:
            return here, self.posterior.num_prompts - away
        allowed = mask & here
        return allowed, int(allowed.count_nonzero())

    def _reused(self, wanted: int, mask: Tensor | None, taken: set[int]) -> list[int]:
        """Prompts that are out already, longest out first, to fill a pick that would be too short."""
        allowed = None if mask is None else mask.cpu()
        out = [row for row in self.in_flight.prompts() if row not in taken and (allowed is None or allowed[row])]
        return out[:wanted]


class Untold:
    """What was wrong with picks that nobody waited for, on the device until somebody asks: NaN, and too few."""

    def __init__(self, device: torch.device) -> None:
        self._nan = torch.zeros((), dtype=torch.bool, device=device)  # whether the score of one who was picked was
        self._missing = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, values: Tensor, nobody: Tensor | None) -> None:
        """Scores (B,) of who was picked, and where nobody was (B,); None where there was somebody for sure."""
        self._nan |= values.isnan().any()
        if nobody is not None:
            self._missing += nobody.sum()

    def forget(self) -> None:
        """Nothing was wrong."""
        self._nan.zero_()
        self._missing.zero_()

    def tell(self, acquisition: Acquisition) -> None:
        """Raise ValueError or PromptShortage where something was wrong; once."""
        nan, missing = bool(self._nan), int(self._missing)
        self.forget()
        if nan:
            raise ValueError(f"{acquisition!r} gave the score NaN to a prompt of an earlier pick")
        if missing:
            raise PromptShortage(
                f"masks of candidates that lie on the device left earlier picks short of {missing} prompts, -1 there"
            )
