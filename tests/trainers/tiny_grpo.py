"""A language model of a few thousand weights and a task for it, small enough to train by GRPO within a test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

import bayes_prompt as bp
from bayes_prompt.trainers.trl import GRPOTrainer

LETTERS = "abcdefgh"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, so that nothing needs downloading."""
    words = ["<pad>", "<eos>", *LETTERS, *"0123456789"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def prompts(count: int, first: int = 0) -> Dataset:
    """Prompt n is the number n, in two digits."""
    numbers = range(first, first + count)
    return Dataset.from_dict({"prompt": [f"{n:02d}" for n in numbers], "number": list(numbers)})


def begins_well(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 where the first token is among the first n % 8 letters of the alphabet: prompts differ in difficulty."""
    return [
        float(completion[:1] in tuple(LETTERS[: int(prompt) % 8]))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


class Recorder:
    """Writes down what a reward function sees and what a selector is told, independently of each other."""

    def __init__(self, selector: bp.PromptSelector, reward: Any = begins_well, threshold: float = 1.0) -> None:
        self.scored: list[dict[int, tuple[int, int]]] = []  # a call of the reward function: prompt -> successes, trials
        self.observed: list[dict[int, tuple[int, int]]] = []  # the same of a call of observe
        self.picks: list[list[int]] = []
        self.released: list[list[int]] = []
        self.advances = 0
        self.most_out = 0
        self.columns: set[str] = set()
        self._reward, self._threshold = reward, threshold
        select, observe, advance, release = selector.select, selector.observe, selector.advance, selector.release

        def spy_select(*args: Any, **kwargs: Any) -> torch.Tensor:
            pick = select(*args, **kwargs)
            self.picks.append(pick.tolist())
            self.most_out = max(self.most_out, len(selector.in_flight))
            return pick

        def spy_observe(index: torch.Tensor, *, successes: torch.Tensor, trials: torch.Tensor) -> None:
            observe(index, successes=successes, trials=trials)
            counts = zip(successes.tolist(), trials.tolist(), strict=True)
            self.observed.append(dict(zip(index.tolist(), counts, strict=True)))

        def spy_advance() -> None:
            advance()
            self.advances += 1

        def spy_release(index: torch.Tensor) -> None:
            release(index)
            if len(index):
                self.released.append(index.tolist())

        selector.select, selector.observe = spy_select, spy_observe  # type: ignore[method-assign,assignment]
        selector.advance, selector.release = spy_advance, spy_release  # type: ignore[method-assign,assignment]

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        rewards = self._reward(prompts=prompts, completions=completions, **columns)
        self.columns |= set(columns)
        trials, successes = Counter[int](), Counter[int]()
        for prompt, reward in zip(map(int, prompts), rewards, strict=True):
            trials[prompt] += reward is not None
            successes[prompt] += reward is not None and reward >= self._threshold
        self.scored.append({prompt: (successes[prompt], count) for prompt, count in trials.items()})
        return rewards

    __name__ = "recorded"


def trainer(
    folder: Path,
    *,
    count: int = 24,
    selector: bp.PromptSelector | None = None,
    reward_funcs: Any = begins_well,
    kind: type[GRPOTrainer] = GRPOTrainer,
    callbacks: list[Any] | None = None,
    success: Any = None,
    success_threshold: float | None = None,
    eval_dataset: Dataset | None = None,
    train_dataset: Any = None,
    **config: Any,
) -> GRPOTrainer:
    """A trainer of 4 prompts x 2 completions a generation batch unless told otherwise."""
    arguments = GRPOConfig(output_dir=str(folder), **{**SETTINGS, **config})
    if selector is None:
        selector = choose(count)
    return kind(
        model=model(),
        reward_funcs=reward_funcs,
        args=arguments,
        train_dataset=prompts(count) if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer(),
        callbacks=callbacks,
        selector=selector,
        success=success,
        success_threshold=success_threshold,
    )


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_generations": 2,
    "max_steps": 4,
    "max_completion_length": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}


def choose(count: int = 24, size: int = 4, seed: int = 3, **options: Any) -> bp.PromptSelector:
    """A selector whose picks depend on everything it was ever told: Thompson draws from Beta posteriors."""
    return bp.recipes.mopps(num_prompts=count, batch_size=size, seed=seed, **options)
