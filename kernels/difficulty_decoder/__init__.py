"""The decoder of a generative difficulty model for N prompts: success rates from embeddings, averaged over S draws.

A network of one hidden layer, or two, looks at an embedding x and a latent context z (GPS, arXiv 2602.01970). Its first
layer is linear in both, so what depends on z is a bias: S draws share one product of the embeddings with the weights,
which is nearly all of the work, and read the embeddings once. Only a second hidden layer costs S products of its own,
and these do not depend on the width of the embedding.

The three backends share name and signature; `reference.py` is the definition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayes_prompt.kernels.arguments import FLOATS, check_layout

MAX_HIDDEN = 256
"""Most units of a hidden layer."""

MAX_FEATURES = 4096
"""Longest embedding."""

MAX_DRAWS = 64
"""Most draws of one call."""


class Decoder(NamedTuple):
    """The weights that all draws share; contiguous tensors on one device.

    first, second are in the dtype of the features: float32, float64 or bfloat16. All else is float32, or float64 where
    the features are.

    first: (H, D) features to hidden units; its bias is part of a draw.
    skip: (D,) a linear path from the features to the logit.
    second: (H2, H) a second hidden layer, or None.
    second_bias: (H2,), or None where there is no second layer.
    last: (H2,), without a second layer (H,): hidden units to the logit.
    """

    first: Tensor
    skip: Tensor
    second: Tensor | None
    second_bias: Tensor | None
    last: Tensor


def computed(features: Tensor) -> str:
    """The type of all that is computed, by name: features in bfloat16 are computed with in float32."""
    return "float64" if features.dtype == torch.float64 else "float32"


def check_arguments(
    features: Tensor,
    decoder: Decoder,
    shifts: Tensor,
    offsets: Tensor,
    trials: int,
    mean: Tensor,
    variance: Tensor,
    informative: Tensor | None,
) -> None:
    """Raises TypeError or ValueError that names the argument, unless all have the layout that `decode` asks for.

    What tensors hold is not looked at: that would cost a pass over memory.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (prompts, width), got {tuple(features.shape)}")
    if features.dtype not in (*FLOATS, torch.bfloat16):
        raise TypeError(f"features must be float32, float64 or bfloat16, got {features.dtype}")
    if decoder.first.ndim != 2:
        raise ValueError(f"decoder.first must have shape (hidden, width), got {tuple(decoder.first.shape)}")
    if shifts.ndim != 2:
        raise ValueError(f"shifts must have shape (draws, hidden), got {tuple(shifts.shape)}")
    stored, wide = str(features.dtype).removeprefix("torch."), computed(features)
    prompts, width = features.shape
    hidden, draws = decoder.first.shape[0], shifts.shape[0]
    _check_size("features", "columns", width, MAX_FEATURES)
    _check_size("decoder.first", "rows", hidden, MAX_HIDDEN)
    _check_size("shifts", "rows", draws, MAX_DRAWS)
    check_layout("features", features, (prompts, width), features, stored)
    check_layout("decoder.first", decoder.first, (hidden, width), features, stored)
    check_layout("decoder.skip", decoder.skip, (width,), features, wide)
    if (decoder.second is None) != (decoder.second_bias is None):
        raise ValueError("decoder.second and decoder.second_bias must both be tensors, or both be None")
    outputs = hidden
    if decoder.second is not None and decoder.second_bias is not None:
        if decoder.second.ndim != 2:
            raise ValueError(f"decoder.second must have shape (hidden, hidden), got {tuple(decoder.second.shape)}")
        outputs = decoder.second.shape[0]
        _check_size("decoder.second", "rows", outputs, MAX_HIDDEN)
        check_layout("decoder.second", decoder.second, (outputs, hidden), features, stored)
        check_layout("decoder.second_bias", decoder.second_bias, (outputs,), features, wide)
    check_layout("decoder.last", decoder.last, (outputs,), features, wide)
    check_layout("shifts", shifts, (draws, hidden), features, wide)
    check_layout("offsets", offsets, (draws,), features, wide)
    if isinstance(trials, bool) or not isinstance(trials, int):
        raise TypeError(f"trials must be an integer, got {type(trials).__name__}")
    if not 1 <= trials < 2**31:
        raise ValueError(f"trials must be at least 1 and below 2**31, got {trials}")
    check_layout("mean", mean, (prompts,), features, wide)
    check_layout("variance", variance, (prompts,), features, wide)
    if informative is not None:
        check_layout("informative", informative, (prompts,), features, wide)


def _check_size(name: str, what: str, size: int, most: int) -> None:
    if not 1 <= size <= most:
        raise ValueError(f"{name} must have at least 1 and at most {most} {what}, got {size}")
