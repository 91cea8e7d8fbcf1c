"""Which backend runs, and what is said where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from bayes_prompt.kernels import backend


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing has been said yet, and packages can be hidden."""
    backend._say_once.cache_clear()
    monkeypatch.setattr(backend, "_installed", lambda package: True)
    return monkeypatch


def test_auto_takes_the_fast_one(fresh: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.resolve("auto", "cpu") == "cpu"
        assert backend.resolve("auto", "cuda:1") == "triton"


def test_auto_falls_back_and_says_so_once(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(backend, "_installed", lambda package: package != "numba")
    with pytest.warns(RuntimeWarning, match="slow reference kernels on 'cpu': numba is not installed"):
        assert backend.resolve("auto", "cpu") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.resolve("auto", "cpu") == "reference"


@pytest.mark.parametrize(
    ("name", "device", "reason"),
    [("cpu", "cuda", "CPU tensors only"), ("triton", "mps", "CUDA and ROCm"), ("triton", "cpu", "TRITON_INTERPRET=1")],
)
def test_an_explicit_choice_is_kept_or_refused(fresh: pytest.MonkeyPatch, name: str, device: str, reason: str) -> None:
    fresh.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(backend.BackendUnavailable, match=reason):
        backend.resolve(name, device)
    assert backend.resolve("reference", device) == "reference"


def test_kernels_that_were_imported_without_the_interpreter_do_not_run_in_it() -> None:
    code = (
        "import os, bayes_prompt.kernels.progress_filter.triton, bayes_prompt.kernels.backend as backend\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "try: backend.resolve('triton', 'cpu')\n"
        "except backend.BackendUnavailable as error: print(error)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "before triton is imported" in done.stdout


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, reference, cpu, triton; got 'gpu'"):
        backend.resolve("gpu", "cpu")


def test_every_operation_has_three_backends_of_one_signature() -> None:
    import inspect

    functions = {"progress_filter": ["advance", "score", "predict"], "beta_filter": ["advance"], "top_b": ["top_b"]}
    functions |= {"tally": ["tally"], "difficulty_decoder": ["decode"]}
    functions["grid_filter"] = ["predict", "score", "look", "look_index", "advance", "settle"]
    functions["thompson"] = ["sample_beta", "score_beta", "sample_state", "sample_dirichlet"]
    for operation, names in functions.items():
        modules = [backend.load(operation, name) for name in ("reference", "cpu", "triton")]
        for name in names:
            signatures = {str(inspect.signature(getattr(module, name))) for module in modules}
            assert len(signatures) == 1, (operation, name, signatures)
