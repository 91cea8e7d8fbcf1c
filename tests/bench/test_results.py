from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bayes_prompt.bench.cases import COPY, GRAPH, OURS
from bayes_prompt.bench.machine import Commit, CopyBandwidth, Machine, versions
from bayes_prompt.bench.results import Results, load, write

Make = Callable[..., Results]
PEER = "numpy float64"


def ratios(results: Results, prompts: int = 10_000) -> dict[str, tuple[float | None, ...]]:
    return {
        each.implementation: (each.share_of_copy, each.times_copy, each.times_ours)
        for each in results.measurements
        if each.prompts == prompts
    }


def test_ratios(made_up: Make) -> None:
    found = ratios(made_up())
    assert found[OURS] == pytest.approx((0.48, 2 / 0.9, 1.0))  # 96 bytes in 2 ns, of 100 GB/s; over the fastest copy
    assert found[COPY] == pytest.approx((0.96, 1 / 0.9, 0.5))
    assert found[PEER][0] is None  # its bytes are not known
    assert found[PEER][1:] == pytest.approx((40 / 0.9, 20.0))


def test_no_ratio_over_ours_where_ours_is_wrong(made_up: Make) -> None:
    found = ratios(made_up({OURS: False}))
    assert found[OURS] == (None, None, None)
    assert found[PEER][2] is None and found[COPY][2] is None
    assert found[PEER][1] == pytest.approx(40 / 0.9)


def test_no_ratio_of_a_peer_that_is_wrong_or_was_not_checked(made_up: Make) -> None:
    found = ratios(made_up({PEER: False}))
    assert found[PEER] == (None, None, None) and found[OURS][2] == 1.0
    results = made_up()
    assert GRAPH not in found and results.failures == []
    assert [each.implementation for each in made_up({PEER: False}).failures] == [PEER]


def test_json_gives_back_what_went_in(made_up: Make) -> None:
    for results in (made_up(), made_up({OURS: False}), made_up(commit=None)):
        assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results
    with pytest.raises(ValueError, match="format must be"):
        Results.from_json({"format": "another"})


def test_files_are_named_after_device_versions_and_commit(made_up: Make) -> None:
    assert made_up().file_name == "a-processor-2-threads-torch-2.13.0-cpu-numba-0.68.1-0123456789.json"
    dirty = made_up(commit=Commit("0123456789abcdef", True))
    assert dirty.file_name.endswith("-0123456789-dirty.json")
    assert made_up(commit=None).file_name.endswith("-version-0.1.0.json")
    gpu = replace(made_up(), machine=Machine("NVIDIA X (80 GB)", "cuda", 2, 2, 1, 0.0), versions={"triton": "3.9.0"})
    assert gpu.file_name.startswith("nvidia-x-80-gb-torch-triton-3.9.0-")


def test_load_reads_what_write_wrote_and_passes_over_the_rest(made_up: Make, tmp_path: Path) -> None:
    old, new = made_up(date="2025-01-01T00:00:00+00:00", commit=None), made_up()
    for results in (new, old):
        assert write(results, tmp_path).parent == tmp_path
    (tmp_path / "other.json").write_text('{"format": "another"}')
    (tmp_path / "list.json").write_text("[]")
    assert load(tmp_path) == [old, new]
    write(replace(new, budget=9.0), tmp_path)
    assert [each.budget for each in load(tmp_path)] == [1.0, 9.0]
    assert load(tmp_path / "absent") == []


def test_what_is_said_of_this_machine() -> None:
    here = Machine.here("cpu")
    assert here.device and here.cores >= 1 and here.threads >= 1 and here.memory > 1e8
    assert {"python", "bayes-prompt", "torch", "numpy"} <= set(versions())
    commit = Commit.here()
    assert commit is None or len(commit.id) == 40
    copied = CopyBandwidth.here("cpu", size=1 << 20, rounds=3)
    assert copied.size == 1 << 20 and 0 < copied.median <= copied.best
