"""Writing parameters to a Hugging Face directory that `transformers` loads like the source checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sdft_jax.errors import SdftError
from sdft_jax.models.decoder import Model
from sdft_jax.models.families import EMBEDDING, FINAL_NORM, HEAD
from sdft_jax.models.hf.model_card import CARD, find_base, is_edited, plain_card
from sdft_jax.models.hf.reading import (
    Entry,
    distance,
    entries,
    open_checkpoint,
    other_tensors,
    plain_parameter,
)
from sdft_jax.models.hf.safetensors_io import INDEX_FILE, SINGLE_FILE, Stored, write_file
from sdft_jax.models.hf.stacked import StoredMatrix, StoredMxfp4, stacked, stacks
from sdft_jax.models.hf.wrapped import wrapped_name
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
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
)
"""The files with which transformers prepares images, videos and sounds for a wrapper."""
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
_OWN_FILES = {
    *TOKENIZER_FILES,
    *PROCESSOR_FILES,
    GENERATION_CONFIG,
    "config.json",
    INDEX_FILE,
    ADAPTER_CONFIG,
    CARD,
}
_QUANTIZATION = "quantization_config"
_LOADED_BY = ("config.json", ADAPTER_CONFIG)
"""The files by which a directory is recognized, written last."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor to write: a parameter, one layer of it, or a tensor of the source."""

    name: str
    read: Callable[[], np.ndarray]
    """A function that returns the tensor on the host, in the layout and dtype of its file; every process
    must call it."""
    dtype: np.dtype
    shape: tuple[int, ...]


class Place(NamedTuple):
    """A parameter, one layer of it, or one expert of a layer, and its name and dtype in a file."""

    entry: Entry
    layer: int | None
    expert: int | None
    name: str
    dtype: np.dtype


def parameter_piece(model: Model, params: Params, place: Place) -> Piece:
    """Return the piece of a parameter, or of a part of it."""
    tensor, sizes = place.entry.tensor, model.architecture.sizes

    def read() -> np.ndarray:
        array = to_host(plain_parameter(model, params, place.entry, place.layer, place.expert))
        array = array if place.layer is None else array[0]
        return tensor.to_stored(array.astype(place.dtype), sizes)

    return Piece(place.name, read, place.dtype, tensor.stored_shape(sizes))


def save_pretrained(
    model: Model,
    params: Params,
    tokenizer: Any,
    path: str | os.PathLike[str],
    dtype: Any = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write config.json, generation_config.json, the tokenizer, safetensors files and a card (README.md).

    Tensors have the names and shapes of the source, and the same tied weights; adapters are merged into
    them, and those of the embedding or the head untie the two. The other tensors of a wrapper, such as those
    of its vision tower, are copied from its `source` unchanged.

    Tensors are gathered one at a time and written to a temporary directory. A new directory is this one,
    renamed when it is complete; an existing directory, which may be a link or a mount point, is filled file
    by file; an edited card is kept. Every process must call this function; the first process
    writes.

    Args:
        model: the model. The generation config and the processor files are copied from its `source`, and so
            are the tokenizer files if `tokenizer` is None.
        params: its parameters.
        tokenizer: an object with a method `save_pretrained(directory)`, or None.
        path: the directory to write; an existing exported model is replaced.
        dtype: the dtype of all parameters. None: each has its dtype in the source; without a source, the
            dtype in config.json; without either, the dtype of the parameter.
        max_shard_size: the maximum size of a file, in bytes.

    Raises:
        SdftError: the directory contains other files or is the source itself, or the source is missing, or a
            wrapper has none.
    """
    files = _plan_files(_pieces(model, params, dtype), max_shard_size)

    def write_side_files(directory: Path) -> None:
        _write_side_files(model, tokenizer, directory, dtype)
        _write_index(files, directory)
        base = find_base(model.source, model.source) if model.source else None
        card = plain_card(base, model.architecture.name, Path(path).absolute().name)
        (directory / CARD).write_text(card, encoding="utf-8")

    write_directory(model, Path(path).absolute(), files, write_side_files)


def write_directory(
    model: Model,
    target: Path,
    files: Mapping[str, Sequence[Piece]],
    write_side_files: Callable[[Path], None],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write safetensors files, with `metadata` in each, and others by a function of the directory, as
    `save_pretrained` does.
    """
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
            arrays = (piece.read() for piece in pieces)
            if writes:
                layout = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
                write_file(temporary / name, layout, arrays, metadata)
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
    return is_exported(name) or leftover is not None


def is_exported(name: str) -> bool:
    """Return True if `name`, relative to the directory, may be that of a file of an exported model."""
    folder, _, file = name.rpartition("/")
    return folder in _OWN_FILES if folder else file in _OWN_FILES or file.endswith(".safetensors")


def exported_files(directory: Path) -> list[str]:
    """Return the names of the files of an exported model, relative to its directory.

    Raises:
        SdftError: the directory does not contain a complete model or adapter.
    """
    if not any((directory / name).is_file() for name in _LOADED_BY):
        raise SdftError(f"{directory} is not an exported model: give a directory that sdft export wrote.")
    names = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(filter(is_exported, names))


def _pieces(model: Model, params: Params, dtype: Any) -> list[Piece]:
    """Return the tensors to write in the order of layers, each with its dtype in the file."""
    architecture = model.architecture.merged
    stored = open_checkpoint(model.source, model.architecture) if model.source else {}
    if architecture.wrapper and not stored:
        raise SdftError(
            f"a {architecture.wrapper.model_type} model needs a source, whose other tensors are part of it: "
            "write a model that load_model read."
        )

    mixture, layout = architecture.family.mixture, dict(stored)
    if mixture and mixture.stacked and architecture.experts:
        layout |= {
            name: own
            for name, own in stacks(architecture.layers_with_experts, mixture, architecture.sizes).items()
            if name not in stored or isinstance(stored[name], StoredMxfp4)
        }
    parameters = _with_stacks(
        [
            (
                layout.get(place.name),
                parameter_piece(model, params, place._replace(name=_name_in_file(model, stored, place.name))),
            )
            for place in _places(model, params, stored, dtype)
        ]
    )
    copied = [
        Piece(tensor.name, tensor.map, tensor.dtype, tensor.shape)
        for tensor in other_tensors(model.source, architecture)
    ]
    return [*parameters, *copied]


def _with_stacks(pieces: Sequence[tuple[Stored | None, Piece]]) -> list[Piece]:
    """Return the pieces, of which those that the source has in one stack are one.

    Each piece is given with its tensor in the source, or None.
    """
    written: dict[str, Piece] = {}
    groups: dict[str, list[tuple[StoredMatrix, Piece]]] = {}
    for source, piece in pieces:
        if not isinstance(source, StoredMatrix):
            written[piece.name] = piece
            continue
        group = groups.setdefault(source.stack.name, [])
        group.append((source, piece))
        if len(group) == 1:  # in the place of its first matrix; the others follow before it is read
            written[source.stack.name] = _stack_piece(source.stack, group)
    return list(written.values())


def _stack_piece(stack: Stored, group: Sequence[tuple[StoredMatrix, Piece]]) -> Piece:
    """Return the piece of a stack, with its matrices and their pieces."""
    new = dataclasses.replace(stack, dtype=group[0][1].dtype)

    def read() -> np.ndarray:
        return stacked(new, [part for part, _ in group], (piece.read() for _, piece in group))

    return Piece(stack.name, read, new.dtype, new.shape)


def _places(model: Model, params: Params, stored: Mapping[str, Stored], dtype: Any) -> list[Place]:
    """Return the tensors to write, in the order of layers, with their names outside a wrapper."""
    architecture = model.architecture.merged
    config = json.loads(architecture.source_json)
    fallback = config.get("dtype") or config.get("torch_dtype")

    def place(entry: Entry, layer: int | None, expert: int | None, plain: str) -> Place:
        own = stored[plain].dtype if plain in stored else fallback or entry.get(params).dtype
        return Place(entry, layer, expert, plain, jnp.dtype(dtype or own))

    places = [place(entry, *at) for entry in entries(architecture) for at in entry.stored()]
    if architecture.tie_word_embeddings and HEAD.source in stored:
        places.append(place(Entry(EMBEDDING), None, None, HEAD.source))
    return sorted(places, key=lambda own: -1 if own.layer is None else own.entry.numbers[own.layer])


def _name_in_file(model: Model, stored: Mapping[str, Stored], plain: str) -> str:
    """Return the name of a parameter in the layout of the source."""
    if model.architecture.wrapper is None:
        return plain
    head = stored.get(HEAD.source) if plain == HEAD.source else None
    return head.name if head else wrapped_name(plain, stored[FINAL_NORM.source].name)


def rounding_note(model: Model, params: Params, dtype: Any = None) -> list[str]:
    """Return a sentence if the dtypes of `save_pretrained` undo a part of what training changed, or nothing.

    For example, values of bfloat16 near 0.05 are 2e-4 apart: a file keeps a change of 1e-5 only by chance.
    The sentence gives the Euclidean norm of the rounding in percent of the distance from the source.
    """
    if not model.source:
        return []
    stored, notes = open_checkpoint(model.source, model.architecture), []
    places = _places(model, params, stored, dtype)
    error = _rounding(model, params, places)
    if any(isinstance(tensor, StoredMxfp4) for tensor in stored.values()):
        coded = {place.dtype.name for place in places if isinstance(stored.get(place.name), StoredMxfp4)}
        notes.append(
            "the experts, which the source has in MXFP4, are written without quantization, in "
            f"{' and '.join(sorted(coded))}."
        )
    if error == 0.0:
        return notes
    share = error / max(distance(model, params, model.source), error)
    if share < 0.01:
        return notes
    names = {place.dtype.name for place in places} - {"float32"}
    alternative = "the adapters alone or " if model.architecture.lora else ""
    return [
        *notes,
        f"rounding the weights to {' and '.join(sorted(names))} changed them by {100 * share:.0f} % of what "
        f"training changed: export {alternative}with --dtype float32 to keep all of it.",
    ]


def rounding_error(model: Model, params: Params, dtype: Any = None) -> float:
    """Return the Euclidean norm of what the dtypes of `save_pretrained` change in the parameters."""
    stored = open_checkpoint(model.source, model.architecture) if model.source else {}
    return _rounding(model, params, _places(model, params, stored, dtype))


def _rounding(model: Model, params: Params, places: Sequence[Place]) -> float:
    # a tied head counts once, and the experts of a layer together
    dtypes = {(place.entry, place.layer): place.dtype for place in places}
    return math.sqrt(
        sum(
            float(_squared_rounding(plain_parameter(model, params, entry, layer), file_dtype))
            for (entry, layer), file_dtype in dtypes.items()
        )
    )


@functools.partial(jax.jit, static_argnums=1)
def _squared_rounding(array: jax.Array, dtype: Any) -> jax.Array:
    wide, limits = array.astype(jnp.float32), jnp.finfo(dtype)
    # XLA may remove a conversion to a narrow dtype and back
    return jnp.sum(jnp.square(wide - jax.lax.reduce_precision(wide, limits.nexp, limits.nmant)))


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
    config.pop(_QUANTIZATION, None)  # the weights are written without it
    config.setdefault("architectures", [model.architecture.name])
    configs = [config, config["text_config"]] if model.architecture.wrapper else [config]
    if model.architecture.merged != model.architecture.plain:
        for one in configs:
            one["tie_word_embeddings"] = False
    if dtype is not None:
        keys = ("dtype", "torch_dtype")
        if not any(key in config for key in keys):
            config["dtype"] = None
        for one in configs:
            one |= {key: jnp.dtype(dtype).name for key in keys if key in one}
    write_json(directory / "config.json", config)
    copied = [] if tokenizer is not None else list(TOKENIZER_FILES)
    for name in (GENERATION_CONFIG, *PROCESSOR_FILES, *copied) if model.source else ():
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
    if is_edited(target):
        _remove(temporary / CARD)
    new = {CARD} | {path.name for path in temporary.iterdir()}
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
