"""What TRL generates is observed once, and nothing else is."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.mark.parametrize(
    ("accumulate", "per_generation", "iterations", "workers"),
    [
        (1, 1, 1, 0),
        (2, 1, 1, 0),  # two generation batches an optimizer step
        (2, 2, 1, 0),  # TRL's default: one generation batch an optimizer step
        (1, 2, 1, 0),
        (1, 1, 2, 0),
        (2, 2, 2, 2),
        (4, 2, 1, 2),
        (3, 2, 1, 0),  # generation batches that straddle optimizer steps
    ],
)
def test_every_group_is_observed_once(
    tiny: ModuleType, tmp_path: Path, accumulate: int, per_generation: int, iterations: int, workers: int
) -> None:
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    repeats = per_generation * iterations
    trainer = tiny.trainer(
        tmp_path,
        selector=selector,
        reward_funcs=recorder,
        per_device_train_batch_size=8 // per_generation,
        gradient_accumulation_steps=accumulate,
        steps_per_generation=per_generation,
        num_iterations=iterations,
        dataloader_num_workers=workers,
        max_steps=7,
    )
    trainer.train()

    generated = math.ceil(7 * accumulate / repeats)
    assert len(recorder.scored) == generated  # TRL's own schedule, to be sure that the loop was what we think
    assert recorder.observed == [dict(sorted(batch.items())) for batch in recorder.scored]
    assert all(trials == 2 for batch in recorder.observed for _, trials in batch.values())
    assert recorder.advances == selector.posterior.step == generated
    # Picks are generated in the order in which they were drawn, none is left out, none comes twice.
    assert [sorted(batch) for batch in recorder.observed] == [sorted(pick) for pick in recorder.picks[:generated]]
    # Micro-batches read before the rewards of the first are in: an optimizer step's, one by accelerate, two a worker.
    ahead = accumulate + 1 + 2 * workers
    assert recorder.most_out <= 4 * (1 + math.ceil(ahead / repeats))
    assert all(len(set(pick)) == 4 for pick in recorder.picks)


@pytest.mark.parametrize("loader", [{}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}])
def test_epochs_follow_one_another(tiny: ModuleType, tmp_path: Path, loader: dict[str, Any]) -> None:
    selector = tiny.choose(count=10)
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(
        tmp_path, count=10, selector=selector, reward_funcs=recorder, max_steps=-1, num_train_epochs=3, **loader
    )
    theirs = super(tiny.GRPOTrainer, trainer)._get_train_sampler()
    assert len(trainer._get_train_sampler()) == len(theirs) == len(list(theirs))
    trainer.train()
    # 10 // 4 picks an epoch, as TRL's own sampler has it, and every one of them was trained on.
    assert trainer.state.global_step == len(recorder.scored) == len(recorder.picks) == 6
    assert recorder.released == []
    assert len(selector.in_flight) == 0


def test_an_epoch_that_was_left_gives_its_picks_back(tiny: ModuleType, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class LeaveEarly(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_epoch_stop = state.global_step == 2

    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(
        tmp_path, selector=selector, reward_funcs=recorder, callbacks=[LeaveEarly()], max_steps=-1, num_train_epochs=2
    )
    trainer.train()
    # The third pick had been read ahead when the epoch was left. The second epoch is a whole one.
    assert [sorted(rows) for rows in recorder.released] == [sorted(recorder.picks[2])]
    trained = [sorted(pick) for pick in recorder.picks[:2] + recorder.picks[3:]]
    assert [sorted(batch) for batch in recorder.observed] == trained
    assert len(trained) == 2 + 6


def test_evaluation_is_not_observed(tiny: ModuleType, tmp_path: Path) -> None:
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(
        tmp_path,
        selector=selector,
        reward_funcs=recorder,
        eval_dataset=tiny.prompts(4, first=90),
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        per_device_eval_batch_size=8,
        log_completions=True,
        max_steps=3,
    )
    trainer.train()
    trainer.evaluate()
    evaluated = [batch for batch in recorder.scored if min(batch) >= 90]
    trained = [batch for batch in recorder.scored if max(batch) < 90]
    assert len(evaluated) == 5 and len(trained) == 3
    assert recorder.observed == [dict(sorted(batch.items())) for batch in trained]
    assert selector.posterior.step == 3
    assert list((tmp_path / "completions").glob("*.parquet"))


def test_unscorable_completions(tiny: ModuleType, tmp_path: Path) -> None:
    def picky(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        """No reward for the prompts 0-7, none for the second completion of 8-15."""
        rewards: list[float | None] = list(tiny.begins_well(prompts, completions))
        for place, prompt in enumerate(map(int, prompts)):
            if prompt < 8 or (prompt < 16 and place % 2):
                rewards[place] = None
        return rewards

    selector = tiny.choose()
    recorder = tiny.Recorder(selector, picky)
    trainer = tiny.trainer(tmp_path, selector=selector, reward_funcs=recorder, max_steps=8)
    trainer.train()

    expected = [{prompt: counts for prompt, counts in sorted(batch.items()) if counts[1]} for batch in recorder.scored]
    assert recorder.observed == [batch for batch in expected if batch]
    lost = [sorted(prompt for prompt in batch if prompt < 8) for batch in recorder.scored]
    assert recorder.released == [batch for batch in lost if batch] and recorder.released
    assert selector.posterior.step == 8
    assert int(selector.posterior.visits[:8].sum()) == 0
    assert selector.posterior.group_size == 2  # groups lost completions; the coming ones are expected whole
    logged = [entry["selector/unscorable"] for entry in trainer.state.log_history if "selector/unscorable" in entry]
    assert logged == [sum(2 - counts[1] for counts in batch.values()) for batch in recorder.scored]


def test_a_batch_without_any_reward_only_lets_time_pass(tiny: ModuleType, tmp_path: Path) -> None:
    def none(prompts: list[str], **_: Any) -> list[None]:
        return [None] * len(prompts)

    selector = tiny.choose()
    tiny.trainer(tmp_path, selector=selector, reward_funcs=none, max_steps=2).train()
    assert selector.posterior.step == 2
    assert int(selector.posterior.visits.sum()) == 0
    assert len(selector.in_flight) == 4  # the batch that was read ahead


def length(completions: list[str], **_: Any) -> list[float]:
    return [10.0 * len(completion) for completion in completions]  # outside [0, 1]: says nothing about success


def test_success_is_a_named_reward(tiny: ModuleType, tmp_path: Path) -> None:
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(tmp_path, selector=selector, reward_funcs=[length, recorder], success="recorded")
    trainer.train()
    assert recorder.observed == [dict(sorted(batch.items())) for batch in recorder.scored] and recorder.observed


def test_success_is_a_function_that_trains_nothing(tiny: ModuleType, tmp_path: Path) -> None:
    def ends_well(prompts: list[str], completions: list[str], number: list[int], **_: Any) -> list[float]:
        assert number == [int(prompt) for prompt in prompts]  # columns reach it as they reach a reward function
        return [0.5 * (completion[-1:] in ("a", "b", "c", "d")) for completion in completions]

    selector = tiny.choose()
    recorder = tiny.Recorder(selector, ends_well, threshold=0.5)
    functions = [length, tiny.begins_well]
    trainer = tiny.trainer(
        tmp_path / "function", selector=selector, reward_funcs=functions, success=recorder, success_threshold=0.5
    )
    trainer.train()
    assert recorder.observed == [dict(sorted(batch.items())) for batch in recorder.scored] and recorder.observed
    assert any(successes > 0 for batch in recorder.observed for successes, _ in batch.values())

    # The first batch does not depend on what is observed, so its rewards and its step must be those of another success.
    other = tiny.trainer(tmp_path / "name", reward_funcs=functions, success="begins_well", max_steps=4)
    other.train()
    mine, theirs = trainer.state.log_history[0], other.state.log_history[0]
    assert set(mine) == set(theirs)
    for figure in ("reward", "reward_std", "frac_reward_zero_std", "rewards/length/mean", "loss", "grad_norm"):
        assert mine[figure] == theirs[figure]


def test_success_is_one_of_the_functions_themselves(tiny: ModuleType, tmp_path: Path) -> None:
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(tmp_path, selector=selector, reward_funcs=[length, recorder], success=recorder, max_steps=2)
    trainer.train()
    assert len(recorder.scored) == len(recorder.observed) == 2  # called once a batch, not twice


def test_figures_are_logged(tiny: ModuleType, tmp_path: Path) -> None:
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(tmp_path, selector=selector, reward_funcs=recorder, max_steps=4, logging_steps=2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "selector/step" in entry]
    ratios = [sum(0 < s < t for s, t in batch.values()) / 4 for batch in recorder.observed]
    assert [entry["selector/step"] for entry in logs] == [2, 4]  # the newest, no average
    assert [entry["selector/groups"] for entry in logs] == [8, 16]
    assert [entry["selector/effective_sample_ratio"] for entry in logs] == [
        sum(ratios[:2]) / 2,
        sum(ratios[2:]) / 2,
    ]
    assert {f"selector/{name}" for name in selector.metrics()} <= set(logs[0])
    assert sum(2 * entry["selector/seconds"] for entry in logs) == pytest.approx(trainer.selector_seconds)
    assert not any("selector" in key for key in recorder.columns)


def test_rows_are_seen_as_the_dataset_gives_them(tiny: ModuleType, tmp_path: Path) -> None:
    """A transform set on the dataset stays in force, and nobody sees the row numbers."""
    dataset = tiny.prompts(24)
    dataset.set_transform(lambda rows: {"prompt": rows["prompt"], "double": [2 * number for number in rows["number"]]})
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(tmp_path, selector=selector, reward_funcs=recorder, train_dataset=dataset, max_steps=2)
    trainer.train()
    assert "double" in recorder.columns
    assert recorder.columns <= {"double", "completion_ids", "trainer_state", "log_extra", "log_metric"}
    assert len(recorder.observed) == 2


def test_unused_columns_may_be_removed(tiny: ModuleType, tmp_path: Path) -> None:
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(tmp_path, selector=selector, reward_funcs=recorder, max_steps=2, remove_unused_columns=True)
    trainer.train()
    assert recorder.columns == {"completion_ids", "trainer_state", "log_extra", "log_metric"}
    assert recorder.observed == [dict(sorted(batch.items())) for batch in recorder.scored] and recorder.observed


def test_it_combines_with_another_trainer(tiny: ModuleType, tmp_path: Path) -> None:
    import trl

    class Counting(trl.GRPOTrainer):  # type: ignore[misc,name-defined]
        calls = 0

        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            self.calls += 1
            rewards: torch.Tensor = super()._calculate_rewards(*args)
            return rewards

    class Both(tiny.GRPOTrainer, Counting):  # type: ignore[misc,name-defined]
        pass

    trainer = tiny.trainer(tmp_path, kind=Both, max_steps=2)
    trainer.train()
    assert trainer.calls == trainer.selector.posterior.step == 2
