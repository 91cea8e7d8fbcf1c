"""Which prompts have been picked and not yet observed, and since when."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class InFlight:
    """Outings of prompts, oldest first; a prompt may be out more than once.

    `available` is a (N,) bool tensor on the posterior's device: True where the prompt is not out.
    """

    def __init__(self, num_prompts: int, device: torch.device) -> None:
        self.available = torch.ones(num_prompts, dtype=torch.bool, device=device)
        self._outings: dict[int, list[tuple[int, int]]] = {}  # prompt -> (selection, place in it), oldest first
        self._redraw: dict[int, None] = {}  # picks of an earlier process that are to be handed out again, in order

    def __len__(self) -> int:
        return len(self._outings)

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._outings

    def prompts(self) -> list[int]:
        """The prompts that are out, longest out first."""
        return sorted(self._outings, key=lambda prompt: self._outings[prompt][0])

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
            outings.pop(0)
            self._redraw.pop(prompt, None)
            if not outings:
                del self._outings[prompt]
                back.append(prompt)
        self._mark(back, True)

    def redraw(self, wanted: int, candidates: Tensor | None) -> list[int]:
        """Up to `wanted` picks that wait to be handed out again, in their old order. Nothing is changed yet."""
        waiting = [prompt for prompt in self._redraw if candidates is None or bool(candidates[prompt])]
        return waiting[:wanted]

    def redrawn(self, prompts: Iterable[int]) -> None:
        """Note that waiting picks were handed out again."""
        for prompt in prompts:
            del self._redraw[prompt]

    def state(self) -> dict[str, Tensor]:
        """Outings as tensors (M,) of prompt, selection and place, oldest first."""
        outings = sorted((*when, prompt) for prompt, times in self._outings.items() for when in times)
        columns = torch.tensor(outings, dtype=torch.int64).reshape(-1, 3)
        return {"selection": columns[:, 0].clone(), "place": columns[:, 1].clone(), "prompt": columns[:, 2].clone()}

    def restore(self, state: dict[str, Tensor], policy: str) -> None:
        """Take over saved outings: "keep" them out, have them handed out again ("redraw"), or "release" them."""
        self._outings, self._redraw = {}, {}
        self.available.fill_(True)
        if policy == "release":
            return
        columns = (state[name].tolist() for name in ("prompt", "selection", "place"))
        for prompt, selection, place in zip(*columns, strict=True):
            self._outings.setdefault(prompt, []).append((selection, place))
        self._mark(list(self._outings), False)
        if policy == "redraw":
            self._redraw = dict.fromkeys(self.prompts())

    def _mark(self, prompts: list[int], available: bool) -> None:
        if prompts:
            self.available[torch.tensor(prompts, device=self.available.device)] = available
