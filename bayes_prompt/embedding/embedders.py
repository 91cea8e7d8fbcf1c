"""What turns texts into vectors: the protocol, and the models that keep it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse

from bayes_prompt.embedding.hashed import HashedNgrams
from bayes_prompt.embedding.texts import encodable


@runtime_checkable
class Embedder(Protocol):
    """Texts to vectors: equal texts get equal vectors, whatever stands beside them.

    `name` says which vectors these are, version and settings included: what is cached under it is taken for them.
    """

    @property
    def name(self) -> str:
        """Two embedders have the same name only if they embed alike."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 for N texts."""
        ...


class WordLlama:
    """The mean of a text's token vectors, of length one: small, on the CPU, its weights come with the package.

    A text without tokens is a row of zeros. Nothing is downloaded.

    Args:
        dimensions: 64, 128 or 256, the first so many of the trained ones.

    Raises:
        ImportError: wordllama is not installed.
        ValueError: `dimensions` is another number.
    """

    def __init__(self, dimensions: int = 256) -> None:
        if isinstance(dimensions, bool) or dimensions not in (64, 128, 256):
            raise ValueError(f"dimensions must be 64, 128 or 256; got {dimensions!r}")
        model = _load_wordllama(int(dimensions))
        # Padding would make every text of a batch as long as the longest one.
        self._tokenizer = model.tokenizer
        self._tokenizer.no_padding()
        self._vectors = np.ascontiguousarray(model.embedding, dtype=np.float32)
        self.name = f"wordllama-{version('wordllama')}-{dimensions}"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dimensions) float32."""
        encoded = self._tokenizer.encode_batch([encodable(text) for text in texts], add_special_tokens=False)
        starts = np.cumsum([0, *(len(each.ids) for each in encoded)])
        tokens = np.fromiter((token for each in encoded for token in each.ids), np.int64, int(starts[-1]))
        tokens = np.minimum(tokens, len(self._vectors) - 1)  # as the library does with tokens that have no vector
        ones = np.ones(len(tokens), dtype=np.float32)
        bags = scipy.sparse.csr_array((ones, tokens, starts), shape=(len(encoded), len(self._vectors)))
        sums = bags @ self._vectors
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.divide(sums, length, out=np.zeros_like(sums), where=length > 0)


class SentenceTransformer:
    """A model of the sentence-transformers library.

    Args:
        model: a name or folder, as that library takes it, or a model that is loaded already.
        name: identity for the cache; needed with a loaded model. Give one where a folder's weights may change.
        batch_size: texts in one pass of the model.
        options: for `sentence_transformers.SentenceTransformer`, such as device="cuda" or truncate_dim=256; those whose
            effect matters should be in `name` where they are not plain numbers and strings.

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError: a loaded model comes without a name.
    """

    def __init__(self, model: Any, *, name: str | None = None, batch_size: int = 32, **options: Any) -> None:
        if hasattr(model, "encode") and not isinstance(model, str):
            if name is None:
                raise ValueError("name must say which model this is, for the cache, where a loaded one is passed")
            self._model = model
        else:
            try:
                from sentence_transformers import SentenceTransformer as Library
            except ImportError as error:
                raise ImportError(
                    "SentenceTransformer needs sentence-transformers: pip install 'bayes-prompt[sentence-transformers]'"
                ) from error
            self._model = Library(str(model), **options)
        settings = {key: value for key, value in sorted(options.items()) if key != "device"}
        self.name = name or f"sentence-transformers-{_version('sentence-transformers')}-{model}-{settings}"
        self._batch_size = batch_size

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, as the model gives them."""
        found = self._model.encode(
            [encodable(text) for text in texts],
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(found, dtype=np.float32)


def default() -> Embedder:
    """WordLlama where it is installed, else `HashedNgrams`, with a warning that says so."""
    try:
        return WordLlama()
    except ImportError:
        warnings.warn(
            "wordllama is not installed: prompts are embedded as hashed character n-grams. "
            "pip install 'bayes-prompt[embedding]'",
            stacklevel=3,
        )
        return HashedNgrams()


def _load_wordllama(dimensions: int) -> Any:
    # Importing it sets up the root logger, which is the user's.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        import wordllama
    except ImportError as error:
        raise ImportError("WordLlama needs wordllama: pip install 'bayes-prompt[embedding]'") from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    # Left to itself it looks beside its own folder, then on the network.
    folder = Path(str(wordllama.__file__)).parent
    return wordllama.WordLlama.load(cache_dir=folder, trunc_dim=dimensions, disable_download=True)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
