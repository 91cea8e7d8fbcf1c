"""Finetune one start by RL, once per method of choosing prompts, with TRL's GRPO. Only the selector differs."""

from __future__ import annotations

import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig

from bayes_prompt import recipes
from bayes_prompt.history import History
from bayes_prompt.selector import PromptSelector
from bayes_prompt.testbed.model import MAX_NEW_TOKENS, MuonAndAdamW, sample
from bayes_prompt.testbed.tasks import Task, make_split
from bayes_prompt.testbed.warm_start import Policy, WarmStart, default_cache, warm_start
from bayes_prompt.trainers.trl import GRPOTrainer

#: The methods that `run` knows: recipes by name.
METHODS = ("uniform", "dps", "mopps", "history_resampling")
WARM_START = "warm start"
#: Called with (stage: WARM_START or a method, steps done, all steps or None while unknown, a remark).
Progress = Callable[[str, int, int | None, str], None]


@dataclass(frozen=True)
class Settings:
    """What all methods of an experiment share.

    steps: of GRPO.  prompts: in the training pool.  batch_size: prompts a step.  group_size: rollouts of each.
    learning_rate: of MuonAndAdamW, after `warm_up` steps of linear rise.  temperature: of every sampling.  held_out:
    prompts never trained on, on which the mean reward is measured before, after, and every `evaluate_every` steps, with
    `held_out_samples` completions of each.
    """

    steps: int = 40
    prompts: int = 512
    batch_size: int = 64
    group_size: int = 8
    learning_rate: float = 1e-4
    warm_up: int = 5
    temperature: float = 1.0
    held_out: int = 256
    held_out_samples: int = 4
    evaluate_every: int = 10
    warm_start: WarmStart = field(default_factory=WarmStart)

    def __post_init__(self) -> None:
        """Check what the trainer would only fail on later."""
        least_of = {"steps": 1, "batch_size": 1, "held_out_samples": 1, "evaluate_every": 1}
        least_of |= {"group_size": 2, "held_out": 2}  # for an advantage, and for a standard error
        least_of |= {"prompts": max(self.batch_size, self.warm_start.check_prompts)}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")


@dataclass(frozen=True)
class RunResult:
    """What came out of one method.

    effective_sample_ratio, reward, pool_success_rate: of every step: the share of groups that were partially solved,
    the mean reward of the rollouts, and the selector's estimate of the mean success rate of the whole pool.
    held_out: (step, success rate of each held-out prompt) of every evaluation; the first is the common start.
    seconds_selecting: spent by the selector on choosing and learning.  seconds: of the whole run, evaluations included.
    """

    method: str
    seed: int
    steps: int
    rollouts: int
    effective_sample_ratio: list[float]
    reward: list[float]
    pool_success_rate: list[float]
    held_out: list[tuple[int, list[float]]]
    coverage: float
    seconds_selecting: float
    seconds: float
    history: History


def run(
    methods: Sequence[str] = ("uniform", "dps"),
    steps: int = 40,
    prompts: int = 512,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    *,
    settings: Settings | None = None,
    cache: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> list[RunResult]:
    """Warm-start a policy, finetune a copy of it with each of `methods`, and say what came out.

    Args:
        methods: of METHODS, each at most once.
        steps, prompts: as in `Settings`; ignored when `settings` are given.
        seed: of tasks, weights, sampling and selection.
        out: a folder (made if missing) for `curves.png`, `results.json`, `prompts.parquet`, `history_METHOD.parquet`.
        settings: all the rest.
        cache: folder of warm starts; default: $BAYES_PROMPT_CACHE, or bayes_prompt/ in the user's cache folder.
        use_cache: False makes the warm start anew and keeps nothing.
        progress: told how far it is.

    Raises:
        ValueError: an unknown or repeated method, or a setting out of range.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}; got {method!r}")
    if not methods or len(set(methods)) != len(methods):
        raise ValueError(f"methods must name at least one method, each once; got {list(methods)}")
    settings = settings or Settings(steps=steps, prompts=prompts)
    tell = progress or (lambda stage, done, total, remark: None)
    folder = (Path(cache) if cache is not None else default_cache()) if use_cache else None
    with _quiet(), _threads():
        train, held_out = make_split(settings.prompts, settings.held_out, seed)
        goal = settings.warm_start.target
        tell(WARM_START, 0, None, f"until a pass rate of {goal:.2f}")
        policy = warm_start(
            settings.warm_start,
            train,
            held_out,
            seed,
            cache=folder,
            on_check=lambda step, rate: tell(WARM_START, step, None, f"pass rate {rate:.2f} of {goal:.2f}"),
        )
        reached, rate = policy.checks[-1]
        tell(WARM_START, reached, reached, f"pass rate {rate:.2f}")
        start = _evaluate(policy, policy.model, settings, held_out, seed)
        results = [_finetune(method, policy, start, settings, train, held_out, seed, tell) for method in methods]
    if out is not None:
        from bayes_prompt.testbed import report

        report.write(results, train, out)
    return results


def _finetune(
    method: str,
    policy: Policy,
    start: list[float],
    settings: Settings,
    train: list[Task],
    held_out: list[Task],
    seed: int,
    tell: Progress,
) -> RunResult:
    started = time.perf_counter()
    recipe: Callable[..., PromptSelector] = getattr(recipes, method)
    selector = recipe(num_prompts=len(train), batch_size=settings.batch_size, seed=seed)
    batches: list[tuple[list[int], list[float]]] = []  # (row of each completion, its reward) of every step

    def reward(prompts: list[str], completions: list[str], row: list[int], **_: Any) -> list[float]:
        rewards = [train[number].reward(text) for number, text in zip(row, completions, strict=True)]
        batches.append((row, rewards))
        return rewards

    watch = _Watch(method, policy, selector, settings, held_out, seed, tell)
    with tempfile.TemporaryDirectory() as scratch:
        model = copy.deepcopy(policy.model)
        trainer = GRPOTrainer(
            model=model,
            processing_class=policy.tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": [task.text for task in train], "row": range(len(train))}),
            args=_arguments(settings, seed, scratch),
            callbacks=[watch],
            optimizers=(MuonAndAdamW(model, settings.learning_rate), None),
            selector=selector,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    history = _history(batches, len(train))
    return RunResult(
        method=method,
        seed=seed,
        steps=len(batches),
        rollouts=int(history.trials.sum()),
        effective_sample_ratio=_effective_sample_ratio(history),
        reward=[sum(rewards) / len(rewards) for _, rewards in batches],
        pool_success_rate=watch.pool_success_rate,
        held_out=[(0, start), *watch.held_out],
        coverage=float((history.trials.sum(0) > 0).double().mean()),
        seconds_selecting=trainer.selector_seconds,
        seconds=time.perf_counter() - started,
        history=history,
    )


class _Watch(transformers.TrainerCallback):
    """After every step: note what the selector believes of the pool, evaluate where it is due, tell the progress."""

    def __init__(
        self,
        method: str,
        policy: Policy,
        selector: PromptSelector,
        settings: Settings,
        held_out: list[Task],
        seed: int,
        tell: Progress,
    ) -> None:
        self.method, self.policy, self.selector, self.settings = method, policy, selector, settings
        self.tasks, self.seed, self.tell = held_out, seed, tell
        self.pool_success_rate: list[float] = []
        self.held_out: list[tuple[int, list[float]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        step, steps = state.global_step, self.settings.steps
        figures = self.selector.metrics()
        self.pool_success_rate.append(figures["pool_success_rate"])
        if step % self.settings.evaluate_every == 0 or step == steps:
            rates = _evaluate(self.policy, kwargs["model"], self.settings, self.tasks, self.seed)
            self.held_out.append((step, rates))
        self.tell(self.method, step, steps, f"effective sample ratio {figures['effective_sample_ratio']:.2f}")


def _arguments(settings: Settings, seed: int, folder: str) -> GRPOConfig:
    """One optimizer step on all rollouts of a generation batch: on-policy, without a reference model."""
    return GRPOConfig(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size * settings.group_size,
        num_generations=settings.group_size,
        max_completion_length=MAX_NEW_TOKENS,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warm_up,
        beta=0.0,
        seed=seed,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
    )


def _evaluate(policy: Policy, model: Any, settings: Settings, held_out: list[Task], seed: int) -> list[float]:
    """Success rate of every held-out task; every evaluation draws with the same seed."""
    samples = settings.held_out_samples
    texts = [task.text for task in held_out]
    groups = sample(model, policy.tokenizer, texts, samples, temperature=settings.temperature, seed=seed)
    return [sum(map(task.reward, group)) / samples for task, group in zip(held_out, groups, strict=True)]


def _history(batches: list[tuple[list[int], list[float]]], prompts: int) -> History:
    step = [number for number, (rows, _) in enumerate(batches) for _ in rows]
    rows = [row for rows, _ in batches for row in rows]
    solved = [int(reward >= 1) for _, rewards in batches for reward in rewards]
    return History.from_records(step, rows, solved, [1] * len(rows), num_prompts=prompts, num_steps=len(batches))


def _effective_sample_ratio(history: History) -> list[float]:
    """Share of the groups of every step in which some rollouts succeeded and some failed."""
    assert history.successes is not None
    seen = history.trials > 0
    mixed = (history.successes > 0) & (history.successes < history.trials)
    return (mixed.sum(1) / seen.sum(1)).tolist()


@contextmanager
def _threads() -> Iterator[None]:
    """Use the cores that this process may use, at most 8: the matrices are too small for more."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(min(8, cores))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' remarks off the terminal; errors still get through."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # TRL and the Trainer still use names that transformers 5.23 is renaming.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
