"""Texts to one array: duplicates once, batches, cache, progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from bayes_prompt.embedding.arrays import to_array
from bayes_prompt.embedding.cache import Cache
from bayes_prompt.embedding.embedders import Embedder, default
from bayes_prompt.embedding.progress import Progress, told
from bayes_prompt.embedding.scaling import Scaling
from bayes_prompt.embedding.surface import SURFACE_FEATURES, SURFACE_NAME, surface_features
from bayes_prompt.embedding.texts import checked, distinct
from bayes_prompt.files import default_cache
from bayes_prompt.posteriors import checks

BLOCK = 4096  # different texts in one file of the cache: what an interrupted job loses at most


def embed(
    texts: Iterable[str],
    embedder: Embedder | Callable[[Sequence[str]], np.ndarray] | None = None,
    *,
    surface: bool = False,
    cache: bool | str | os.PathLike[str] | None = None,
    batch_size: int = 1024,
    progress: Progress = False,
) -> np.ndarray:
    """One vector for each text, (N, D) float32; with `surface`, (N, D + F).

    Equal texts are embedded once. Columns come as the embedder makes them: before they are compared or regressed on,
    surface features want `Scaling`, with blocks=(D, F).

    Args:
        texts: N strings; a generator is read to its end.
        embedder: None for `default()`; any function of texts that gives (N, D), an array or a tensor, will do where
            nothing is cached.
        surface: append `surface_features`.
        cache: a folder, or True for $BAYES_PROMPT_CACHE (else bayes_prompt/ in the user's cache folder). Blocks of
            texts are found again by content and the embedder's name, so that a pool that has grown at its end, or a job
            that was interrupted, embeds only the blocks that are new. Damaged files are made anew, with a warning.
        batch_size: texts in one call of the embedder.
        progress: True for a bar, or a function that is told (texts done, different texts in all); with surface features
            every text is done twice.

    Raises:
        TypeError: a text is no string (the first is named), the embedder is no function or has no name to cache by.
        ValueError: there are no texts; the embedder gave another shape, or a number that is NaN or infinite, of which
            the first text is named; the cache's folder cannot be written in.
    """
    found = checked(texts)
    batch_size = checks.integer("batch_size", batch_size, 1)
    embedder = default() if embedder is None else embedder
    if not callable(embedder):
        raise TypeError(f"embedder must be a function of texts; got {type(embedder).__name__}")
    store = _opened(cache, embedder)
    different, place = distinct(found)
    with told(progress, "embedding") as tell:
        total = (2 if surface else 1) * len(different)
        tell(0, total)
        vectors = _in_blocks(embedder, store, different, place, batch_size, partial(_tell_on, tell, 0, total))
        if surface:
            kept = _opened(cache, surface_features)
            tell_on = partial(_tell_on, tell, len(different), total)
            counted = _in_blocks(surface_features, kept, different, place, batch_size, tell_on)
            vectors = np.concatenate([vectors, counted], axis=1)
    return vectors if len(different) == len(found) else vectors[place]


def features(
    texts: Iterable[str],
    embedder: Embedder | Callable[[Sequence[str]], np.ndarray] | None = None,
    *,
    cache: bool | str | os.PathLike[str] | None = None,
    progress: Progress = False,
) -> np.ndarray:
    """What a model of difficulty looks at: embeddings and surface features of a pool on one scale, (N, D + F).

    The arguments and errors are those of `embed`. The scale is that of this pool (`Scaling`).
    """
    columns = embed(texts, embedder, surface=True, cache=cache, progress=progress)
    return Scaling.of(columns, blocks=(columns.shape[1] - len(SURFACE_FEATURES), len(SURFACE_FEATURES)))(columns)


def _opened(cache: bool | str | os.PathLike[str] | None, embedder: object) -> Cache | None:
    if cache is None or cache is False:
        return None
    name = SURFACE_NAME if embedder is surface_features else getattr(embedder, "name", None)
    if not isinstance(name, str) or not name:
        raise TypeError("embedder must have a name, a string that says which vectors these are, to be cached by")
    return Cache(default_cache() if cache is True else cache, name)


def _in_blocks(
    embedder: Callable[[Sequence[str]], np.ndarray],
    store: Cache | None,
    different: list[str],
    place: np.ndarray,
    batch_size: int,
    tell: Callable[[int], None],
) -> np.ndarray:
    """Vectors of the different texts, from the store where it has their block."""
    blocks: list[np.ndarray] = []
    for start in range(0, len(different), BLOCK):
        block = different[start : start + BLOCK]
        rows = None if store is None else store.load(block)
        if rows is None:
            rows = _embed_block(embedder, block, batch_size, lambda done, start=start: tell(start + done))  # type: ignore[misc]
            _check_finite(rows, start, place)
            if store is not None:
                store.save(block, rows)
        else:
            tell(start + len(block))
        blocks.append(rows)
    _check_widths(blocks)
    return np.concatenate(blocks)


def _tell_on(tell: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    tell(before + done, total)


def _embed_block(
    embedder: Callable[[Sequence[str]], np.ndarray], block: list[str], batch_size: int, tell: Callable[[int], None]
) -> np.ndarray:
    parts: list[np.ndarray] = []
    for start in range(0, len(block), batch_size):
        batch = block[start : start + batch_size]
        given = embedder(batch)
        part = to_array(given) if isinstance(given, Tensor) else np.asarray(given)
        if part.ndim != 2 or len(part) != len(batch) or part.shape[1] < 1:
            raise ValueError(f"embedder must give shape ({len(batch)}, D) for {len(batch)} texts; got {part.shape}")
        if part.dtype.kind not in "fiu":
            raise ValueError(f"embedder must give real numbers; got {part.dtype}")
        with np.errstate(over="ignore"):  # what is too large for float32 is named below
            parts.append(part.astype(np.float32))
        tell(start + len(batch))
    _check_widths(parts)
    return np.concatenate(parts)


def _check_widths(parts: list[np.ndarray]) -> None:
    for part in parts:
        if part.shape[1] != parts[0].shape[1]:
            raise ValueError(f"embedder gave {parts[0].shape[1]} columns at first, then {part.shape[1]}")


def _check_finite(rows: np.ndarray, start: int, place: np.ndarray) -> None:
    """ValueError that names the first text whose vector is not finite; row 0 is the different text number `start`."""
    bad = ~np.isfinite(rows).all(1)
    if bad.any():
        text = int(np.flatnonzero(place == start + int(bad.argmax()))[0])
        raise ValueError(f"embedder must give finite numbers; got NaN or infinity for texts[{text}]")
