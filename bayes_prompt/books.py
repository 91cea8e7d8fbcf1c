"""What a selector keeps account of: who is out, what was picked lately, how many picks there were, figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.acquisition import Acquisition, Diverse
from bayes_prompt.in_flight import InFlight
from bayes_prompt.metrics import Metrics
from bayes_prompt.picking import Picked, Picking, Untold
from bayes_prompt.posteriors.base import Posterior
from bayes_prompt.recent import RecentPicks
from bayes_prompt.transfer import sent

logger = logging.getLogger(__name__)


class Books:
    """Notes what a selector sent out, and what became of it.

    Attributes:
        out: prompts in flight, as far as the host has read what a device did.
        untold: what was wrong with picks that nobody waited for.
        metrics: figures of what was observed.
        recent: the last picks, for an acquisition that goes by batches.
        selections: picks made so far, the step of the next one's draws.
        reused: picks that had to repeat a prompt that was out.
        last_pick: rows (B,) of the last pick, on the posterior's device.
        last_cut: the score of the last prompt that was still taken.
    """

    def __init__(self, posterior: Posterior, acquisition: Acquisition, batch_size: int) -> None:
        self.num_prompts, self.device = posterior.num_prompts, posterior.device
        self.out = InFlight(self.num_prompts, self.device)
        self.untold = Untold(self.device)
        self.metrics = Metrics(self.device)
        self.recent = RecentPicks(batch_size, acquisition.batches if isinstance(acquisition, Diverse) else 0)
        self.selections = self.reused = 0
        self.last_pick = torch.zeros(0, dtype=torch.int64)
        self.last_cut: Tensor | float = 0.0

    @property
    def in_flight(self) -> InFlight:
        """What is out, once the host has read what a device did meanwhile."""
        self.out.settle()
        return self.out

    def send(self, picked: Picked, wanted: int, by_batch: bool) -> Tensor:
        """Note a pick of `wanted` prompts: their rows (B,) on the posterior's device.

        by_batch: whether the acquisition goes by batches.
        """
        redrawn, new = picked.redrawn, picked.fresh
        if picked.missing:
            # Once in a run, for in a small pool it may be so at every pick; the metric `reused` counts them.
            level = logging.DEBUG if self.reused else logging.WARNING
            logger.log(level, "%d of the picked prompts are still in flight: too few others are left", picked.missing)
        if picked.reused:
            new = torch.cat([new, torch.tensor(picked.reused, dtype=torch.int64)])
        self.out.redrawn(picked.again)
        self.out.send(new, self.selections)
        if len(new):
            if by_batch:
                self.recent.add(new, self.recent.batch(wanted - len(redrawn), redrawn))
            self.selections += 1
            self.reused += len(picked.reused)
            self.last_cut = self.last_cut if picked.cut is None else picked.cut
        rows = torch.cat([torch.tensor(redrawn, dtype=torch.int64), new]) if redrawn else new
        self.last_pick = rows.to(self.device)
        return self.last_pick.clone()

    def send_unread(self, picking: Picking, wanted: int, mask: Tensor | None, sure: bool = True) -> Tensor:
        """Pick `wanted` of the prompts in a mask (N,), and note it: rows (wanted,) on the device.

        Some may be -1 unless it is sure that there are enough.
        """
        picked, scores = picking.unread(wanted, mask)
        values, sent_out, nobody = scores[picked], picked, None
        if not sure:
            nobody = picked < 0
            values, sent_out = values.masked_fill(nobody, -torch.inf), picked.masked_fill(nobody, self.num_prompts)
        self.untold.note(values, nobody)
        self.out.send_unread(sent_out, self.selections)
        if picking.acquisition.by_batch:
            self.recent.add(picked, self.recent.batch(wanted))
        self.selections += 1
        self.last_pick, self.last_cut = picked, values.min()
        return picked.clone()

    def land(self, rows: Tensor, posterior: Posterior) -> None:
        """End the outings of rows (B,) that the posterior observed, which are on the host or, unread, on the device."""
        if posterior.defers_checks(rows):
            self.out.land_unread(rows)
        elif posterior.on_device:
            self.out.land_unread(sent(rows, self.device), known=rows)
        else:
            self.in_flight.land(rows)

    def give_back(self, rows: Tensor) -> None:
        """End the oldest outing of each of the rows (B,), on the CPU, which nobody rolls out: they are out."""
        times: dict[int, int] = {}
        for row in rows.tolist():
            times[row] = times.get(row, self.in_flight.times(row) + 1) - 1
            self.recent.give_back(row, times[row])
        self.in_flight.land(rows)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        picked = self.last_pick.cpu()
        return {
            "selections": self.selections,
            "reused": self.reused,
            "in_flight": self.in_flight.state(),
            "last_pick": {"index": picked[picked >= 0], "cut": float(self.last_cut)},
            "recent": self.recent.state(),
            "metrics": self.metrics.state(),
        }

    def restore(self, state: Mapping[str, Any], in_flight: str) -> None:
        """Go back to what `state` gave; in_flight: what becomes of picks that were out, as of `InFlight.restore`."""
        self.out.restore(state["in_flight"], in_flight)
        self.untold.forget()
        self.metrics.restore(state["metrics"])
        self.recent.restore(state["recent"])
        if in_flight == "release":
            for prompt in state["in_flight"]["prompt"].tolist():
                self.recent.give_back(prompt, 1)
        self.selections, self.reused = state["selections"], state["reused"]
        self.last_pick, self.last_cut = state["last_pick"]["index"].clone(), state["last_pick"]["cut"]
