"""Embedders that stand on other libraries, and the one that stands in for them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bayes_prompt.embedding import Embedder, HashedNgrams, SentenceTransformer, WordLlama, default, embed

TEXTS = ["Find all primes.", "", "Find all primes.", "A circle has radius 3.", "\ud800", "word " * 3000]


def test_wordllama_as_the_library_embeds() -> None:
    library = pytest.importorskip("wordllama")
    embedder = WordLlama()
    assert isinstance(embedder, Embedder)
    model = library.WordLlama.load(cache_dir=Path(library.__file__).parent, disable_download=True)
    texts = ["Find all primes.", "A circle has radius 3.", "x", "été", "word " * 50]
    # Sums of up to 100 float32 numbers in another order.
    np.testing.assert_allclose(embedder(texts), model.embed(texts, norm=True), atol=1e-5)


def test_wordllama_of_degenerate_texts() -> None:
    pytest.importorskip("wordllama")
    found = WordLlama()(TEXTS)
    assert found.shape == (len(TEXTS), 256)
    assert found.dtype == np.float32
    assert not found[1].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(found, 1, axis=0), axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[:1], WordLlama()(TEXTS[:1]))  # whatever stands beside it


def test_wordllama_leaves_the_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wordllama")
    for name in [name for name in sys.modules if name.partition(".")[0] == "wordllama"]:
        monkeypatch.delitem(sys.modules, name)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    WordLlama(64)
    assert (root.handlers, root.level) == before


def test_wordllama_of_other_sizes() -> None:
    with pytest.raises(ValueError, match="dimensions must be 64, 128 or 256; got 100"):
        WordLlama(100)
    pytest.importorskip("wordllama")
    assert WordLlama(64)(["a"]).shape == (1, 64)
    assert WordLlama(64).name != WordLlama().name


def test_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'bayes-prompt\[embedding\]'"):
        WordLlama()
    with pytest.warns(UserWarning, match="wordllama is not installed"):
        assert isinstance(default(), HashedNgrams)
    with pytest.warns(UserWarning, match="wordllama is not installed"):
        assert embed(["a"]).shape == (1, 256)
    monkeypatch.undo()
    pytest.importorskip("wordllama")
    assert isinstance(default(), WordLlama)


class Encoder:
    """What SentenceTransformer of the library looks like from here."""

    def __init__(self, model: str = "", **options: Any) -> None:
        self.model, self.options = model, options

    def encode(self, texts: Sequence[str], *, batch_size: int, **options: Any) -> np.ndarray:
        assert options == {"show_progress_bar": False, "convert_to_numpy": True}
        for text in texts:
            text.encode()  # a tokenizer refuses lone surrogates
        return np.array([[len(text), batch_size] for text in texts], dtype=np.float64)


def test_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("sentence_transformers")
    library.SentenceTransformer = Encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    embedder = SentenceTransformer("a/model", batch_size=7, device="cpu", truncate_dim=2)
    found = embedder(["ab", "\ud800"])
    assert found.dtype == np.float32
    assert found.tolist() == [[2, 7], [1, 7]]
    names = {
        embedder.name,
        SentenceTransformer("a/model", truncate_dim=3).name,
        SentenceTransformer("b/model", truncate_dim=2).name,
        SentenceTransformer("a/model", truncate_dim=2, name="mine").name,
    }
    assert len(names) == 4
    assert SentenceTransformer("a/model", device="cuda", truncate_dim=2).name == embedder.name


def test_a_folder_with_a_real_model(tmp_path: Path) -> None:
    """A transformer of 16 numbers, made here: nothing is downloaded."""
    pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **settings)).save_pretrained(tmp_path)
    found = embed(["abc", "what is 1", "abc"], SentenceTransformer(str(tmp_path)))
    assert found.shape == (3, 16)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


def test_a_loaded_model_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name must say which model this is"):
        SentenceTransformer(Encoder())
    assert SentenceTransformer(Encoder(), name="mine")(["abc"]).tolist() == [[3, 32]]


def test_without_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'bayes-prompt\[sentence-transformers\]'"):
        SentenceTransformer("a/model")
