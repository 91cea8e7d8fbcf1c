"""A resumed run is the unbroken one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

import bayes_prompt as bp
from bayes_prompt import checkpoint


def assert_same(mine: Any, theirs: Any, where: str = "state") -> None:
    """Two state dictionaries are equal to the last bit."""
    if isinstance(mine, Mapping):
        assert set(mine) == set(theirs), where
        for key in mine:
            assert_same(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(mine, Tensor):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), where
    else:
        assert mine == theirs, where


def run(tiny: ModuleType, folder: Path, resume: int | None = None, count: int = 24, **config: Any) -> tuple[Any, Any]:
    """Train, from a checkpoint of an earlier run in the same folder if `resume` names one."""
    selector = tiny.choose(count)
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(
        folder, count=count, selector=selector, reward_funcs=recorder, save_strategy="steps", **config
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(folder / f"checkpoint-{resume}"))
    return trainer, recorder


@pytest.mark.parametrize(
    ("stop", "count", "config"),
    [
        (3, 24, {}),
        (3, 24, {"dataloader_num_workers": 2, "max_steps": 8}),
        (6, 24, {"max_steps": 8}),  # exactly at the end of an epoch of 6 picks
        (2, 24, {"gradient_accumulation_steps": 2, "steps_per_generation": 1}),  # two picks an optimizer step
        (2, 24, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),  # one pick, in two slices
        (4, 24, {"steps_per_generation": 2, "per_device_train_batch_size": 4}),  # a pick for two optimizer steps
        (2, 24, {"num_iterations": 2}),
        (4, 24, {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4}),
        (3, 9, {"dataloader_num_workers": 2}),  # in the second epoch of 2 picks, all of which are read ahead
    ],
)
def test_between_generation_batches_it_is_the_same_to_the_last_bit(
    tiny: ModuleType, tmp_path: Path, stop: int, count: int, config: dict[str, Any]
) -> None:
    config = {"max_steps": 6, **config, "save_steps": stop}
    whole, all_of_it = run(tiny, tmp_path, count=count, **config)
    resumed, rest = run(tiny, tmp_path, resume=stop, count=count, **config)

    assert rest.observed and rest.observed == all_of_it.observed[-len(rest.observed) :]
    assert rest.picks == all_of_it.picks[len(all_of_it.picks) - len(rest.picks) :]
    assert_same(resumed.selector.state_dict(), whole.selector.state_dict())
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    assert all_of_it.advances == whole.selector.posterior.step


def test_within_a_generation_batch_the_pick_is_rolled_out_again(tiny: ModuleType, tmp_path: Path) -> None:
    """Completions are not in TRL's checkpoints: the rest of the repeats is trained on new ones, observed as a batch."""
    config = {"max_steps": 6, "save_steps": 3, "num_iterations": 2}  # the second pick: optimizer steps 3 and 4
    _, all_of_it = run(tiny, tmp_path, **config)
    resumed, rest = run(tiny, tmp_path, resume=3, **config)

    assert [sorted(batch) for batch in all_of_it.scored] == [sorted(pick) for pick in all_of_it.picks[:3]]
    # Steps 4, then 5 and 6: TRL's own count would have rolled the third pick out at step 6 alone.
    assert [sorted(batch) for batch in rest.scored] == [sorted(pick) for pick in all_of_it.picks[1:3]]
    assert rest.observed == [dict(sorted(batch.items())) for batch in rest.scored]
    assert rest.advances == len(rest.observed)
    assert resumed.selector.posterior.step == 2 + rest.advances
    assert resumed._step == 6


def test_a_new_epoch_after_ignore_data_skip(tiny: ModuleType, tmp_path: Path) -> None:
    config = {"max_steps": 6, "save_steps": 3}
    _, all_of_it = run(tiny, tmp_path, **config)
    resumed, rest = run(tiny, tmp_path, resume=3, **config, ignore_data_skip=True)

    # Nothing is replayed: every batch was drawn after the resume, and the pick that had been read ahead was let go.
    assert [sorted(batch) for batch in rest.scored] == [sorted(pick) for pick in rest.picks[:3]]
    assert len(rest.scored) == 3
    assert resumed.selector.posterior.step == 6
    # Four picks had been drawn, so all draws since are later ones.
    assert resumed.selector.state_dict()["selections"] == 4 + len(rest.picks)
    assert set(resumed.selector.in_flight.tolist()) == set(rest.picks[-1])
    assert all_of_it.released == rest.released == []


def test_the_checkpoint_is_the_selectors_own(tiny: ModuleType, tmp_path: Path) -> None:
    trainer, recorder = run(tiny, tmp_path, max_steps=2, save_steps=2)
    selector = tiny.choose()
    selector.load(tmp_path / "checkpoint-2" / "selector.safetensors", in_flight="keep")
    assert_same(selector.state_dict(), trainer.selector.state_dict())
    assert set(selector.in_flight.tolist()) == set(recorder.picks[2])


def test_checkpoints_that_cannot_be_resumed(tiny: ModuleType, tmp_path: Path) -> None:
    run(tiny, tmp_path, max_steps=4, save_steps=2)
    with pytest.raises(bp.CheckpointError, match=r"after 2 micro-steps .* the trainer skips 4"):
        run(tiny, tmp_path, resume=2, max_steps=4, save_steps=2, gradient_accumulation_steps=2, steps_per_generation=1)
    with pytest.raises(bp.CheckpointError, match=r"1 for each pick.*2 for each pick"):
        run(tiny, tmp_path, resume=2, max_steps=4, save_steps=2, num_iterations=2)

    picks = tmp_path / "checkpoint-2" / "picks.safetensors"
    state = checkpoint.read(picks, kind="Picks")
    checkpoint.write(picks, {**state, "picks": state["picks"][:1]}, kind="Picks")
    with pytest.raises(bp.CheckpointError, match="picks for 1; the trainer skips 2"):
        run(tiny, tmp_path, resume=2, max_steps=4, save_steps=2)

    (tmp_path / "checkpoint-2" / "selector.safetensors").unlink()
    with pytest.raises(bp.CheckpointError, match=r"has no selector.safetensors"):
        run(tiny, tmp_path, resume=2, max_steps=4, save_steps=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_cannot_be_resumed_behind_its_end(
    tiny: ModuleType, tmp_path: Path, workers: int
) -> None:
    """The Trainer takes every epoch for a whole one when it works out how many batches to skip."""

    class LeaveEarly(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_epoch_stop = state.global_step == 2

    config = {"max_steps": -1, "num_train_epochs": 2, "save_steps": 1, "dataloader_num_workers": workers}
    run(tiny, tmp_path, callbacks=[LeaveEarly()], **config)
    for stop, done in ((3, 1), (5, 3)):
        with pytest.raises(
            bp.CheckpointError, match=rf"after {done} micro-steps .* the trainer skips {stop}, .*had been left early"
        ):
            run(tiny, tmp_path, resume=stop, **config)
    _, rest = run(tiny, tmp_path, resume=5, ignore_data_skip=True, **config)
    assert rest.observed and rest.observed == [dict(sorted(batch.items())) for batch in rest.scored]


def test_what_defines_success_must_not_change(tiny: ModuleType, tmp_path: Path) -> None:
    run(tiny, tmp_path, max_steps=2, save_steps=1, success_threshold=0.5)
    selector = tiny.choose()
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(tmp_path, selector=selector, reward_funcs=recorder, max_steps=2)
    with pytest.raises(bp.CheckpointError, match=r"selector\.success_threshold: it has 0.5, here it is 1.0"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer.train()  # anew, with picks of its own
    assert [sorted(batch) for batch in recorder.scored] == [sorted(pick) for pick in recorder.picks[:2]]


def test_a_checkpoint_that_is_refused_leaves_the_selector_alone(tiny: ModuleType, tmp_path: Path) -> None:
    run(tiny, tmp_path, max_steps=2, save_steps=1)
    picks = tmp_path / "checkpoint-1" / "picks.safetensors"
    state = checkpoint.read(picks, kind="Picks")
    checkpoint.write(picks, {**state, "picks": state["picks"] + 1000}, kind="Picks")
    selector = tiny.choose()
    before = selector.state_dict()
    trainer = tiny.trainer(tmp_path, selector=selector, max_steps=2)
    with pytest.raises(bp.CheckpointError, match="picks must lie in"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    before["posterior"]["tensors"]["told_group_size"].fill_(2)  # told by the trainer when it was made
    assert_same(selector.state_dict(), before)
