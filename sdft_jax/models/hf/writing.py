"""Writing parameters to a Hugging Face directory that `transformers` loads like the source checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sdft_jax.errors import SdftError
from sdft_jax.models.decoder import Model
from sdft_jax.models.families import EMBEDDING, HEAD, Tensor
from sdft_jax.models.hf.reading import (
    INDEX_FILE,
    SINGLE_FILE,
    Entry,
    entries,
    open_checkpoint,
    plain_parameter,
)
from sdft_jax.models.hf.safetensors_io import write_file
from sdft_jax.sharding import to_host
from sdft_jax.types import Params

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
_OWN_FILES = {*TOKENIZER_FILES, GENERATION_CONFIG, "config.json", INDEX_FILE, ADAPTER_CONFIG}
_LOADED_BY = ("config.json", ADAPTER_CONFIG)
"""The files by which a directory is recognized, written last."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor to write: a parameter, or one layer of it."""

    name: str
    read: Callable[[], jax.Array]
    """A function that returns the parameter, or [1, ...] of one layer."""
    tensor: Tensor
    layer: int | None
    dtype: np.dtype
    shape: tuple[int, ...]


def save_pretrained(
    model: Model,
    params: Params,
    tokenizer: Any,
    path: str | os.PathLike[str],
    dtype: Any = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write config.json, generation_config.json, the tokenizer and safetensors files.

    Tensors have the names and shapes of the source, and the same tied weights; adapters are merged into
    them. They are gathered one at a time and written to a temporary directory. A new directory is this one,
    renamed when it is complete; an existing directory, which may be a link or a mount point, is filled file
    by file. Every process must call this function; the first process writes.

    Args:
        model: the model. The generation config is copied from its `source`, and so are the tokenizer files if
            `tokenizer` is None.
        params: its parameters.
        tokenizer: an object with a method `save_pretrained(directory)`, or None.
        path: the directory to write; an existing exported model is replaced.
        dtype: the dtype of all tensors. None: each tensor has its dtype in the source; without a source, the
            dtype in config.json; without either, the dtype of the parameter.
        max_shard_size: the maximum size of a file, in bytes.

    Raises:
        SdftError: the directory contains other files or is the source itself, or the source is missing.
    """
    files = _plan_files(_pieces(model, params, dtype), max_shard_size)

    def write_side_files(directory: Path) -> None:
        _write_side_files(model, tokenizer, directory, dtype)
        _write_index(files, directory)

    write_directory(model, Path(path).absolute(), files, write_side_files)


def write_directory(
    model: Model,
    target: Path,
    files: Mapping[str, Sequence[Piece]],
    write_side_files: Callable[[Path], None],
) -> None:
    """Write safetensors files, and others by a function of the directory, as `save_pretrained` does."""
    _check_target(model, target)
    # in the target if it exists, which may be on another disk than the directory that holds it
    name = f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    temporary = target / name if target.exists() else target.with_name(name)
    writes = jax.process_index() == 0
    try:
        if writes:
            _clear_leftovers(target)
            temporary.mkdir(parents=True)
            write_side_files(temporary)
        for name, pieces in files.items():
            arrays = _gathered(model, pieces)
            if writes:
                layout = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
                write_file(temporary / name, layout, arrays)
            else:
                for _ in arrays:
                    pass
        if writes:
            _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("save_pretrained")


def _check_target(model: Model, target: Path) -> None:
    """Raise SdftError if `target` is the source or contains anything other than an exported model."""
    if os.path.lexists(target) and not target.is_dir():
        raise SdftError(f"{target} is not a directory: remove it, or write to another directory.")
    if model.source and target.resolve() == Path(model.source).resolve():
        raise SdftError(
            f"{target} is the checkpoint that the model was read from: write to another directory."
        )
    names = sorted(file.name for file in target.iterdir()) if target.exists() else []
    other_files = [name for name in names if not _is_own(target, name)]
    if other_files:
        raise SdftError(
            f"{target} contains {other_files[0]}, which is not part of an exported model: "
            "write to another directory, or remove that file."
        )


def _is_own(target: Path, name: str) -> bool:
    """Return True for a file of an exported model, and for the leftovers of an interrupted export."""
    leftover = re.fullmatch(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp", name)
    return name in _OWN_FILES or name.endswith(".safetensors") or leftover is not None


def _pieces(model: Model, params: Params, dtype: Any) -> list[Piece]:
    """Return the tensors to write in the order of layers, each with its dtype in the file."""
    architecture = model.architecture
    stored = open_checkpoint(model.source, architecture) if model.source else {}
    config = json.loads(architecture.source_json)
    fallback = config.get("dtype") or config.get("torch_dtype")
    pieces = []

    def add(name: str, entry: Entry, layer: int | None) -> None:
        leaf = entry.get(params)
        read = functools.partial(plain_parameter, model, params, entry, layer)
        source_dtype = stored[name].dtype if name in stored else fallback or leaf.dtype
        file_dtype = np.dtype(jnp.dtype(source_dtype if dtype is None else dtype))
        shape = entry.tensor.stored_shape(architecture.sizes)
        pieces.append(Piece(name, read, entry.tensor, layer, file_dtype, shape))

    for entry in entries(architecture):
        for layer, name in enumerate(entry.stored_names()):
            add(name, entry, layer if entry.layers else None)
    if architecture.tie_word_embeddings and HEAD.source in stored:
        add(HEAD.source, Entry(EMBEDDING, 0), None)
    return sorted(pieces, key=lambda piece: -1 if piece.layer is None else piece.layer)


def _plan_files(pieces: list[Piece], max_shard_size: int) -> dict[str, list[Piece]]:
    """Split the tensors, in order, into files of at most `max_shard_size` bytes; return them by file name."""
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + _bytes(piece) > max_shard_size:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += _bytes(piece)
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _gathered(model: Model, pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
    """Yield each tensor on the host, in the layout and dtype of its file."""
    for piece in pieces:
        array = to_host(piece.read())
        tensor = array if piece.layer is None else array[0]
        yield piece.tensor.to_stored(tensor.astype(piece.dtype), model.architecture.sizes)


def _write_index(files: dict[str, list[Piece]], directory: Path) -> None:
    """Write the index if there is more than one file."""
    if len(files) == 1:
        return
    pieces = [piece for group in files.values() for piece in group]
    index = {
        "metadata": {
            "total_parameters": sum(int(np.prod(piece.shape)) for piece in pieces),
            "total_size": sum(map(_bytes, pieces)),
        },
        "weight_map": {piece.name: name for name, group in files.items() for piece in group},
    }
    write_json(directory / INDEX_FILE, index)


def _write_side_files(model: Model, tokenizer: Any, directory: Path, dtype: Any) -> None:
    """Write config.json, generation_config.json and the tokenizer."""
    config = json.loads(model.architecture.source_json)
    config.setdefault("architectures", [model.architecture.family.architecture])
    if dtype is not None:
        for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]:
            config[key] = jnp.dtype(dtype).name
    write_json(directory / "config.json", config)
    copied = [] if tokenizer is not None else list(TOKENIZER_FILES)
    for name in (GENERATION_CONFIG, *copied) if model.source else ():
        if (Path(model.source) / name).is_dir():
            shutil.copytree(Path(model.source) / name, directory / name)
        elif (Path(model.source) / name).exists():
            shutil.copyfile(Path(model.source) / name, directory / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def _publish(temporary: Path, target: Path) -> None:
    """Rename the finished directory to `target`, or move its files there if `target` exists.

    Files of an older export that the new one does not have are removed first: a loader would read both.
    """
    if temporary.parent != target:
        temporary.rename(target)
        return
    for name in _LOADED_BY:
        (target / name).unlink(missing_ok=True)  # nothing loads a mixture of two models
    new = {path.name for path in temporary.iterdir()}
    for path in target.iterdir():
        if path != temporary and path.name not in new:
            _remove(path)
    for path in sorted(temporary.iterdir(), key=lambda path: (path.name in _LOADED_BY, path.name)):
        if path.is_dir():
            _remove(target / path.name)
        path.replace(target / path.name)


def _clear_leftovers(target: Path) -> None:
    """Remove the temporary directories that an interrupted export of `target` left behind."""
    for parent in (target.parent, target) if target.is_dir() else (target.parent,):
        for path in parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _bytes(piece: Piece) -> int:
    return int(np.prod(piece.shape)) * piece.dtype.itemsize
