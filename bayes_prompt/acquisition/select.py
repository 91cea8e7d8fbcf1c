"""The exact pick of the best-scored prompts."""

from __future__ import annotations

import torch
from torch import Tensor

import bayes_prompt.kernels.backend as backends
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks


def top_b(
    scores: Tensor,
    batch_size: int,
    *,
    seed: int | Tensor,
    step: int | Tensor,
    allowed: Tensor | None = None,
    first_prompt: int = 0,
    backend: str = "auto",
    shortlist: Shortlist | None = None,
) -> Tensor:
    """The rows of the `batch_size` best scores, best first, as int64 (batch_size,) on the device of `scores`.

    Ties are broken by random keys that are functions of (seed, step, first_prompt + row), so that neither the order of
    the rows nor the device decides. NaN ranks last. Where fewer rows are allowed than asked for, the rest is -1.

    Args:
        seed, step: numbers, or (1,) int64 tensors on the device of the scores, which are then not waited for.
        scores: (N,) float32 or float64. allowed: (N,) bool, or None for all. batch_size: between 1 and N.
        backend: "auto", "reference", "cpu" or "triton".
        shortlist: of the best rows, noted while the scores were written; it saves time and never changes the pick.
    """
    if scores.ndim != 1 or scores.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"scores must be float32 or float64 of shape (N,); got {scores.dtype} {tuple(scores.shape)}")
    batch_size = checks.integer("batch_size", batch_size, 1, scores.numel())
    if allowed is not None and (allowed.dtype != torch.bool or allowed.shape != scores.shape):
        raise ValueError(
            f"allowed must be bool of shape {tuple(scores.shape)}; got {allowed.dtype} {tuple(allowed.shape)}"
        )
    kernel = backends.load("top_b", backends.resolve(backend, scores.device))
    picked: Tensor = kernel.top_b(scores.contiguous(), allowed, batch_size, seed, step, first_prompt, shortlist)
    return picked
