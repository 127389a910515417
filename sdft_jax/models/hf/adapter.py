"""Adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json
from sdft_jax.models.architecture import Architecture
from sdft_jax.models.decoder import Model
from sdft_jax.models.families import (
    DELTA_PROJECTIONS,
    EMBEDDING,
    FULL_ATTENTION,
    FUSED_PROJECTIONS,
    HEAD,
    SHARING,
)
from sdft_jax.models.hf.hub import hub_name
from sdft_jax.models.hf.model_card import CARD, find_base, plain_adapter_card
from sdft_jax.models.hf.reading import (
    Entry,
    open_checkpoint,
    read_entry,
    refuse_non_finite,
    unread_names,
    weights_digest,
)
from sdft_jax.models.hf.safetensors_io import Stored, read_file
from sdft_jax.models.hf.wrapped import MODULE, module_name, plain_name
from sdft_jax.models.hf.writing import ADAPTER_CONFIG, Place, parameter_piece, write_directory, write_json
from sdft_jax.models.lora import ADAPTABLE, Lora, is_adapter
from sdft_jax.sharding import tree_shardings
from sdft_jax.types import Params

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_BASE_DIGEST = "sdft_jax.base_weights"
"""The key of the digest of the base's weights in the metadata of the tensors, which PEFT ignores; it warns of
unknown keys in adapter_config.json."""
_NAMED_BASE = "base_model_name_or_path"
_PREFIX = "base_model.model."
"""The beginning of the names of tensors in a file of PEFT."""
_COPY = ".base_layer.weight"
"""The end of the names of copies of the base's weights in a file of PEFT."""
_MODULES = {
    tensor.name: tensor.source.split(".")[-2]
    for tensor in (*ADAPTABLE, *FULL_ATTENTION, *DELTA_PROJECTIONS, *FUSED_PROJECTIONS)
}
"""Name of a matrix -> its module's name in transformers, such as q_proj."""
_MUST_BE_OFF = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "use_dora",
    "layers_to_transform",
    "lora_bias",
    "ensure_weight_tying",
    "alora_invocation_tokens",
    "use_qalora",
    "layer_replication",
)
"""Features of PEFT that change the computation or add tensors."""
_CHANGE_BASE = ("pissa", "olora", "loftq", "corda")
"""Initializations of PEFT that subtract the initial adapter from the base model."""


def save_adapter(
    model: Model, params: Params, path: str | os.PathLike[str], base: str, dtype: Any = None
) -> None:
    """Write the adapters of a model as a directory that PEFT loads, with a card; every process must call it.

    If the model was loaded, the file has a digest of the base's weights, by which `open_adapter` refuses
    another base. A file that PEFT writes has none.

    Args:
        model: the model.
        params: its parameters; the base is not read.
        path: the directory to write, as in `save_pretrained`.
        base: the name or directory of the base model, for adapter_config.json.
        dtype: the dtype of the tensors; None for that of the parameters.

    Raises:
        SdftError: the model has no adapters, or the directory contains other files.
    """
    lora = model.architecture.lora
    if lora is None:
        raise SdftError("the model has no adapters (lora.rank=0): write it as a plain checkpoint.")
    wrapped = model.architecture.wrapper is not None
    pieces = [
        parameter_piece(
            model,
            params,
            Place(
                entry,
                layer,
                expert,
                _PREFIX + (module_name(name) if wrapped else name),
                jnp.dtype(entry.get(params).dtype if dtype is None else dtype),
            ),
        )
        for entry in _entries(model.architecture)
        for layer, expert, name in entry.stored()
    ]
    target = Path(path).absolute()

    def write_side_files(directory: Path) -> None:
        write_json(directory / ADAPTER_CONFIG, _peft_config(lora, base, wrapped))
        card = plain_adapter_card(find_base(base, model.source or base), lora.rank, target.name)
        (directory / CARD).write_text(card, encoding="utf-8")

    metadata = {}
    if model.source:
        of_base = open_checkpoint(model.source, model.architecture)
        metadata[_BASE_DIGEST] = _digest_of(of_base, model.architecture)
    write_directory(model, target, {ADAPTER_WEIGHTS: pieces}, write_side_files, metadata)


def load_adapter(
    model: Model, path: str | os.PathLike[str], dtype: Any, base: str | os.PathLike[str]
) -> dict[str, Any]:
    """Read a PEFT adapter as the adapters of a model: a parameter tree without the base.

    Args:
        model: the model.
        path: the directory of the adapter.
        dtype: the dtype of the parameters.
        base: the directory of the base model.

    Raises:
        SdftError: as `open_adapter`, or a parameter is NaN or infinite.
    """
    architecture, stored = model.architecture, open_adapter(model.architecture, path, base)
    shardings = tree_shardings(model.sharding, model.logical_axes(), model.abstract_params(dtype))
    params: dict[str, Any] = {"layers": {}}
    for entry in _entries(architecture):
        leaf = read_entry(stored, architecture, entry, range(entry.layers), dtype, entry.get(shardings))
        entry.put(params, leaf)
    refuse_non_finite(params, path)
    return params


def open_adapter(
    architecture: Architecture, path: str | os.PathLike[str], base: str | os.PathLike[str]
) -> dict[str, Stored]:
    """Return the location of each tensor of an adapter, by the name of its layer in a checkpoint.

    PEFT also writes copies of the base's embedding and head if they are adapted; they must equal those of the
    base at `base`.

    Raises:
        SdftError: a file is missing or corrupt, the adapter has another rank, scale or other projections than
            the model's, or it belongs to another base.
    """
    lora = architecture.lora
    assert lora is not None
    file = Path(path) / ADAPTER_CONFIG
    config = _read_config(path)
    _check_config(config, lora, file)
    weights = Path(path) / ADAPTER_WEIGHTS
    if not weights.exists():
        raise SdftError(
            f"{weights} does not exist: copy it from the adapter, or save that with PEFT as safetensors."
        )
    tensors, metadata = read_file(weights)
    stored = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    if architecture.wrapper:
        stored = {plain_name(name) or name: tensor for name, tensor in stored.items()}
    unread = unread_names(architecture)
    stored = {name: tensor for name, tensor in stored.items() if not name.startswith(unread)}
    copies = {name: stored.pop(name) for name in list(stored) if name.endswith(_COPY)}
    expected = {
        name: entry.tensor.stored_shape(architecture.sizes)
        for entry in _entries(architecture)
        for name in entry.stored_names()
    }
    if wrong := sorted(stored.keys() ^ expected.keys()):
        problem = "lacks" if wrong[0] in expected else "has"
        raise SdftError(
            f"{weights} {problem} the tensor {wrong[0]}: it adapts another base model, or other projections "
            f"than lora.targets={list(lora.targets)}: correct lora.targets or model.path."
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise SdftError(
                f"{weights}: {name} has shape {list(stored[name].shape)}, and the adapter of this model has "
                f"{list(shape)}: it adapts another base model: correct model.path or lora.adapter."
            )
    compared = copies or _BASE_DIGEST in metadata
    of_base = open_checkpoint(base, architecture) if compared else {}
    _check_copies(copies, of_base, weights)
    if _BASE_DIGEST in metadata and metadata[_BASE_DIGEST] != _digest_of(of_base, architecture):
        raise SdftError(
            f"{weights}: the adapter was trained on other weights than those in {base}, or on the same ones "
            f"in another dtype or layout: set model.path to its base, which was {config.get(_NAMED_BASE)}."
        )
    return stored


def other_base_note(path: str | os.PathLike[str], model_path: str, directory: str) -> list[str]:
    """Return a sentence if a PEFT adapter without a digest names another base on the Hub than the model; else
    nothing.

    Names differ for copies of one model too, so that this is no mistake.

    Args:
        path: the directory of the adapter.
        model_path: the setting model.path.
        directory: the directory of that model.
    """
    named, own = _read_config(path).get(_NAMED_BASE), find_base(model_path, directory).hub
    if not isinstance(named, str) or hub_name(named) is None or own is None or own.lower() == named.lower():
        return []
    if _BASE_DIGEST in read_file(Path(path) / ADAPTER_WEIGHTS)[1]:
        return []
    return [f"{Path(path) / ADAPTER_CONFIG} names the base {named}, and the model is {own}: compare the two."]


def _read_config(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    return read_json(Path(path) / ADAPTER_CONFIG, "give the directory of a PEFT adapter")


def _digest_of(base: Mapping[str, Stored], architecture: Architecture) -> str:
    tied = {HEAD.source} if architecture.tie_word_embeddings else set()  # a file may repeat it
    return weights_digest({name: tensor for name, tensor in base.items() if name not in tied})


def _check_copies(copies: Mapping[str, Stored], base: Mapping[str, Stored], weights: Path) -> None:
    """Raise SdftError if a copy of a weight of the base, in the file of an adapter, is another one."""
    for name, copy in copies.items():
        source = name.removesuffix(_COPY) + ".weight"
        own = base.get(source) or base[EMBEDDING.source]  # the head may be tied
        values = own.map().astype(copy.dtype)
        if not np.array_equal(values, copy.map()):
            raise SdftError(
                f"{weights}: {name} differs from {source} of the base model: the adapter is of another base, "
                "or of one with a trained or resized vocabulary: correct model.path or lora.adapter."
            )


def _check_config(config: Mapping[str, Any], lora: Lora, file: Path) -> None:
    """Raise SdftError if an adapter_config.json describes other adapters than `lora`."""
    if config.get("peft_type") != "LORA":
        raise SdftError(f"{file}: peft_type is {config.get('peft_type')!r}: only LORA is supported.")
    for key in _MUST_BE_OFF:
        if config.get(key):
            raise SdftError(
                f"{file}: {key} is not supported (its value is {config[key]!r}): merge the adapter into its "
                "base with PEFT, or give another one."
            )
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGE_BASE):
        raise SdftError(
            f"{file}: init_lora_weights is {config['init_lora_weights']!r}, which also changes the base "
            "model: convert it to a plain LoRA with PEFT."
        )
    rank = config.get("r")
    if type(rank) is not int:
        raise SdftError(f"{file}: r is {rank!r}, and not an integer: export the adapter again.")
    if rank != lora.rank:
        raise SdftError(
            f"{file}: the adapter has rank {rank}, and lora.rank={lora.rank}: set lora.rank={rank}."
        )
    alpha, stabilized = config.get("lora_alpha", 8), bool(config.get("use_rslora"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise SdftError(f"{file}: lora_alpha is {alpha!r}, and not a number: export the adapter again.")
    if alpha != lora.alpha or stabilized != lora.rank_stabilized:
        raise SdftError(
            f"{file}: the adapter has another scale than the settings: set lora.alpha={alpha} and "
            f"lora.rank_stabilized={str(stabilized).lower()}."
        )


def _peft_config(lora: Lora, base: str, wrapped: bool) -> dict[str, Any]:
    """Return the content of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        _NAMED_BASE: base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilized,
        "target_modules": _pattern(lora) if wrapped else _modules(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _modules(names: Iterable[str]) -> list[str]:
    """Return the modules of matrices, each once."""
    return list(dict.fromkeys(_MODULES[name.removeprefix(SHARING)] for name in names))


def _pattern(lora: Lora) -> str:
    """Return a regular expression of the adapted modules: a vision tower has modules of the same names."""
    inner = "|".join(_modules(name for name in lora.targets if name != HEAD.name))
    parts = [rf"{re.escape(MODULE)}(?:.*\.)?(?:{inner})"] if inner else []
    return "|".join([*parts, *([_MODULES[HEAD.name]] if HEAD.name in lora.targets else [])])


def _entries(architecture: Architecture) -> Iterator[Entry]:
    """Yield the factors of every adapter."""
    lora = architecture.lora
    for tensor in lora.outer_tensors if lora else ():
        yield Entry(tensor)
    for tensor in architecture.layer_tensors:
        if is_adapter(tensor.name):
            yield Entry(tensor, architecture.layers_with(tensor))
