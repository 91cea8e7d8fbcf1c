"""Which prompts have been picked and not yet observed, and since when."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_prompt.transfer import sent

COLUMNS = ("selection", "place", "prompt", "waiting")


@dataclass(frozen=True)
class _Unread:
    """Prompts that went out or came back, on their way from the device to the host."""

    rows: Tensor  # (B,) int64 on the host, filled once `arrived`
    selection: int | None  # that sent them out; None where they came back
    arrived: torch.cuda.Event | None


class InFlight:
    """Outings of prompts, oldest first; a prompt may be out more than once.

    `available` is a (N,) bool tensor on the posterior's device: True where the prompt is not out. There it is right at
    any time. The host learns of what a device picked, and of what is observed there, when it asks (`settle`), so that
    nobody has to wait for it before.
    """

    def __init__(self, num_prompts: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # kept beyond this call, and written to
            self._available = torch.ones(num_prompts + 1, dtype=torch.bool, device=device)  # the last row is nobody's
            self.available = self._available[:-1]
        self._out: Tensor | None = None  # (N + 1,) int32 outings of each, once a device keeps count itself
        self._unread: deque[_Unread] = deque()
        self._outings: dict[int, list[tuple[int, int]]] = {}  # prompt -> (selection, place in it), oldest first
        # Outings of an earlier process, as (selection, place, prompt), that are to be handed out again, in order.
        self._redraw: dict[tuple[int, int, int], None] = {}

    def __len__(self) -> int:
        return len(self._outings)

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._outings

    def prompts(self) -> list[int]:
        """The prompts that are out, longest out first."""
        return sorted(self._outings, key=self._outings.__getitem__)

    def waiting(self) -> list[tuple[int, int, int]]:
        """Those of `outings` that wait to be handed out again, in that order."""
        return list(self._redraw)

    def waits(self, prompt: int) -> bool:
        """Whether an outing of the prompt waits to be handed out again."""
        return any(outing[2] == prompt for outing in self._redraw)

    def total(self) -> int:
        """Outings in all: every prompt as often as it is out."""
        return sum(map(len, self._outings.values()))

    def times(self, prompt: int) -> int:
        """How often a prompt is out."""
        return len(self._outings.get(prompt, ()))

    def since(self, prompt: int) -> int:
        """The number of the selection that a prompt has been out since."""
        return self._outings[prompt][0][0]

    def send(self, prompts: Tensor, selection: int) -> None:
        """Note that a selection sent prompts (B,) out; they are on the CPU."""
        gone = prompts.tolist()
        self._gone(gone, selection)
        self._mark(prompts, False)
        self._recount(gone)

    def _gone(self, prompts: list[int], selection: int) -> None:
        out = self._outings
        for place, prompt in enumerate(prompts):
            if prompt in out:
                out[prompt].append((selection, place))
            else:
                out[prompt] = [(selection, place)]

    def land(self, prompts: Tensor) -> None:
        """End the oldest outing of each prompt (B,), on the CPU; prompts that are not out are passed over."""
        landed = prompts.tolist()
        back = self._back(landed)
        self._mark(prompts if len(back) == len(landed) else torch.tensor(back, dtype=torch.int64), True)
        self._recount(landed)

    def _back(self, prompts: Iterable[int]) -> list[int]:
        """Those that were out and now have no outing left."""
        back, out = [], self._outings
        for prompt in prompts:
            outings = out.get(prompt)
            if outings is None:
                continue
            oldest = outings.pop(0)
            if self._redraw:
                self._redraw.pop((*oldest, prompt), None)
            if not outings:
                del out[prompt]
                back.append(prompt)
        return back

    # Without reading what a device holds

    def send_unread(self, rows: Tensor, selection: int) -> None:
        """`send`, of distinct rows (B,) on the device; row N is passed over."""
        self._count(rows, 1)
        self._available.index_fill_(0, rows, False)
        self._post(rows, selection)

    def land_unread(self, rows: Tensor, known: Tensor | None = None) -> None:
        """`land`, of rows (B,) on the device; row N is passed over. known: the same on the host, if it has them."""
        out = self._count(rows, -1)
        out[rows] = out[rows].clamp(min=0)
        self._available[rows] = out[rows] == 0
        self._post(rows if known is None else known, None)

    def most_out(self) -> int:
        """A number of prompts that are out, or more: what came back unread may not be known to have."""
        return len(self._outings) + sum(len(unread.rows) for unread in self._unread if unread.selection is not None)

    def settle(self, wait: bool = True) -> None:
        """Take over what was sent and what landed unread; wait=False: as far as it has arrived."""
        while self._unread and (wait or self._unread[0].arrived is None or self._unread[0].arrived.query()):
            unread = self._unread.popleft()
            if unread.arrived is not None:
                unread.arrived.synchronize()
            if unread.selection is None:
                self._back(unread.rows.tolist())
            else:
                self._gone([row for row in unread.rows.tolist() if row < len(self.available)], unread.selection)

    def _count(self, rows: Tensor, change: int) -> Tensor:
        if self._out is None:
            with torch.inference_mode(False):  # kept beyond this call, and written to
                self._out = torch.zeros(len(self._available), dtype=torch.int32, device=self._available.device)
            self._recount(list(self._outings))
        return self._out.index_add_(0, rows, torch.full_like(rows, change, dtype=torch.int32))

    def _post(self, rows: Tensor, selection: int | None) -> None:
        arrived = None
        if rows.device.type == "cuda":
            host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            host.copy_(rows, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(rows.device))
        else:
            host = rows.clone()
        self._unread.append(_Unread(host, selection, arrived))
        self.settle(wait=False)

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
        self._outings, self._redraw, self._out = {}, {}, None
        self._unread.clear()
        self.available.fill_(True)
        for selection, place, prompt, waiting in rows:
            self._outings.setdefault(prompt, []).append((selection, place))
            if policy == "redraw" or waiting:  # who waited when this was saved is held by nobody
                self._redraw[selection, place, prompt] = None
        self._mark(torch.tensor(list(self._outings), dtype=torch.int64), False)

    def _mark(self, prompts: Tensor, available: bool) -> None:
        self.available.index_fill_(0, sent(prompts, self.available.device), available)

    def _recount(self, prompts: list[int]) -> None:
        """Bring the device's own count in line with the host's."""
        if self._out is not None and prompts:
            times = torch.tensor([self.times(prompt) for prompt in prompts], dtype=torch.int32)
            self._out[sent(torch.tensor(prompts), self._out.device)] = sent(times, self._out.device)
