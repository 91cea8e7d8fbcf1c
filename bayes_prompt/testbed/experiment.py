"""Finetune one start by RL, once per method of choosing prompts, with TRL's GRPO. Only the selector differs."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig

from bayes_prompt import recipes
from bayes_prompt.embedding import HashedNgrams
from bayes_prompt.files import default_cache, writable_folder
from bayes_prompt.history import History
from bayes_prompt.posteriors.checks import integer
from bayes_prompt.selector import PromptSelector
from bayes_prompt.testbed import report
from bayes_prompt.testbed.model import MAX_NEW_TOKENS, MuonAndAdamW, never_sampled, sample
from bayes_prompt.testbed.results import Evaluation, NotWritten, RunResult
from bayes_prompt.testbed.settings import Settings
from bayes_prompt.testbed.surroundings import left_alone
from bayes_prompt.testbed.tasks import Task, make_split
from bayes_prompt.testbed.warm_start import Policy, warm_start
from bayes_prompt.trainers.trl import GRPOTrainer

#: The methods that `run` knows: recipes by name.
METHODS = ("uniform", "best", "dps", "mopps", "kgps", "gps", "history_resampling")
WARM_START = "warm start"
#: Called with (stage: WARM_START or a method, steps done, all steps or None while unknown, a remark).
Progress = Callable[[str, int, int | None, str], None]


def run(
    methods: Sequence[str] = ("uniform", "dps"),
    steps: int = 80,
    prompts: int = 256,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    *,
    settings: Settings | None = None,
    cache: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> list[RunResult]:
    """Warm-start a policy, finetune a copy of it with each of `methods`, and say what came out.

    The states of the global random generators are afterwards what they were before.

    Args:
        methods: of METHODS, each at most once.
        steps, prompts: as in `Settings`; ignored when `settings` are given.
        seed: of tasks, weights, sampling and selection, in [0, 2**32).
        out: a folder (made if missing) for the files that `report.write` makes. It is tried before the work begins,
            and whenever a method ends all that is known is written.
        settings: all the rest.
        cache: folder of warm starts; default: $BAYES_PROMPT_CACHE, or bayes_prompt/ in the user's cache folder.
        use_cache: False makes the warm start anew and keeps nothing.
        progress: told how far it is.

    Raises:
        ValueError, TypeError: an unknown or repeated method, a bad setting, or an `out` that cannot be written to.
        NotWritten: all is done, but the last attempt to write failed; the error has the results.
    """
    methods = _checked(methods)
    settings = settings or Settings(steps=steps, prompts=prompts)
    integer("seed", seed, 0, 2**32 - 1)  # NumPy's generator, which the trainer seeds too, takes 32 bits
    folder = None if out is None else writable_folder(out)
    kept = (Path(cache) if cache is not None else default_cache()) if use_cache else None
    tell = progress or (lambda stage, done, total, remark: None)
    results: list[RunResult] = []
    failure: Exception | None = None
    with left_alone():
        train, held_out = make_split(settings.prompts, settings.held_out, seed)
        goal = settings.warm_start.target
        tell(WARM_START, 0, None, f"until a pass rate of {goal:.2f}")
        policy = warm_start(
            settings.warm_start,
            train,
            held_out,
            seed,
            cache=kept,
            on_check=lambda step, rate: tell(WARM_START, step, None, f"pass rate {rate:.2f} of {goal:.2f}"),
        )
        reached, rate = policy.checks[-1]
        tell(WARM_START, reached, reached, f"pass rate {rate:.2f}")
        start = _evaluate(policy, policy.model, settings, held_out, seed, step=0)
        for method in methods:
            results.append(_finetune(method, policy, start, settings, train, held_out, seed, tell))
            if folder is not None:
                try:
                    report.write(results, train, held_out, folder)
                    failure = None
                except Exception as error:  # no reason is good enough to lose the results of minutes
                    failure = error
    if failure is not None:
        raise NotWritten(f"the results could not be written to {folder}: {failure}", results) from failure
    return results


def _checked(methods: Sequence[str]) -> tuple[str, ...]:
    accepted = f"one or more of {', '.join(METHODS)}, each once"
    if isinstance(methods, str):
        raise ValueError(f"methods must be a sequence of {accepted}; got the string {methods!r}")
    given = tuple(methods)
    if not given or len(set(given)) < len(given) or not set(given) <= set(METHODS):
        raise ValueError(f"methods must be {accepted}; got {list(given)}")
    return given


def _finetune(
    method: str,
    policy: Policy,
    start: Evaluation,
    settings: Settings,
    train: list[Task],
    held_out: list[Task],
    seed: int,
    tell: Progress,
) -> RunResult:
    texts = [task.text for task in train]
    _compile(_selector(method, settings, seed, texts), settings)
    started = time.perf_counter()
    selector = _selector(method, settings, seed, texts)
    batches: list[tuple[list[int], list[float]]] = []  # (row of each completion, its reward) of every step

    def reward(prompts: list[str], completions: list[str], row: list[int], **_: Any) -> list[float]:
        rewards = [train[number].reward(text) for number, text in zip(row, completions, strict=True)]
        batches.append((row, rewards))
        return rewards

    watch = _Watch(method, policy, selector, settings, held_out, seed, tell)
    with tempfile.TemporaryDirectory() as scratch:
        model = copy.deepcopy(policy.model)
        optimizer = MuonAndAdamW(model, settings.learning_rate)
        # Not one of the Trainer's own schedules, which begin at 0: nothing would be learned from the first batch.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda steps_done: min(1.0, (steps_done + 1) / max(1, settings.warm_up))
        )
        trainer = GRPOTrainer(
            model=model,
            processing_class=policy.tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": [task.text for task in train], "row": range(len(train))}),
            args=_arguments(settings, policy, seed, scratch),
            callbacks=[watch],
            optimizers=(optimizer, schedule),
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
        reward=[sum(rewards) / len(rewards) for _, rewards in batches],
        pool_success_rate=watch.pool_success_rate,
        held_out=[start, *watch.held_out],
        coverage=float((history.trials.sum(0) > 0).double().mean()),
        seconds_selecting=trainer.selector_seconds,
        seconds=time.perf_counter() - started,
        history=history,
    )


def _selector(method: str, settings: Settings, seed: int, texts: list[str]) -> PromptSelector:
    recipe: Callable[..., PromptSelector] = getattr(recipes, method)
    # Character n-grams tell the families of such short texts apart, and need no further package.
    shown: dict[str, Any] = {"texts": texts, "embedder": HashedNgrams()} if method in ("best", "gps") else {}
    if method == "best":
        shown["num_steps"] = settings.steps
    return recipe(num_prompts=settings.prompts, batch_size=settings.batch_size, seed=seed, **shown)


def _compile(selector: PromptSelector, settings: Settings) -> None:
    """A selector that is then thrown away compiles the kernels, so that no clock sees it.

    It picks as the trainer will: with nothing out, and with the pick before still out.
    """
    selector.on_shortage = "reuse"
    nothing = torch.zeros(settings.batch_size, dtype=torch.int64)
    ahead = selector.select()
    for _ in range(2):
        pick, ahead = ahead, selector.select()
        selector.update(pick, successes=nothing, trials=settings.group_size)
        selector.metrics()


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
        self.held_out: list[Evaluation] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        step, steps = state.global_step, self.settings.steps
        figures = self.selector.metrics()
        self.pool_success_rate.append(figures["pool_success_rate"])
        if step % self.settings.evaluate_every == 0 or step == steps:
            self.held_out.append(
                _evaluate(self.policy, kwargs["model"], self.settings, self.tasks, self.seed, step=step)
            )
        self.tell(self.method, step, steps, f"effective sample ratio {figures['effective_sample_ratio']:.2f}")


def _arguments(settings: Settings, policy: Policy, seed: int, folder: str) -> GRPOConfig:
    """One optimizer step on all rollouts of a generation batch: on-policy, without a reference model."""
    return GRPOConfig(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size * settings.group_size,
        num_generations=settings.group_size,
        max_completion_length=MAX_NEW_TOKENS,
        temperature=settings.temperature,
        generation_kwargs={"suppress_tokens": never_sampled(policy.tokenizer)},
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


def _evaluate(
    policy: Policy, model: Any, settings: Settings, held_out: list[Task], seed: int, *, step: int
) -> Evaluation:
    """How often `model` solves every held-out task; every evaluation draws with the same seed."""
    # The two that the gain is measured with get more.
    samples = settings.held_out_samples * (2 if step in (0, settings.steps) else 1)
    texts = [task.text for task in held_out]
    groups = sample(model, policy.tokenizer, texts, samples, temperature=settings.temperature, seed=seed)
    solved = [sum(task.reward(text) >= 1 for text in group) for task, group in zip(held_out, groups, strict=True)]
    return Evaluation(step, solved, samples)


def _history(batches: list[tuple[list[int], list[float]]], prompts: int) -> History:
    step = [number for number, (rows, _) in enumerate(batches) for _ in rows]
    rows = [row for rows, _ in batches for row in rows]
    solved = [int(reward >= 1) for _, rewards in batches for reward in rewards]
    return History.from_records(step, rows, solved, [1] * len(rows), num_prompts=prompts, num_steps=len(batches))
