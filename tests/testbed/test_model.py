from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from accelerate import Accelerator

from bayes_prompt.testbed.model import (
    MAX_NEW_TOKENS,
    ModelSize,
    MuonAndAdamW,
    build_model,
    build_tokenizer,
    never_sampled,
    sample,
)
from bayes_prompt.testbed.tasks import ALPHABET, MAX_ANSWER, make_tasks

TINY = ModelSize(hidden=16, layers=1, heads=2, feed_forward=16)


def test_tokenizer_round_trip() -> None:
    tokenizer = build_tokenizer()
    for task in make_tasks(500, seed=0):
        ids = tokenizer(task.text)["input_ids"]
        assert len(ids) == len(task.text)  # one token a character
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == task.text


def test_every_character_has_its_token() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(ALPHABET)["input_ids"]
    assert len(set(ids)) == len(ALPHABET)
    assert tokenizer("A")["input_ids"] == [tokenizer.unk_token_id]
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(special) == 3 and not special & set(ids)


def test_prompts_are_padded_on_the_left() -> None:
    tokenizer = build_tokenizer()
    short, long = tokenizer(["1+2=", "11+22="], padding=True)["input_ids"]
    assert short == [tokenizer.pad_token_id] * 2 + long[1:2] + tokenizer("+2=")["input_ids"]


def test_the_longest_answer_and_its_end_fit() -> None:
    assert MAX_NEW_TOKENS == MAX_ANSWER + 1


def test_about_a_million_weights() -> None:
    model = build_model(build_tokenizer(), ModelSize(), seed=0)
    assert 0.9e6 < sum(weight.numel() for weight in model.parameters()) < 1.2e6


def test_weights_are_a_function_of_the_seed() -> None:
    tokenizer = build_tokenizer()
    state = torch.get_rng_state()
    one, same, other = (build_model(tokenizer, TINY, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_samples_come_in_order_and_are_a_function_of_the_seed() -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, TINY, seed=0)
    prompts = ["1+2=", "sort 4321=", "rev ab="]
    state = torch.get_rng_state()
    first = sample(model, tokenizer, prompts, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(group) for group in first] == [5, 5, 5]
    assert sample(model, tokenizer, prompts, 5, seed=1) == first
    assert sample(model, tokenizer, prompts, 5, seed=2) != first
    assert model.training


def test_padding_does_not_change_what_is_said() -> None:
    """Greedily (a temperature near zero), a prompt gets the same completion alone and beside longer ones."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, TINY, seed=0)
    # An untrained model is nearly indifferent; larger output weights set the best token well apart from the second.
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    alone = sample(model, tokenizer, ["1+2="], 1, temperature=1e-4)
    beside = sample(model, tokenizer, ["1+2=", "max 123,456,789="], 1, temperature=1e-4)
    assert beside[0] == alone[0]


def test_what_decoding_skips_is_never_sampled() -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, TINY, seed=0)
    never = never_sampled(tokenizer)
    assert tokenizer.decode(never, skip_special_tokens=True) == ""

    def favour(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        output.logits[..., never] += 100

    model.register_forward_hook(favour)
    # Only the end of the text makes one empty: 1 of the 47 tokens that remain, for a model that hardly prefers any.
    texts = [text for group in sample(model, tokenizer, ["1+2=", "rev ab="], 100) for text in group]
    assert sum(text == "" for text in texts) < 50


def learn(model: Any, optimizer: MuonAndAdamW, steps: int, after_step: Any = None) -> None:
    tokens = torch.arange(12).reshape(2, 6) + 5
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if after_step is not None:
            after_step()


def weights(model: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def test_a_schedule_reaches_both_parts_through_accelerate() -> None:
    model = build_model(build_tokenizer(), TINY, seed=0)
    optimizer = MuonAndAdamW(model, 0.5)
    Accelerator(cpu=True).prepare(optimizer)  # which hands the optimizer its own state back
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)

    def rates() -> list[float]:
        return [group["lr"] for part in optimizer.parts for group in part.param_groups]

    assert rates() == [0.0, 0.0]
    before = weights(model)
    learn(model, optimizer, 1)
    assert all(map(torch.equal, before, weights(model)))  # what a learning rate of 0 must leave as it was
    schedule.step()
    assert rates() == [0.125, 0.125]
    learn(model, optimizer, 1)
    assert not any(map(torch.equal, before, weights(model)))


def test_a_restored_optimizer_goes_on_as_the_unbroken_one() -> None:
    model = build_model(build_tokenizer(), TINY, seed=0)
    optimizer = MuonAndAdamW(model, 1e-2)
    learn(model, optimizer, 3)
    restored_model = copy.deepcopy(model)
    restored = MuonAndAdamW(restored_model, 1.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    forgetful_model = copy.deepcopy(model)
    for each, of in ((model, optimizer), (restored_model, restored), (forgetful_model, None)):
        learn(each, of or MuonAndAdamW(each, 1e-2), 2)
    assert all(map(torch.equal, weights(model), weights(restored_model)))
    # The moments matter: without them another model comes out.
    assert not any(map(torch.equal, weights(model), weights(forgetful_model)))
