"""PromptSelector: the one stateful object that a trainer holds."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from threading import RLock
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bayes_prompt import checkpoint
from bayes_prompt.acquisition import Acquisition, top_b
from bayes_prompt.errors import CheckpointError, PromptShortage
from bayes_prompt.identities import Identities
from bayes_prompt.in_flight import InFlight
from bayes_prompt.metrics import BatchRecord, Metrics
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior, require_keys
from bayes_prompt.posteriors.checks import IntegersLike

logger = logging.getLogger(__name__)

RewardsLike: TypeAlias = Tensor | np.ndarray | Sequence[Sequence[float]]
IN_FLIGHT_POLICIES = ("redraw", "release", "keep")
ON_SHORTAGE = ("raise", "reuse")
STATE_VERSION = 1
_STATE = ("version", "seed", "selections", "reused", "ids", "posterior", "in_flight", "last_pick", "metrics")


class PromptSelector:
    """Chooses the prompts of the next batch, and learns from their rewards.

    Synchronous trainers loop over `select` and `update`; asynchronous ones call `observe` as rollouts come in and
    `advance` once for each training step. Every method may be called from any thread. Prompts that were picked are in
    flight until they are observed or released, and are not picked again meanwhile.

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
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an integer; got {type(seed).__name__}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2**63); got {seed}")
        if not 0 < success_threshold <= 1:
            raise ValueError(f"success_threshold must lie in (0, 1]; got {success_threshold}")
        if on_shortage is not None and on_shortage not in ON_SHORTAGE:
            raise ValueError(f"on_shortage must be 'raise', 'reuse' or None; got {on_shortage!r}")
        self.posterior = posterior
        self.acquisition = acquisition
        self.num_prompts = posterior.num_prompts
        self.batch_size = self._batch_size(batch_size, self.num_prompts)
        self.seed = seed
        self.success_threshold = success_threshold
        self.on_shortage = on_shortage
        self.allow_in_flight = allow_in_flight
        self._identities = Identities(ids, self.num_prompts)
        self._lock = RLock()
        self._in_flight = InFlight(self.num_prompts, posterior.device)
        self._metrics = Metrics()
        self._selections = 0  # picks made so far: the step of their draws
        self._reused = 0
        self._last_pick = torch.zeros(0, dtype=torch.int64)
        self._last_cut = 0.0  # the score of the last prompt that was still taken

    # The training loop

    def select(
        self, candidates: Tensor | np.ndarray | Sequence[int] | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Pick distinct prompts, best first: row numbers (B,) int64 on the CPU. They are in flight from now on.

        After a resume with in_flight="redraw", the picks that were out are handed out first, in their old order.

        Args:
            candidates: rows to choose from, (M,) integers or a (N,) bool mask; None for the whole pool.
            batch_size: B for this pick; None for the selector's.

        Raises:
            ValueError: B exceeds the candidates, or a score is NaN. IndexError: a candidate outside [0, N).
            PromptShortage: prompts in flight leave too few, and on_shortage is "raise".
        """
        with self._lock:
            mask = None if candidates is None else self._mask(candidates)
            size = self.num_prompts if mask is None else int(mask.sum())
            wanted = self.batch_size if batch_size is None else batch_size
            wanted = self._batch_size(wanted, size, "the pool" if mask is None else "the candidates given")
            redrawn = self._in_flight.redraw(wanted, mask)
            fresh, cut = self._pick(wanted - len(redrawn), mask, redrawn)
            reused = self._reuse(wanted - len(redrawn) - len(fresh), mask, {*redrawn, *fresh})
            self._in_flight.redrawn(redrawn)
            self._in_flight.send([*fresh, *reused], self._selections)
            if fresh or reused:
                self._selections += 1
                self._reused += len(reused)
                self._last_cut = cut if fresh else self._last_cut
            self._last_pick = torch.tensor([*redrawn, *fresh, *reused], dtype=torch.int64)
            return self._last_pick.clone()

    def observe(
        self,
        index: IntegersLike | None = None,
        rewards: RewardsLike | None = None,
        *,
        ids: Sequence[Hashable] | None = None,
        successes: IntegersLike | None = None,
        trials: IntegersLike | int | None = None,
    ) -> None:
        """Learn what came of rolled-out prompts; they count at the next `advance`, and are no longer in flight.

        Prompts that were never picked may be observed too.

        Args:
            index: row numbers (B,), or ids: their names (B,). One of the two.
            rewards: (B, G) in [0, 1], turned into counts by success_threshold. Or the counts themselves:
            successes: (B,) integers in [0, trials]; trials: (B,) integers or one for all, at least 1.

        Raises:
            IndexError, TypeError, ValueError: named after the first bad argument and row; nothing has changed then.
        """
        with self._lock:
            rows = self._rows(index, ids)
            if rewards is not None:
                if successes is not None or trials is not None:
                    raise ValueError("give rewards, or successes and trials, not both")
                successes, trials = checks.counts_from_rewards(rewards, self.success_threshold)
            elif successes is None or trials is None:
                raise ValueError("give rewards of shape (B, G), or both successes and trials")
            counts = checks.counts(rows, successes, trials, self.num_prompts)
            record = BatchRecord.of(self.posterior, *counts)
            self.posterior.observe(counts[0], counts[1], trials if isinstance(trials, int) else counts[2])
            self._metrics.add(record)
            self._in_flight.land(rows.tolist())

    def advance(self, elapsed: float = 1.0) -> None:
        """Let one training step pass. `elapsed` scales the forgetting; finite and at least 0."""
        with self._lock:
            self.posterior.advance(elapsed)
            self._metrics.close()

    def update(
        self,
        index: IntegersLike | None = None,
        rewards: RewardsLike | None = None,
        *,
        ids: Sequence[Hashable] | None = None,
        successes: IntegersLike | None = None,
        trials: IntegersLike | int | None = None,
        elapsed: float = 1.0,
    ) -> None:
        """`observe`, then `advance`; arguments, shapes and errors of the two."""
        with self._lock:
            checks.elapsed_time(elapsed)
            self.observe(index, rewards, ids=ids, successes=successes, trials=trials)
            self.advance(elapsed)

    def release(self, index: IntegersLike | None = None, *, ids: Sequence[Hashable] | None = None) -> None:
        """Give back picks that will never be rolled out: rows (B,) or ids (B,). ValueError where one is not out."""
        with self._lock:
            rows = self._rows(index, ids).tolist()
            for place, row in enumerate(rows):
                if row not in self._in_flight:
                    raise ValueError(f"index[{place}] = {row} is not in flight, so it cannot be released")
            self._in_flight.land(rows)

    # What a person or a logger reads

    @property
    def in_flight(self) -> Tensor:
        """Rows of the prompts that are out, (M,) int64, longest out first."""
        with self._lock:
            return torch.tensor(self._in_flight.prompts(), dtype=torch.int64)

    def metrics(self) -> dict[str, float]:
        """Figures for a trainer's logger, each a float; docs of each in `bayes_prompt.metrics`.

        Those of the last batch are absent until a step with observations has passed.
        """
        with self._lock:
            figures = self._metrics.figures(self.posterior)
            return {**figures, "in_flight": float(len(self._in_flight)), "reused": float(self._reused)}

    def explain(self, prompt: int | None = None, *, id: Hashable | None = None) -> dict[str, Any]:
        """Why a prompt was or was not picked: its standing in the pool now, in numbers and in one sentence.

        Args:
            prompt: a row number, or id: its name. IndexError or KeyError where there is no such prompt.
        """
        with self._lock:
            row = int(self._rows(None if prompt is None else [prompt], None if id is None else [id])[0])
            one = torch.tensor([row])
            scores = self.acquisition.scores(self.posterior, self.seed, self._selections)
            score = float(scores[row])
            standing: dict[str, Any] = {
                "prompt": row,
                "id": self._identities.names([row])[0],
                "score": score,
                "rank": int((scores > score).sum()) + 1,
                "tied": int((scores == score).sum()) - 1,
                "in_last_pick": bool((self._last_pick == row).any()),
                "last_pick_cut": self._last_cut if self._selections else None,
                "in_flight_since": self._in_flight.since(row) if row in self._in_flight else None,
                "visits": int(self.posterior.visits[row]),
                "solved_visits": int(self.posterior.solved[row]),
                "success_rate": float(self.posterior.success_rate(one)[0]),
                "informative_probability": float(
                    self.posterior.informative_probability(self.posterior.group_size, one)[0]
                ),
                "entropy": float(self.posterior.entropy(one)[0]),
            }
            return {**standing, "why": self._sentence(standing)}

    def rows_of(self, ids: Sequence[Hashable]) -> Tensor:
        """Row numbers (B,) int64 of prompts by name; KeyError names the first that is unknown."""
        return self._identities.rows(ids)

    def ids_of(self, index: IntegersLike) -> list[Hashable]:
        """Names of the prompts in rows (B,); the row numbers themselves where the selector was given no ids."""
        return self._identities.names(checks.rows("index", index, self.num_prompts).tolist())

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the coming picks: tensors, numbers, strings and nested dictionaries of them."""
        with self._lock:
            return {
                "version": STATE_VERSION,
                "seed": self.seed,
                "selections": self._selections,
                "reused": self._reused,
                "ids": self._identities.fingerprint,
                "posterior": self.posterior.state_dict(),
                "in_flight": self._in_flight.state(),
                "last_pick": {"index": self._last_pick.clone(), "cut": self._last_cut},
                "metrics": self._metrics.state(),
            }

    def load_state_dict(self, state: Mapping[str, Any], in_flight: str = "redraw") -> None:
        """Continue, bit for bit, from what `state_dict` gave.

        Args:
            state: of a selector with the same posterior, pool and seed; else CheckpointError, and nothing changes.
            in_flight: what becomes of picks that were out: "redraw" hands them out again first and in their old order
                (unless they are observed before that), "release" gives them back to the pool, "keep" leaves them out,
                for a caller that still has them.
        """
        with self._lock:
            if in_flight not in IN_FLIGHT_POLICIES:
                raise ValueError(f"in_flight must be one of {', '.join(IN_FLIGHT_POLICIES)}; got {in_flight!r}")
            self._check_state(state)
            self.posterior.load_state_dict(state["posterior"])
            self._in_flight.restore(state["in_flight"], in_flight)
            self._metrics.restore(state["metrics"])
            self._selections, self._reused = state["selections"], state["reused"]
            self._last_pick, self._last_cut = state["last_pick"]["index"].clone(), state["last_pick"]["cut"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: safetensors and JSON, to a temporary file that is then renamed."""
        with self._lock:
            checkpoint.write(path, self.state_dict(), kind="PromptSelector")

    def load(self, path: str | os.PathLike[str], in_flight: str = "redraw") -> None:
        """Continue from a checkpoint; `in_flight` as in `load_state_dict`. A damaged one raises CheckpointError."""
        self.load_state_dict(checkpoint.read(path, kind="PromptSelector"), in_flight=in_flight)

    # Inner workings

    def _pick(self, wanted: int, mask: Tensor | None, taken: list[int]) -> tuple[list[int], float]:
        """The best `wanted` prompts that may be picked, and the score of the last; fewer where fewer there are."""
        if not wanted:
            return [], 0.0
        if self.allow_in_flight:
            allowed = mask
            if taken:
                allowed = torch.ones_like(self._in_flight.available) if mask is None else mask.clone()
                allowed[torch.tensor(taken, device=allowed.device)] = False
        elif mask is None:
            allowed = self._in_flight.available if len(self._in_flight) else None
        else:
            allowed = mask & self._in_flight.available
        free = self.num_prompts if allowed is None else int(allowed.sum())
        if free < wanted and self.on_shortage != "reuse":
            raise PromptShortage(
                f"{wanted} prompts are wanted and {free} are free: {len(self._in_flight)} are in flight. Observe or "
                "release some, pass on_shortage='reuse', or allow_in_flight=True"
            )
        if not free:
            return [], 0.0
        scores = self.acquisition.scores(self.posterior, self.seed, self._selections)
        picked = top_b(
            scores,
            min(wanted, free),
            seed=self.seed,
            step=self._selections,
            allowed=allowed,
            first_prompt=self.posterior.first_prompt,
            backend=self.posterior.backend,
        )
        values = scores[picked].cpu()
        if torch.isnan(values).any():
            raise ValueError(f"{self.acquisition} gave the score NaN to prompt {int(picked[values.isnan()][0])}")
        return picked.tolist(), float(values[-1])

    def _reuse(self, wanted: int, mask: Tensor | None, taken: set[int]) -> list[int]:
        """Prompts that are out already, longest out first, to fill a pick that would be too short."""
        if wanted <= 0:
            return []
        out = [row for row in self._in_flight.prompts() if row not in taken and (mask is None or bool(mask[row]))]
        logger.warning("%d of the picked prompts are still in flight: too few others are left", wanted)
        return out[:wanted]

    def _mask(self, candidates: Tensor | np.ndarray | Sequence[int]) -> Tensor:
        device = self.posterior.device
        given = candidates if isinstance(candidates, Tensor) else torch.as_tensor(np.asarray(candidates))
        if given.dtype == torch.bool:
            if tuple(given.shape) != (self.num_prompts,):
                raise ValueError(f"a candidates mask must have shape ({self.num_prompts},); got {tuple(given.shape)}")
            return given.to(device)
        rows = checks.rows("candidates", given if given.numel() else given.to(torch.int64), self.num_prompts)
        mask = torch.zeros(self.num_prompts, dtype=torch.bool, device=device)
        mask[rows.to(device)] = True
        return mask

    def _rows(self, index: IntegersLike | None, ids: Sequence[Hashable] | None) -> Tensor:
        if (index is None) == (ids is None):
            raise ValueError("name the prompts by index or by ids, one of the two")
        if ids is not None:
            return self._identities.rows(ids)
        assert index is not None
        return checks.rows("index", index, self.num_prompts)

    @staticmethod
    def _batch_size(batch_size: int, available: int, where: str = "the pool") -> int:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size must be an integer; got {type(batch_size).__name__}")
        if not 1 <= batch_size <= available:
            raise ValueError(f"batch_size must lie in [1, {available}], the size of {where}; got {batch_size}")
        return batch_size

    @staticmethod
    def _sentence(standing: dict[str, Any]) -> str:
        rank = f"score {standing['score']:.4g} ranks {standing['rank']}" + (
            f" (tied with {standing['tied']} others)" if standing["tied"] else ""
        )
        if standing["in_flight_since"] is not None:
            return f"in flight since selection {standing['in_flight_since']}, so it is not picked again; {rank}"
        if standing["in_last_pick"]:
            return f"in the last pick; since then it was observed or released, and its {rank}"
        if standing["last_pick_cut"] is None:
            return f"no pick was made yet; its {rank}"
        return f"not in the last pick, whose lowest score was {standing['last_pick_cut']:.4g}; now its {rank}"

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """CheckpointError for whatever the posterior's own check does not see; nothing is changed."""
        require_keys("selector", state, _STATE)
        if state["version"] != STATE_VERSION:
            raise CheckpointError(f"selector state has version {state['version']}; this package reads {STATE_VERSION}")
        for name, mine in (("seed", self.seed), ("ids", self._identities.fingerprint)):
            if state[name] != mine:
                raise CheckpointError(f"checkpoint of another selector: its {name} is {state[name]!r}, here {mine!r}")
        for name in ("selections", "reused"):
            if isinstance(state[name], bool) or not isinstance(state[name], int) or state[name] < 0:
                raise CheckpointError(f"selector.{name} must be an integer of at least 0; got {state[name]!r}")
        require_keys("selector.in_flight", state["in_flight"], ("selection", "place", "prompt"))
        require_keys("selector.last_pick", state["last_pick"], ("index", "cut"))
        if not isinstance(state["last_pick"]["cut"], float):
            raise CheckpointError(f"selector.last_pick.cut must be a float; got {state['last_pick']['cut']!r}")
        Metrics().restore(state["metrics"])
        sizes = {len(column) for column in state["in_flight"].values()}
        if len(sizes) != 1:
            raise CheckpointError(f"selector.in_flight has columns of different lengths {sorted(sizes)}")
        try:
            checks.rows("in_flight.prompt", state["in_flight"]["prompt"], self.num_prompts)
            checks.rows("last_pick.index", state["last_pick"]["index"], self.num_prompts)
        except (IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"selector state names prompts that cannot be: {error}") from error
