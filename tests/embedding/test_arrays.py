"""Arrays that users bring: taken as they are, or refused with the first bad row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayes_prompt.embedding import arrays, load_array


def test_arrays_and_tensors_of_floats_are_not_copied() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert load_array(array, 3) is array
    tensor = torch.from_numpy(array)
    assert np.shares_memory(load_array(tensor, 3), array)
    assert load_array(array.astype(np.float16), 3).dtype == np.float16


@pytest.mark.parametrize("source", [[[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]], np.array([[1, 2], [3, 4]])])
def test_other_numbers_become_float32(source: Any) -> None:
    found = load_array(source, 2)
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2], [3, 4]]


def test_bfloat16_and_gradients() -> None:
    source = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    assert load_array(source, 2).tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize(("kind", "native"), [(">f2", "f4"), (">f4", "f4"), (">f8", "f8"), ("longdouble", "f8")])
def test_floats_that_torch_does_not_have_are_converted(kind: str, native: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 3)).astype(kind)
    np.save(tmp_path / "e.npy", array)
    for source in (array, tmp_path / "e.npy"):
        found = load_array(source, 5)
        assert found.dtype == np.dtype(native) and found.dtype.isnative
        assert (found == array.astype(native)).all()
        torch.from_numpy(np.array(found))


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(np.float64).max, reason="long doubles are float64 here")
def test_a_long_double_beyond_float64_is_named() -> None:
    with pytest.raises(ValueError, match="embeddings must be finite; got inf in row 1, column 0"):
        load_array(np.array([[1], [np.finfo(np.longdouble).max]], np.longdouble), 2)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_stays_mapped(as_text: bool, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save(tmp_path / "e.npy", array)
    found = load_array(str(tmp_path / "e.npy") if as_text else tmp_path / "e.npy", 50)
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(("row", "value"), [(0, np.nan), (17, np.inf), (49, -np.inf)])
def test_the_first_bad_row_is_named(
    chunk: int, row: int, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_CHUNK", chunk)
    array = np.zeros((50, 3))
    array[row:, 1] = value
    np.save(tmp_path / "e.npy", array)
    for source in (array, tmp_path / "e.npy"):
        with pytest.raises(ValueError, match=f"must be finite; got {value} in row {row}, column 1"):
            load_array(source, 50)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.ones((3, 2)), ValueError, r"embeddings must have shape \(2, D\) with D >= 1; got \(3, 2\)"),
        (np.ones(2), ValueError, r"got \(2,\)"),
        (np.ones((2, 0)), ValueError, r"got \(2, 0\)"),
        ([[1.0], [1.0, 2.0]], ValueError, "every row of the same length"),
        (np.ones((2, 2), dtype=complex), TypeError, "must hold real numbers; got complex128"),
        ([["a"], ["b"]], TypeError, "must hold real numbers; got <U1"),
        (None, TypeError, "must hold real numbers; got object"),
    ],
)
def test_arrays_that_are_refused(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_array(source, 2)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_array(tmp_path / "none.npy", 2)
    whole = tmp_path / "e.npy"
    np.save(whole, np.ones((40, 5)))
    (tmp_path / "short.npy").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    for name in ("short", "text", "empty", "objects"):
        with pytest.raises(ValueError, match=rf"{name}\.npy' must be a whole \.npy file"):
            load_array(tmp_path / f"{name}.npy", 40)
    np.savez(tmp_path / "e.npz", np.ones((40, 5)))
    with pytest.raises(ValueError, match="an archive of several arrays"):
        load_array(tmp_path / "e.npz", 40)
    with pytest.raises(ValueError, match=r"the array in .*e\.npy' must have shape \(2, D\)"):
        load_array(whole, 2)
    with pytest.raises(ValueError, match="num_prompts must be at least 1"):
        load_array(whole, 0)
