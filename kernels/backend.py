"""Which implementation of a kernel runs: the reference, the compiled CPU one, or Triton."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from functools import cache
from types import ModuleType

import torch

BACKENDS = ("auto", "reference", "cpu", "triton")


class BackendUnavailable(ValueError):
    """An explicitly chosen backend cannot run here; the message says why."""


def resolve(backend: str, device: torch.device | str) -> str:
    """The implementation that runs for tensors on `device`: "reference", "cpu" or "triton".

    `"auto"` takes the fastest one that is installed and warns once where it had to fall back. An explicit choice that
    cannot be had raises `BackendUnavailable`; an unknown name raises `ValueError`.
    """
    device = torch.device(device)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if backend != "auto":
        reason = _obstacle(backend, device)
        if reason:
            raise BackendUnavailable(f"backend {backend!r} cannot run on device {str(device)!r}: {reason}")
        return backend
    preferred = "triton" if device.type == "cuda" else "cpu"
    reason = _obstacle(preferred, device)
    if not reason:
        return preferred
    _say_once(f"bayes_prompt uses the slow reference kernels on {str(device)!r}: {reason}")
    return "reference"


def load(operation: str, backend: str) -> ModuleType:
    """The module `<operation>.<backend>` of this package, imported when first used.

    `backend` is a resolved name: "reference", "cpu" or "triton".
    """
    return importlib.import_module(f"{__package__}.{operation}.{backend}")


def _obstacle(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run on `device`, or None where it can."""
    if backend == "cpu":
        if device.type != "cpu":
            return "it works on CPU tensors only"
        return None if _installed("numba") else "numba is not installed"
    if backend == "triton":
        if not _installed("triton"):
            return "triton is not installed"
        if device.type == "cpu" and not _interpreted():
            return "CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1 before triton is imported"
        if device.type not in ("cpu", "cuda"):
            return "it works on CUDA and ROCm devices only"
    return None


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: it is asked for, and was when they and Triton were imported."""
    import triton
    import triton.language

    modules = [module for name, module in list(sys.modules.items()) if name.startswith(f"{__package__}.")]
    functions = [triton.language.sum, *(value for module in modules for value in list(vars(module).values()))]
    compiled = any(isinstance(function, triton.JITFunction) for function in functions)
    return bool(triton.knobs.runtime.interpret) and not compiled


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
