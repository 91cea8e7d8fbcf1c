"""Random words: published vectors, an oracle in Python's unbounded integers, and bit equality of the three versions."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import rng, rng_cpu, rng_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 1024
# Random123 (D. E. Shaw Research), tests/kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# seed, step, attempt: small ones, ones that fill their 32- or 64-bit words, ones that set a narrow type's sign bit
SETTINGS = [(0, 0, 0), (1, 1, 1), (2**63 - 1, 2**32 - 1, 2**24 - 1), (2**32 + 5, 2**31, 63), (3_000_000_000, 7, 2)]


def oracle(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 as its authors write it: multiply, swap, mix in the round key."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def some_prompts() -> Tensor:
    """Prompt numbers around every power of two up to 2**62, and random ones."""
    powers = torch.tensor([2**power for power in range(62)])
    random = torch.randint(0, 2**62, (500,), generator=torch.Generator().manual_seed(0))
    return torch.cat([powers - 1, powers, powers + 1, torch.tensor([2**62 - 1]), random])


@triton.jit
def _philox(counter, key, out, size, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    inside = row < size
    c0 = tl.load(counter + row, mask=inside, other=0).to(tl.uint32)
    c1 = tl.load(counter + size + row, mask=inside, other=0).to(tl.uint32)
    c2 = tl.load(counter + 2 * size + row, mask=inside, other=0).to(tl.uint32)
    c3 = tl.load(counter + 3 * size + row, mask=inside, other=0).to(tl.uint32)
    k0, k1 = tl.load(key).to(tl.uint64), tl.load(key + 1).to(tl.uint64)
    w0, w1, w2, w3 = rng_triton.philox(c0, c1, c2, c3, k0, k1)
    tl.store(out + row, w0.to(tl.int64), mask=inside)
    tl.store(out + size + row, w1.to(tl.int64), mask=inside)
    tl.store(out + 2 * size + row, w2.to(tl.int64), mask=inside)
    tl.store(out + 3 * size + row, w3.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["seed", "step", "attempt"])
def _words(
    prompts, out, keys, size, seed: tl.int64, step: tl.int64, attempt, STREAM: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.arange(0, BLOCK)
    inside = row < size
    prompt = tl.load(prompts + row, mask=inside, other=0)
    w0, w1, w2, w3 = rng_triton.words(seed.to(tl.int64), step.to(tl.int64), prompt, STREAM, attempt)
    tl.store(out + row, w0.to(tl.int64), mask=inside)
    tl.store(out + size + row, w1.to(tl.int64), mask=inside)
    tl.store(out + 2 * size + row, w2.to(tl.int64), mask=inside)
    tl.store(out + 3 * size + row, w3.to(tl.int64), mask=inside)
    tl.store(keys + row, rng_triton.tie_keys(seed.to(tl.int64), step.to(tl.int64), prompt), mask=inside)


@triton.jit
def _uniform(words, out, size, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    inside = row < size
    word = tl.load(words + row, mask=inside, other=0).to(tl.uint32)
    tl.store(out + row, rng_triton.uniform(word, out.dtype.element_ty), mask=inside)


@numba.njit
def words_cpu(
    prompts: np.ndarray,
    seed: int,
    step: int,
    stream: int,
    attempt: int,
    out: np.ndarray,
    keys: np.ndarray,
    fours: np.ndarray,
) -> None:
    for n in range(len(prompts)):
        out[0, n], out[1, n], out[2, n], out[3, n] = rng_cpu.words(seed, step, prompts[n], stream, attempt)
        keys[n] = rng_cpu.tie_key(seed, step, prompts[n])
        fours[n] = rng_cpu.four_tie_keys(seed, step, prompts[n] // 4)[prompts[n] % 4]


def philox_triton(counter: Tensor, key: tuple[int, int]) -> Tensor:
    out = torch.full_like(counter, -1, device=DEVICE)
    _philox[(1,)](counter.to(DEVICE), torch.tensor(key, device=DEVICE), out, counter.shape[1], BLOCK)
    return out.cpu()


def philox_cpu(counter: Tensor, key: tuple[int, int]) -> Tensor:
    columns = [rng_cpu.philox(*map(np.uint64, column), *map(np.uint64, key)) for column in counter.T.tolist()]
    return torch.tensor([[int(word) for word in column] for column in columns]).T


def philox_torch(counter: Tensor, key: tuple[int, int]) -> Tensor:
    return torch.stack(rng.philox(tuple(counter), key))


PHILOX: list[Callable[[Tensor, tuple[int, int]], Tensor]] = [philox_torch, philox_cpu, philox_triton]


@pytest.mark.parametrize("philox", PHILOX)
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_published_vectors(
    philox: Callable[..., Tensor], counter: tuple[int, ...], key: tuple[int, int], result: tuple[int, ...]
) -> None:
    assert oracle(counter, key) == result
    assert tuple(philox(torch.tensor(counter)[:, None], key).squeeze(1).tolist()) == result


@pytest.mark.parametrize("philox", PHILOX)
def test_random_counters(philox: Callable[..., Tensor]) -> None:
    counter = torch.randint(0, 2**32, (4, 300), generator=torch.Generator().manual_seed(1))
    key = (0xDEADBEEF, 0x80000001)
    expected = torch.tensor([oracle(tuple(column), key) for column in counter.T.tolist()]).T
    assert torch.equal(philox(counter, key), expected)


@pytest.mark.parametrize(("seed", "step", "attempt"), SETTINGS)
@pytest.mark.parametrize("stream", [rng.TIE, rng.BOOST, 255])
def test_layout_of_key_and_counter(seed: int, step: int, attempt: int, stream: int) -> None:
    prompts = some_prompts()
    expected = torch.tensor(
        [
            oracle((prompt % 2**32, prompt // 2**32, step, stream * 2**24 + attempt), (seed % 2**32, seed // 2**32))
            for prompt in prompts.tolist()
        ]
    )
    words = torch.stack(rng.words(seed, step, prompts, stream, attempt), dim=1)
    assert words.dtype == torch.int64
    assert torch.equal(words, expected)


@pytest.mark.parametrize(("seed", "step", "attempt"), SETTINGS)
def test_words_and_keys_are_bit_equal(seed: int, step: int, attempt: int) -> None:
    prompts = some_prompts()
    stream = 255
    expected = torch.stack(rng.words(seed, step, prompts, stream, attempt))
    keys = rng.tie_keys(seed, step, prompts)

    cpu_words, cpu_keys, fours = torch.full_like(expected, -1), torch.full_like(keys, -1), torch.full_like(keys, -1)
    words_cpu(prompts.numpy(), seed, step, stream, attempt, cpu_words.numpy(), cpu_keys.numpy(), fours.numpy())
    assert torch.equal(cpu_words, expected)
    assert torch.equal(cpu_keys, keys)
    assert torch.equal(fours, keys)

    gpu_words = torch.full_like(expected, -1, device=DEVICE)
    gpu_keys = torch.full_like(keys, -1, device=DEVICE)
    _words[(1,)](prompts.to(DEVICE), gpu_words, gpu_keys, len(prompts), seed, step, attempt, stream, BLOCK)
    assert torch.equal(gpu_words.cpu(), expected)
    assert torch.equal(gpu_keys.cpu(), keys)


def test_four_prompts_share_the_words_of_their_tie_keys() -> None:
    prompts = some_prompts()
    words = rng.words(9, 4, prompts // 4, rng.TIE)
    expected = [words[prompt % 4][n].item() for n, prompt in enumerate(prompts.tolist())]
    assert rng.tie_keys(9, 4, prompts).tolist() == expected
    assert {prompt % 4 for prompt in prompts.tolist()} == {0, 1, 2, 3}


def test_tie_keys_stay_what_they_are() -> None:
    """Who resumes a run with a later version gets the same picks."""
    prompts = torch.tensor([0, 1, 2, 3, 4, 10**9 + 7, 2**62 - 1])
    known = [4068724908, 2894038555, 85430303, 1885486350, 343381726, 1526621203, 4016193341]
    assert rng.tie_keys(9, 4, prompts).tolist() == known
    words = [oracle((int(prompt) // 4 % 2**32, int(prompt) // 4 // 2**32, 4, 0), (9, 0)) for prompt in prompts]
    assert [int(word[int(prompt) % 4]) for word, prompt in zip(words, prompts, strict=True)] == known


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_rounded_once(dtype: torch.dtype) -> None:
    # Words next to the midpoints of float32 are where rounding twice would show.
    near = [2**power + offset for power in range(24, 32) for offset in (-2, -1, 0, 1, 2, 3, 2 ** (power - 24))]
    words = torch.tensor([0, 1, 2, 2**23, 2**32 - 129, 2**32 - 128, 2**32 - 127, 2**32 - 1, *near])
    exact = (words.numpy() + 0.5) / 2**32  # 33 bits: float64 holds them
    expected = torch.from_numpy(exact).to(dtype)
    assert torch.equal(rng.uniform(words, dtype), expected)
    assert expected[0] == 2.0**-33
    out = torch.full(words.shape, torch.nan, dtype=dtype, device=DEVICE)
    _uniform[(1,)](words.to(DEVICE), out, len(words), BLOCK)
    assert torch.equal(out.cpu(), expected)
    if dtype == torch.float64:
        assert [rng_cpu.uniform(np.uint64(word)) for word in words.tolist()] == expected.tolist()
        assert expected.max() < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0), r"seed must be in \[0, 2\*\*63\), got -1"),
        ((2**63, 0), r"seed must be in \[0, 2\*\*63\), got 9223372036854775808"),
        ((0, -1), r"step must be in \[0, 2\*\*32\), got -1"),
        ((0, 2**32), r"step must be in \[0, 2\*\*32\), got 4294967296"),
        ((0, 0, -1), r"first_prompt must be in \[0, 2\*\*62\), got -1"),
        ((0, 0, 2**62), r"first_prompt must be in"),
    ],
)
def test_out_of_range(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rng.check(*arguments)


def test_words_refuse_what_is_out_of_range_or_of_another_type() -> None:
    prompts = torch.arange(3)
    with pytest.raises(ValueError, match="seed must be in"):
        rng.words(-1, 0, prompts, rng.TIE)
    with pytest.raises(ValueError, match=r"stream must be in \[0, 2\*\*8\), got 256"):
        rng.words(0, 0, prompts, 256)
    with pytest.raises(ValueError, match="attempt must be in"):
        rng.words(0, 0, prompts, rng.BETA, 2**24)
    with pytest.raises(TypeError, match=r"step must be an integer, got 1\.5"):
        rng.words(0, 1.5, prompts, rng.TIE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"prompts must be an int64 tensor, got torch\.int32"):
        rng.words(0, 0, prompts.int(), rng.TIE)


def test_seeds_and_steps_in_tensors_stay_unread() -> None:
    seed, step = torch.tensor([5]), torch.tensor([6])
    checked = rng.check(seed, step, 7)
    assert checked[0] is seed and checked[1] is step and checked[2] == 7
    assert rng.known(seed, step) == rng.known(5, step) == (5, 6)
    prompts = torch.arange(4)
    assert torch.equal(rng.tie_keys(seed, step, prompts), rng.tie_keys(5, 6, prompts))
    with pytest.raises(TypeError, match=r"step must be an integer or an int64 tensor, got torch\.int32"):
        rng.check(0, step.int())
    with pytest.raises(ValueError, match=r"seed must have shape \(1,\) where it is a tensor, got \(\)"):
        rng.check(torch.tensor(5), 0)
    with pytest.raises(ValueError, match=r"step must be in \[0, 2\*\*32\), got 4294967296"):
        rng.known(0, torch.tensor([2**32]))


@triton.jit(do_not_specialize=["seed", "step"])
def _moment(seed, step, out):
    tl.store(out, rng_triton.moment(seed))
    tl.store(out + 1, rng_triton.moment(step))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 3_000_000_000, 2**63 - 1])
@pytest.mark.parametrize("step", [0, 1, 2**31, 2**32 - 1])
def test_a_moment_is_a_number_or_in_a_tensor(seed: int, step: int) -> None:
    in_tensors = torch.tensor([seed], device=DEVICE), torch.tensor([step], device=DEVICE)
    for moment in ((seed, step), (seed, in_tensors[1]), (in_tensors[0], step), in_tensors):
        out = torch.full((2,), -1, device=DEVICE)
        _moment[(1,)](*moment, out)
        assert out.tolist() == [seed, step]


def test_numpy_integers_are_integers() -> None:
    prompts = torch.arange(5)
    assert torch.equal(rng.tie_keys(np.int64(3), np.uint32(4), prompts), rng.tie_keys(3, 4, prompts))  # type: ignore[arg-type]
