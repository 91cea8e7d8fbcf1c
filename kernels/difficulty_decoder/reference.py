"""The definition of the difficulty decoder, in float64 torch."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.kernels.difficulty_decoder import Decoder, check_arguments

_CHUNK = 1 << 14  # rows whose hidden units are held at once


def decode(
    features: Tensor,
    decoder: Decoder,
    shifts: Tensor,
    offsets: Tensor,
    trials: int,
    mean: Tensor,
    variance: Tensor,
    informative: Tensor | None,
) -> None:
    """The success rates of N prompts under S draws of the context, averaged over the draws (GPS, arXiv 2602.01970).

    For draw s, with G trials:

        hidden = relu(first @ x + shifts[s])
        hidden = relu(second @ hidden + second_bias)      where there is a second layer
        p = sigmoid(last . hidden + skip . x + offsets[s])

    features: (N, D) embeddings x, float32, float64 or bfloat16.
    decoder: the weights, see `Decoder`.
    shifts: (S, H) bias of the first layer, with what a draw z adds to it: b + W z.
    offsets: (S,) bias of the logit, with what a draw adds to it. A call with S = 1 is a Thompson draw for all.
    trials: G, rollouts of one prompt, at least 1.
    mean: (N,) out, average of p. variance: (N,) out, average of (p - mean)^2.
    informative: (N,) out, average of 1 - p^G - (1 - p)^G, P(0 < successes < G); None where it is not asked for.

    Here all is computed in float64. The other backends compute in float32, in float64 where the features are. The
    sizes that they take are in `kernels.difficulty_decoder`. Where a feature is NaN, so are the results of its row, and
    of no other. Raises TypeError or ValueError for a wrong dtype, shape, device or layout.
    """
    check_arguments(features, decoder, shifts, offsets, trials, mean, variance, informative)
    for start in range(0, len(features), _CHUNK):
        rows = slice(start, start + _CHUNK)
        x = features[rows].detach().double()
        products, linear = x @ decoder.first.detach().double().T, x @ decoder.skip.detach().double()
        logits = torch.stack(
            [
                _last_layers(torch.relu(products + shift.double()), decoder) + linear + offset.double()
                for shift, offset in zip(shifts.detach(), offsets.detach(), strict=True)
            ]
        )
        rates = torch.sigmoid(logits)
        average = rates.mean(0)
        mean[rows] = average.to(mean.dtype)
        variance[rows] = (rates - average).square().mean(0).to(variance.dtype)
        if informative is not None:
            informative[rows] = _informative(logits, trials).mean(0).to(informative.dtype)


def _last_layers(hidden: Tensor, decoder: Decoder) -> Tensor:
    """Hidden units (n, H) to their part of the logit, (n,)."""
    if decoder.second is not None and decoder.second_bias is not None:
        hidden = torch.relu(hidden @ decoder.second.detach().double().T + decoder.second_bias.detach().double())
    return hidden @ decoder.last.detach().double()


def _informative(logits: Tensor, trials: int) -> Tensor:
    """1 - p^G - (1 - p)^G for p = sigmoid(logits), elementwise.

    The same for p and 1 - p. With p the smaller one, 1 - (1 - p)^G is as small as p, and is not taken from 1.
    """
    if trials == 1:
        return torch.where(logits.isnan(), logits, 0.0)
    rare = torch.exp(-logits.abs())  # odds of the rarer outcome
    log_common = -torch.log1p(rare)
    return -torch.expm1(trials * log_common) - torch.exp(trials * (log_common - logits.abs()))
