"""Parameters into a Hugging Face directory that `transformers` loads as it did the source."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sdft_jax.errors import SdftError
from sdft_jax.models.decoder import Model
from sdft_jax.models.families import HEAD, Tensor
from sdft_jax.models.hf.reading import INDEX_FILE, SINGLE_FILE, entries, layer_slice, open_checkpoint
from sdft_jax.models.hf.safetensors_io import write_file
from sdft_jax.sharding import collect
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
)
GENERATION_CONFIG = "generation_config.json"
_OWN_FILES = {*TOKENIZER_FILES, GENERATION_CONFIG, "config.json", INDEX_FILE}


@dataclasses.dataclass(frozen=True)
class _Piece:
    """One tensor to write: a parameter, or one layer of it."""

    name: str
    leaf: jax.Array
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

    Tensors have the names, shapes and ties of the source. They are gathered one at a time, and the
    directory appears whole or not at all. Every process must call it; the first one writes.

    Args:
        model: the model; its `source` gives generation config and, without `tokenizer`, tokenizer files.
        params: its parameters.
        tokenizer: anything with `save_pretrained(directory)`, or None.
        path: directory to write; a model that is already there is replaced.
        dtype: of all tensors; None for each tensor's own in the source, or, without a source, the
            configuration's, or else the parameters'.
        max_shard_size: bytes of one file.

    Raises:
        SdftError: the directory holds something else, is the source itself, or the source is gone.
    """
    target = Path(path).absolute()
    _check_target(model, target)
    files = _plan_files(_pieces(model, params, dtype), max_shard_size)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    writes = jax.process_index() == 0
    try:
        if writes:
            _clear_leftovers(target)
            temporary.mkdir(parents=True)
            _write_side_files(model, tokenizer, temporary, dtype)
            _write_index(files, temporary)
        for name, pieces in files.items():
            arrays = _gathered(model, pieces)
            if writes:
                layout = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
                write_file(temporary / name, layout, arrays)
            else:
                for _ in arrays:
                    pass
        if writes:
            _replace(temporary, target)
            _clear_leftovers(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("save_pretrained")


def _check_target(model: Model, target: Path) -> None:
    if model.source and target.resolve() == Path(model.source).resolve():
        raise SdftError(
            f"{target} is the checkpoint that the model was read from; write to another directory."
        )
    if target.exists() and not target.is_dir():
        raise SdftError(f"{target} is a file; write to another directory.")
    names = sorted(file.name for file in target.iterdir()) if target.exists() else []
    foreign = [name for name in names if name not in _OWN_FILES and not name.endswith(".safetensors")]
    if foreign:
        raise SdftError(
            f"{target} holds {foreign[0]}, which is no part of an exported model: "
            "write to another directory, or remove it."
        )


def _pieces(model: Model, params: Params, dtype: Any) -> list[_Piece]:
    """All tensors to write, each with its dtype in the file, in the order of layers."""
    config = model.config
    stored = open_checkpoint(model.source, config) if model.source else {}
    declared = json.loads(config.source_json)
    fallback = declared.get("dtype") or declared.get("torch_dtype")
    pieces = []

    def add(name: str, leaf: jax.Array, tensor: Tensor, layer: int | None) -> None:
        own = stored[name].dtype if name in stored else fallback or leaf.dtype
        kind = np.dtype(jnp.dtype(own if dtype is None else dtype))
        pieces.append(_Piece(name, leaf, tensor, layer, kind, tensor.stored_shape(config.sizes)))

    for entry in entries(config):
        for layer, name in enumerate(entry.stored_names()):
            add(name, entry.get(params), entry.tensor, layer if entry.layers else None)
    if config.tie_word_embeddings and HEAD.source in stored:
        add(HEAD.source, params["embed"], HEAD, None)
    return sorted(pieces, key=lambda piece: -1 if piece.layer is None else piece.layer)


def _plan_files(pieces: list[_Piece], max_shard_size: int) -> dict[str, list[_Piece]]:
    """Split the tensors, in order, into files of at most `max_shard_size` bytes."""
    groups: list[list[_Piece]] = [[]]
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


def _gathered(model: Model, pieces: list[_Piece]) -> Iterator[np.ndarray]:
    """Each tensor on the host, in the layout and dtype of its file."""
    for piece in pieces:
        part = piece.leaf if piece.layer is None else layer_slice(piece.leaf, piece.layer)
        whole = collect(part)
        inner = whole if piece.layer is None else whole[0]
        yield piece.tensor.to_stored(inner.astype(piece.dtype), model.config.sizes)


def _write_index(files: dict[str, list[_Piece]], directory: Path) -> None:
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
    _write_json(directory / INDEX_FILE, index)


def _write_side_files(model: Model, tokenizer: Any, directory: Path, dtype: Any) -> None:
    """config.json, generation_config.json and the tokenizer."""
    config = json.loads(model.config.source_json)
    config.setdefault("architectures", [model.config.family.architecture])
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = jnp.dtype(dtype).name
    _write_json(directory / "config.json", config)
    copied = [] if tokenizer is not None else list(TOKENIZER_FILES)
    for name in (GENERATION_CONFIG, *copied) if model.source else ():
        if (Path(model.source) / name).exists():
            shutil.copyfile(Path(model.source) / name, directory / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def _replace(temporary: Path, target: Path) -> None:
    """Put the finished directory in its place; an older export makes room first."""
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old)
    else:
        temporary.rename(target)


def _clear_leftovers(target: Path) -> None:
    """Remove what an export that was killed has left beside `target`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.????????.*"):
        if path.suffix == ".tmp" or (path.suffix == ".old" and target.exists()):
            shutil.rmtree(path)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _bytes(piece: _Piece) -> int:
    return int(np.prod(piece.shape)) * piece.dtype.itemsize
