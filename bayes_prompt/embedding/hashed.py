"""Hashed character n-grams: vectors of texts that need no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bayes_prompt.posteriors import checks

_CHUNK = 1 << 20  # characters at a time, which bounds the memory
_MOST_ROWS = 1 << 20  # of a chunk, so that row and hash share 64 bits
_HASH_BITS = 43
_NOTHING = 1e-9  # a sum of terms that cancel, and what rounding leaves of it
_EDGE = 0x110000  # no character: stands before and after a text
_FACTORS = tuple(np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class HashedNgrams:
    """Counts of character n-grams, each added with a random sign to one of D numbers.

    Texts are taken in lower case, n-grams at their edges are told from those within. A count c weighs 1 + log c; rows
    have length one, but an empty text is a row of zeros. The inner product of two rows estimates without bias, over
    seeds, that of the n-gram vectors, and it is the same on every machine. Source: feature hashing (arXiv 0902.2206).

    Args:
        dimensions: D.
        lowest, highest: lengths of the n-grams, in characters.
        seed: in [0, 2**63), chooses the hash.

    Raises:
        ValueError, TypeError: a setting is no integer or out of range.
    """

    def __init__(self, dimensions: int = 256, lowest: int = 2, highest: int = 4, seed: int = 0) -> None:
        self.dimensions = checks.integer("dimensions", dimensions, 1, 1 << 24)
        self.lowest = checks.integer("lowest", lowest, 1, 64)
        self.highest = checks.integer("highest", highest, self.lowest, 64)
        self.seed = checks.integer("seed", seed, 0, 2**63 - 1)
        self.name = f"hashed-ngrams-1-{self.dimensions}-{self.lowest}-{self.highest}-{self.seed}"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dimensions) float32."""
        parts = [self._embed(chunk) for chunk in _chunks(texts, self.dimensions)]
        return np.concatenate([np.zeros((0, self.dimensions), dtype=np.float32), *parts])

    def _embed(self, texts: list[str]) -> np.ndarray:
        edge = chr(_EDGE - 1)  # replaced below: Python has no character beyond the last
        lowered = [text.lower() for text in texts]
        lengths = np.fromiter((len(text) + 2 if text else 0 for text in lowered), np.int64, len(texts))
        joined = "".join(f"{edge}{text}{edge}" for text in lowered if text)
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        codes[starts[lengths > 0]] = codes[ends[lengths > 0] - 1] = _EDGE
        row = np.repeat(np.arange(len(texts)), lengths)
        room = np.repeat(ends, lengths) - np.arange(len(codes))  # characters up to the text's end
        sums = np.zeros(len(texts) * self.dimensions)
        rolling = np.full(len(codes), self.seed, dtype=np.uint64)
        for n in range(1, self.highest + 1):
            rolling = _mix(rolling[: max(len(codes) - n + 1, 0)] + codes[n - 1 :])
            if n >= self.lowest:
                here = room[: len(rolling)] >= n
                self._add(sums, rolling[here], row[: len(rolling)][here])
        found = sums.reshape(len(texts), self.dimensions)
        length = np.linalg.norm(found, axis=1, keepdims=True)
        return np.divide(found, length, out=np.zeros_like(found), where=length > _NOTHING).astype(np.float32)

    def _add(self, sums: np.ndarray, grams: np.ndarray, row: np.ndarray) -> None:
        """Add the n-grams of one length to `sums` (rows * dimensions,), each kind in a row once, by its count."""
        low = np.uint64(64 - _HASH_BITS)
        pairs = np.sort((row.astype(np.uint64) << np.uint64(_HASH_BITS)) | (grams >> low))
        first = np.flatnonzero(np.concatenate([np.ones(min(len(pairs), 1), bool), pairs[1:] != pairs[:-1]]))
        count = np.diff(np.append(first, len(pairs)))
        pairs = pairs[first]
        hashed = (pairs & np.uint64((1 << _HASH_BITS) - 1)).astype(np.int64)
        sign = 1 - 2 * (hashed & 1)
        bucket = (pairs >> np.uint64(_HASH_BITS)).astype(np.int64) * self.dimensions + (hashed >> 1) % self.dimensions
        sums += np.bincount(bucket, weights=sign * (1 + np.log(count)), minlength=len(sums))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of a number reaches every bit of the result."""
    values = values + _FACTORS[0]
    values = (values ^ (values >> np.uint64(30))) * _FACTORS[1]
    values = (values ^ (values >> np.uint64(27))) * _FACTORS[2]
    return values ^ (values >> np.uint64(31))


def _chunks(texts: Sequence[str], dimensions: int) -> Iterator[list[str]]:
    """The texts in order, some at a time."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and (size + len(text) > _CHUNK or (len(chunk) + 1) * dimensions > 1 << 24 or len(chunk) >= _MOST_ROWS):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk
