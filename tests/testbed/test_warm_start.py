from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from bayes_prompt import checkpoint
from bayes_prompt.files import default_cache
from bayes_prompt.testbed import warm_start as module
from bayes_prompt.testbed.model import ModelSize, build_tokenizer, sample
from bayes_prompt.testbed.tasks import make_split
from bayes_prompt.testbed.warm_start import WarmStart, cache_key, supervised_batch, warm_start

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
    (file,) = tmp_path.iterdir()  # nothing temporary is left beside it
    written = file.stat().st_mtime_ns
    kept = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    assert file.stat().st_mtime_ns == written
    assert (kept.losses, kept.checks) == (made.losses, made.checks)
    for (name, before), (same, after) in zip(made.model.named_parameters(), kept.model.named_parameters(), strict=True):
        assert name == same and torch.equal(before, after), name
    texts = [task.text for task in TRAIN]
    assert sample(kept.model, kept.tokenizer, texts, 2) == sample(made.model, made.tokenizer, texts, 2)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    """One bit of the weights is not as it was written: the digest tells."""
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def other_kind(file: Path) -> None:
    checkpoint.write(file, checkpoint.read(file, kind="WarmStart"), kind="PromptSelector")


def changed(**parts: Any) -> Callable[[Path], None]:
    """Write the entry again, whole and with a right digest, but with other contents."""

    def spoil(file: Path) -> None:
        state = checkpoint.read(file, kind="WarmStart")
        for name, change in parts.items():
            state[name] = change(state[name])
        checkpoint.write(file, {name: part for name, part in state.items() if part is not None}, kind="WarmStart")

    return spoil


GAIN = "model.norm.weight"
SPOILT = {
    "truncated": truncated,
    "empty": empty,
    "flipped": flipped,
    "other kind": other_kind,
    "no losses": changed(losses=lambda _: None),
    "a loss that is no number": changed(losses=lambda _: ["much"]),
    "no checks": changed(checks=lambda _: []),
    "checks of another form": changed(checks=lambda _: 3),
    "a check without its rate": changed(checks=lambda _: [[4]]),
    "no weights": changed(weights=lambda _: None),
    "a missing weight": changed(weights=lambda old: {name: value for name, value in old.items() if name != GAIN}),
    "an unexpected weight": changed(weights=lambda old: {**old, "more": torch.ones(1)}),
    "a weight of another shape": changed(weights=lambda old: {**old, GAIN: torch.ones(3)}),
    "a weight that is not finite": changed(weights=lambda old: {**old, GAIN: old[GAIN] * torch.nan}),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_cache_is_made_anew(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(TINY, max_steps=2)
    made = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    SPOILT[name](file)
    again = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
    assert caplog.text.count("made anew") == 1
    assert again.losses == made.losses
    assert list(tmp_path.iterdir()) == [file]
    kept = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)  # which finds nothing wrong any more
    assert caplog.text.count("made anew") == 1
    assert (kept.losses, kept.checks) == (made.losses, made.checks)


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(TINY, max_steps=2)
    (tmp_path / "file").write_text("")
    made = warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path / "file" / "below")
    assert len(made.losses) == 2
    assert "cannot be kept" in caplog.text


def test_processes_that_make_the_same_start_at_once_both_end_well(tmp_path: Path) -> None:
    """All wait for the last and then write and read the same entry over and over; nobody ever finds it missing."""
    code = """
import sys
from dataclasses import replace
from pathlib import Path
from tests_warm_start import HELD_OUT, TINY, TRAIN
from bayes_prompt.testbed import warm_start as module
settings, cache = replace(TINY, max_steps=2), Path(sys.argv[1])
made = module.warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=cache)
(file,) = cache.glob("*.safetensors")
for _ in range(20):
    module._save(made, file)
    kept = module._load(settings, file)
    assert kept is not None and kept.losses == made.losses
"""
    helper = tmp_path / "code"
    helper.mkdir()
    (helper / "tests_warm_start.py").write_text(Path(__file__).read_text())
    cache = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": str(helper)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(cache)], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and "made anew" not in errors, errors
    assert len(list(cache.iterdir())) == 1


def test_whoever_comes_second_takes_the_start_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(TINY, max_steps=2)
    finetune = module._finetune

    def overtaken(*arguments: Any) -> module.Policy:
        made = finetune(*arguments)
        if not any(tmp_path.iterdir()):  # while it was made, another process has written the same
            warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path)
            (file,) = tmp_path.iterdir()
            changed(losses=lambda old: [9.0, 9.0])(file)
        return made

    def first(*arguments: Any) -> module.Policy:
        monkeypatch.setattr(module, "_finetune", finetune)
        return overtaken(*arguments)

    monkeypatch.setattr(module, "_finetune", first)
    assert warm_start(settings, TRAIN, HELD_OUT, seed=0, cache=tmp_path).losses == [9.0, 9.0]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1; got 0"),
        ({"warm_up": -1}, "warm_up must be at least 0; got -1"),
        ({"target": 1.5}, "target must be a finite number >= 0 and <= 1; got 1.5"),
        ({"learning_rate": 0}, "learning_rate must be a finite number > 0; got 0"),
        ({"level_weights": (1, 1)}, "the number of level_weights must lie in [4, 4]; got 2"),
        ({"level_weights": (1, 1, -1, 1)}, "level_weights[2] must be at least 0; got -1"),
        ({"level_weights": (0, 0, 0, 0)}, "the sum of level_weights must be at least 1; got 0"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        WarmStart(**options)
