"""From texts to one array: equal texts, batches, what is cached, and what is refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayes_prompt.embedding import SURFACE_FEATURES, default_cache, embed, pipeline, surface_features


class Lengths:
    """(length, number of a's) of each text; remembers what it was asked."""

    def __init__(self, name: str = "lengths-1") -> None:
        self.name = name
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(list(texts))
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)

    @property
    def asked(self) -> list[str]:
        return [text for call in self.calls for text in call]


TEXTS = ["a", "", "banana", "a", "été", "", "aa"]
EXPECTED = np.array([[1, 1], [0, 0], [6, 3], [1, 1], [3, 0], [0, 0], [2, 2]], dtype=np.float32)


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
@pytest.mark.parametrize("block", [1, 2, 3, 4096])
@pytest.mark.parametrize("cached", [False, True])
def test_each_text_gets_its_own_vector_and_equal_ones_are_embedded_once(
    batch_size: int, block: int, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BLOCK", block)
    embedder, told = Lengths(), []
    found = embed(
        TEXTS,
        embedder,
        cache=tmp_path if cached else None,
        batch_size=batch_size,
        progress=lambda done, total: told.append((done, total)),
    )
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, EXPECTED)
    assert embedder.asked == ["a", "", "banana", "été", "aa"]
    assert max(map(len, embedder.calls)) <= batch_size
    assert told[0] == (0, 5)
    assert told[-1] == (5, 5)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_generators_single_texts_and_arrays_of_strings() -> None:
    np.testing.assert_array_equal(embed((text for text in TEXTS), Lengths()), EXPECTED)
    np.testing.assert_array_equal(embed(np.array(TEXTS), Lengths()), EXPECTED)
    assert embed([""], Lengths()).tolist() == [[0, 0]]


def test_surface_features_are_appended() -> None:
    found = embed(TEXTS, Lengths(), surface=True)
    assert found.shape == (len(TEXTS), 2 + len(SURFACE_FEATURES))
    np.testing.assert_array_equal(found[:, :2], EXPECTED)
    np.testing.assert_array_equal(found[:, 2:], surface_features(TEXTS))


def test_what_is_cached_is_not_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BLOCK", 2)
    embed(["a", "b", "c"], Lengths(), cache=tmp_path)
    again = Lengths()
    embed(["a", "b", "b", "c", "a"], again, cache=tmp_path, batch_size=1)
    assert again.asked == []
    embed(["a", "b", "c", "d"], again, cache=tmp_path)  # the block of two is there, the one of c alone has grown
    assert again.asked == ["c", "d"]
    other = Lengths("lengths-2")
    embed(["a", "b"], other, cache=tmp_path)
    assert other.asked == ["a", "b"]


def test_surface_features_are_cached_and_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    first = embed(
        TEXTS, Lengths(), surface=True, cache=tmp_path, progress=lambda done, total: told.append((done, total))
    )
    assert told[0] == (0, 10) and told[-1] == (10, 10)  # five different texts, twice
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    monkeypatch.setattr(pipeline.np, "asarray", None)  # whatever is embedded passes by there
    again = embed(TEXTS, Lengths(), surface=True, cache=tmp_path)
    np.testing.assert_array_equal(again, first)


def test_a_whole_file_of_other_rows_is_made_anew(tmp_path: Path) -> None:
    embed(TEXTS, Lengths(), cache=tmp_path)
    (file,) = tmp_path.glob("*.npy")
    store = pipeline.Cache(tmp_path, "lengths-1")
    store.save(["a", "", "banana", "été", "aa"], EXPECTED[:2])  # signed by its own digest, with too few rows
    assert len(list(tmp_path.glob("*.npy"))) == 1 and file.exists()
    with pytest.warns(UserWarning, match=r"it holds float32 of shape \(2, 2\) for 5 texts"):
        np.testing.assert_array_equal(embed(TEXTS, Lengths(), cache=tmp_path), EXPECTED)


def test_texts_are_not_run_together(tmp_path: Path) -> None:
    embed(["ab", "c"], Lengths(), cache=tmp_path)
    assert embed(["a", "bc"], Lengths(), cache=tmp_path)[:, 0].tolist() == [1, 2]
    assert embed(["c", "ab"], Lengths(), cache=tmp_path)[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_embedders_may_give_tensors(kind: torch.dtype) -> None:
    def lengths(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[len(text)] for text in texts], dtype=kind).requires_grad_(kind.is_floating_point)

    found = embed(["a", "bb", "ccc"], lengths)  # type: ignore[arg-type]
    assert found.dtype == np.float32 and found.tolist() == [[1], [2], [3]]


@pytest.mark.parametrize("filled", [False, True])
def test_a_folder_in_the_place_of_a_file_is_left_alone(filled: bool, tmp_path: Path) -> None:
    embed(TEXTS, Lengths(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    if filled:
        (file / "mine").write_text("kept")
    with pytest.warns(UserWarning, match="damaged and will be made anew"):
        np.testing.assert_array_equal(embed(TEXTS, Lengths(), cache=tmp_path), EXPECTED)
    assert file.is_dir() and len(list(file.iterdir())) == filled
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "another", "signed", "archive"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path) -> None:
    embed(TEXTS, Lengths(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    assert np.load(file).shape == (5, 2)
    archive = io.BytesIO()
    np.savez(archive, EXPECTED)
    middle = len(whole) - 40  # within the numbers, which the 32 bytes of the digest follow
    changed = {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "truncated": whole[:middle],
        "empty": b"",
        "another": b"no numbers at all" * 10,
        "signed": b"hello" + sha256(b"hello").digest(),
        "archive": archive.getvalue() + sha256(archive.getvalue()).digest(),
    }
    file.write_bytes(changed[damage])
    again = Lengths()
    with pytest.warns(UserWarning, match="damaged and will be made anew"):
        np.testing.assert_array_equal(embed(TEXTS, again, cache=tmp_path), EXPECTED)
    assert len(again.asked) == 5
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_job_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BLOCK", 2)
    texts = ["a", "b", "c", "d"]

    class Interrupted(Lengths):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            if "c" in texts:
                raise KeyboardInterrupt
            return super().__call__(texts)

    with pytest.raises(KeyboardInterrupt):
        embed(texts, Interrupted(), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    again = Lengths()
    embed(texts, again, cache=tmp_path)
    assert again.asked == ["c", "d"]


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYES_PROMPT_CACHE", str(tmp_path / "mine"))
    embed(["a"], Lengths(), cache=True)
    assert len(list((tmp_path / "mine").iterdir())) == 1
    monkeypatch.delenv("BAYES_PROMPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "bayes_prompt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "bayes_prompt"


def test_a_cache_needs_a_name_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="embedder must have a name"):
        embed(["a"], lambda texts: np.ones((len(texts), 1)), cache=tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cache must be a folder"):
        embed(["a"], Lengths(), cache=tmp_path / "file")


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("abc", TypeError, "texts must be a sequence of strings, one for each prompt; got str"),
        (b"abc", TypeError, "got bytes"),
        ({"a", "b"}, TypeError, "got set"),
        ({"a": 1}, TypeError, "got dict"),
        (7, TypeError, "got int"),
        (None, TypeError, "got NoneType"),
        (["a", "b", 3, None], TypeError, r"texts\[2\] must be a string; got int"),
        (["a", b"b"], TypeError, r"texts\[1\] must be a string; got bytes"),
        ([], ValueError, "texts must hold at least one prompt"),
    ],
)
def test_texts_that_are_none(texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        embed(texts, Lengths())
    with pytest.raises(error, match=message):
        surface_features(texts)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones(3), r"must give shape \(3, D\) for 3 texts; got \(3,\)"),
        (np.ones((2, 4)), r"must give shape \(3, D\) for 3 texts; got \(2, 4\)"),
        (np.ones((3, 0)), r"got \(3, 0\)"),
        (np.array([["a"]] * 3), "must give real numbers; got <U1"),
        (np.ones((3, 2), dtype=complex), "must give real numbers; got complex128"),
        (np.array([[1.0], [np.nan], [1.0]]), r"finite numbers; got NaN or infinity for texts\[2\]"),
        (np.array([[1.0], [1.0], [-np.inf]]), r"for texts\[3\]"),
        (np.array([[1.0], [1.0], [1e300]]), r"for texts\[3\]"),  # beyond float32
    ],
)
def test_embedders_that_go_wrong(vectors: np.ndarray, message: str, tmp_path: Path) -> None:
    class Wrong(Lengths):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return vectors

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            embed(["a", "a", "b", "c"], Wrong(), cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", [1, 4096])
def test_the_width_may_not_change(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BLOCK", block)
    with pytest.raises(ValueError, match="embedder gave 1 columns at first, then 2"):
        embed(["a", "bb"], lambda texts: np.ones((1, len(texts[0]))), batch_size=1)


def test_other_arguments() -> None:
    with pytest.raises(TypeError, match="embedder must be a function of texts; got int"):
        embed(["a"], 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        embed(["a"], Lengths(), batch_size=0)
    with pytest.raises(TypeError, match="progress must be a bool or a function"):
        embed(["a"], Lengths(), progress="bar")  # type: ignore[arg-type]


def test_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    embed(TEXTS, Lengths(), progress=True)
    assert "5/5" in capsys.readouterr().out
