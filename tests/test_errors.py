"""Bad input gets an error that names the argument, the first bad row and what is accepted, and changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import bayes_prompt as bp
from bayes_prompt import checkpoint
from bayes_prompt.kernels.backend import BackendUnavailable


def make(**options: Any) -> bp.PromptSelector:
    selector = bp.recipes.dps(num_prompts=10, batch_size=3, seed=1, **options)
    for step in range(3):
        selector.update(selector.select(), successes=[step, 1, 2], trials=2)
    out = selector.select().tolist()
    selector.observe([min(set(range(10)) - set(out))], successes=[1], trials=2)  # so that all three stay in flight
    return selector


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


NAN, INF = float("nan"), float("inf")
BAD_OBSERVATIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"index": [1, 10], "successes": [0, 0], "trials": 2}, IndexError, r"index\[1\] = 10 must lie in \[0, 10\)"),
    ({"index": [-1], "successes": [0], "trials": 2}, IndexError, r"index\[0\] = -1 must lie in \[0, 10\)"),
    ({"index": [1.5], "successes": [0], "trials": 2}, TypeError, "index must hold integers"),
    ({"index": [[1]], "successes": [0], "trials": 2}, ValueError, "index must have one dimension"),
    ({"index": 3, "successes": [0], "trials": 2}, TypeError, "index must be a one-dimensional array"),
    ({"index": [1], "successes": [0.5], "trials": 2}, TypeError, "successes must hold integers"),
    ({"index": [1], "successes": [True], "trials": 2}, TypeError, "successes must hold integers"),
    ({"index": [1, 2], "successes": [0], "trials": 2}, ValueError, "successes must have 2 entries.*got 1"),
    ({"index": [1, 2], "successes": [0, -1], "trials": 2}, ValueError, r"successes\[1\] = -1 must lie in .*\[0, 2\]"),
    ({"index": [1, 2], "successes": [3, 0], "trials": 2}, ValueError, r"successes\[0\] = 3 must lie in .*\[0, 2\]"),
    ({"index": [1, 2], "successes": [0, 0], "trials": [1, 0]}, ValueError, r"trials\[1\] = 0 must be at least 1"),
    ({"index": [1], "successes": [0], "trials": 2**31}, ValueError, r"trials\[0\] = 2147483648 must be .* at most"),
    ({"index": [1], "successes": [0], "trials": 2**70}, ValueError, rf"trials must hold .* 64 bits.*; got {2**70}"),
    ({"index": [1], "successes": [0], "trials": -5}, ValueError, r"trials\[0\] = -5 must be at least 1"),
    (
        {"index": np.array([2**63 + 3], np.uint64), "successes": [0], "trials": 2},
        ValueError,
        rf"index must hold .* 64 bits.*; got {2**63 + 3}",
    ),
    ({"index": [1], "successes": 0, "trials": 2}, TypeError, "successes must be a one-dimensional array"),
    ({"index": [2**70], "successes": [0], "trials": 2}, TypeError, "index must"),
    ({"index": {1}, "successes": [0], "trials": 2}, TypeError, "index must be a one-dimensional array"),
    ({"index": [1], "rewards": [[None, 1.0]]}, TypeError, "rewards must be numbers"),
    ({"index": [1, 2], "rewards": [[1.0], [1.0, 0.0]]}, TypeError, "rewards must be numbers"),
    ({"index": [1, 2], "successes": [0, 0], "trials": [1]}, ValueError, "trials must have 2 entries"),
    ({"index": [1], "rewards": [[0.0, NAN]]}, ValueError, r"rewards\[0, 1\] = nan must be finite and lie in \[0, 1\]"),
    ({"index": [1], "rewards": [[INF, 0.0]]}, ValueError, r"rewards\[0, 0\] = inf"),
    ({"index": [1, 2], "rewards": [[0.0], [1.5]]}, ValueError, r"rewards\[1, 0\] = 1.5"),
    ({"index": [1], "rewards": [[-0.1]]}, ValueError, r"rewards\[0, 0\] = -0.1"),
    ({"index": [1], "rewards": [1.0]}, ValueError, r"rewards must have shape \(B, G\)"),
    ({"index": [1, 2], "rewards": [[1.0]]}, ValueError, "rewards must have 2 rows, one for each prompt named; got 1"),
    ({"index": [1]}, ValueError, "give rewards"),
    ({"index": [1], "rewards": [[1.0]], "trials": 1}, ValueError, "not both"),
    ({"rewards": [[1.0]]}, ValueError, "by index or by ids"),
    ({"ids": ["a"], "rewards": [[1.0]]}, ValueError, "was given no ids"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_OBSERVATIONS)
def test_a_bad_observation_changes_nothing(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    selector = make()
    before = selector.state_dict()
    for call in (selector.observe, selector.update):
        with pytest.raises(kind, match=message):
            call(**arguments)
        assert same(before, selector.state_dict())


POSTERIOR_CALLS = [row for row in BAD_OBSERVATIONS if {"index", "successes", "trials"} <= row[0].keys()]


@pytest.mark.parametrize("call", ["observe", "update", "warm_start"])
@pytest.mark.parametrize(("arguments", "kind", "message"), POSTERIOR_CALLS)
def test_posteriors_refuse_the_same(call: str, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    for posterior in (bp.SolvingProgress().posterior(10), bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(10)):
        before = posterior.state_dict()
        with pytest.raises(kind, match=message):
            getattr(posterior, call)(**arguments)
        assert same(before, posterior.state_dict())


@pytest.mark.parametrize("elapsed", [-1.0, NAN, INF, 10**400])
def test_bad_elapsed(elapsed: float) -> None:
    selector = make()
    before = selector.state_dict()
    for call in (selector.advance, selector.posterior.advance):
        with pytest.raises(ValueError, match="elapsed must be finite and at least 0"):
            call(elapsed)
    with pytest.raises(ValueError, match="elapsed must be finite and at least 0"):
        selector.update([0], successes=[1], trials=2, elapsed=elapsed)
    assert same(before, selector.state_dict())


BAD_SELECTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_size": 11}, ValueError, r"batch_size must lie in \[1, 10\], the size of the pool; got 11"),
    ({"batch_size": 0}, ValueError, "batch_size must lie in"),
    ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
    ({"candidates": [1, 2]}, ValueError, r"\[1, 2\], the size of the candidates given; got 3"),
    ({"candidates": [1, 2, 10]}, IndexError, r"candidates\[2\] = 10 must lie in \[0, 10\)"),
    ({"candidates": [0.5, 1.0, 2.0]}, TypeError, "candidates must hold integers"),
    ({"candidates": torch.ones(9, dtype=torch.bool)}, ValueError, "a candidates mask must have shape"),
    ({"candidates": []}, ValueError, "candidates must name at least one prompt"),
    ({"candidates": torch.zeros(10, dtype=torch.bool)}, ValueError, "candidates must name at least one prompt"),
    ({"candidates": {1, 2, 3}}, TypeError, "candidates must be a one-dimensional array"),
    ({"candidates": ["a", "b", "c"]}, TypeError, "candidates must"),
    ({"batch_size": 10}, bp.PromptShortage, "10 prompts are wanted"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_SELECTIONS)
def test_a_bad_selection_changes_nothing(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    selector = make()
    before = selector.state_dict()
    with pytest.raises(kind, match=message):
        selector.select(**arguments)
    assert same(before, selector.state_dict())


def test_a_score_of_nan_is_refused() -> None:
    class Broken(bp.acquisition.Acquisition):
        def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
            return torch.full((posterior.num_prompts,), NAN)

    selector = bp.PromptSelector(bp.SolvingProgress().posterior(10), Broken(), batch_size=3)
    before = selector.state_dict()
    with pytest.raises(ValueError, match="gave the score NaN to prompt"):
        selector.select()
    assert same(before, selector.state_dict())


def test_release_of_what_is_not_out() -> None:
    selector = make()
    before = selector.state_dict()
    home = next(n for n in range(10) if n not in selector.in_flight.tolist())
    with pytest.raises(ValueError, match=rf"index\[1\] = {home} is not in flight"):
        selector.release([int(selector.in_flight[0]), home])
    assert same(before, selector.state_dict())


MODELS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: bp.SolvingProgress(torch.tensor([[1.0, -1, 1], [1, 1, 1], [1, 1, 1]])), ValueError, "transition"),
    (lambda: bp.SolvingProgress(torch.tensor([[1.0, NAN, 1], [1, 1, 1], [1, 1, 1]])), ValueError, "transition"),
    (lambda: bp.SolvingProgress(torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 1, 1]])), ValueError, "transition"),
    (lambda: bp.SolvingProgress(decay=1.5), ValueError, "decay"),
    (lambda: bp.SolvingProgress(decay=-0.1), ValueError, "decay"),
    (lambda: bp.SolvingProgress(decay=NAN), ValueError, "decay"),
    (lambda: bp.SolvingProgress(initial=torch.tensor([0.5, 0.1, 0.1])), ValueError, "initial"),
    (lambda: bp.SuccessRate(dist.Beta(1.0, 1.0), decay=2.0), ValueError, "decay"),
    (lambda: bp.SuccessRate(dist.Normal(0.0, 1.0)).lower(torch.float32, "cpu"), bp.CannotLower, "prior"),
    (lambda: bp.SolvingProgress().posterior(0), ValueError, "num_prompts must be at least 1"),
    (lambda: bp.SolvingProgress().posterior(4, dtype=torch.int64), TypeError, "dtype must be"),
    (lambda: bp.SolvingProgress().posterior(4, backend="gpu"), ValueError, "backend must be one of"),
    (lambda: bp.SolvingProgress().posterior(2, concentration=torch.ones(2, 3)), ValueError, "concentration must have"),
    (
        lambda: bp.SolvingProgress().posterior(
            2, concentration=torch.tensor([[[1.0] * 3] * 3, [[1.0] * 3, [0.0] * 3, [1.0] * 3]])
        ),
        ValueError,
        r"the sum of concentration\[1, 1\] is 0.0",
    ),
    (
        lambda: bp.SolvingProgress().posterior(1, concentration=torch.full((1, 3, 3), -1.0)),
        ValueError,
        r"concentration\[0, 0, 0\] = -1.0",
    ),
    (lambda: bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(2, alpha=torch.ones(2)), ValueError, "given together"),
    (
        lambda: bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(2, alpha=torch.tensor([1.0, 0.0]), beta=torch.ones(2)),
        ValueError,
        r"alpha\[1\] = 0.0",
    ),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=5), ValueError, r"batch_size must lie in \[1, 4\]"),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=2, decy=1), TypeError, "no option 'decy'; .* take allow_in"),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=2, first_prompt=2**63), ValueError, "first_prompt must lie in"),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=2, device="cuda:99"), ValueError, "device must be one"),
    (lambda: bp.SolvingProgress(torch.ones(3, 3).bool()), TypeError, "transition must hold real numbers; got"),
    (lambda: bp.SolvingProgress(torch.ones(3, 3) * 1j), TypeError, "transition must hold real numbers; got"),
    (lambda: bp.SolvingProgress().posterior(2, concentration="a"), TypeError, "concentration must be a tensor of real"),
    (lambda: bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(2, alpha="a", beta="b"), TypeError, "alpha must be a"),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=2, seed=-1), ValueError, "seed must lie in"),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=2, on_shortage="wait"), ValueError, "on_shortage must be"),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=2, success_threshold=0.0), ValueError, "success_threshold"),
    (lambda: bp.recipes.dps(num_prompts=4, batch_size=2, ids=["a"]), ValueError, "ids must have 4 entries"),
]


@pytest.mark.parametrize(("build", "kind", "message"), MODELS)
def test_bad_declarations(build: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build()


def test_an_explicit_backend_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET"):
        bp.SolvingProgress().posterior(4, device="cpu", backend="triton")


# Checks on the device: the same code runs here on CPU tensors


# Counts out of range; what else may be wrong is seen without reading values.
OUT_OF_RANGE = [row for row in POSTERIOR_CALLS if re.search(r"^(index|successes|trials)\\\[\d", row[2])]


@pytest.mark.parametrize("advances", [0, 1])
@pytest.mark.parametrize(("arguments", "kind", "message"), OUT_OF_RANGE)
def test_deferred_checks_raise_at_the_next_read(
    arguments: dict[str, Any], kind: type[Exception], message: str, advances: int
) -> None:
    posterior, other = bp.SolvingProgress().posterior(10), bp.SolvingProgress().posterior(10)
    posterior.defers_checks = lambda index: True  # type: ignore[method-assign]  # as on a device
    for each in (posterior, other):
        each.observe([3, 4], [0, 2], 2)
    posterior.observe(**arguments)  # does not raise, and does not count
    for each in (posterior, other):
        for _ in range(advances):
            each.advance()
    with pytest.raises(kind, match=r"of an earlier call .*that call was left out"):
        _ = posterior.log_evidence
    assert same(other.state_dict(), posterior.state_dict())
    bp.SolvingProgress().posterior(10).load_state_dict(posterior.state_dict())


# Checkpoints


def test_a_checkpoint_of_another_model_size_seed_or_version_is_refused() -> None:
    state = make().state_dict()
    others = [
        (bp.recipes.dps(num_prompts=10, batch_size=3, seed=1, decay=0.5), "decay"),
        (bp.recipes.dps(num_prompts=11, batch_size=3, seed=1), "num_prompts"),
        (bp.recipes.dps(num_prompts=10, batch_size=3, seed=2), "seed"),
        (bp.recipes.dps(num_prompts=10, batch_size=3, seed=1, dtype=torch.float64), "dtype"),
        (bp.recipes.dps(num_prompts=10, batch_size=3, seed=1, ids=list("abcdefghij")), "ids"),
        (bp.recipes.dps(num_prompts=10, batch_size=3, seed=1, entropy_weight=0.1), "acquisition"),
        (bp.recipes.dps(num_prompts=10, batch_size=3, seed=1, success_threshold=0.5), "success_threshold"),
        (bp.recipes.mopps(num_prompts=10, batch_size=3, seed=1), "acquisition"),
    ]
    for selector, word in others:
        before = selector.state_dict()
        with pytest.raises(bp.CheckpointError, match=word):
            selector.load_state_dict(state)
        assert same(before, selector.state_dict())
    for part in (state, state["posterior"]):
        version = part["version"]
        part["version"] = 99
        with pytest.raises(bp.CheckpointError, match=r"version must be \d; got 99"):
            make().load_state_dict(state)
        part["version"] = version


def corrupt_state(state: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split("/")
    node = state
    for parent in parents:
        node = node[parent]
    node[last] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("posterior/tensors/posterior", torch.full((3, 10), NAN), "posterior.tensors.posterior must be finite"),
        ("posterior/tensors/posterior", torch.zeros(3, 9), "posterior.tensors.posterior must be .* of shape"),
        ("posterior/tensors/posterior", 3, "must be a tensor"),
        ("posterior/pending/index", torch.tensor([77]), "counts that cannot be"),
        ("posterior/step", -1, "posterior.step"),
        ("in_flight/prompt", torch.tensor([0, 1, 99]), "prompts that cannot be"),
        ("in_flight/place", torch.tensor([0]), "different lengths"),
        ("in_flight/place", [0, 1], "int64 tensor of shape"),
        ("in_flight/selection", torch.tensor([0.0, 1.0]), "int64 tensor of shape"),
        ("in_flight/prompt", torch.tensor([0, -1]), "must be at least 0"),
        ("last_pick/index", [1], "int64 tensor of shape"),
        ("version", torch.ones(2), "selector.version"),
        ("seed", torch.ones(2), "another selector.seed"),
        ("selections", 10**30, "selector.selections"),
        ("metrics/last/groups", NAN, "metrics.last.groups"),
        ("posterior/pending/index", torch.tensor([1.0]), "int64 tensor of shape"),
        ("posterior/tensors/posterior", torch.tensor([[0.5], [-0.5], [0.0]]).repeat(1, 10), "prompt 0 has both signs"),
        ("posterior/tensors/posterior", torch.full((3, 10), 5.0), "sums to 15.0, not to 1"),
        ("posterior/tensors/learned", torch.full((3, 3, 10), -1.0), "learned must be at least 0"),
        ("posterior/tensors/scale", torch.zeros(1, dtype=torch.float64), r"scale must lie in \[2\*\*-60, 1\]"),
        ("posterior/tensors/visits", torch.full((10,), -1, dtype=torch.int32), "must be at least 0"),
        ("posterior/tensors/group_size", torch.tensor(-1), "must be at least 0"),
        ("posterior/tensors/posterior", torch.full((3, 10), 1 / 3).to_sparse(), "must be a dense tensor"),
        ("posterior/tensors/visits", torch.full((10,), 2**31 - 1, dtype=torch.int32), "counts more than there have"),
        ("posterior/tensors/solved", torch.full((10,), 3, dtype=torch.int32), "counts more than there have"),
        ("posterior/model", torch.ones(2), "must be a description in JSON"),
        ("posterior/model", '{"decay": 1', "must be a description in JSON"),
        ("posterior/model", "{}", "only in"),
        ("posterior/tensors/told_group_size", torch.tensor(2**40), r"told_group_size must be an integer in \[0, "),
        ("in_flight/selection", torch.tensor([3, 3, 99]), r"selection must lie in \[0, 4\)"),
        ("in_flight/place", torch.tensor([0, 1, 1]), "two prompts in one place"),
        ("in_flight/waiting", torch.tensor([0, 5, 0]), "waiting must be 0 or 1"),
        ("last_pick/cut", NAN, "cut must be a number"),
        ("metrics/last/rollouts", 0, "more parts than there are of the whole"),
        ("metrics/last/informative", 77, "more parts than there are of the whole"),
        ("selections", "many", "selector.selections"),
        ("metrics/last/groups", "x", "metrics.last.groups"),
        ("surprise", 1, "unknown entries"),
    ],
)
def test_a_tampered_state_changes_nothing(path: str, value: Any, message: str) -> None:
    selector = make()
    before = selector.state_dict()
    with pytest.raises(bp.CheckpointError, match=message):
        selector.load_state_dict(corrupt_state(make().state_dict(), path, value))
    assert same(before, selector.state_dict())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "selector.safetensors"
    selector = make()
    selector.save(path)
    whole = path.read_bytes()
    before = selector.state_dict()
    for damaged in (whole[:-7], whole[: len(whole) // 2], whole[:4], b"", b"not a checkpoint at all"):
        path.write_bytes(damaged)
        with pytest.raises(bp.CheckpointError, match="not a whole safetensors file"):
            selector.load(path)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(bp.CheckpointError, match="digest"):
        selector.load(path)
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = json.loads(metadata["state"])
    changed["dict"]["selections"]["value"] += 1
    for key, value, message in (
        ("state", json.dumps(changed), "digest"),
        ("version", "2", "version 2"),
        ("kind", "Posterior", "holds the state of 'Posterior'"),
        ("format", "other", "was not written by bayes_prompt"),
    ):
        save_file(tensors, path, metadata={**metadata, key: value})
        with pytest.raises(bp.CheckpointError, match=message):
            selector.load(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        selector.load(tmp_path / "absent")
    assert same(before, selector.state_dict())


def test_a_file_that_was_made_up_is_refused(tmp_path: Path) -> None:
    """With a digest that fits: what it says has to be read with care all the same."""
    path = tmp_path / "selector.safetensors"
    selector = make()
    before = selector.state_dict()
    metadata = {"format": checkpoint.FORMAT, "version": str(checkpoint.VERSION), "kind": "PromptSelector"}
    for document in ('{"tensor": "absent"}', "[1]", '{"x": 1}', '{"dict": ', '{"dict": {}}', '{"value": 1}'):
        tensors = {"one": torch.ones(1)}
        digest = checkpoint._digest(document, tensors)
        save_file(tensors, path, metadata={**metadata, "state": document, "digest": digest})
        with pytest.raises(bp.CheckpointError):
            selector.load(path)
        assert same(before, selector.state_dict())


def test_states_hold_tensors_numbers_strings_and_dicts_of_them() -> None:
    def kinds(node: Any) -> set[type]:
        return set().union(*map(kinds, node.values())) if isinstance(node, dict) else {type(node)}

    own = bp.SuccessRate(dist.Beta(torch.ones(10), torch.ones(10))).posterior(10)
    assert kinds(make().state_dict()) | kinds(own.state_dict()) <= {torch.Tensor, int, float, str}


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "selector.safetensors"
    selector = make()
    selector.save(path)
    old = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("bayes_prompt.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        selector.save(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
