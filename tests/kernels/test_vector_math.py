"""The elementary functions of the CPU kernels against numpy's."""

from __future__ import annotations

import math

import numba
import numpy as np

from bayes_prompt.kernels import vector_math

ULP = 2.0**-52


@numba.njit
def log(x: np.ndarray) -> np.ndarray:
    return np.array([vector_math.log(x[n]) for n in range(len(x))])


@numba.njit
def exp_minus(t: np.ndarray) -> np.ndarray:
    return np.array([vector_math.exp_minus(t[n]) for n in range(len(t))])


@numba.njit
def cos_sin(word: np.ndarray) -> np.ndarray:
    out = np.empty((len(word), 2))
    for n in range(len(word)):
        out[n, 0], out[n, 1] = vector_math.cos_sin(word[n])
    return out


def test_log() -> None:
    rng = np.random.default_rng(0)
    around_one = 1 + np.array([0, 1, -1, 2, 1e3, -1e5, 1e10]) * 2.0**-53
    x = np.concatenate(
        [np.exp(rng.uniform(-708, 709, 10_000)), rng.uniform(0, 2, 10_000), around_one, 2.0 ** -np.arange(34)]
    )
    x = np.append(x, [np.finfo(np.float64).tiny, np.finfo(np.float64).max, math.sqrt(0.5), math.sqrt(2)])
    # 2 s and exponent * ln 2, each with a few roundings of its own; next to 1 the exponent is 0.
    error = np.abs(log(x) - np.log(x))
    assert (error <= 4 * ULP * np.abs(np.log(x))).all()


def test_exp_minus() -> None:
    rng = np.random.default_rng(0)
    t = np.concatenate(
        [rng.uniform(0, 800, 20_000), 10 ** rng.uniform(-20, 2, 10_000), [0.0, 709.0, 745.0, 746.0, 1e300, np.inf]]
    )
    smallest = 5e-324  # subnormal results are rounded to a multiple of it
    assert (np.abs(exp_minus(t) - np.exp(-t)) <= 4 * ULP * np.exp(-t) + smallest).all()
    assert exp_minus(np.array([0.0, 746.0, np.inf])).tolist() == [1.0, 0.0, 0.0]


def test_cosine_and_sine() -> None:
    rng = np.random.default_rng(0)
    eighths = np.arange(8) * 2**29
    word = np.concatenate([rng.integers(0, 2**32, 20_000), eighths, eighths[1:] - 1, [2**32 - 1]]).astype(np.uint64)
    angle = 2 * math.pi * ((word.astype(np.float64) + 0.5) / 2**32)
    # numpy's angle is itself off by up to 2 pi ulp; the quarters of our own are exact.
    assert np.abs(cos_sin(word) - np.stack([np.cos(angle), np.sin(angle)], axis=1)).max() < 8 * ULP
