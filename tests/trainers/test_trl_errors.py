"""Arguments that cannot work are refused with their reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def test_sizes_must_agree(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_dataset has 23 rows; the selector's num_prompts is 24"):
        tiny.trainer(tmp_path, selector=tiny.choose(24), count=23)
    with pytest.raises(ValueError, match=r"generation_batch_size // num_generations = 8 // 2 = 4; got 5"):
        tiny.trainer(tmp_path, selector=tiny.choose(24, size=5))
    trainer = tiny.trainer(tmp_path)
    trainer.train_dataset = tiny.prompts(12)
    with pytest.raises(ValueError, match=r"train_dataset has 12 rows"):
        trainer.train()


def test_data_that_cannot_be_picked(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="rows of an IterableDataset cannot be picked by number"):
        tiny.trainer(tmp_path, train_dataset=tiny.prompts(24).to_iterable_dataset())
    with pytest.raises(ValueError, match="dataloader_in_order must be on"):
        tiny.trainer(tmp_path, dataloader_in_order=False)
    for option in ("dispatch_batches", "split_batches"):
        with pytest.raises(ValueError, match=f"{option} must be off"):
            tiny.trainer(tmp_path, accelerator_config={option: True})
    with pytest.raises(TypeError, match="selector must be a PromptSelector; got dict"):
        tiny.GRPOTrainer(selector={})


def other(prompts: list[str], **_: Any) -> list[float]:
    return [0.0] * len(prompts)


def test_success_must_be_known(tiny: ModuleType, tmp_path: Path) -> None:
    both = [tiny.begins_well, other]
    with pytest.raises(ValueError, match=r"success must say .*'begins_well', 'other'"):
        tiny.trainer(tmp_path, reward_funcs=both)
    with pytest.raises(ValueError, match=r"'else' is the name of 0 reward functions.*'begins_well', 'other'"):
        tiny.trainer(tmp_path, reward_funcs=both, success="else")
    with pytest.raises(ValueError, match="'other' is the name of 2 reward functions"):
        tiny.trainer(tmp_path, reward_funcs=[other, other], success="other")
    with pytest.raises(TypeError, match="success must be a string, a function or None; got int"):
        tiny.trainer(tmp_path, reward_funcs=both, success=1)

    async def later(**_: Any) -> list[float]:
        return []

    with pytest.raises(TypeError, match="success must be an ordinary function"):
        tiny.trainer(tmp_path, reward_funcs=both, success=later)
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"success_threshold must lie in \(0, 1\]; got"):
            tiny.trainer(tmp_path, success_threshold=threshold)


@pytest.mark.parametrize("value", [1.5, -0.5, float("inf")])
def test_rewards_that_are_no_rates(tiny: ModuleType, tmp_path: Path, value: float) -> None:
    def wild(prompts: list[str], **_: Any) -> list[float]:
        return [0.0, value] + [1.0] * (len(prompts) - 2)

    trainer = tiny.trainer(tmp_path, reward_funcs=wild)
    with pytest.raises(ValueError, match=rf"rewards of wild\[1\] = {value} \(prompt \d+\) must be finite and lie in"):
        trainer.train()
    assert trainer.selector.posterior.step == 0


def test_a_trainer_that_cannot_be_made_leaves_its_selector_alone(tiny: ModuleType, tmp_path: Path) -> None:
    selector = tiny.choose(23)
    before = str(selector.state_dict())
    with pytest.raises(ValueError, match="train_dataset has 24 rows"):
        tiny.trainer(tmp_path, selector=selector, success_threshold=0.5)
    assert selector.on_shortage is None and str(selector.state_dict()) == before


def test_a_choice_of_on_shortage_is_kept(tiny: ModuleType, tmp_path: Path) -> None:
    assert tiny.trainer(tmp_path).selector.on_shortage == "reuse"
    assert tiny.trainer(tmp_path, selector=tiny.choose(on_shortage="raise")).selector.on_shortage == "raise"


def test_trainers_are_imported_when_they_are_used() -> None:
    program = """
import sys
import bayes_prompt.trainers
assert not {"trl", "transformers", "torch", "torchdata"} & set(sys.modules)
import bayes_prompt.trainers.torch
assert not {"trl", "transformers", "torchdata"} & set(sys.modules)
sys.modules["trl"] = None  # as if it were not installed
try:
    import bayes_prompt.trainers.trl
except ImportError as error:
    assert "bayes-prompt[trl]" in str(error), error
else:
    raise AssertionError("imported without TRL")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
