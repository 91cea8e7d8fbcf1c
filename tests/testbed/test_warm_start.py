from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from bayes_prompt.testbed.model import ModelSize, build_tokenizer, sample
from bayes_prompt.testbed.tasks import make_split
from bayes_prompt.testbed.warm_start import WarmStart, cache_key, default_cache, supervised_batch, warm_start

TINY = WarmStart(
    size=ModelSize(hidden=32, layers=1, heads=2, feed_forward=32),
    target=1.0,
    max_steps=40,
    batch_size=16,
    warm_up=5,
    check_every=20,
    check_prompts=8,
    check_samples=1,
)
TRAIN, HELD_OUT = make_split(16, 8, seed=0)


def test_the_loss_is_of_the_answer_alone() -> None:
    tokenizer = build_tokenizer()
    tokens, labels = supervised_batch(tokenizer, TRAIN)
    for task, row, label in zip(TRAIN, tokens, labels, strict=True):
        answer = label[label != -100]
        assert tokenizer.decode(row[label == -100], skip_special_tokens=True) == task.text
        assert tokenizer.decode(answer[:-1]) == task.answer
        assert answer[-1] == tokenizer.eos_token_id
        assert torch.equal(row[label != -100], answer)


def test_the_loss_falls() -> None:
    losses = warm_start(TINY, TRAIN, HELD_OUT, seed=0).losses
    assert len(losses) == TINY.max_steps
    # It starts at log(53) = 4.0, knowing nothing; the frequencies of the characters alone bring it below 3.2.
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.5


def test_stops_at_the_target() -> None:
    checks: list[tuple[int, float]] = []
    settings = replace(TINY, target=0.0)
    policy = warm_start(settings, TRAIN, HELD_OUT, seed=0, on_check=lambda step, rate: checks.append((step, rate)))
    assert len(policy.losses) == settings.check_every
    assert checks == policy.checks and [step for step, _ in checks] == [settings.check_every]


def test_a_function_of_the_seed() -> None:
    one, same, other = (warm_start(replace(TINY, max_steps=6), TRAIN, HELD_OUT, seed) for seed in (1, 1, 2))
    assert one.losses == same.losses != other.losses


def test_the_cache_gives_back_the_same_policy(tmp_path: Path) -> None:
    settings = replace(TINY, max_steps=6)
    made = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    (folder,) = tmp_path.iterdir()  # nothing temporary is left beside it
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    kept = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert (kept.losses, kept.checks) == (made.losses, made.checks)
    for (name, before), (same, after) in zip(made.model.named_parameters(), kept.model.named_parameters(), strict=True):
        assert name == same and torch.equal(before, after), name
    texts = [task.text for task in TRAIN]
    assert sample(kept.model, kept.tokenizer, texts, 2) == sample(made.model, made.tokenizer, texts, 2)


@pytest.mark.parametrize("name", ["warm_start.json", "model.safetensors", "config.json"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, name: str) -> None:
    settings = replace(TINY, max_steps=4)
    made = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:10])
    again = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    assert again.losses == made.losses
    assert list(tmp_path.iterdir()) == [folder]
    kept = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    assert kept.losses == made.losses


def test_the_key_follows_what_matters() -> None:
    key = cache_key(TINY, TRAIN, HELD_OUT, 0)
    assert cache_key(TINY, TRAIN, HELD_OUT, 0) == key
    others = {
        cache_key(replace(TINY, learning_rate=2e-3), TRAIN, HELD_OUT, 0),
        cache_key(TINY, TRAIN[1:], HELD_OUT, 0),
        cache_key(TINY, TRAIN, HELD_OUT[1:], 0),
        cache_key(TINY, TRAIN, HELD_OUT, 1),
    }
    assert len(others | {key}) == 5


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BAYES_PROMPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "bayes_prompt"
    monkeypatch.setenv("BAYES_PROMPT_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("BAYES_PROMPT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "bayes_prompt"


def test_too_few_prompts_to_measure_on() -> None:
    with pytest.raises(ValueError, match="train has 4 tasks, the pass rate is measured on 8"):
        warm_start(TINY, TRAIN[:4], HELD_OUT, seed=0)
