"""The start that every method shares: supervised finetuning up to a pass rate, kept on disk.

Training stops when the measured pass rate reaches the target, not after some time, so that the result is a function of
the settings and the seed and not of the machine's load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

import torch
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bayes_prompt import checkpoint
from bayes_prompt.posteriors.checks import integer
from bayes_prompt.testbed import checks, countdown, model, tasks
from bayes_prompt.testbed.model import ModelSize, MuonAndAdamW, build_model, build_tokenizer, sample
from bayes_prompt.testbed.tasks import LEVELS, Task

logger = logging.getLogger(__name__)
_KIND = "WarmStart"

#: Called with (steps done, newest measured pass rate).
OnCheck = Callable[[int, float], None]


@dataclass(frozen=True)
class WarmStart:
    """Settings of the supervised warm start, on an endless stream of tasks with their answers.

    Prompts of the training pool may occur in that stream (easy ones often do: there are not many). Held-out ones never.

    target: mean pass rate at which to stop, measured every `check_every` steps with `check_samples` completions of each
    of the first `check_prompts` training prompts at `temperature`.  max_steps: stop here in any case.  batch_size:
    tasks a step.  level_weights: how often each level occurs, easy ones first and most.  learning_rate: of
    MuonAndAdamW, after `warm_up` steps of linear rise.

    Raises ValueError or TypeError when a field is out of range or no number.
    """

    size: ModelSize = field(default_factory=ModelSize)
    target: float = 0.3
    max_steps: int = 3000
    batch_size: int = 32
    level_weights: tuple[int, ...] = (4, 3, 2, 1)
    learning_rate: float = 1e-3
    warm_up: int = 100
    check_every: int = 50
    check_prompts: int = 256
    check_samples: int = 2
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check what would only fail on the way, or never."""
        for name in ("max_steps", "batch_size", "check_every", "check_prompts", "check_samples"):
            integer(name, getattr(self, name), 1)
        integer("warm_up", self.warm_up, 0)
        for level, weight in enumerate(self.level_weights):
            integer(f"level_weights[{level}]", weight, 0)
        integer("the number of level_weights", len(self.level_weights), LEVELS, LEVELS)
        integer("the sum of level_weights", sum(self.level_weights), 1)
        checks.number("target", self.target, most=1, zero=True)
        for name in ("learning_rate", "temperature"):
            checks.number(name, getattr(self, name))


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer, and how supervised training went: loss of every step, (step, pass rate) checks."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    losses: list[float]
    checks: list[tuple[int, float]]


def warm_start(
    settings: WarmStart,
    train: list[Task],
    held_out: list[Task],
    seed: int,
    *,
    cache: Path | None = None,
    on_check: OnCheck | None = None,
) -> Policy:
    """A policy that solves about `settings.target` of the tasks, from the cache folder where it lies there already.

    `cache` None neither reads nor writes; a folder that cannot be written to is no more than a warning. Raises
    ValueError when `train` has fewer than `settings.check_prompts` tasks.
    """
    if len(train) < settings.check_prompts:
        raise ValueError(f"train has {len(train)} tasks, the pass rate is measured on {settings.check_prompts}")
    checked = train[: settings.check_prompts]
    if cache is None:
        return _finetune(settings, checked, held_out, seed, on_check)
    path = cache / f"warm-start-{cache_key(settings, checked, held_out, seed)}.safetensors"
    policy = _load(settings, path)
    if policy is None:
        made = _finetune(settings, checked, held_out, seed, on_check)
        # Another process may have been quicker with the same: then all use its start.
        policy = _load(settings, path, warn=False)
        if policy is None:
            policy = made
            _save(policy, path)
    return policy


def cache_key(settings: WarmStart, checked: list[Task], held_out: list[Task], seed: int) -> str:
    """A hash of all that the warm start depends on: settings, seed, tasks, code and the libraries' versions."""
    code = [Path(str(module.__file__)).read_text() for module in (countdown, tasks, model)]
    parts = {
        "settings": asdict(settings),
        "seed": seed,
        "texts": [[task.text for task in part] for part in (checked, held_out)],
        "code": [*code, Path(__file__).read_text()],
        "versions": [torch.__version__, transformers.__version__, platform.machine()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def supervised_batch(tokenizer: PreTrainedTokenizerFast, batch: list[Task]) -> tuple[Tensor, Tensor]:
    """(tokens, labels), both (B, L) int64, padded on the right; labels are -100 except on the answer and its end.

    Right padding needs no attention mask: a causal model sees nothing of it before the end.
    """
    prompts = tokenizer([task.text for task in batch])["input_ids"]
    answers = [[*ids, tokenizer.eos_token_id] for ids in tokenizer([task.answer for task in batch])["input_ids"]]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    tokens = torch.full((len(batch), length), tokenizer.pad_token_id)
    labels = torch.full((len(batch), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


def _batches(settings: WarmStart, held_out: list[Task], seed: int) -> Iterator[list[Task]]:
    """Batches of tasks of like length (little padding), in random order."""
    rng = Random(seed)
    kept = {task.text for task in held_out}
    endless = tasks.stream(f"{seed} warm start", exclude=kept, weights=settings.level_weights)
    while True:
        chunk = sorted(islice(endless, 16 * settings.batch_size), key=lambda task: len(task.text) + len(task.answer))
        batches = [chunk[start : start + settings.batch_size] for start in range(0, len(chunk), settings.batch_size)]
        rng.shuffle(batches)
        yield from batches


def _finetune(
    settings: WarmStart, checked: list[Task], held_out: list[Task], seed: int, on_check: OnCheck | None
) -> Policy:
    tokenizer = build_tokenizer()
    policy = build_model(tokenizer, settings.size, seed)
    policy.train()
    optimizer = MuonAndAdamW(policy, settings.learning_rate)
    batches = _batches(settings, held_out, seed)
    losses: list[float] = []
    checks: list[tuple[int, float]] = []
    for step in range(1, settings.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, step / max(1, settings.warm_up))
        tokens, labels = supervised_batch(tokenizer, next(batches))
        loss = policy(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if step % settings.check_every == 0 or step == settings.max_steps:
            checks.append((step, _pass_rate(policy, tokenizer, settings, checked, seed)))
            if on_check is not None:
                on_check(*checks[-1])
            if checks[-1][1] >= settings.target:
                break
    return Policy(policy, tokenizer, losses, checks)


def _pass_rate(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: WarmStart,
    checked: list[Task],
    seed: int,
) -> float:
    texts = [task.text for task in checked]
    samples = settings.check_samples
    completions = sample(policy, tokenizer, texts, samples, temperature=settings.temperature, seed=seed)
    rewards = [task.reward(text) for task, group in zip(checked, completions, strict=True) for text in group]
    return sum(rewards) / len(rewards)


def _save(policy: Policy, path: Path) -> None:
    """One file that is replaced in one stroke: whoever reads or writes at the same time has a whole one."""
    state = {"weights": policy.model.state_dict(), "losses": policy.losses, "checks": policy.checks}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(path, state, kind=_KIND)
    except OSError as error:
        logger.warning("the warm start cannot be kept in %s (%s); it will be made anew next time", path.parent, error)


def _load(settings: WarmStart, path: Path, *, warn: bool = True) -> Policy | None:
    """What lies there, or None when there is nothing or something is wrong with it."""
    try:
        state = checkpoint.read(path, kind=_KIND)  # which checks a digest
        losses = [float(loss) for loss in state["losses"]]
        checks = [(int(step), float(rate)) for step, rate in state["checks"]]
        if not checks:
            raise ValueError("it has no measured pass rate")
        tokenizer = build_tokenizer()
        policy = build_model(tokenizer, settings.size, seed=0)
        policy.load_state_dict(state["weights"])  # missing, unexpected and misshapen weights are errors
        for name, weight in policy.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                raise ValueError(f"{name} is not finite")
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with a cached file, the answer is to make it anew
        if warn:
            logger.warning("the cached warm start %s cannot be used (%s); it is made anew", path, error)
        return None
    return Policy(policy, tokenizer, losses, checks)
