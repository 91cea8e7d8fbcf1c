"""The one protocol of every posterior: what a trainer observes and what an acquisition may ask."""

from __future__ import annotations

import json
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import bayes_prompt.kernels.backend as backends
from bayes_prompt.kernels import rng
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.tally import RECORD, Books, Observations
from bayes_prompt.posteriors import checks, looks
from bayes_prompt.posteriors.checks import IntegersLike
from bayes_prompt.posteriors.counts import Counts, counted
from bayes_prompt.posteriors.state import PENDING, check_state
from bayes_prompt.transfer import sent

DEFAULT_GROUP_SIZE = 8  # assumed until the first observation says otherwise
STATE_VERSION = 5
_CHUNK = 1 << 14


class _Outlasting(ABCMeta):
    """Whatever mode a trainer is in when a posterior is made: its tensors are written to later on."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        with torch.inference_mode(False):
            return super().__call__(*arguments, **options)


class Posterior(metaclass=_Outlasting):
    """What is known now about N prompts, updated online.

    One training step is: select, roll out, `observe`, `advance`. Time moves only in `advance`; `observe` keeps counts
    until then. Draws are functions of (seed, step, prompt), where the prompt's number is its row plus `first_prompt`,
    so that a chunk of a larger pool draws what the pool draws.

    Tensors that the properties return are views of the live state: clone what must outlast the next `advance`.
    """

    DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def __init__(
        self,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
    ) -> None:
        if dtype not in self.DTYPES:
            raise TypeError(f"dtype must be {' or '.join(map(str, self.DTYPES))}; got {dtype}")
        self.num_prompts = checks.integer("num_prompts", num_prompts, 1)
        self.first_prompt = checks.integer("first_prompt", first_prompt, 0, rng.PROMPT_LIMIT - self.num_prompts)
        self.device = checks.usable_device("device", device)
        self.stored_dtype = dtype
        self.dtype = torch.float32 if dtype == torch.bfloat16 else dtype  # of what is asked about the belief
        self.on_device = self.device.type != "cpu"  # which is then not waited for where that can be helped
        self.backend = backends.resolve(backend, self.device)
        self.step = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._told_group_size = 0
        self._counted: tuple[list[tuple[Tensor, Tensor, Tensor]], Counts] = (
            [],
            counted([], self.num_prompts, self.device),
        )
        self._counters: dict[str, Tensor] = {
            "visits": torch.zeros(num_prompts, dtype=torch.int32, device=self.device),
            "solved": torch.zeros(num_prompts, dtype=torch.int32, device=self.device),
            "log_evidence": torch.zeros((), dtype=torch.float64, device=self.device),
            "log_count_evidence": torch.zeros((), dtype=torch.float64, device=self.device),
            "unexpected": torch.zeros((), dtype=torch.int64, device=self.device),
            "impossible": torch.zeros((), dtype=torch.int64, device=self.device),
            "group_size": torch.zeros((), dtype=torch.int64, device=self.device),
            "told_group_size": torch.zeros((), dtype=torch.int64, device=self.device),
            "refused": torch.zeros(3, dtype=torch.int64, device=self.device),
        }
        self._record = torch.zeros(len(RECORD), dtype=torch.float64, device=self.device)
        self._books = Books(**{field.name: self._counters[field.name] for field in fields(Books)})

    # What a trainer calls

    def observe(self, index: IntegersLike, successes: IntegersLike, trials: IntegersLike | int) -> None:
        """Keep the counts of rolled-out prompts until the next `advance`.

        Args:
            index: rows of the prompts, (B,) integers; a prompt may occur more than once, its counts are added.
            successes: successful rollouts of each, (B,) integers in [0, trials].
            trials: rollouts of each, (B,) integers or one for all, at least 1.

        Raises:
            IndexError: a row outside [0, N). TypeError: not integers. ValueError: wrong shape, or counts out of range.
            Counts that live on a CUDA device are checked there; a bad call is left out and raises at the next read.
        """
        self.observe_unread(index, successes, trials)

    def observe_unread(self, index: IntegersLike, successes: IntegersLike, trials: IntegersLike | int) -> Tensor:
        """`observe`; returns the rows (B,) on the device, N for all of them where a check there refused the call."""
        if self.defers_checks(index):
            index_ = checks.integers("index", index).to(self.device)
            size = index_.numel()
            successes_ = sent(checks.integers("successes", successes, size), self.device)
            trials_ = sent(checks.integers("trials", trials, size, single=True, device=self.device), self.device)
            entries = checks.deferred_counts(index_, successes_, trials_, self.num_prompts, self._counters["refused"])
        else:
            entries = checks.counts(index, successes, trials, self.num_prompts)
        rows, successes_, trials_ = (sent(entry, self.device).clone() for entry in entries)
        if rows.numel():
            self._pending.append((rows, successes_, trials_))
        return rows

    def advance(self, elapsed: float = 1.0) -> None:
        """Let one step of time pass for all N prompts, with the counts observed since the last one.

        `elapsed` scales the forgetting alone: a decay acts as decay ** elapsed, so 0 forgets nothing, while hidden
        states still make one transition; on success rates that drift it scales the drift. Finite and at least 0.
        """
        elapsed = checks.elapsed_time(elapsed)
        seen = self._apply(self.counts(), elapsed)
        self._kernel("tally").tally(seen, self._books, self._record)
        self._pending = []
        self.step += 1
        if "last_observed" in self._counters:
            self._counters["last_observed"].index_fill_(0, seen.index, min(self.step, 2**31 - 1))

    def update(
        self, index: IntegersLike, successes: IntegersLike, trials: IntegersLike | int, elapsed: float = 1.0
    ) -> None:
        """`observe`, then `advance`; the same arguments, shapes and errors. If it is refused, nothing was observed.

        An interrupt in the middle of a step leaves it half done: go back to a checkpoint.
        """
        elapsed = checks.elapsed_time(elapsed)
        with self.all_or_nothing():
            self.observe(index, successes, trials)
            self.advance(elapsed)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """A block that takes back what it observed, (B,) counts in each call, where it fails: it may be tried again."""
        before = [id(entries) for entries in self._pending]
        try:
            yield
        except BaseException:
            self._pending = [entries for entries in self._pending if id(entries) in before]
            raise

    def warm_start(self, index: IntegersLike, successes: IntegersLike, trials: IntegersLike | int) -> None:
        """Known pass rates as observations made before training: shapes and errors as in `observe`.

        They shape the belief, and count neither as visits nor as evidence. `trials` is their weight: a rate from 128
        rollouts of another model is better told as 8 trials. ValueError once time has moved or counts are waiting.
        """
        if self.step or self._pending:
            raise ValueError(f"warm_start must come before the first observe and advance; step is {self.step}")
        index, successes, trials = checks.counts(index, successes, trials, self.num_prompts)
        if index.numel():
            known = (index.to(self.device), successes.to(self.device), trials.to(self.device))
            self._warm_start(counted([known], self.num_prompts, self.device, self.on_device))

    def pending(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the next `advance` will learn from: index, successes, trials, each (M,) int64 with distinct rows."""
        counts = self.counts()
        return counts.index[counts.leader], counts.successes[counts.leader], counts.trials[counts.leader]

    # What an acquisition may ask; each takes rows (B,) to answer for those alone

    @abstractmethod
    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """Expected success rate of one rollout, (N,), or (B,) for the rows `index`."""

    @abstractmethod
    def informative_probability(self, trials: int | Tensor, index: Tensor | None = None) -> Tensor:
        """P(0 < successes < trials) of the coming rollouts, (N,), or (B,) for the rows `index`.

        trials: rollouts of each prompt, an integer of at least 1, or (N,) or (B,) of them.
        """

    @abstractmethod
    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)], the expected variance of one reward, (N,), or (B,) for the rows `index`; at most 1/4."""

    @abstractmethod
    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Entropy of the belief in nats, (N,), or (B,) for the rows `index`."""

    @abstractmethod
    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """One Thompson draw of every prompt's success rate, (N,): a function of (seed, step, prompt)."""

    # What an explorer may ask: what a look at a prompt would teach

    def look_index(self, trials: int, horizon: float, new: float | None = None) -> Tensor:
        """P(0 < successes < trials), and what a look at the prompt would be worth, as a price (N,): `looks.index`.

        trials: rollouts of the look. horizon: steps that it is of use for, at least 0; with 0 nothing is added.
        new: the same for prompts that are `unseen`; None for no difference.
        """
        horizon = looks.horizon("horizon", horizon)
        new = horizon if new is None else looks.horizon("new", new)

        def within(steps: float) -> Tensor:
            return self._looked(trials, lambda now, chance, worth: looks.index(now, chance, worth, steps))

        return within(horizon) if new == horizon else torch.where(self.unseen, within(new), within(horizon))

    def look_gain(self, trials: int, threshold: float) -> Tensor:
        """What a look adds to the better of the prompt and one whose P(informative) is `threshold`, (N,): `looks.gain`.

        trials: rollouts of the look. It is at least 0, and 0 where every outcome would leave the choice as it is.
        """
        checks.number("threshold", threshold)
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite; got {threshold}")
        return self._looked(trials, lambda now, chance, worth: looks.gain(chance, worth, threshold))

    def informative_quantile(self, trials: int, level: float) -> Tensor:
        """The `level` quantile of the success rate's own P(0 < successes < trials) under the belief, (N,).

        The expectation is `informative_probability`. level: in (0, 1), above 1/2 for optimism.
        """
        checks.number("level", level)
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1); got {level}")
        worth = self._point_worth(checks.group_size("trials", trials))
        parts = [looks.quantile(self._point_mass(part), worth, level) for part in self._chunks()]
        return torch.cat(parts).to(self.dtype)

    # What an acquisition may ask for a pick of `batch` prompts: scores, which the next call or step may overwrite, and
    # where the posterior keeps one, the shortlist of the best

    def informative_scores(self, trials: int | Tensor, batch: int) -> tuple[Tensor, Shortlist | None]:
        """`informative_probability(trials)`, (N,); trials: an integer, or (1,) on the device, where it stays unread."""
        each = trials.expand(self.num_prompts) if isinstance(trials, Tensor) else trials
        return self.informative_probability(each), None

    def draw_scores(self, seed: int, step: int, low: float, high: float, batch: int) -> tuple[Tensor, Shortlist | None]:
        """Minus the distance from a Thompson draw of the success rate to [low, high], (N,)."""
        rate = self.sample_success_rate(seed, step)
        return -torch.maximum(low - rate, rate - high).clamp(min=0), None

    # What a logger reads

    @property
    def group_size(self) -> int:
        """Rollouts of a prompt in the coming step: what was set; else the most of the last step that had any; else 8.

        Set it where groups are not observed whole, or lose rollouts that could not be scored: an integer in [1, 2**31),
        or None to go by the observations again. It is part of the state.
        """
        return self._told_group_size or int(self._counters["group_size"]) or DEFAULT_GROUP_SIZE

    @group_size.setter
    def group_size(self, rollouts: int | None) -> None:
        told = 0 if rollouts is None else checks.group_size("group_size", rollouts)
        self._told_group_size = told
        self._counters["told_group_size"].fill_(told)

    def coming_group_size(self) -> int | Tensor:
        """The same; on an accelerator, unless it was told, as (1,) int64 there, for that is not waited for."""
        if self._told_group_size or not self.on_device:
            return self.group_size
        return self._known_group_size(self._counters["group_size"])

    @property
    def record(self) -> Tensor:
        """What the last step saw, and had expected: (6,) float64, the figures of `kernels.tally.RECORD` in order.

        The next step overwrites it. It is not part of the state: all are 0 after one was loaded.
        """
        return self._record

    @property
    def visits(self) -> Tensor:
        """Steps in which each prompt was observed, (N,) int32."""
        return self._counters["visits"]

    @property
    def unseen(self) -> Tensor:
        """Prompts that were not observed since training began, (N,) bool; on a grid, not before it either."""
        return self.visits == 0

    @property
    def last_observed(self) -> Tensor:
        """Steps that had passed after each prompt was last observed, (N,) int32: 0 for never, `step` for just now.

        It is kept from the first time it is asked for, when what was observed before counts as observed just now.
        """
        if "last_observed" not in self._counters:
            with torch.inference_mode(False):
                # One entry more: for the rows of calls that a check on the device refused.
                kept = torch.zeros(self.num_prompts + 1, dtype=torch.int32, device=self.device)
                kept[:-1] = (self.visits > 0) * min(self.step, 2**31 - 1)
                self._counters["last_observed"] = kept
        return self._counters["last_observed"][: self.num_prompts]

    @property
    def solved(self) -> Tensor:
        """Steps in which every rollout of the prompt succeeded, (N,) int32."""
        return self._counters["solved"]

    @property
    def log_evidence(self) -> float:
        """Sum of the log predictive probabilities of what was observed, each as the emission's own event (nats)."""
        return float(self._read("log_evidence"))

    @property
    def log_count_evidence(self) -> float:
        """The same sum for the counts, binomial coefficient included (nats): the one that compares models."""
        return float(self._read("log_count_evidence"))

    @property
    def unexpected(self) -> int:
        """Observations to which the belief gave probability zero; they are left out of the evidence."""
        return int(self._read("unexpected"))

    @property
    def impossible(self) -> int:
        """Observations that the transition prior forbids; they teach no transition."""
        return int(self._read("impossible"))

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The whole state: copies of its tensors, numbers, strings and nested dictionaries of them."""
        self._raise_refused()
        none = torch.zeros(0, dtype=torch.int64)
        pending = [torch.cat(entries) for entries in zip(*self._pending, strict=True)] or [none] * 3
        tensors = {**self._counters, **self._tensors()}
        del tensors["refused"]
        if "last_observed" in tensors:
            tensors["last_observed"][-1] = 0  # nobody's
        return {
            "version": STATE_VERSION,
            "model": json.dumps(self._describe(), sort_keys=True),
            "step": self.step,
            "pending": {name: entry.clone() for name, entry in zip(PENDING, pending, strict=True)},
            "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. The state of another model, size, type or version raises CheckpointError."""
        self._check_state(state)
        self._keep_as(state)
        expected = {**self._counters, **self._tensors()}
        del expected["refused"]
        for name, mine in expected.items():
            mine.copy_(state["tensors"][name])
        self._counters["refused"].zero_()
        self._record.zero_()
        self._told_group_size = int(state["tensors"]["told_group_size"])
        index, successes, trials = (state["pending"][name].to(self.device).clone() for name in PENDING)
        self._pending = [(index, successes, trials)] if index.numel() else []
        self.step = state["step"]
        self._forget_answers()

    def _keep_as(self, state: Mapping[str, Any]) -> None:
        """Keep the steps of last observations if the state has them, and only then."""
        if "last_observed" in state["tensors"]:
            _ = self.last_observed
        else:
            self._counters.pop("last_observed", None)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """CheckpointError unless `load_state_dict` can take all of it."""
        own = {name: tensor for name, tensor in self._counters.items() if name not in ("refused", "last_observed")}
        tensors = state.get("tensors") if isinstance(state, Mapping) else None
        if isinstance(tensors, Mapping) and "last_observed" in tensors:
            own["last_observed"] = torch.zeros(self.num_prompts + 1, dtype=torch.int32, device=self.device)
        check_state(state, STATE_VERSION, self._describe(), own, self._tensors(), self.num_prompts)
        self._check_belief(state["tensors"])

    # What a model's posterior must provide

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """What a checkpoint must agree on: the model, the number of prompts, the type; as JSON-able values."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of the belief, by name, as they are written to checkpoints."""

    @abstractmethod
    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        """CheckpointError unless saved tensors, of the right shapes and not negative, are a belief."""

    @abstractmethod
    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        """One step for all N prompts; returns what was observed, and what had been expected."""

    @abstractmethod
    def _warm_start(self, counts: Counts) -> None:
        """Shape the belief by counts that were known before training."""

    @abstractmethod
    def _point_mass(self, index: Tensor) -> Tensor:
        """The belief as probabilities (B, Q) of Q points, such as hidden states or success rates, float64."""

    @abstractmethod
    def _point_worth(self, trials: int) -> Tensor:
        """P(0 < successes < trials) at each of these points, (Q,) float64."""

    def _point_later(self, trials: int, index: Tensor) -> Tensor:
        """The same one step later, expected at each of the points now: (Q,), or (B, Q) where prompts differ."""
        return self._point_worth(trials)

    @abstractmethod
    def _point_chance(self, trials: int) -> Tensor:
        """P(successes) at each of the points, (trials + 1, Q) float64."""

    # Shared inner workings

    def _looked(self, trials: int, answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """`answer` (N,) from P(informative) now (B,), and chance and worth (B, O) of the outcomes of a look."""
        trials = checks.group_size("trials", trials)
        chances = self._point_chance(min(trials, looks.MOST_ROLLOUTS))
        out = torch.empty(self.num_prompts, dtype=self.dtype, device=self.device)
        for part in self._chunks():
            mass, later = self._point_mass(part), self._point_later(trials, part)
            now = self.informative_probability(trials, part).double()
            out[part] = answer(now, mass @ chances.T, (mass * later) @ chances.T).to(self.dtype)
        return out

    def _chunks(self) -> Iterator[Tensor]:
        """Rows (B,) of so many prompts that their beliefs can be worked with at a time."""
        for start in range(0, self.num_prompts, _CHUNK):
            yield torch.arange(start, min(start + _CHUNK, self.num_prompts), device=self.device)

    def counts(self) -> Counts:
        """What the next `advance` will learn from, as kernels take it: nothing waits for the device."""
        kept, counts = self._counted
        if len(kept) != len(self._pending) or any(a is not b for a, b in zip(kept, self._pending, strict=True)):
            counts = counted(self._pending, self.num_prompts, self.device, self.on_device)
            self._counted = list(self._pending), counts
        return counts

    @staticmethod
    def _known_group_size(size: Tensor) -> Tensor:
        """(1,) int64 of a counter, which is 0 before there was an observation."""
        return torch.where(size > 0, size, DEFAULT_GROUP_SIZE).reshape(1)

    def _forget_answers(self) -> None:
        """The belief has changed other than by a step: scores that are kept for a pick no longer hold."""

    def _checked(self, index: Tensor) -> Tensor:
        """Rows (B,) to be looked up, on this device; those of the host are checked."""
        if isinstance(index, Tensor) and self.defers_checks(index):
            return index
        return sent(checks.rows("index", index, self.num_prompts), self.device)

    def _kernel(self, operation: str) -> ModuleType:
        return backends.load(operation, self.backend)

    def _read(self, name: str) -> Tensor:
        self._raise_refused()
        return self._counters[name]

    def defers_checks(self, index: IntegersLike) -> bool:
        """Whether the counts of rows (B,) are checked where they live, on a device that must not be waited for."""
        return self.on_device and isinstance(index, Tensor) and index.device.type != "cpu"

    def _raise_refused(self) -> None:
        """Raise what a check on the device found; the refused call itself is then gone."""
        if bool(self._counters["refused"][0]):
            kept = [entries for entries in self._pending if not bool((entries[0] == self.num_prompts).any())]
            self._pending = kept
            checks.raise_deferred(self._counters["refused"], self.num_prompts)
