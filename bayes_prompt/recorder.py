"""Recorder: writes the rollout history of a training run while it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence, Set
from pathlib import Path
from threading import RLock
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bayes_prompt import history_copies, history_files
from bayes_prompt.files import sync, whole
from bayes_prompt.history import History
from bayes_prompt.history_files import Name
from bayes_prompt.history_log import StepLog, scan
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.checks import IntegersLike

if TYPE_CHECKING:
    from bayes_prompt.posteriors.base import Posterior
    from bayes_prompt.selector import PromptSelector


class Recorder:
    """Writes what came of every rolled-out prompt to a file, a line for each, on the disk before the step is made.

    Handed a selector, it writes whatever the selector learns from, and no line of the trainer has to change:

        recorder = bp.Recorder("run/history.parquet", selector, resume=True)
        ...                                    # train as before
        recorder.close()

    Without one, call `record` at every step. `History.read(path)` reads the file, and `bayes-prompt replay` replays it.

    Where a step was told to take another time than 1, `elapsed`, that is recorded with its observations, or with a
    line that has none.

    Lines are JSON, and lie in NAME.jsonl; for a name that ends in .parquet, `close` makes that file of them as well and
    leaves them where they are: until then it is what an earlier `close` made. Whenever the process dies, all steps that
    were made are there, and perhaps a part of the one that was being written. After a restart the run goes on from its
    checkpoint, which may be older than the last line: what was recorded of the steps that are run again stays until the
    first of them is, and is then replaced, so that no step is there twice (how: `history_log.StepLog`). In a
    distributed run, record in one process.

    Args:
        path: .jsonl, .ndjson or .parquet; its folder is made where it is missing.
        selector: whose steps are recorded, numbered by those of its posterior; under the names of its prompts if it has
            ids (strings, or integers of 64 bits), else under their rows. On a GPU each step waits for the counts.
        resume: go on with a file that is there; without it, such a file is an error.

    Raises:
        ValueError: the ending of the name; a file that is there, unless `resume`; or one that is no such record, or not
            one of these prompts. It is as it was then.
        TypeError: the selector's ids are neither strings nor integers, or it is no PromptSelector.
        ImportError: .parquet, and pyarrow is not installed. OSError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], selector: PromptSelector | None = None, *, resume: bool = False
    ) -> None:
        self.path = Path(path).absolute()  # a trainer may change its folder
        parquet = history_files.format_of(path) == "parquet"
        if parquet:
            history_files.pyarrow()  # told now, not at the end of a long run
        self.lines = self.path.with_suffix(".jsonl") if parquet else self.path
        for file in {self.path, self.lines}:
            if file.exists() and not resume:
                raise ValueError(f"{str(file)!r} is there already; pass resume=True to go on with it, or another name")
        self._lock = RLock()
        self._posterior: Posterior | None = None
        self._names: tuple[Name, ...] | None = None
        self._num_prompts: int | None = None
        if selector is not None:
            self._names = _names(selector)
            self._num_prompts = selector.num_prompts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._prompts = _Prompts(self._names, self._num_prompts)
        if parquet and self.path.exists() and not self.lines.exists():
            with whole(self.lines) as scratch:
                history_copies.write_jsonl(self.path, scratch)
                scan(scratch, self._prompts.step_of, self.path)
                sync(scratch)
        self._open_step: int | None = None  # the one that `record` may add to
        self._open_elapsed = 1.0  # its
        self._log = StepLog(self.lines, self._prompts.step_of)
        self._closed, self._table_due = False, parquet
        self._had_steps = self.last_step is not None
        self._process = os.getpid()
        if selector is not None:
            self._posterior = selector.posterior
            self._posterior.advance = _Tap(self, selector.posterior)  # type: ignore[method-assign]

    @property
    def last_step(self) -> int | None:
        """The last step that was recorded, in earlier runs too; None before the first."""
        return self._log.last_step

    def record(
        self,
        step: int,
        prompts: IntegersLike | Sequence[str],
        successes: IntegersLike,
        trials: IntegersLike | int,
        elapsed: float = 1.0,
    ) -> None:
        """Write down what came of the prompts of one step. Calls for one step add to it; then comes a later one.

        The first step after a restart may be one that is there already: it and those after it are replaced.

        Args:
            step: at least 0.
            prompts: rows, or names of the prompts, (B,): strings, or integers of 64 bits, and all of a file alike. Of a
                recorder with a selector, those of its prompts.
            successes: (B,) integers in [0, trials]. trials: (B,) integers, or one for all, at least 1.
            elapsed: how much time the step took, as `advance` is told; the same in all calls for one step.

        Raises:
            ValueError: a count or prompt out of range, a shape, a step before the last one, another time than before
                for this step, or the recorder is closed.
            TypeError: not integers, or names that are neither or not like the others.
            OSError: it could not be written. The file is then as it was.
        """
        step = checks.integer("step", step, 0, 2**63 - 1)
        names = _listed(prompts)
        rows = range(len(names))
        _, solved, of = checks.counts(rows, successes, trials, max(1, len(names)))
        elapsed = checks.elapsed_time(elapsed)
        if not names and elapsed != 1:
            raise ValueError(
                f"prompts must be one or more where elapsed is not 1, to have a line; got none and {elapsed}"
            )
        with self._lock:
            kind = self._prompts.check("prompts", names)
            if self._open_step is not None and step < self._open_step:
                raise ValueError(
                    f"step = {step} lies before {self._open_step}, which is being recorded; late rollouts belong to "
                    "the step that learns from them, and rewind(step) goes back"
                )
            if step == self._open_step and elapsed != self._open_elapsed:
                raise ValueError(f"elapsed = {elapsed} must be {self._open_elapsed}, as before for step {step}")
            lines = _lines(step, names, solved.tolist(), of.tolist(), elapsed)
            with self._opened().written(step, lines, more=step == self._open_step):
                pass
            self._open_step, self._open_elapsed, self._prompts.kind = step, elapsed, kind

    def rewind(self, step: int) -> None:
        """Drop what was recorded of this step and of later ones, for training goes on from there again.

        It needs no room on the disk. Raises ValueError where the recorder is closed, OSError where the file cannot be
        written.
        """
        step = checks.integer("step", step, 0, 2**63 - 1)
        with self._lock:
            self._opened().cut(step)
            self._open_step = None

    def close(self) -> None:
        """Stop recording; for a name that ends in .parquet, make that file. Once is enough, more does no harm.

        It is made in pieces, in little memory (see `history_copies`). Without any step there is none, and one that was
        made of steps that have all been dropped since is removed.

        Raises OSError where the file cannot be written, or somebody else has changed the lines; ValueError where these
        are otherwise no longer those that were recorded. They stay, and so does an earlier file; nothing more is
        recorded. It may be tried again.
        """
        with self._lock:
            self._closed = True
            if self._posterior is not None:
                del self._posterior.advance
                self._posterior = None
            if self._table_due:
                self._log.check_owned()
                if self.last_step is not None:
                    with whole(self.path) as scratch:
                        history_copies.write_parquet(self.lines, scratch, self._names, self._num_prompts)
                        sync(scratch)
                elif self._had_steps:
                    self.path.unlink(missing_ok=True)
            self._table_due = False

    def history(self) -> History:
        """What has been recorded so far. ValueError where that is nothing.

        Prompts are the N of the selector; without one, those that were recorded (see `History.read`).
        """
        with self._lock:
            if self.last_step is None:
                raise ValueError(f"{str(self.lines)!r} has no observations yet")
            if self._num_prompts is not None and self._names is None:
                return History.read_jsonl(self.lines, num_prompts=self._num_prompts)
            return History.read(self.lines, ids=self._names)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _learn(self, posterior: Posterior, advance: Callable[[float], None], elapsed: float) -> None:
        """A step of the selector: written before it is made, taken back where it is refused."""
        elapsed = checks.elapsed_time(elapsed)
        if os.getpid() != self._process:  # a forked copy
            return advance(elapsed)
        with self._lock:
            rows, successes, trials = (each.cpu() for each in posterior.pending())
            known = rows < posterior.num_prompts  # others stand for calls that a check on the device refused
            names = [self._names[row] if self._names else row for row in rows[known].tolist()]
            step = posterior.step
            lines = _lines(step, names, successes[known].tolist(), trials[known].tolist(), elapsed)
            if not lines and elapsed != 1:
                lines = _lines(step, [self._names[0] if self._names else 0], [0], [0], elapsed)
            with self._opened().written(step, lines, stays=lambda: posterior.step != step):
                advance(elapsed)
                self._open_step = None

    def _opened(self) -> StepLog:
        if self._closed:
            raise ValueError(f"the recorder of {str(self.path)!r} is closed")
        return self._log


class _Tap:
    """Stands in for `advance` of a posterior that is recorded. Copies of the posterior are not recorded."""

    def __init__(self, recorder: Recorder, posterior: Posterior) -> None:
        self.recorder, self.posterior = recorder, posterior

    def __call__(self, elapsed: float = 1.0) -> None:
        self.recorder._learn(self.posterior, _plain(self.posterior), elapsed)

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, (self.posterior,)


def _plain(posterior: Posterior) -> Callable[..., None]:
    """`advance` as the class has it."""
    return MethodType(type(posterior).advance, posterior)


def _lines(step: int, names: Sequence[Name], successes: list[int], trials: list[int], elapsed: float) -> bytes:
    """Observations (B,) of a step as they stand in the file."""
    observed = zip(names, successes, trials, strict=True)
    return "".join(history_files.line(name, step, right, of, elapsed=elapsed) for name, right, of in observed).encode()


def _names(selector: PromptSelector) -> tuple[Name, ...] | None:
    """The names of a selector's prompts, or None where they are called by their rows."""
    from bayes_prompt.selector import PromptSelector

    if not isinstance(selector, PromptSelector):
        raise TypeError(f"selector must be a PromptSelector; got {type(selector).__name__}")
    if isinstance(vars(selector.posterior).get("advance"), _Tap):
        raise ValueError("selector is recorded already; close that recorder first")
    names = _listed(selector.ids_of(range(selector.num_prompts)), "ids of the selector")
    return None if names == list(range(len(names))) else tuple(names)


def _listed(prompts: Any, what: str = "prompts") -> list[Name]:
    """Names as strings or Python's integers."""
    if isinstance(prompts, Tensor | np.ndarray):
        if prompts.ndim != 1:
            raise ValueError(f"{what} must have shape (B,); got {tuple(prompts.shape)}")
        prompts = prompts.tolist()
    if isinstance(prompts, str | bytes | Mapping | Set) or not hasattr(prompts, "__len__"):
        raise TypeError(f"{what} must be a sequence of rows or names; got {type(prompts).__name__}")
    names = [int(name) if isinstance(name, np.integer) else name for name in prompts]
    for place, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(f"{what}[{place}] = {name!r} must be an integer or a string")
        if not history_files.is_name(name):
            raise ValueError(f"{what}[{place}] = {name!r} must be an integer of 64 bits")
    return names


class _Prompts:
    """Which prompts a file may have: alike, and the selector's. kind: int or str; None while nothing says which."""

    def __init__(self, names: tuple[Name, ...] | None, num_prompts: int | None) -> None:
        self.pool: Container[Name] | None = None
        self.kind: type | None = None
        self._time = -1, 1.0  # of the step of the last line
        if num_prompts is not None:
            listed: Sequence[Name] = range(num_prompts) if names is None else names
            self.kind = int if names is None else self.check("ids of the selector", names)
            self.pool = listed if isinstance(listed, range) else frozenset(listed)

    def check(self, what: str, names: Sequence[Name]) -> type | None:
        """The kind of these names, which are as `_listed` has them; TypeError or ValueError names the first bad one."""
        kind = self.kind
        for place, name in enumerate(names):
            kind = kind or (str if isinstance(name, str) else int)
            if not isinstance(name, kind):
                alike = "a string" if kind is str else "an integer"
                raise TypeError(f"{what}[{place}] = {name!r} must be {alike} like the others")
            if self.pool is not None and name not in self.pool:
                raise ValueError(f"{what}[{place}] = {name!r} is no prompt of the selector")
        return kind

    def step_of(self, record: Any) -> int:
        """The step of what stands in a line; ValueError, TypeError or KeyError where it is no line of a history."""
        name, *counts = (record[column] for column in history_files.COLUMNS)
        if any(type(count) is not int or not 0 <= count < 2**63 for count in counts):
            raise ValueError(f"{counts} must be integers of at least 0")
        step, successes, trials = map(int, counts)
        if successes > trials:
            raise ValueError(f"successes = {successes} must lie in [0, trials] = [0, {trials}]")
        elapsed = history_files.elapsed_of(record)
        before, time = self._time
        if step == before and elapsed != time:
            raise ValueError(f"elapsed = {elapsed} must be {time}, as in an earlier line of step {step}")
        self._time = step, elapsed
        self.kind = self.check("prompt_id", _listed([name], "prompt_id"))
        return step
