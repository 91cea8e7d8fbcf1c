"""Two processes train together: each holds a replica of the selector, and all replicas stay the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("trl")
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("rank_program.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(program), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_all_ranks_pick_and_observe_the_same(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["whole"] for rank in ranks)
    assert first["ranks"] == second["ranks"] == 2
    assert first["picks"] == second["picks"]
    assert first["observed"] == second["observed"]
    assert first["beliefs"] == second["beliefs"]
    assert first["weights"] == second["weights"]
    assert first["logged"][:4] == [3, 6, 9, 12]


def test_groups_are_whole_and_the_rewards_are_those_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["whole"] for rank in ranks)
    assert len(first["observed"]) == 4
    for batch, mine, theirs, pick in zip(
        first["observed"], first["scored"], second["scored"], first["picks"], strict=False
    ):
        trials, successes = Counter[int](), Counter[int]()
        for prompt, (solved, count) in [*mine, *theirs]:
            trials[prompt] += count
            successes[prompt] += solved
        assert batch == [[prompt, [successes[prompt], trials[prompt]]] for prompt in sorted(pick)]
        assert set(trials.values()) == {2}
        assert len(set(dict(mine)) & set(dict(theirs))) == 1  # the group that the ranks share


def test_a_run_on_two_ranks_resumes_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        assert len(resumed["observed"]) == 2
        assert resumed["observed"] == whole["observed"][2:]
        assert resumed["picks"] == whole["picks"][-len(resumed["picks"]) :]
        assert resumed["beliefs"] == whole["beliefs"]
        assert resumed["weights"] == whole["weights"]


def test_ranks_that_pick_other_prompts_are_stopped(ranks: list[dict[str, Any]]) -> None:
    """Before anything is observed, and on every rank, so that none waits for the others."""
    for rank in ranks:
        assert "the ranks picked different prompts" in rank["apart"]["error"]
        assert rank["apart"]["step"] == 0
