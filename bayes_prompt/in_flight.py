"""Which prompts have been picked and not yet observed, and since when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

COLUMNS = ("selection", "place", "prompt", "waiting")


class InFlight:
    """Outings of prompts, oldest first; a prompt may be out more than once.

    `available` is a (N,) bool tensor on the posterior's device: True where the prompt is not out.
    """

    def __init__(self, num_prompts: int, device: torch.device) -> None:
        self.available = torch.ones(num_prompts, dtype=torch.bool, device=device)
        self._outings: dict[int, list[tuple[int, int]]] = {}  # prompt -> (selection, place in it), oldest first
        # Outings of an earlier process, as (selection, place, prompt), that are to be handed out again, in order.
        self._redraw: dict[tuple[int, int, int], None] = {}

    def __len__(self) -> int:
        return len(self._outings)

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._outings

    def prompts(self) -> list[int]:
        """The prompts that are out, longest out first."""
        return sorted(self._outings, key=lambda prompt: self._outings[prompt][0])

    def waiting(self) -> list[tuple[int, int, int]]:
        """Those of `outings` that wait to be handed out again, in that order."""
        return list(self._redraw)

    def waits(self, prompt: int) -> bool:
        """Whether an outing of the prompt waits to be handed out again."""
        return any(outing[2] == prompt for outing in self._redraw)

    def times(self, prompt: int) -> int:
        """How often a prompt is out."""
        return len(self._outings.get(prompt, ()))

    def since(self, prompt: int) -> int:
        """The number of the selection that a prompt has been out since."""
        return self._outings[prompt][0][0]

    def send(self, prompts: Iterable[int], selection: int) -> None:
        """Note that a selection sent prompts out."""
        gone = list(prompts)
        for place, prompt in enumerate(gone):
            self._outings.setdefault(prompt, []).append((selection, place))
        self._mark(gone, False)

    def land(self, prompts: Iterable[int]) -> None:
        """End the oldest outing of each prompt; prompts that are not out are passed over."""
        back = []
        for prompt in prompts:
            outings = self._outings.get(prompt)
            if not outings:
                continue
            self._redraw.pop((*outings.pop(0), prompt), None)
            if not outings:
                del self._outings[prompt]
                back.append(prompt)
        self._mark(back, True)

    def outings(self) -> list[tuple[int, int, int]]:
        """(selection, place in it, prompt) of every outing, oldest first."""
        return sorted((*when, prompt) for prompt, times in self._outings.items() for when in times)

    def redraw(self, wanted: int, candidates: Tensor | None) -> list[tuple[int, int, int]]:
        """Up to `wanted` outings that wait to be handed out again, oldest first, of distinct prompts.

        candidates: (N,) bool, True for the prompts that may be handed out; or None for all.
        It ends before a prompt would come twice, so that whole picks come again as they were. Nothing is changed yet.
        """
        allowed = None if candidates is None else candidates.cpu()
        batch: dict[int, tuple[int, int, int]] = {}
        for outing in self._redraw:
            prompt = outing[2]
            if len(batch) == wanted or prompt in batch:
                break
            if allowed is None or allowed[prompt]:
                batch[prompt] = outing
        return list(batch.values())

    def redrawn(self, outings: Iterable[tuple[int, int, int]]) -> None:
        """Note that waiting outings were handed out again."""
        for outing in outings:
            del self._redraw[outing]

    def state(self) -> dict[str, Tensor]:
        """Outings as int64 tensors (M,): selection, place, prompt, whether it waits to be redrawn; oldest first."""
        rows = [(*outing, int(outing in self._redraw)) for outing in self.outings()]
        columns = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
        return {name: columns[:, k].clone() for k, name in enumerate(COLUMNS)}

    def restore(self, state: Mapping[str, Tensor], policy: str) -> None:
        """Take over saved outings, columns (M,): "keep" them out, "redraw" (hand them out again) or "release" them."""
        rows = [] if policy == "release" else sorted(zip(*(state[name].tolist() for name in COLUMNS), strict=True))
        self._outings, self._redraw = {}, {}
        self.available.fill_(True)
        for selection, place, prompt, waiting in rows:
            self._outings.setdefault(prompt, []).append((selection, place))
            if policy == "redraw" or waiting:  # who waited when this was saved is held by nobody
                self._redraw[selection, place, prompt] = None
        self._mark(list(self._outings), False)

    def _mark(self, prompts: list[int], available: bool) -> None:
        if prompts:
            self.available[torch.tensor(prompts, device=self.available.device)] = available
