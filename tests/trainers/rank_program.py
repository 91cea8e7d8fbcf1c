"""One rank of a training run with two; started by test_trl_ranks.py. Writes what it saw to rank<n>.json."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import tiny_grpo as tiny
import torch
import torch.distributed


def digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(torch.nn.utils.parameters_to_vector(state.values()).numpy().tobytes()).hexdigest()


def run(folder: Path, seed: int, resume: int | None = None) -> dict[str, Any]:
    # 3 completions a rank in groups of 2: the middle prompt's group is shared by both ranks.
    selector = tiny.choose(count=20, size=3, seed=seed)
    recorder = tiny.Recorder(selector)
    trainer = tiny.trainer(
        folder,
        count=20,
        selector=selector,
        reward_funcs=recorder,
        per_device_train_batch_size=3,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        ddp_backend="gloo",
    )
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(folder / f"checkpoint-{resume}"))
    except RuntimeError as error:
        return {"error": str(error), "step": selector.posterior.step}
    return {
        "rank": trainer.accelerator.process_index,
        "ranks": trainer.accelerator.num_processes,
        "picks": recorder.picks,
        "scored": [sorted(batch.items()) for batch in recorder.scored],
        "observed": [sorted(batch.items()) for batch in recorder.observed],
        "beliefs": [selector.posterior.alpha.tolist(), selector.posterior.beta.tolist()],
        "weights": digest(trainer.accelerator.unwrap_model(trainer.model).state_dict()),
        "logged": [entry.get("selector/groups") for entry in trainer.state.log_history],
    }


def main(folder: Path) -> None:
    whole = run(folder / "same", seed=3)
    resumed = run(folder / "same", seed=3, resume=2)
    apart = run(folder / "apart", seed=whole["rank"])
    (folder / f"rank{whole['rank']}.json").write_text(json.dumps({"whole": whole, "resumed": resumed, "apart": apart}))
    # Together and in order: a rank that leaves while the group's threads still run ends in an abort now and then.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
