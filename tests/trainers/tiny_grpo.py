"""A language model of a few thousand weights and a task for it, small enough to train by GRPO within a test."""

from __future__ import annotations

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


def prompts(count: int) -> Dataset:
    """Prompt n is the number n; n % 8 of the eight letters are right answers, so that prompts differ in difficulty."""
    return Dataset.from_dict({"prompt": [f"{n:02d}" for n in range(count)], "number": list(range(count))})


def begins_well(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 where the first letter of the completion is among the first `prompt % 8` letters of the alphabet."""
    return [
        float(completion[:1] in tuple(LETTERS[: int(prompt) % 8]))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


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
    settings: dict[str, Any] = {
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
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    arguments = GRPOConfig(output_dir=str(folder), **{**settings, **config})
    if selector is None:
        size = arguments.generation_batch_size // arguments.num_generations
        selector = bp.recipes.mopps(num_prompts=count, batch_size=size, seed=3)
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
