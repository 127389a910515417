"""Adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json
from sdft_jax.models.architecture import Architecture
from sdft_jax.models.decoder import Model
from sdft_jax.models.families import PROJECTIONS
from sdft_jax.models.hf.reading import Entry, layer_slice, read_entry, refuse_non_finite
from sdft_jax.models.hf.safetensors_io import Stored, read_header
from sdft_jax.models.hf.writing import ADAPTER_CONFIG, Piece, write_directory, write_json
from sdft_jax.models.lora import Lora
from sdft_jax.sharding import tree_shardings
from sdft_jax.types import Params

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""The beginning of the names of tensors in a file of PEFT."""
_MODULES = {tensor.name: tensor.source.split(".")[1] for tensor in PROJECTIONS}
"""Name of a projection -> its module's name in transformers, such as q_proj."""
_MUST_BE_OFF = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "use_dora",
    "layers_to_transform",
    "lora_bias",
)
"""Features of PEFT that change the computation or add tensors."""
_CHANGE_BASE = ("pissa", "olora", "loftq", "corda")
"""Initializations of PEFT that subtract the initial adapter from the base model."""


def save_adapter(
    model: Model, params: Params, path: str | os.PathLike[str], base: str, dtype: Any = None
) -> None:
    """Write the adapters of a model as a directory that PEFT loads; every process must call it.

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
    pieces = [
        Piece(
            _PREFIX + name,
            functools.partial(layer_slice, entry.get(params), layer),
            entry.tensor,
            layer,
            np.dtype(jnp.dtype(entry.get(params).dtype if dtype is None else dtype)),
            entry.tensor.stored_shape(model.architecture.sizes),
        )
        for entry in _entries(model.architecture)
        for layer, name in enumerate(entry.stored_names())
    ]
    config = _peft_config(lora, base)
    write_directory(
        model,
        Path(path).absolute(),
        {ADAPTER_WEIGHTS: pieces},
        lambda directory: write_json(directory / ADAPTER_CONFIG, config),
    )


def load_adapter(model: Model, path: str | os.PathLike[str], dtype: Any) -> dict[str, Any]:
    """Read a PEFT adapter as the adapters of a model: a parameter tree without the base.

    Raises:
        SdftError: as `open_adapter`, or a parameter is NaN or infinite.
    """
    architecture, stored = model.architecture, open_adapter(model.architecture, path)
    shardings = tree_shardings(model.sharding, model.logical_axes(), model.abstract_params(dtype))
    layers = {
        entry.tensor.name: read_entry(
            stored, architecture, entry, range(entry.layers), dtype, entry.get(shardings)
        )
        for entry in _entries(architecture)
    }
    refuse_non_finite({"layers": layers}, path)
    return {"layers": layers}


def open_adapter(architecture: Architecture, path: str | os.PathLike[str]) -> dict[str, Stored]:
    """Return the location of each tensor of an adapter, by the name of its layer in a checkpoint.

    Raises:
        SdftError: a file is missing or corrupt, the adapter has another rank, scale or other projections than
            the model's, or it belongs to another base.
    """
    lora = architecture.lora
    assert lora is not None
    file = Path(path) / ADAPTER_CONFIG
    _check_config(read_json(file, "give the directory of a PEFT adapter"), lora, file)
    weights = Path(path) / ADAPTER_WEIGHTS
    stored = {name.removeprefix(_PREFIX): tensor for name, tensor in read_header(weights).items()}
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
    return stored


def _check_config(config: Mapping[str, Any], lora: Lora, file: Path) -> None:
    """Raise SdftError if an adapter_config.json describes other adapters than `lora`."""
    if config.get("peft_type") != "LORA":
        raise SdftError(f"{file}: peft_type is {config.get('peft_type')!r}: only LORA is supported.")
    for key in _MUST_BE_OFF:
        if config.get(key):
            raise SdftError(f"{file}: {key} is not supported (its value is {config[key]!r}).")
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGE_BASE):
        raise SdftError(
            f"{file}: init_lora_weights is {config['init_lora_weights']!r}, which also changes the base "
            "model: convert it to a plain LoRA with PEFT."
        )
    rank = config.get("r")
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


def _peft_config(lora: Lora, base: str) -> dict[str, Any]:
    """Return the content of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilized,
        "target_modules": [_MODULES[name] for name in lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _entries(architecture: Architecture) -> Iterator[Entry]:
    """Yield the factors of every adapter."""
    for tensor in architecture.lora.tensors() if architecture.lora else ():
        yield Entry(tensor, architecture.num_hidden_layers)
