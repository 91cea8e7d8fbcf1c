"""TRL's GRPOTrainer with a selector that chooses the prompts.

```python
args = GRPOConfig(per_device_train_batch_size=64, num_generations=8)
selector = bayes_prompt.recipes.dps(num_prompts=len(dataset), batch_size=args.generation_batch_size // 8)
GRPOTrainer(model, reward_funcs=solved, args=args, train_dataset=dataset, selector=selector).train()
```
Written for TRL 1.x, whose loop it follows: one generation batch is one pick of generation_batch_size // num_generations
prompts, observed when its rewards are in, and then one step of time passes. The data loader reads at least one batch
ahead and takes gradient_accumulation_steps batches at once, so a pick is drawn before the rewards of the last one (or
few) are known; prompts that are out are not picked again, and in a pool too small for that the longest out come first.
"""

from __future__ import annotations

import inspect
import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    import trl
    from datasets import IterableDataset
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    _GRPOTrainer = trl.GRPOTrainer
except ImportError as error:
    raise ImportError("bayes_prompt.trainers.trl needs TRL: pip install 'bayes-prompt[trl]'") from error

from bayes_prompt import checkpoint
from bayes_prompt.errors import CheckpointError
from bayes_prompt.selector import PromptSelector
from bayes_prompt.trainers.picks import (
    Picks,
    RepeatedPicks,
    check_selector,
    count_groups,
    learn,
    reuse_on_shortage,
)

SELECTOR_FILE = "selector.safetensors"
PICKS_FILE = "picks.safetensors"
ROW = "bayes_prompt_row"
# Figures of one batch, which a logger may average over steps; of all others it gets the newest.
_OF_A_BATCH = {
    "effective_sample_ratio",
    "predicted_effective_sample_ratio",
    "success_rate",
    "predicted_success_rate",
    "unscorable",
    "seconds",
}


class NumberedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A view of a dataset whose rows carry their number, under the key `ROW`. Nothing is copied, formats are kept."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.dataset[row], ROW: row}

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return [{**example, ROW: row} for row, example in zip(rows, self.dataset.__getitems__(rows), strict=True)]


class _EpochBegins(TrainerCallback):
    """Tells the trainer where an epoch begins: the Trainer's own count takes every epoch for a whole one."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        # The trainer owns this callback: in a cycle its model would wait for the garbage collector.
        self._trainer = weakref.ref(trainer)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer()
        assert trainer is not None  # it is training
        # In a resumed epoch the trainer's count starts at what had been trained of it.
        trainer._epoch_began_at = 0 if trainer._picks.resumed else trainer._step


class GRPOTrainer(_GRPOTrainer):  # type: ignore[misc,valid-type]
    """TRL's `GRPOTrainer` whose prompts are chosen by a selector. All its arguments, and:

    Args:
        selector: over the rows of train_dataset, with batch_size generation_batch_size // num_generations. With several
            processes each needs its own, made with the same seed and settings. One that leaves `on_shortage` open is
            set to "reuse".
        success: what tells a solved prompt: the name of a reward function, or a function that is called as reward
            functions are and trains nothing. None where there is only one reward function. Its rewards must lie in
            [0, 1]; None or NaN marks a completion that could not be scored: it does not count as a trial.
        success_threshold: a reward of at least this is a success, in (0, 1]; it becomes the selector's. None for the
            one that the selector has.

    Rows come in the order of the picks: `shuffle_dataset` has no effect.

    Checkpoints hold the selector beside the model (`selector.safetensors`, to be read with `selector.load`, and
    `picks.safetensors`). A resumed run goes on as the unbroken one, bit for bit, if the checkpoint was written between
    two generation batches. Completions are not saved: within a batch (num_iterations or steps_per_generation above
    gradient_accumulation_steps) the current pick is rolled out again, which is observed as one more batch.
    Evaluation is never observed. The figures of `selector.metrics()` are logged as `selector/...`, with
    `selector/unscorable` (completions of a batch without a reward) and `selector/seconds` (spent on a batch).

    Put it first to combine it with another trainer: `class Mine(GRPOTrainer, OtherGRPOTrainer)`.
    """

    reward_funcs: list[Any]
    reward_func_names: list[str]
    reward_processing_classes: list[Any]
    _signature_columns: list[str]

    def __init__(
        self,
        *args: Any,
        selector: PromptSelector,
        success: str | Callable[..., list[float | None]] | None = None,
        success_threshold: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_selector(selector)
        threshold = selector.success_threshold if success_threshold is None else success_threshold
        if not 0 < threshold <= 1:
            raise ValueError(f"success_threshold must lie in (0, 1]; got {threshold}")
        super().__init__(*args, **kwargs)
        self.selector = selector
        self._learning_seconds = 0.0
        self._reported_seconds = 0.0
        self._picks = Picks(selector)
        self._success, self._success_name, self._success_column = self._resolve(success)
        self._rows: Tensor | None = None  # of the completions that are being scored, (completions of this rank,)
        self._epoch_began_at = 0  # micro-steps trained before the current epoch
        self._check_sizes(self.train_dataset)
        # From here on nothing can fail. The threshold is the selector's, so that its checkpoints must agree on it; the
        # group size is told, for rewards that could not be scored make observed groups smaller than coming ones.
        reuse_on_shortage(selector)
        selector.success_threshold = float(threshold)
        selector.posterior.group_size = self.num_generations
        self.add_callback(_EpochBegins(self))

    # Rows in

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, ROW]

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        if is_training:
            self._check_sizes(dataset)
            dataset = NumberedRows(dataset)
        return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> RepeatedPicks:
        return RepeatedPicks(self._picks, self.num_generations, self._repeats)

    @property
    def _repeats(self) -> int:
        """Micro-steps that train on one generation batch; the data loader hands the same prompts out in each."""
        repeats: int = self.num_iterations * self.args.steps_per_generation
        return repeats

    # Rewards out

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # Only the training loader numbers its rows, so evaluation passes by. Taken out again before anybody sees them.
        rows = [example.pop(ROW) for example in inputs if ROW in example]
        self._rows = torch.tensor(rows, device=self.accelerator.device) if rows else None
        try:
            scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._rows = None
        return scored

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        with self._scored_by_success():
            rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rows, self._rows = self._rows, None
        if rows is not None:
            self._learn(rows, rewards[:, self._success_column])
        return rewards[:, : len(self.reward_funcs)].contiguous()

    @contextmanager
    def _scored_by_success(self) -> Iterator[None]:
        """While training completions are scored, let the callable `success` be one more reward function.

        TRL then calls it, checks what it returns and gathers it over the ranks. Its column is cut off afterwards: it
        has no part in the reward, its log or the test for unscorable completions.
        """
        if self._success is None or self._rows is None:
            yield
            return
        before = self.reward_funcs, self.reward_func_names, self.reward_processing_classes
        self.reward_funcs = [*self.reward_funcs, self._success]
        self.reward_func_names = [*self.reward_func_names, self._success_name]
        self.reward_processing_classes = [*self.reward_processing_classes, None]
        try:
            yield
        finally:
            self.reward_funcs, self.reward_func_names, self.reward_processing_classes = before

    def _learn(self, rows: Tensor, rewards: Tensor) -> None:
        """Observe a generation batch: rows (completions of this rank,), rewards (completions of all ranks,)."""
        started = time.perf_counter()
        digest = torch.tensor([self._picks.digest], device=rows.device)
        ranks = self.accelerator.gather(torch.cat([rows, digest])).reshape(-1, len(rows) + 1).cpu()
        if (ranks[:, -1] != ranks[0, -1]).any():
            raise RuntimeError(
                "the ranks picked different prompts. Give every rank the same selector: same seed, model and settings, "
                "with nothing observed on one rank alone"
            )
        counts = count_groups(
            rows=ranks[:, :-1].reshape(-1),
            rewards=rewards.cpu(),
            group=self.num_generations,
            threshold=self.selector.success_threshold,
            name=f"rewards of {self._success_name}",
        )
        learn(self.selector, counts)
        figures = {**self.selector.metrics(pool=False), "unscorable": float(counts.unscorable)}
        self._learning_seconds += time.perf_counter() - started
        figures["seconds"], self._reported_seconds = (
            self.selector_seconds - self._reported_seconds,
            self.selector_seconds,
        )
        metrics = self._metrics["train"]
        for figure, value in figures.items():
            earlier = metrics[f"selector/{figure}"] if figure in _OF_A_BATCH else []
            metrics[f"selector/{figure}"] = [*earlier, value]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's own; the figures of the whole pool are worked out only here, where they are logged."""
        metrics = self._metrics["train"]
        if self.model.training and "selector/groups" in metrics:
            for figure, value in self.selector.metrics().items():
                metrics.setdefault(f"selector/{figure}", [value])
        super().log(logs, start_time)

    @property
    def selector_seconds(self) -> float:
        """Seconds spent on choosing prompts and on learning from their rewards, so far."""
        return self._picks.seconds + self._learning_seconds

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the rest, so that a checkpoint which is otherwise whole has it.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            self.selector.save(folder / SELECTOR_FILE)
            done = (self._step - self._epoch_began_at) % (len(self._picks) * self._repeats)
            state = {"micro_steps": done, "repeats": self._repeats, **self._picks.state_dict()}
            checkpoint.write(folder / PICKS_FILE, state, kind="Picks")
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint_folder)
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        for name in (SELECTOR_FILE, PICKS_FILE):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} has no {name}: it was not written by a trainer with a selector")
        # TRL has lost its completions, so it rolls out anew at its first step, wherever in a batch that is.
        self._buffered_inputs = None
        self._step = 0
        trained = 0 if self.args.ignore_data_skip else self._micro_steps_to_skip()
        if trained == 0:
            # The trainer begins a new epoch. Only with ignore_data_skip can prompts be out here: they are let go.
            self._load_selector(folder, in_flight="release")
            self._picks.restart()
            return
        state = checkpoint.read(folder / PICKS_FILE, kind="Picks")
        ready = len(state["picks"]) * state["repeats"]
        if state["micro_steps"] != trained or state["repeats"] != self._repeats or ready < trained:
            raise CheckpointError(
                f"{folder} cannot be resumed in mid-epoch. It was written after {state['micro_steps']} micro-steps of "
                f"an epoch, {state['repeats']} for each pick, with picks for {ready}; the trainer skips {trained}, "
                f"{self._repeats} for each pick. Resume with the batch sizes, dataset and numbers of steps it was "
                "written with, or, where they are the same and an epoch had been left early, set ignore_data_skip=True "
                "to begin a new epoch"
            )
        self._picks.load_state_dict(state)
        try:
            self._load_selector(folder, in_flight="keep")
        except BaseException:
            self._picks.restart()  # they were picks of a selector that this one is not
            raise
        # TRL would count from 0 again, and so roll out in the middle of every later pick's repeats.
        self._step = trained

    def _load_selector(self, folder: Path, in_flight: str) -> None:
        self.selector.load(folder / SELECTOR_FILE, in_flight=in_flight)
        self.selector.posterior.group_size = self.num_generations

    def _micro_steps_to_skip(self) -> int:
        """Batches of the current epoch that have been trained on, as the Trainer works them out when it resumes."""
        accumulation: int = self.args.gradient_accumulation_steps
        updates = math.ceil(len(self._picks) * self._repeats / accumulation)
        done: int = self.state.global_step % updates
        return done * accumulation

    # What the arguments must fulfil

    def _check_sizes(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError("train_dataset must be a Dataset: rows of an IterableDataset cannot be picked by number")
        if len(dataset) != self.selector.num_prompts:
            raise ValueError(
                f"train_dataset has {len(dataset)} rows; the selector's num_prompts is {self.selector.num_prompts}"
            )
        samples, group = self.args.generation_batch_size, self.num_generations
        if samples // group != self.selector.batch_size:
            raise ValueError(
                f"the selector's batch_size must be generation_batch_size // num_generations = {samples} // {group} = "
                f"{samples // group}; got {self.selector.batch_size}"
            )
        if not self.args.dataloader_in_order:
            raise ValueError("dataloader_in_order must be on: batches in another order tear groups apart")
        for option in ("dispatch_batches", "split_batches"):
            if getattr(self.args.accelerator_config, option):
                raise ValueError(f"accelerator_config.{option} must be off: every rank picks prompts for itself")

    def _resolve(self, success: Any) -> tuple[Any, str, int]:
        """The function that TRL has to call besides its own, or None; the name of what defines success; its column."""
        names = self.reward_func_names
        choices = "name one of the reward functions (" + ", ".join(map(repr, names)) + ") or give a function"
        if success is None:
            if len(names) != 1:
                raise ValueError(f"success must say which reward tells a solved prompt: {choices}")
            return None, names[0], 0
        if isinstance(success, str):
            if names.count(success) != 1:
                raise ValueError(
                    f"success={success!r} is the name of {names.count(success)} reward functions: {choices}"
                )
            return None, success, names.index(success)
        if not callable(success):
            raise TypeError(f"success must be a string, a function or None; got {type(success).__name__}")
        for column, function in enumerate(self.reward_funcs):
            if function is success:
                return None, names[column], column
        if inspect.iscoroutinefunction(success) or inspect.iscoroutinefunction(getattr(success, "__call__", None)):  # noqa: B004
            raise TypeError(
                "success must be an ordinary function; make an asynchronous one a reward function of weight 0"
            )
        return success, getattr(success, "__name__", type(success).__name__), len(names)
