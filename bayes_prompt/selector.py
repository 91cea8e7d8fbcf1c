"""PromptSelector: the one stateful object that a trainer holds."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayes_prompt import checkpoint
from bayes_prompt.acquisition import Acquisition
from bayes_prompt.books import Books
from bayes_prompt.explanation import belief_about, why
from bayes_prompt.identities import Identities
from bayes_prompt.metrics import pool_figures
from bayes_prompt.observing import Observing
from bayes_prompt.picking import Picking
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior
from bayes_prompt.selector_state import STATE_VERSION, check_state

IN_FLIGHT_POLICIES = ("redraw", "release", "keep")
ON_SHORTAGE = ("raise", "reuse")


class PromptSelector(Observing):
    """Chooses the prompts of the next batch, and learns from their rewards.

    Synchronous trainers loop over `select` and `update`; asynchronous ones call `observe` as rollouts come in and
    `advance` once for each training step. Every method may be called from any thread; on a GPU, on one stream only,
    which need not be the one that training uses. Prompts that were picked are in flight until they are observed or
    released, and are not picked again meanwhile.

    Args:
        posterior: what is known about the N prompts of the pool.
        acquisition: what is wanted next.
        batch_size: prompts in a pick, at most N.
        seed: of every random choice, in [0, 2**63). Same seed and same observations give the same picks everywhere.
        success_threshold: a reward of at least this is a success, in (0, 1].
        on_shortage: when prompts in flight leave too few to pick from: "raise" `PromptShortage`, or "reuse" those that
            have been out longest. None means "raise", and lets a trainer's adapter choose "reuse".
        allow_in_flight: pick prompts that are in flight too, as if they were not.
        ids: N distinct hashable names of the prompts, beside their row numbers; or None.
    """

    def __init__(
        self,
        posterior: Posterior,
        acquisition: Acquisition,
        batch_size: int,
        seed: int = 0,
        success_threshold: float = 1.0,
        on_shortage: str | None = None,
        allow_in_flight: bool = False,
        ids: Sequence[Hashable] | None = None,
    ) -> None:
        if not isinstance(posterior, Posterior):
            raise TypeError(f"posterior must be a Posterior; got {type(posterior).__name__}")
        if not isinstance(acquisition, Acquisition):
            raise TypeError(f"acquisition must be an Acquisition; got {type(acquisition).__name__}")
        checks.number("success_threshold", success_threshold)
        if not isinstance(allow_in_flight, bool):
            raise TypeError(f"allow_in_flight must be True or False; got {allow_in_flight!r}")
        if not 0 < success_threshold <= 1:
            raise ValueError(f"success_threshold must lie in (0, 1]; got {success_threshold}")
        if on_shortage is not None and on_shortage not in ON_SHORTAGE:
            raise ValueError(f"on_shortage must be 'raise', 'reuse' or None; got {on_shortage!r}")
        self.posterior = posterior
        self.acquisition = acquisition
        self.num_prompts = posterior.num_prompts
        self.batch_size = self._batch_size(batch_size, self.num_prompts)
        self.seed = checks.integer("seed", seed, 0, 2**63 - 1)
        self.success_threshold = float(success_threshold)
        self.on_shortage = on_shortage
        self.allow_in_flight = allow_in_flight
        self._identities = Identities(ids, self.num_prompts)
        self._lock = RLock()
        self._books = Books(posterior, acquisition, self.batch_size)

    # The training loop

    def select(
        self, candidates: Tensor | np.ndarray | Sequence[int] | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Pick distinct prompts, best first (diverse ones in the order of choice): row numbers (B,) int64.

        They are in flight from now on.

        They are on the CPU; of a posterior on a GPU they are there, and nothing waits for it unless so many prompts are
        in flight, or so few are candidates, that there might be too few to pick from. What is wrong with such a pick,
        a score that is NaN or a mask on the device that left too few (the missing rows are then -1), is told at the
        next call that reads what the device did, such as `metrics` or `state_dict`.

        After a resume with in_flight="redraw", the picks that were out are handed out first, in their old order.

        Args:
            candidates: rows to choose from, (M,) integers or a (N,) bool mask; None for the whole pool. A mask on the
                posterior's device is not read, unless on_shortage is "reuse" or picks wait to be handed out again; row
                numbers there are.
            batch_size: B for this pick; None for the selector's.

        Raises:
            ValueError: B exceeds the candidates, or a score is NaN. IndexError: a candidate outside [0, N).
            PromptShortage: prompts in flight leave too few, and on_shortage is "raise".
        """
        with self._lock:
            picking = self._picking()
            mask, size = picking.candidates(candidates)
            wanted = self.batch_size if batch_size is None else batch_size
            if size is None:
                wanted = self._batch_size(wanted, self.num_prompts)
                return self._books.send_unread(picking, wanted, mask, sure=False)
            wanted = self._batch_size(wanted, size, "the pool" if mask is None else "the candidates given")
            if picking.may_stay_unread(wanted, size):
                return self._books.send_unread(picking, wanted, mask)
            self._raise_unread()
            return self._books.send(picking.read(wanted, mask), wanted, self.acquisition.by_batch)

    # What a person or a logger reads

    @property
    def in_flight(self) -> Tensor:
        """Rows of the prompts that are out, (M,) int64, longest out first."""
        with self._lock:
            return torch.tensor(self._books.in_flight.prompts(), dtype=torch.int64)

    @property
    def outings(self) -> Tensor:
        """(selection, row) of every prompt that is out, as often as it is, (M, 2) int64, oldest first."""
        with self._lock:
            columns = [(selection, prompt) for selection, _, prompt in self._books.in_flight.outings()]
            return torch.tensor(columns, dtype=torch.int64).reshape(-1, 2)

    @property
    def waiting(self) -> Tensor:
        """Those of `outings` that will be handed out again after a resume, (M, 2) int64, in that order."""
        with self._lock:
            columns = [(selection, prompt) for selection, _, prompt in self._books.in_flight.waiting()]
            return torch.tensor(columns, dtype=torch.int64).reshape(-1, 2)

    @property
    def selections(self) -> int:
        """Picks made so far: the number that the next new one gets. Picks that are handed out again keep theirs."""
        with self._lock:
            return self._books.selections

    def metrics(self, pool: bool = True) -> dict[str, float]:
        """Figures for a trainer's logger, each a float; docs of each in `bayes_prompt.metrics`.

        Those of the last batch are absent until a step with observations has passed. pool=False leaves out those that
        look at every prompt, for whoever asks more often than it logs.
        """
        with self._lock:
            self._raise_unread()
            figures = self._books.metrics.figures(self.posterior)
            figures |= {"in_flight": float(len(self._books.in_flight)), "reused": float(self._books.reused)}
            return figures | pool_figures(self.posterior) if pool else figures

    def explain(self, prompt: int | None = None, *, id: Hashable | None = None) -> dict[str, Any]:
        """Why a prompt was or was not picked: its standing for the next pick, in numbers and in one sentence.

        Scores are those that the next pick would go by; where they are Thompson draws, earlier picks had other ones. Of
        `Diverse` they are the utilities alone: a pick adds distances to them, so that it need not follow their ranks.

        Args:
            prompt: a row number, or id: its name. IndexError where there is no such prompt.
        """
        with self._lock:
            if prompt is not None:
                prompt = checks.whole("prompt", prompt)
                if not 0 <= prompt < self.num_prompts:
                    raise IndexError(f"prompt = {prompt} must lie in [0, {self.num_prompts})")
            row = int(self._rows(None if prompt is None else [prompt], None if id is None else [id])[0])
            standing: dict[str, Any] = {
                "prompt": row,
                "id": self._identities.names([row])[0],
                "in_last_pick": bool((self._books.last_pick == row).any()),
                "last_pick_cut": float(self._books.last_cut) if self._books.selections else None,
                "in_flight_since": self._books.in_flight.since(row) if row in self._books.in_flight else None,
                "waits_to_be_redrawn": self._books.in_flight.waits(row),
                "may_be_picked": self.allow_in_flight or row not in self._books.in_flight,
                "may_be_reused": self.on_shortage == "reuse",
                **belief_about(row, self._picking().scores(), self.posterior),
            }
            return {**standing, "why": why(standing)}

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the coming picks: tensors, numbers, strings and nested dictionaries of them."""
        with self._lock:
            self._raise_unread()
            return {
                "version": STATE_VERSION,
                **self._agreed(),
                "posterior": self.posterior.state_dict(),
                **self._books.state(),
            }

    def load_state_dict(self, state: Mapping[str, Any], in_flight: str = "redraw") -> None:
        """Continue, bit for bit, from what `state_dict` gave.

        Args:
            state: of a selector with the same model, pool, acquisition, threshold and seed; else CheckpointError, and
                nothing changes. (To go on with another acquisition, load state["posterior"] into the posterior alone.)
            in_flight: what becomes of picks that were out: "redraw" hands them out again first and in their old order
                (unless they are observed before that), "release" gives them back to the pool, "keep" leaves them out,
                for a caller that still has them.
        """
        with self._lock:
            if in_flight not in IN_FLIGHT_POLICIES:
                raise ValueError(f"in_flight must be one of {', '.join(IN_FLIGHT_POLICIES)}; got {in_flight!r}")
            check_state(state, self._agreed(), self.num_prompts)
            self.posterior.load_state_dict(state["posterior"])
            self._books.restore(state, in_flight)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: safetensors and JSON, to a temporary file that is then renamed."""
        state = self.state_dict()  # under the lock, which is not held while the disk is written
        checkpoint.write(path, state, kind="PromptSelector")

    def load(self, path: str | os.PathLike[str], in_flight: str = "redraw") -> None:
        """Continue from a checkpoint; `in_flight` as in `load_state_dict`. A damaged one raises CheckpointError."""
        self.load_state_dict(checkpoint.read(path, kind="PromptSelector"), in_flight=in_flight)

    # Inner workings

    def _picking(self) -> Picking:
        """The next pick, as things stand."""
        return Picking(
            posterior=self.posterior,
            acquisition=self.acquisition,
            seed=self.seed,
            step=self._books.selections,
            batch_size=self.batch_size,
            on_shortage=self.on_shortage,
            allow_in_flight=self.allow_in_flight,
            in_flight=self._books.out,
            recent=self._books.recent,
        )

    def _raise_unread(self) -> None:
        """Tell, once, what was wrong with a pick that nobody waited for."""
        if self.posterior.on_device:
            self._books.untold.tell(self.acquisition)

    @staticmethod
    def _batch_size(batch_size: int, available: int, where: str = "the pool") -> int:
        size = checks.whole("batch_size", batch_size)
        if not 1 <= size <= available:
            raise ValueError(f"batch_size must lie in [1, {available}], the size of {where}; got {size}")
        return size

    def _agreed(self) -> dict[str, Any]:
        """What a checkpoint and the selector that loads it must share."""
        return {
            "seed": self.seed,
            "acquisition": repr(self.acquisition),
            "success_threshold": self.success_threshold,
            "ids": self._identities.fingerprint,
        }

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._books.out.settle()
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()
