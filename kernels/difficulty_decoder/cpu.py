"""The difficulty decoder compiled for the CPU (numba): blocks of rows that stay in a core's own caches.

The numbers of the network are float32, float64 where the features are, the logits' functions float64.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels.difficulty_decoder import Decoder, check_arguments
from bayes_prompt.kernels.difficulty_decoder.cpu_product import DEPTH, TILE_ROWS, add_product, panels
from bayes_prompt.kernels.threads import compiled, inlined, over_rows
from bayes_prompt.kernels.vector_math import exp_minus, log

_BLOCK = 16 * TILE_ROWS  # rows
_MIN_ROWS = 1 << 9  # a row takes some microseconds
PIECES_A_THREAD = 8  # evens out threads that the machine does not schedule alike
_16 = np.uint32(16)


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
    """See `reference.decode`."""
    check_arguments(features, decoder, shifts, offsets, trials, mean, variance, informative)
    if features.device.type != "cpu":
        raise ValueError(f"features must be on the CPU for this backend, got {features.device}")
    network = _network(decoder, shifts, offsets)
    if features.dtype == torch.bfloat16:  # numba has none: their bits
        x, narrow = np.empty((0, 0), np.float32), features.detach().view(torch.int16).numpy().view(np.uint16)
    else:
        x, narrow = features.detach().numpy(), np.empty((0, 0), np.uint16)
    outs = [out.numpy() for out in (mean, variance, mean[:0] if informative is None else informative)]

    def rows(start: int, stop: int) -> None:
        part = slice(start, stop)
        _decode(x[part], narrow[part], *network, float(trials), *(out[part] for out in outs))

    over_rows(len(features), rows, PIECES_A_THREAD, _MIN_ROWS)


def _network(decoder: Decoder, shifts: Tensor, offsets: Tensor) -> tuple[np.ndarray, ...]:
    """What `_decode` takes of the weights, in the type that is computed with; layers are filled up to whole panels."""

    def numbers(tensor: Tensor) -> np.ndarray:
        array: np.ndarray = tensor.detach().to(shifts.dtype).numpy()
        return array

    first = panels(numbers(decoder.first))
    hidden = outputs = first.shape[0] * first.shape[2]
    second, bias = first[:0], np.empty(0, first.dtype)
    if decoder.second is not None and decoder.second_bias is not None:
        second = panels(_padded(numbers(decoder.second), hidden))
        outputs = second.shape[0] * second.shape[2]
        bias = _padded(numbers(decoder.second_bias), outputs)
    last, shift = _padded(numbers(decoder.last), outputs), _padded(numbers(shifts), hidden)
    return first, numbers(decoder.skip), second, bias, last, shift, numbers(offsets)


def _padded(array: np.ndarray, columns: int) -> np.ndarray:
    """With zeros up to so many columns: units that add nothing to a logit."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, columns - array.shape[-1])])


def _summing(function: Any) -> Any:
    """`inlined`, and sums may be taken in another order: vectors of partial sums."""
    return numba.njit(function, forceinline=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@compiled
def _decode(  # type: ignore[no-untyped-def]
    features, narrow, first, skip, second, bias, last, shifts, offsets, trials, mean, variance, informative
):
    scalar, draws = skip.dtype, len(shifts)
    copied = np.zeros((_BLOCK, len(skip)), scalar)
    products = np.empty((_BLOCK, shifts.shape[1]), scalar)
    hidden = np.empty((_BLOCK if len(second) else 0, shifts.shape[1]), scalar)
    outputs = np.empty((_BLOCK if len(second) else 0, len(last)), scalar)
    linear, logits, rates = np.empty(_BLOCK), np.empty((draws, _BLOCK)), np.empty((draws, _BLOCK))
    for start in range(0, len(mean), _BLOCK):
        size = min(_BLOCK, len(mean) - start)
        x = features[start : start + _BLOCK]
        if len(x) < _BLOCK:  # tiles are whole, and so are the numbers of a copy
            for r in range(size):
                if len(narrow) > 0:
                    _widen(narrow[start + r], copied[r])
                else:
                    copied[r] = features[start + r]
            x = copied
        for r in range(size):
            linear[r] = _dot(x[r], skip)
        products[:] = 0
        _add_products(x, first, products, size)
        for s in range(draws):
            if len(second) > 0:
                for r in range(size):
                    _activate(products[r], shifts[s], hidden[r])
                outputs[:] = 0
                _add_products(hidden, second, outputs, size)
            for r in range(size):
                if len(second) > 0:
                    logits[s, r] = _last_layer(outputs[r], bias, last) + linear[r] + offsets[s]
                else:
                    logits[s, r] = _last_layer(products[r], shifts[s], last) + linear[r] + offsets[s]
        rows = slice(start, start + size)
        _average(logits, trials, rates, mean[rows], variance[rows], informative[rows])


@inlined
def _add_products(x, weights, out, size):  # type: ignore[no-untyped-def]
    """out += x @ weights for `size` rows, filled up to whole tiles; weights as `panels` makes them."""
    columns = weights.shape[2]
    for start in range(0, weights.shape[1], DEPTH):
        depth = slice(start, min(start + DEPTH, weights.shape[1]))
        for panel in range(weights.shape[0]):
            place = slice(panel * columns, (panel + 1) * columns)
            for r in range(0, size, TILE_ROWS):
                tile = slice(r, r + TILE_ROWS)
                add_product(x[tile, depth], weights[panel, depth], out[tile, place])


@inlined
def _widen(source, target):  # type: ignore[no-untyped-def]
    """Numbers in bfloat16, as uint16, to float32."""
    for d in range(len(source)):
        target[d] = np.uint32(np.uint32(source[d]) << _16).view(np.float32)


@_summing
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = a.dtype.type(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@inlined
def _activate(products, shift, hidden):  # type: ignore[no-untyped-def]
    zero = hidden.dtype.type(0)
    for h in range(len(hidden)):
        hidden[h] = max(products[h] + shift[h], zero)


@_summing
def _last_layer(products, shift, last):  # type: ignore[no-untyped-def]
    zero = last.dtype.type(0)
    total = zero
    for h in range(len(last)):
        total += max(products[h] + shift[h], zero) * last[h]
    return total


@compiled
def _average(logits, trials, rates, mean, variance, informative):  # type: ignore[no-untyped-def]
    """The three averages over the draws (S, block); `rates` are overwritten. Like the reference, but without log1p."""
    draws, block = logits.shape
    average, mixed, squares = np.zeros(block), np.zeros(block), np.zeros(block)
    for s in range(draws):
        logit, rate = logits[s], rates[s]
        if len(informative) > 0:
            for r in range(block):
                x = logit[r]
                rate[r], rare, common = _rates(x)
                odds = 1.0 + rare
                minus_log = log(odds) - ((odds - 1.0) - rare) * common  # what the sum had lost comes back
                value = _one_minus_exp(trials * minus_log) - exp_minus(trials * (minus_log + abs(x)))
                value = 0.0 if trials == 1.0 else value
                average[r] += rate[r]
                mixed[r] += value if x == x else x
        else:
            for r in range(block):
                rate[r], _, _ = _rates(logit[r])
                average[r] += rate[r]
    for r in range(block):
        average[r] /= draws
    for s in range(draws):
        rate = rates[s]
        for r in range(block):
            squares[r] += (rate[r] - average[r]) ** 2
    for r in range(len(mean)):
        mean[r] = average[r]
        variance[r] = squares[r] / draws
    for r in range(len(informative)):
        informative[r] = mixed[r] / draws


@inlined
def _rates(logit):  # type: ignore[no-untyped-def]
    """sigmoid(logit), the odds of the rarer outcome, and the probability of the other one."""
    rare = exp_minus(abs(logit))
    common = 1.0 / (1.0 + rare)
    rate = common if logit >= 0 else rare * common
    return (rate if logit == logit else logit), rare, common


@inlined
def _one_minus_exp(t):  # type: ignore[no-untyped-def]
    """1 - exp(-t) for t >= 0, by its series where the difference would cancel."""
    series = t * (1.0 - t * (1 / 2) * (1.0 - t * (1 / 3) * (1.0 - t * (1 / 4) * (1.0 - t * (1 / 5)))))
    return series if t < 2.0**-8 else 1.0 - exp_minus(t)
