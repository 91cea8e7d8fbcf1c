"""What a posterior keeps of its prompts beside the belief: how often they were seen, evidence; and its checkpoints."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.kernels.tally import RECORD, Books
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.counts import Counts, counted
from bayes_prompt.posteriors.state import PENDING, STATE_VERSION, check_state

DEFAULT_GROUP_SIZE = 8  # assumed until the first observation says otherwise
# Counters of prompts that are kept only from when they are first needed, in the state too, by their type. They have
# one entry more: for the rows of calls that a check on the device refused.
_LATER = {"last_observed": torch.int32, "known_before": torch.bool}


class Records(ABC):
    """The counts that wait for the next `advance`, and the counters of N prompts, as loggers read and files hold them.

    Tensors that the properties return are views of the live state: clone what must outlast the next `advance`.
    """

    def __init__(self, num_prompts: int, device: torch.device) -> None:
        self.num_prompts = num_prompts
        self.device = device
        self.on_device = device.type != "cpu"  # which is then not waited for where that can be helped
        self.step = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._counted: tuple[list[tuple[Tensor, Tensor, Tensor]], Counts] = ([], counted([], num_prompts, device))
        self._told_group_size = 0
        self._looks: Tensor | None = None  # () int64, the sum of visits, kept once somebody has asked
        self._counters: dict[str, Tensor] = {
            "visits": torch.zeros(num_prompts, dtype=torch.int32, device=device),
            "solved": torch.zeros(num_prompts, dtype=torch.int32, device=device),
            "log_evidence": torch.zeros((), dtype=torch.float64, device=device),
            "log_count_evidence": torch.zeros((), dtype=torch.float64, device=device),
            "unexpected": torch.zeros((), dtype=torch.int64, device=device),
            "impossible": torch.zeros((), dtype=torch.int64, device=device),
            "group_size": torch.zeros((), dtype=torch.int64, device=device),
            "told_group_size": torch.zeros((), dtype=torch.int64, device=device),
            "refused": torch.zeros(3, dtype=torch.int64, device=device),
        }
        self._record = torch.zeros(len(RECORD), dtype=torch.float64, device=device)
        self._books = Books(**{field.name: self._counters[field.name] for field in fields(Books)})

    def counts(self) -> Counts:
        """What the next `advance` will learn from, as kernels take it: nothing waits for the device."""
        kept, counts = self._counted
        if len(kept) != len(self._pending) or any(a is not b for a, b in zip(kept, self._pending, strict=True)):
            counts = counted(self._pending, self.num_prompts, self.device, self.on_device)
            self._counted = list(self._pending), counts
        return counts

    def pending(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the next `advance` will learn from: index, successes, trials, each (M,) int64 with distinct rows."""
        counts = self.counts()
        return counts.index[counts.leader], counts.successes[counts.leader], counts.trials[counts.leader]

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
    def solved(self) -> Tensor:
        """Steps in which every rollout of the prompt succeeded, (N,) int32."""
        return self._counters["solved"]

    @property
    def unseen(self) -> Tensor:
        """Prompts of which there is no record, (N,) bool: never observed, and not told by `warm_start` either.

        What waits for the next `advance` is on record from then on.
        """
        unvisited = self.visits == 0
        if "known_before" not in self._counters:
            return unvisited
        return unvisited & ~self._counters["known_before"][: self.num_prompts]

    @property
    def looks(self) -> int:
        """Looks at prompts since training began: the sum of `visits`, and of prompts that wait for `advance`."""
        if self._looks is None:
            self._looks = self.visits.sum()
        return int(self._looks) + int(self.counts().leader.count_nonzero())

    @property
    def last_observed(self) -> Tensor:
        """Steps that had passed after each prompt was last observed, (N,) int32: 0 for never, `step` for just now.

        It is kept from the first time it is asked for, when what was observed before counts as observed just now.
        """
        if "last_observed" not in self._counters:
            self._keep("last_observed")[:-1] = (self.visits > 0) * min(self.step, 2**31 - 1)
        return self._counters["last_observed"][: self.num_prompts]

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
        for name in _LATER.keys() & tensors:
            tensors[name][-1] = 0  # nobody's
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
        for name in _LATER:
            if name in state["tensors"]:
                self._keep(name)
            else:
                self._counters.pop(name, None)
        expected = {**self._counters, **self._tensors()}
        del expected["refused"]
        for name, mine in expected.items():
            mine.copy_(state["tensors"][name])
        self._counters["refused"].zero_()
        self._record.zero_()
        self._looks = None
        self._told_group_size = int(state["tensors"]["told_group_size"])
        index, successes, trials = (state["pending"][name].to(self.device).clone() for name in PENDING)
        self._pending = [(index, successes, trials)] if index.numel() else []
        self.step = state["step"]
        self._forget_answers()

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """CheckpointError unless `load_state_dict` can take all of it."""
        own = {name: tensor for name, tensor in self._counters.items() if name not in {"refused", *_LATER}}
        tensors = state.get("tensors") if isinstance(state, Mapping) else None
        if isinstance(tensors, Mapping):
            own |= {name: self._nothing(name) for name in _LATER if name in tensors}
        check_state(state, STATE_VERSION, self._describe(), own, self._tensors(), self.num_prompts)
        self._check_belief(state["tensors"])

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """What a checkpoint must agree on: the model, the number of prompts, the type; as JSON-able values."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of the belief, by name, as they are written to checkpoints."""

    @abstractmethod
    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        """CheckpointError unless saved tensors, of the right shapes and not negative, are a belief."""

    def _forget_answers(self) -> None:  # noqa: B027 (most posteriors keep none)
        """The belief has changed other than by a step: scores that are kept for a pick no longer hold."""

    # Inner workings

    def _keep(self, name: str) -> Tensor:
        """A counter of `_LATER`, (N + 1,), which is kept from now on."""
        if name not in self._counters:
            with torch.inference_mode(False):  # kept beyond this call, and written to
                self._counters[name] = self._nothing(name)
        return self._counters[name]

    def _nothing(self, name: str) -> Tensor:
        return torch.zeros(self.num_prompts + 1, dtype=_LATER[name], device=self.device)

    @staticmethod
    def _known_group_size(size: Tensor) -> Tensor:
        """(1,) int64 of a counter, which is 0 before there was an observation."""
        return torch.where(size > 0, size, DEFAULT_GROUP_SIZE).reshape(1)

    def _read(self, name: str) -> Tensor:
        self._raise_refused()
        return self._counters[name]

    def _raise_refused(self) -> None:
        """Raise what a check on the device found; the refused call itself is then gone."""
        if bool(self._counters["refused"][0]):
            kept = [entries for entries in self._pending if not bool((entries[0] == self.num_prompts).any())]
            self._pending = kept
            checks.raise_deferred(self._counters["refused"], self.num_prompts)
