"""Hashed n-grams against the definition, text by text, and what does not change them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_prompt.embedding import Embedder, HashedNgrams, hashed

WORD = (1 << 64) - 1
TEXTS = st.lists(st.text(max_size=12) | st.text("ab", max_size=12), min_size=1, max_size=6)


def by_definition(text: str, dimensions: int, lowest: int, highest: int, seed: int) -> np.ndarray:
    """Python's own integers, one n-gram at a time."""

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & WORD
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & WORD
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & WORD
        return value ^ (value >> 31)

    def hashed_gram(gram: tuple[int, ...]) -> int:
        state = seed
        for code in gram:
            state = mix((state + code) & WORD)
        return state >> (64 - 43)

    out = np.zeros(dimensions)
    if text:
        codes = (0x110000, *map(ord, text.lower()), 0x110000)
        for n in range(lowest, highest + 1):
            counts = Counter(hashed_gram(codes[i : i + n]) for i in range(len(codes) - n + 1))
            for gram, count in counts.items():
                out[(gram >> 1) % dimensions] += (1 - 2 * (gram & 1)) * (1 + math.log(count))
    length = np.linalg.norm(out)
    return out / length if length > 1e-9 else out * 0


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(1, 40), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2**63 - 1))
def test_every_text_as_defined(texts: list[str], dimensions: int, lowest: int, more: int, seed: int) -> None:
    found = HashedNgrams(dimensions, lowest, lowest + more, seed)(texts)
    assert found.shape == (len(texts), dimensions)
    assert found.dtype == np.float32
    for row, text in zip(found, texts, strict=True):
        expected = by_definition(text, dimensions, lowest, lowest + more, seed)
        np.testing.assert_allclose(row, expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(TEXTS)
def test_chunks_do_not_matter(texts: list[str]) -> None:
    embedder = HashedNgrams(32)
    whole = embedder(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashed, "_CHUNK", 5)
        np.testing.assert_array_equal(embedder(texts), whole)
        patch.setattr(hashed, "_MOST_ROWS", 1)
        np.testing.assert_array_equal(embedder(texts), whole)


def test_the_same_in_every_process() -> None:
    code = (
        "from bayes_prompt.embedding import HashedNgrams;"
        "print(HashedNgrams(64)(['Find all primes.', 'été']).tobytes().hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert HashedNgrams(64)(["Find all primes.", "été"]).tobytes().hex() == other.strip()


def test_inner_products_are_unbiased_over_seeds() -> None:
    """The mean over seeds of the hashed product of unscaled vectors is that of the n-gram vectors."""
    first, second = "abcab", "bcabd"

    def grams(text: str) -> Counter[str]:
        edged = f"<{text}>"
        return Counter(edged[i : i + 2] for i in range(len(edged) - 1))

    one, two = grams(first), grams(second)
    weight = lambda counts, gram: 1 + math.log(counts[gram]) if counts[gram] else 0.0  # noqa: E731
    vectors = np.array([[weight(counts, gram) for gram in sorted({*one, *two})] for counts in (one, two)])
    lengths = np.linalg.norm(vectors, axis=1)
    cosine = float(vectors[0] @ vectors[1] / lengths.prod())
    # With so many numbers two of eight n-grams rarely meet, and rows are scaled by nearly the lengths of these vectors.
    seeds, dimensions = 400, 4096
    found = [HashedNgrams(dimensions, 2, 2, seed)([first, second]) for seed in range(seeds)]
    products = np.array([float(pair[0] @ pair[1]) for pair in found])
    meet = 8 * 7 / 2 / dimensions  # chance that any two meet, and then the product is off by 2 at most
    assert abs(products.mean() - cosine) <= 5 * 2 * math.sqrt(meet / seeds) + 2 * meet


def test_settings_of_the_hash_matter_and_are_named() -> None:
    embedders = [
        HashedNgrams(),
        HashedNgrams(seed=1),
        HashedNgrams(lowest=3),
        HashedNgrams(highest=5),
        HashedNgrams(64),
    ]
    assert len({embedder.name for embedder in embedders}) == len(embedders)
    assert len({embedder(["a prompt"]).tobytes() for embedder in embedders}) == len(embedders)
    assert all(isinstance(embedder, Embedder) for embedder in embedders)


def test_degenerate_texts() -> None:
    found = HashedNgrams(16)(["", "x", "\ud800", "X", "\U0010ffff", "y" * 3000])
    assert not found[0].any()
    np.testing.assert_allclose(np.linalg.norm(found[1:], axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found[1], found[3])
    assert HashedNgrams(16)([]).shape == (0, 16)
    assert not HashedNgrams(8, 5, 6)(["ab"]).any()  # too short for any n-gram


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions must lie in"),
        ({"lowest": 0}, "lowest must lie in"),
        ({"lowest": 3, "highest": 2}, "highest must lie in"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_bad_settings(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashedNgrams(**options)
    with pytest.raises(TypeError, match="dimensions must be an integer"):
        HashedNgrams(2.5)  # type: ignore[arg-type]
