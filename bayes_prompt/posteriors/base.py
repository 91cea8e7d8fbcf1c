"""The one protocol of every posterior: what a trainer observes and what an acquisition may ask."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import bayes_prompt.kernels.backend as backends
from bayes_prompt.kernels import rng
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.checks import IntegersLike
from bayes_prompt.posteriors.counts import Counts, counted
from bayes_prompt.posteriors.questions import Questions
from bayes_prompt.posteriors.records import Records
from bayes_prompt.transfer import sent


class _Outlasting(ABCMeta):
    """Whatever mode a trainer is in when a posterior is made: its tensors are written to later on."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        with torch.inference_mode(False):
            return super().__call__(*arguments, **options)


class Posterior(Records, Questions, metaclass=_Outlasting):
    """What is known now about N prompts, updated online.

    One training step is: select, roll out, `observe`, `advance`. Time moves only in `advance`; `observe` keeps counts
    until then. Draws are functions of (seed, step, prompt), where the prompt's number is its row plus `first_prompt`,
    so that a chunk of a larger pool draws what the pool draws.

    What is seen is in `Records`, with checkpoints, what may be asked in `Questions`. Tensors that the properties return
    are views of the live state: clone what must outlast the next `advance`.
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
        num_prompts = checks.integer("num_prompts", num_prompts, 1)
        self.first_prompt = checks.integer("first_prompt", first_prompt, 0, rng.PROMPT_LIMIT - num_prompts)
        self.stored_dtype = dtype
        self.dtype = torch.float32 if dtype == torch.bfloat16 else dtype  # of what is asked about the belief
        super().__init__(num_prompts, checks.usable_device("device", device))
        self.backend = backends.resolve(backend, self.device)

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
        if self._looks is not None:
            self._looks = self._looks + self._record[0].long()  # as many prompts as were observed
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

        They shape the belief, and count neither as visits nor as evidence, but the prompts are no longer `unseen`.
        `trials` is their weight: a rate from 128 rollouts of another model is better told as 8 trials. ValueError once
        time has moved or counts are waiting.
        """
        if self.step or self._pending:
            raise ValueError(f"warm_start must come before the first observe and advance; step is {self.step}")
        index, successes, trials = checks.counts(index, successes, trials, self.num_prompts)
        if index.numel():
            known = (index.to(self.device), successes.to(self.device), trials.to(self.device))
            self._warm_start(counted([known], self.num_prompts, self.device, self.on_device))
            self._keep("known_before")[known[0]] = True

    # What a model's posterior must provide, beside the answers to `Questions` and what `Records` writes to checkpoints

    @abstractmethod
    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        """One step for all N prompts; returns what was observed, and what had been expected."""

    @abstractmethod
    def _warm_start(self, counts: Counts) -> None:
        """Shape the belief by counts that were known before training."""

    # Shared inner workings

    def _checked(self, index: Tensor) -> Tensor:
        """Rows (B,) to be looked up, on this device; those of the host are checked."""
        if isinstance(index, Tensor) and self.defers_checks(index):
            return index
        return sent(checks.rows("index", index, self.num_prompts), self.device)

    def _kernel(self, operation: str) -> ModuleType:
        return backends.load(operation, self.backend)

    def defers_checks(self, index: IntegersLike) -> bool:
        """Whether the counts of rows (B,) are checked where they live, on a device that must not be waited for."""
        return self.on_device and isinstance(index, Tensor) and index.device.type != "cpu"
