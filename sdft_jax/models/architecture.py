"""The architecture of a checkpoint: config.json with its family's defaults, as a frozen, hashable record."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdft_jax.errors import SdftError, reason
from sdft_jax.files import read_json
from sdft_jax.models.families import (
    EMBEDDING,
    FAMILIES,
    FINAL_NORM,
    HEAD,
    OUTPUT_BIASES,
    PROJECTIONS,
    QKV_BIASES,
    Family,
    Tensor,
)
from sdft_jax.models.lora import Lora
from sdft_jax.models.rope import Rope, inverse_frequencies

LAYER_TYPES = ("full_attention", "sliding_attention")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")

# Features that change the computation; no published checkpoint of a supported family uses them.
_MUST_BE_OFF = (
    "quantization_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "mlp_bias",
)


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
)
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "sliding_window")
_LIMITS = {"num_hidden_layers": 100_000, "head_dim": 1 << 16}


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """The properties that may differ between the layers of one model."""

    window: int | None
    """Number of positions that a query reads, itself included; None for all positions up to its own."""
    rope: Rope
    """The rotary position embedding."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of one checkpoint. Sizes have the names of config.json."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    activation: str
    qkv_bias: bool
    output_bias: bool
    query_scale: float
    """The factor on attention logits."""
    kinds: tuple[LayerKind, ...]
    """The distinct kinds of layers: one kind, or full and sliding attention."""
    kind_of_layer: tuple[int, ...]
    """The index into `kinds` of each layer."""
    source_json: str = dataclasses.field(repr=False)
    """The original config.json in canonical form; `save_pretrained` writes it back."""
    lora: Lora | None = None
    """The adapters of the projections; None without adapters."""

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each dimension letter of `families.Tensor`."""
        return {
            "V": self.vocab_size,
            "D": self.hidden_size,
            "F": self.intermediate_size,
            "N": self.num_attention_heads,
            "K": self.num_key_value_heads,
            "H": self.head_dim,
            "R": self.lora.rank if self.lora else 0,
        }

    @property
    def base(self) -> Architecture:
        """The same architecture without adapters, whose parameters are those of a checkpoint."""
        return dataclasses.replace(self, lora=None)

    @property
    def layer_tensors(self) -> tuple[Tensor, ...]:
        """The parameters of one layer."""
        biases = (QKV_BIASES if self.qkv_bias else ()) + (OUTPUT_BIASES if self.output_bias else ())
        adapters = self.lora.tensors() if self.lora else ()
        return (*PROJECTIONS, *biases, *self.family.norms, *adapters)

    @property
    def outer_tensors(self) -> tuple[Tensor, ...]:
        """The parameters outside the layers."""
        norm = dataclasses.replace(FINAL_NORM, init=self.family.norms[0].init)
        return (EMBEDDING, norm) if self.tie_word_embeddings else (EMBEDDING, norm, HEAD)


def read_architecture(path: str | os.PathLike[str]) -> Architecture:
    """Read the Architecture of a Hugging Face checkpoint directory.

    Raises:
        SdftError: the directory or its config.json is missing, config.json is not valid JSON, or the model is
            not supported.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise SdftError(
            f"{directory}: no such directory; give a local Hugging Face checkpoint "
            "(download one with `hf download <repo> --local-dir <directory>`)."
        )
    file = directory / "config.json"
    if not file.exists():
        raise SdftError(
            f"{directory}: config.json is missing: give the directory of a Hugging Face checkpoint."
        )
    raw = read_json(file, "download it again", limit=1 << 24)
    try:
        return architecture_from_dict(raw)
    except SdftError as error:
        raise SdftError(f"{file}: {error}") from None


def architecture_from_dict(raw: Mapping[str, Any]) -> Architecture:
    """Return the Architecture of a config.json dictionary, as transformers 4 or 5 writes it.

    Raises:
        SdftError: an architecture or a feature is not supported, or a key is missing; the message names it.
    """
    family = _family(raw)
    config = {**dict(family.defaults), **raw}
    _check_sizes(config)
    _check_ropes(raw)
    try:
        architecture = _resolve(family, config, json.dumps(raw, sort_keys=True))
        _check_numbers(architecture)
        return architecture
    except KeyError as error:
        raise SdftError(f"the key {error} is missing: a {family.model_type} model requires it.") from None
    except (TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise SdftError(f"a value has a wrong type ({reason(error)}): download it again.") from None


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Raise SdftError for a size that is not a natural number in a plausible range, or dtypes that differ."""
    for key in _SIZES:
        size = config.get(key)
        limit = _LIMITS.get(key, 1 << 31)
        may_be_missing = size is None and (key in _OPTIONAL_SIZES or key not in config)
        if not may_be_missing and not (type(size) is int and 0 < size < limit):
            raise SdftError(f"{key} is {size!r}, and not a number from 1 to {limit - 1}: correct it.")
    dtypes = {str(config[key]) for key in ("dtype", "torch_dtype") if config.get(key)}
    if len(dtypes) > 1:
        raise SdftError(
            f"dtype and torch_dtype differ ({' and '.join(sorted(dtypes))}): remove the wrong one of them."
        )


def _check_ropes(raw: Mapping[str, Any]) -> None:
    """Raise SdftError for a key that has one value beside the rope parameters and another within them, or for
    a part of the head that is not rotated.
    """
    if raw.get("partial_rotary_factor") not in (None, 1):
        raise SdftError(
            f"partial_rotary_factor={raw['partial_rotary_factor']} is not supported: every supported family "
            "rotates the whole head."
        )
    keys = ("rope_parameters", "rope_scaling")
    outer = [value for key in keys if isinstance(value := raw.get(key), Mapping)]
    nested = [value for parameters in outer for value in parameters.values() if isinstance(value, Mapping)]
    scaled = [x for x in (*outer, *nested) if (x.get("rope_type") or x.get("type")) in ("yarn", "llama3")]
    pairs = [("original_max_position_embeddings", parameters) for parameters in scaled]
    pairs += [("rope_theta", parameters) for parameters in outer if "rope_theta" in parameters]
    for key, parameters in pairs:
        beside, within = raw.get(key), parameters.get(key)
        if beside is not None and beside != within:
            raise SdftError(
                f"{key} is {beside} beside the rope parameters and {within} within them, and programs differ "
                "in which they read: write the right value into both places."
            )


def _family(raw: Mapping[str, Any]) -> Family:
    """Return the family of a config.json. Raises SdftError if it or one of the features is not supported."""
    model_type = str(raw.get("model_type"))
    supported = ", ".join(f"{f.architecture} ({f.model_type})" for f in FAMILIES.values())
    listed = raw.get("architectures") or [model_type]
    architecture = listed[0] if isinstance(listed, list) else listed
    if model_type not in FAMILIES:
        raise SdftError(
            f"model {architecture} (model_type '{model_type}') is not supported; supported: {supported}."
        )
    family = FAMILIES[model_type]
    if architecture not in (model_type, family.architecture):
        raise SdftError(f"architecture {architecture} is not supported; supported: {supported}.")
    for key in _MUST_BE_OFF:
        if raw.get(key):
            raise SdftError(
                f"{key} is not supported for {model_type} models (its value is {raw[key]!r}): "
                "use a checkpoint without it."
            )
    return family


def _resolve(family: Family, config: dict[str, Any], source_json: str) -> Architecture:
    """Return the Architecture of a config.json that includes the family's defaults."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise SdftError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}: correct "
            "one of them."
        )
    activation = config.get(family.activation_key, "silu")
    if activation not in ACTIVATIONS:
        raise SdftError(f"activation '{activation}' is not supported; supported: {', '.join(ACTIVATIONS)}.")
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kinds, kind_of_layer = _layers(family, config)
    return Architecture(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(config["rms_norm_eps"]),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        activation=activation,
        qkv_bias=family.always_qkv_bias or bool(config.get("attention_bias")),
        output_bias=not family.always_qkv_bias and bool(config.get("attention_bias")),
        query_scale=float(config.get("query_pre_attn_scalar", head_dim)) ** -0.5,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        source_json=source_json,
    )


def _check_numbers(architecture: Architecture) -> None:
    """Raise SdftError for numbers with which every activation would be NaN or infinite."""
    if architecture.head_dim % 2:
        raise SdftError(f"head_dim is {architecture.head_dim}: rotary embeddings need an even number.")
    ropes = [kind.rope for kind in architecture.kinds]
    with np.errstate(all="ignore"):
        frequencies = [inverse_frequencies(rope, architecture.head_dim) for rope in ropes]
    numbers = {
        "rms_norm_eps": [architecture.rms_norm_eps],
        "query_pre_attn_scalar": [architecture.query_scale],
        "the rope parameters": [*(rope.attention_factor for rope in ropes), *np.concatenate(frequencies)],
    }
    for name, value in numbers.items():
        if not np.isfinite(value).all() or min(value) < 0:
            raise SdftError(f"{name} gives numbers that are negative, infinite or NaN: correct it.")


def _layers(family: Family, config: dict[str, Any]) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """Return the distinct kinds of layers and the index of each layer's kind."""
    types = config.get("layer_types") or family.layer_types(config)
    unknown = sorted(set(types) - set(LAYER_TYPES))
    if unknown:
        raise SdftError(f"layer type '{unknown[0]}' is not supported; supported: {', '.join(LAYER_TYPES)}.")
    if len(types) != config["num_hidden_layers"]:
        raise SdftError(
            f"layer_types has {len(types)} entries, but num_hidden_layers is {config['num_hidden_layers']}: "
            "correct one of them."
        )
    full, sliding = family.ropes(config)
    window = config.get("sliding_window")
    if "sliding_attention" in types and not window:
        raise SdftError("layer_types contains sliding_attention, but sliding_window is not set: set it.")
    kinds = {"full_attention": LayerKind(None, full), "sliding_attention": LayerKind(window, sliding)}
    used = [name for name in LAYER_TYPES if name in types]
    return tuple(kinds[name] for name in used), tuple(used.index(name) for name in types)
