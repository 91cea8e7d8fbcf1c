"""Embeddings on disk, by what was embedded and by whom."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np

from bayes_prompt.files import whole, writable_folder

_DIGEST = hashlib.sha256().digest_size


class Cache:
    """A folder of embedded blocks of texts.

    A file is a .npy, followed by the SHA-256 of its bytes, which numpy does not read. Its name is a hash of the
    embedder's name and the block's texts, in their order.

    Raises:
        ValueError: `folder` is none in which files can be written.
    """

    def __init__(self, folder: str | os.PathLike[str], embedder: str) -> None:
        self._folder = writable_folder(folder, "cache")
        self._embedder = embedder

    def load(self, texts: list[str]) -> np.ndarray | None:
        """The vectors (len(texts), D) float32, or None; a damaged file counts as none, with a warning."""
        path = self._path(texts)
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            body, digest = stored[:-_DIGEST], stored[-_DIGEST:]
            if hashlib.sha256(body).digest() == digest:
                try:
                    found: np.ndarray = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
                    if found.ndim == 2 and len(found) == len(texts) and found.dtype == np.float32:
                        return found
                    reason = f"it holds {found.dtype} of shape {found.shape} for {len(texts)} texts"
                except ValueError as error:
                    reason = f"it is no .npy: {error}"
            else:
                reason = "its bytes are not those that were written"
        warnings.warn(f"{path} is damaged and will be made anew ({reason})", stacklevel=2)
        return None

    def save(self, texts: list[str], vectors: np.ndarray) -> None:
        """Keep the vectors of the texts; whoever reads meanwhile sees all of them or none.

        Where a folder lies under the file's name it stays, and nothing is kept: `load` has warned of it.
        """
        path = self._path(texts)
        if path.is_dir():
            return
        buffer = io.BytesIO()
        np.save(buffer, vectors, allow_pickle=False)
        body = buffer.getvalue()
        with whole(path) as scratch:
            scratch.write_bytes(body + hashlib.sha256(body).digest())

    def _path(self, texts: list[str]) -> Path:
        digest = hashlib.sha256()
        for part in (self._embedder, *texts):
            digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
        return self._folder / f"embedding-{digest.hexdigest()[:32]}.npy"
