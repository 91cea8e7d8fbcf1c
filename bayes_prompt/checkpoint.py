"""Checkpoints on disk: safetensors for the tensors, JSON for the rest, a digest over both; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bayes_prompt.errors import CheckpointError
from bayes_prompt.files import sync_folder

FORMAT = "bayes_prompt"
VERSION = 1


def write(path: str | os.PathLike[str], state: Mapping[str, Any], kind: str) -> None:
    """Write a state dictionary so that `path` holds either the old file or the whole new one, never a part.

    `state` is a nested dictionary of tensors (any shape), numbers, strings and lists of those two; `kind` says whose
    state it is and must be named again to read it.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    document = json.dumps(_take_tensors(state, "", tensors), sort_keys=True)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": kind,
        "state": document,
        "digest": _digest(document, tensors),
    }
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)  # of any file that this process makes; safetensors' are private
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=metadata)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read what `write` wrote. A truncated, changed, foreign or newer file raises `CheckpointError`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by bayes_prompt: format is {metadata.get('format')!r}")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{path} has checkpoint version {metadata.get('version')}; this package reads {VERSION}")
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{path} holds the state of {metadata.get('kind')!r}, not of {kind!r}")
    document = metadata.get("state", "")
    if metadata.get("digest") != _digest(document, tensors):
        raise CheckpointError(f"{path} was changed after it was written: its digest does not match its contents")
    try:
        state: dict[str, Any] = _put_tensors(json.loads(document), tensors)
    except (ValueError, KeyError, TypeError) as error:  # a file that somebody else has made up
        raise CheckpointError(f"{path} describes its state in a way that cannot be read: {error!r}") from error
    return state


def require_keys(name: str, state: Mapping[str, Any], keys: Any) -> None:
    """CheckpointError unless `state` is a mapping with exactly these keys."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{name} state must be a dictionary; got {type(state).__name__}")
    missing, extra = sorted(set(keys) - set(state)), sorted(set(state) - set(keys))
    if missing or extra:
        raise CheckpointError(f"{name} state has missing entries {missing} and unknown entries {extra}")


def require_same(name: str, theirs: Any, mine: Any) -> None:
    """CheckpointError that names the first entry in which two descriptions differ."""
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for key in sorted({*theirs, *mine}):
            if key not in theirs or key not in mine:
                raise CheckpointError(f"{name}.{key} is only in {'the checkpoint' if key in theirs else 'this object'}")
            require_same(f"{name}.{key}", theirs[key], mine[key])
    elif type(theirs) is not type(mine) or theirs != mine:
        raise CheckpointError(f"checkpoint of another {name}: it has {theirs!r}, here it is {mine!r}")


def require_integer(name: str, value: Any, low: int = 0, high: int = 2**62) -> None:
    """CheckpointError unless `value` is an int in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        accepted = f"{low}" if low == high else f"an integer in [{low}, {high}]"
        raise CheckpointError(f"{name} must be {accepted}; got {value!r}")


def require_rows(name: str, value: Any) -> None:
    """CheckpointError unless `value` is an int64 tensor (M,)."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or value.ndim != 1:
        got = (
            f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        )
        raise CheckpointError(f"{name} must be an int64 tensor of shape (M,); got {got}")


def require_no_less(name: str, values: torch.Tensor, low: float) -> None:
    """CheckpointError unless every entry, of a tensor of any shape, is at least `low`."""
    if bool((values < low).any()):
        entry = int((values < low).reshape(-1).nonzero()[0])
        raise CheckpointError(f"{name} must be at least {low}; entry {entry} is {float(values.reshape(-1)[entry])}")


def require_no_more(name: str, values: torch.Tensor, most: float = 1e30) -> None:
    """CheckpointError unless no entry, of a tensor of any shape, is farther from 0 than what sums of them survive."""
    if bool((values.abs() > most).any()):
        entry = int((values.abs() > most).reshape(-1).nonzero()[0])
        raise CheckpointError(f"{name} must lie within {most}; entry {entry} is {float(values.reshape(-1)[entry])}")


def require_like(name: str, theirs: Any, mine: torch.Tensor) -> None:
    """CheckpointError unless a tensor has the shape and type of mine and is finite."""
    if not isinstance(theirs, torch.Tensor):
        raise CheckpointError(f"{name} must be a tensor; got {type(theirs).__name__}")
    if theirs.layout != torch.strided:
        raise CheckpointError(f"{name} must be a dense tensor; got layout {theirs.layout}")
    if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
        raise CheckpointError(
            f"{name} must be {mine.dtype} of shape {tuple(mine.shape)}; "
            f"got {theirs.dtype} of shape {tuple(theirs.shape)}"
        )
    if theirs.is_floating_point() and not bool(torch.isfinite(theirs).all()):
        row = int((~torch.isfinite(theirs)).reshape(-1).nonzero()[0])
        raise CheckpointError(f"{name} must be finite; entry {row} is {float(theirs.reshape(-1)[row])}")


def _take_tensors(node: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace every tensor by its name, so that the rest is JSON."""
    if isinstance(node, torch.Tensor):
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[prefix] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": prefix}
    if isinstance(node, Mapping):
        return {
            "dict": {str(k): _take_tensors(v, f"{prefix}/{k}" if prefix else str(k), tensors) for k, v in node.items()}
        }
    if isinstance(node, list | tuple):
        return {"list": [_take_tensors(v, f"{prefix}/{i}", tensors) for i, v in enumerate(node)]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    raise TypeError(f"state {prefix!r} holds a {type(node).__name__}; tensors, numbers, strings and dicts are accepted")


def _put_tensors(node: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "dict" in node:
        return {key: _put_tensors(value, tensors) for key, value in node["dict"].items()}
    if "list" in node:
        return [_put_tensors(value, tensors) for value in node["list"]]
    return node["value"]


def _digest(document: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
