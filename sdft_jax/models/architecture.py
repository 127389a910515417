"""The architecture of a checkpoint: config.json with its family's defaults, as a frozen, hashable record."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdft_jax.config.settings import Quantization
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import read_json
from sdft_jax.models.families import (
    ATTENTION,
    DELTA_PARAMETERS,
    DELTA_PROJECTIONS,
    EMBEDDING,
    FAMILIES,
    FEED_FORWARD,
    FINAL_NORM,
    FULL_ATTENTION,
    FUSED_ATTENTION,
    FUSED_FEED_FORWARD,
    GATED_ATTENTION,
    HEAD,
    LAYER_EMBEDDINGS,
    LAYER_INPUT,
    OUTPUT_BIASES,
    QKV_BIASES,
    SHARING,
    SINKS,
    WIDE_FEED_FORWARD,
    WRAPPERS,
    Family,
    Heads,
    Tensor,
    Wrapper,
    of_full_attention,
)
from sdft_jax.models.hf.safetensors_io import stored_names
from sdft_jax.models.lora import Lora, is_adapter
from sdft_jax.models.quantize import is_scale, quantized, tile_count
from sdft_jax.models.rope import NO_ROPE, Rope, inverse_frequencies
from sdft_jax.types import Params

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")

# Features that change the computation; `_family` allows some of them in the families that have them.
_MUST_BE_OFF = (
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
    "global_head_dim",
    "num_global_key_value_heads",
    "sliding_window",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "num_experts",
    "num_experts_per_tok",
    "top_k_experts",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_OPTIONAL_SIZES = (
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "num_global_key_value_heads",
    "num_experts",
    "num_experts_per_tok",
    "top_k_experts",
    "moe_intermediate_size",
)
_LIMITS = {"num_hidden_layers": 100_000, "head_dim": 1 << 16, "global_head_dim": 1 << 16}


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """The properties that may differ between the layers of one model."""

    window: int | None
    """Number of positions that a query reads, itself included; None for all positions up to its own."""
    rope: Rope
    """The rotary position embedding."""
    mixer: Literal["attention", "gated_delta"] = "attention"
    """The function that mixes tokens."""
    feed_forward: Literal["dense", "experts"] = "dense"
    """The function of each token."""
    heads: Heads | None = None
    """The heads of keys and values; None for those of the model."""
    shares_keys: bool = False
    """True if queries read the keys and values of another layer: the last one that has its own, among those
    with the same window."""
    wide: bool = False
    """True if the dense feed-forward has twice the width."""


@dataclasses.dataclass(frozen=True)
class DeltaSizes:
    """The sizes of gated delta nets. A key head serves `value_heads / key_heads` consecutive value heads."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    convolution: int
    """Number of tokens that the convolution reads."""

    @property
    def channels(self) -> int:
        """The number of queries, keys and values of a token."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclasses.dataclass(frozen=True)
class ExpertSizes:
    """The sizes of a mixture of experts."""

    count: int
    per_token: int
    """Number of experts that compute a token."""
    width: int
    """Hidden width of an expert."""
    normalized: bool
    """True if the weights of a token's experts add up to 1."""
    clamped: tuple[float, float] | None = None
    """The sigmoid's factor and the limit of the clamped SwiGLU of gpt-oss; None for gate and up as usual."""


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
    """The distinct kinds of layers, in the order of `Family.kinds`; with rope before without, and with keys
    and values of their own before shared ones."""
    kind_of_layer: tuple[int, ...]
    """The index into `kinds` of each layer."""
    source_json: str = dataclasses.field(repr=False)
    """The original config.json in canonical form; `save_pretrained` writes it back."""
    wrapper: Wrapper | None = None
    """The multimodal model that contains this text model; None for a text model alone."""
    delta: DeltaSizes | None = None
    """The sizes of gated delta nets; None without such layers."""
    experts: ExpertSizes | None = None
    """The sizes of the mixtures of experts; None without such layers."""
    softcap: float | None = None
    """The bound c of logits z, which become c tanh(z / c); None without one."""
    layer_embedding: int = 0
    """The width of the embeddings of each token for each layer; 0 without them."""
    lora: Lora | None = None
    """The adapters; None without adapters."""
    quantize: Quantization | None = None
    """The format of quantized projections; None without quantization."""

    @property
    def name(self) -> str:
        """The name of the class of the checkpoint in transformers."""
        return (self.wrapper or self.family).architecture

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each dimension letter of `families.Tensor`."""
        delta = self.delta or DeltaSizes(0, 0, 0, 0, 0)
        experts = self.experts or ExpertSizes(0, 0, 0, False)
        full = next((kind.heads for kind in self.kinds if kind.heads), Heads(0, 0))
        return {
            "V": self.vocab_size,
            "D": self.hidden_size,
            "F": self.intermediate_size,
            "N": self.num_attention_heads,
            "K": self.num_key_value_heads,
            "H": self.head_dim,
            "R": self.lora.rank if self.lora else 0,
            "d": tile_count(self.hidden_size),
            "f": tile_count(self.intermediate_size),
            "u": tile_count(2 * self.intermediate_size),
            "h": tile_count(self.head_dim),
            "p": tile_count(delta.value_dim),
            "x": tile_count(full.dim),
            "Q": 2 * self.head_dim,
            "J": full.count,
            "X": full.dim,
            "G": delta.value_heads,
            "P": delta.value_dim,
            "C": delta.channels,
            "S": delta.convolution,
            "E": experts.count,
            "M": experts.width,
            "W": (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim,
            "U": 2 * self.intermediate_size,
            "Y": 2,
            "L": self.num_hidden_layers,
            "A": self.layer_embedding,
            "Z": self.num_hidden_layers * self.layer_embedding,
            "1": 1,
        }

    @property
    def plain(self) -> Architecture:
        """The same architecture without adapters and quantization: that of a checkpoint."""
        return dataclasses.replace(self, lora=None, quantize=None)

    def of_tree(self, params: Params) -> Architecture:
        """Return the architecture of a parameter tree: a base has no adapters, a reference no codes."""
        layers = params["layers"]
        names = {*params, *(itertools.chain(*layers) if isinstance(layers, tuple) else layers)}
        return dataclasses.replace(
            self,
            lora=self.lora if any(map(is_adapter, names)) else None,
            quantize=self.quantize if any(map(is_scale, names)) else None,
        )

    @property
    def merged(self) -> Architecture:
        """The architecture with the adapters merged into the weights, which unties the head from an embedding
        that only one of them adapts.
        """
        own_head = self.lora is not None and bool(self.lora.outer_tensors)
        return dataclasses.replace(self.plain, tie_word_embeddings=self.tie_word_embeddings and not own_head)

    @property
    def layer_tensors(self) -> tuple[Tensor, ...]:
        """The parameters of the layers; each is stacked over the layers that have it."""
        return tuple(dict.fromkeys(tensor for kind in self.kinds for tensor in self.tensors_of(kind)))

    def tensors_of(self, kind: LayerKind) -> tuple[Tensor, ...]:
        """Return the parameters of one layer of a kind."""
        norms = self.family.norms
        if kind.mixer == "gated_delta":
            others: tuple[Tensor, ...] = DELTA_PARAMETERS
            norms = tuple(norm for norm in norms if norm.name not in ("q_norm", "k_norm"))
        else:
            others = (QKV_BIASES if self.qkv_bias else ()) + (OUTPUT_BIASES if self.output_bias else ())
        if kind.feed_forward == "experts" and self.family.mixture:
            others = (*others, *self.family.mixture.parameters)
        if self.layer_embedding:
            others = (*others, *LAYER_INPUT)
        if kind.shares_keys:
            norms = tuple(norm for norm in norms if norm.name != "k_norm")
        if kind.heads:
            norms = tuple(map(of_full_attention, norms))
        projections = self.projections_of(kind)
        adapters = self.lora.adapters(projections) if self.lora else ()
        if self.quantize:
            projections = tuple(part for tensor in projections for part in quantized(tensor, self.quantize))
        others = (*others, *norms, *self.family.others)
        return (*projections, *(map(_of_sharing, others) if kind.shares_keys else others), *adapters)

    def projections_of(self, kind: LayerKind) -> tuple[Tensor, ...]:
        """Return the matrices of one layer of a kind, which may have adapters or be quantized.

        The router and the experts are not among them.
        """
        if self.family.fused_projections:
            return (*FUSED_ATTENTION, *FUSED_FEED_FORWARD)
        mixer: tuple[Tensor, ...] = GATED_ATTENTION if self.family.gated_attention else ATTENTION
        if kind.mixer == "gated_delta":
            mixer = DELTA_PROJECTIONS
        elif kind.heads:
            q, k, _, o = FULL_ATTENTION
            mixer = (q, k, o) if kind.heads.values_are_keys else FULL_ATTENTION
        dense: tuple[Tensor, ...] = FEED_FORWARD
        if kind.feed_forward == "experts" and self.family.mixture:
            dense = self.family.mixture.dense
        dense = WIDE_FEED_FORWARD if kind.wide and dense else dense
        if kind.shares_keys:
            return tuple(map(_of_sharing, (mixer[0], mixer[-1], *dense)))
        return (*mixer, *dense)

    def heads_of(self, kind: LayerKind) -> Heads:
        """Return the heads of keys and values of a kind of attention layers."""
        return kind.heads or Heads(self.num_key_value_heads, self.head_dim)

    @property
    def projections(self) -> tuple[Tensor, ...]:
        """The matrices of all kinds of layers."""
        return tuple(dict.fromkeys(tensor for kind in self.kinds for tensor in self.projections_of(kind)))

    @property
    def uniform(self) -> bool:
        """True if every layer has the same parameters, whatever its kind."""
        return len({self.tensors_of(kind) for kind in self.kinds}) == 1

    def layers_with(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the layers that have a parameter, in the order in which it is stacked."""
        having = [tensor in self.tensors_of(kind) for kind in self.kinds]
        return tuple(layer for layer, kind in enumerate(self.kind_of_layer) if having[kind])

    @property
    def has_dense(self) -> bool:
        """True if a layer has a dense feed-forward, alone or beside experts."""
        return any(tensor.name == FEED_FORWARD[-1].name for tensor in self.projections)

    @property
    def feed_forward_widths(self) -> tuple[int, ...]:
        """The hidden widths of dense feed-forwards and of experts, whichever the model has."""
        dense = (self.intermediate_size,) if self.has_dense else ()
        return dense + ((self.experts.width,) if self.experts else ())

    @property
    def has_sinks(self) -> bool:
        """True if each head of attention has a logit of its own beside those of the keys."""
        return SINKS in self.family.others

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        """The layers with a mixture of experts."""
        having = [kind.feed_forward == "experts" for kind in self.kinds]
        return tuple(layer for layer, kind in enumerate(self.kind_of_layer) if having[kind])

    def layers_of(self, kind: int) -> tuple[int, ...]:
        """Return the layers of a kind, in the order in which their states are stacked."""
        return tuple(layer for layer, own in enumerate(self.kind_of_layer) if own == kind)

    def owner_of(self, kind: int) -> int:
        """Return the kind whose keys and values a kind of layers reads: itself unless they are shared."""
        own = dataclasses.replace(self.kinds[kind], shares_keys=False, wide=False)
        return self.kinds.index(own) if self.kinds[kind].shares_keys else kind

    @property
    def parts(self) -> tuple[range, ...]:
        """The layers that have keys and values of their own, and those that share them, if there are any."""
        shared = [self.kinds[kind].shares_keys for kind in self.kind_of_layer]
        first, count = shared.count(False), len(shared)
        return (range(first), range(first, count)) if first < count else (range(count),)

    def period(self, part: range) -> int:
        """Return the number of layers after which the kinds repeat: 6 in Gemma 3; 1 if there is one kind."""
        kinds = self.kind_of_layer[part.start : part.stop]
        return next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[:-n])

    @property
    def outer_tensors(self) -> tuple[Tensor, ...]:
        """The parameters outside the layers."""
        norm = dataclasses.replace(FINAL_NORM, init=self.family.norms[0].init)
        head = () if self.tie_word_embeddings else (HEAD,)
        adapters = self.lora.outer_tensors if self.lora else ()
        return (EMBEDDING, norm, *head, *(LAYER_EMBEDDINGS if self.layer_embedding else ()), *adapters)


def _of_sharing(tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, name=SHARING + tensor.name)


def check_quantizable(architecture: Architecture, quantize: Quantization | None) -> None:
    """Raise SdftError if a format is given for a model whose experts would remain unquantized."""
    if quantize and architecture.experts:
        raise SdftError(
            f"quantize={quantize} is not supported for {architecture.family.model_type} models: the experts, "
            "which are most of the weights, would not be quantized: leave it out."
        )


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
        gguf = min(directory.glob("*.gguf"), default=None)
        checkpoint = f"the checkpoint that {gguf.name} was made from" if gguf else "a Hugging Face checkpoint"
        raise SdftError(f"{directory}: config.json is missing: give the directory of {checkpoint}.")
    raw = read_json(file, "download it again", limit=1 << 24)
    try:
        architecture = architecture_from_dict(raw)
    except SdftError as error:
        raise SdftError(f"{file}: {error}") from None
    return dataclasses.replace(architecture, tie_word_embeddings=_tied(architecture, raw, directory))


def _tied(architecture: Architecture, raw: Mapping[str, Any], directory: Path) -> bool:
    """Return True if the head of a checkpoint is its embedding.

    The two configurations of a wrapper may differ, because transformers 5 gives each its own default: then
    the head is tied if no file contains one.
    """
    if architecture.wrapper:
        listed = [config.get("tie_word_embeddings") for config in (raw, raw["text_config"])]
        values = {bool(value) for value in listed if value is not None}
        names = stored_names(directory) if len(values) != 1 else ()
        if names:
            return not any(name.endswith(HEAD.source) for name in names)
    return architecture.tie_word_embeddings


def architecture_from_dict(raw: Mapping[str, Any]) -> Architecture:
    """Return the Architecture of a config.json dictionary, as transformers 4 or 5 writes it.

    Raises:
        SdftError: an architecture or a feature is not supported, or a key is missing; the message names it.
    """
    wrapper = WRAPPERS.get(str(raw.get("model_type")))
    text = _text_config(raw, wrapper) if wrapper else raw
    for settings in (raw, text):
        _refuse_quantized(settings, FAMILIES.get(str(text.get("model_type"))))
    family = _family(text)
    config = {**dict(family.defaults), **text}
    if family.mixture and "num_local_experts" in text:
        config["num_experts"] = text["num_local_experts"]  # its name in transformers 5
    _check_sizes(config)
    _check_ropes(family, text)
    other_attention = family.gated_attention or family.full_heads or family.fused_projections
    if other_attention and config.get("attention_bias"):
        raise SdftError(f"attention_bias is not supported for {family.model_type} models: use another model.")
    try:
        architecture = _resolve(family, config, json.dumps(raw, sort_keys=True))
        architecture = dataclasses.replace(architecture, wrapper=wrapper)
        _check_numbers(architecture)
        return architecture
    except KeyError as error:
        raise SdftError(f"the key {error} is missing: a {family.model_type} model requires it.") from None
    except (TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise SdftError(f"a value has a wrong type ({reason(error)}): download it again.") from None


def _refuse_quantized(raw: Mapping[str, Any], family: Family | None) -> None:
    """Raise SdftError, with the name of the format, if the weights of a checkpoint are quantized and not read
    in this family.
    """
    settings = raw.get("quantization_config")
    if not settings:
        return
    settings = settings if isinstance(settings, Mapping) else {}
    if family and family.mixture and family.mixture.interleaved and settings.get("quant_method") == "mxfp4":
        return
    names = [settings.get(key) for key in ("quant_method", "quant_algo", "format", "fmt")]
    names += [f"{bits} bits" for bits in (4, 8) if settings.get(f"load_in_{bits}bit")]
    names += [f"{bits} bits" for bits in (settings.get("bits"),) if type(bits) is int]
    named = ", ".join(name[:40] for name in names if isinstance(name, str)) or "format not named"
    raise SdftError(
        f"quantization_config is not supported (the weights are quantized: {named}): use the original "
        "checkpoint, with bfloat16 or float32 weights, which lora.quantize quantizes while they are read, or "
        "save a dequantized copy with transformers."
    )


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


def _check_ropes(family: Family, raw: Mapping[str, Any]) -> None:
    """Raise SdftError for a key that has one value beside the rope parameters and another within them, or for
    a part of the head that is not rotated in a family that rotates all of it.
    """
    keys = ("rope_parameters", "rope_scaling")
    outer = [value for key in keys if isinstance(value := raw.get(key), Mapping)]
    nested = [value for parameters in outer for value in parameters.values() if isinstance(value, Mapping)]
    beside = raw.get("partial_rotary_factor")
    # a proportional embedding has a frequency for each pair of dimensions, which may be zero
    partly = [x for x in (*outer, *nested) if x.get("rope_type") != "proportional"]
    shares = [x.get("partial_rotary_factor", 1) for x in partly]
    partial = [share for share in (1 if beside is None else beside, *shares) if share != 1]
    if partial and "partial_rotary_factor" not in dict(family.defaults):
        raise SdftError(
            f"partial_rotary_factor={partial[0]} is not supported: {family.model_type} models rotate the "
            "whole head."
        )
    kinds = [(x, x.get("rope_type") or x.get("type")) for x in (*outer, *nested)]
    scaled = [x for x, kind in kinds if kind in ("yarn", "llama3", "longrope", "su")]
    pairs = [("original_max_position_embeddings", parameters) for parameters in scaled]
    pairs += [("rope_theta", parameters) for parameters in outer if "rope_theta" in parameters]
    default = dict(family.defaults).get("original_max_position_embeddings")
    for key, parameters in pairs:
        beside, within = raw.get(key), parameters.get(key)
        if key == "original_max_position_embeddings" and default:  # transformers reads it beside them
            beside = (beside or default) if within is not None else None
        if beside is not None and beside != within:
            raise SdftError(
                f"{key} is {beside} beside the rope parameters and {within} within them, and programs differ "
                "in which they read: write the right value into both places."
            )


def _named_architecture(raw: Mapping[str, Any], default: str) -> Any:
    """Return the first class that a config.json lists."""
    listed = raw.get("architectures") or default
    return listed[0] if isinstance(listed, list) else listed


def _text_config(raw: Mapping[str, Any], wrapper: Wrapper) -> dict[str, Any]:
    """Return the configuration of the text model of a wrapper. Raises SdftError if it is not supported."""
    architecture = _named_architecture(raw, wrapper.architecture)
    if architecture != wrapper.architecture:
        raise SdftError(f"architecture {architecture} is not supported; supported: {wrapper.architecture}.")
    text = raw.get("text_config")
    if not isinstance(text, Mapping):
        raise SdftError(
            f"text_config is {text!r}: a {wrapper.model_type} model requires an object: download it again."
        )
    text = {key: item for key, item in text.items() if key != "architectures"}
    text.setdefault("model_type", wrapper.text_types[0])
    if text["model_type"] not in wrapper.text_types:
        raise SdftError(
            f"model_type '{text['model_type']}' of text_config is not supported in a {wrapper.model_type} "
            f"model; supported: {', '.join(wrapper.text_types)}."
        )
    for key in ("quantization_config", "tie_word_embeddings"):
        if raw.get(key) is not None:
            text[key] = raw[key]
    return text


def _family(raw: Mapping[str, Any]) -> Family:
    """Return the family of a config.json. Raises SdftError if it or one of the features is not supported."""
    model_type = str(raw.get("model_type"))
    known: tuple[Family | Wrapper, ...] = (*FAMILIES.values(), *WRAPPERS.values())
    supported = ", ".join(f"{f.architecture} ({f.model_type})" for f in known)
    architecture = _named_architecture(raw, model_type)
    if model_type not in FAMILIES:
        raise SdftError(
            f"model {architecture} (model_type '{model_type}') is not supported; supported: {supported}."
        )
    family = FAMILIES[model_type]
    if architecture not in (model_type, family.architecture):
        raise SdftError(
            f"architecture {architecture} is not supported for model_type '{model_type}'; supported: "
            f"{family.architecture}."
        )
    for key in _MUST_BE_OFF:
        supported_here = (key == "final_logit_softcapping" and family.softcapping) or (
            key == "use_bidirectional_attention" and raw.get(key) == "vision" and family.image_attention
        )
        if raw.get(key) and not supported_here:
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
    query_scale = family.query_scale
    if query_scale is None:
        query_scale = float(config.get("query_pre_attn_scalar", head_dim)) ** -0.5
    softcap = config.get("final_logit_softcapping") if family.softcapping else None
    return Architecture(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config[family.mixture.dense_width if family.mixture else "intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(config["rms_norm_eps"]),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        activation=activation,
        qkv_bias=family.always_qkv_bias or bool(config.get("attention_bias")),
        output_bias=not family.always_qkv_bias and bool(config.get("attention_bias")),
        query_scale=query_scale,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        source_json=source_json,
        delta=_delta_sizes(config) if any(kind.mixer == "gated_delta" for kind in kinds) else None,
        experts=_expert_sizes(family, config, kinds),
        softcap=None if softcap is None else float(softcap),
        layer_embedding=_layer_embedding(family, config),
    )


def _layer_embedding(family: Family, config: Mapping[str, Any]) -> int:
    """Return the width of the embeddings of each token for each layer; 0 without them."""
    width = config.get("hidden_size_per_layer_input", 0)
    if type(width) is not int or not 0 <= width < 1 << 16:
        raise SdftError(f"hidden_size_per_layer_input is {width!r}, and not a number from 0: correct it.")
    if width and not family.layer_embeddings:
        raise SdftError(
            f"hidden_size_per_layer_input is {width}, and {family.model_type} models have no embeddings for "
            "each layer: set it to 0."
        )
    if width and config["vocab_size_per_layer_input"] != config["vocab_size"]:
        raise SdftError(
            f"vocab_size_per_layer_input is {config['vocab_size_per_layer_input']!r}, and vocab_size is "
            f"{config['vocab_size']}: models in which they differ are not supported: use another model."
        )
    return width


def _shares_keys(family: Family, config: Mapping[str, Any], types: list[str]) -> list[bool]:
    """Return True for each layer that reads the keys and values of an earlier one."""
    if not family.shared_keys:
        return [False] * len(types)
    count, wide = config.get("num_kv_shared_layers", 0), config.get("use_double_wide_mlp", False)
    if type(wide) is not bool:
        raise SdftError(f"use_double_wide_mlp is {wide!r}, and neither true nor false: correct it.")
    if type(count) is not int or not 0 <= count < len(types):
        raise SdftError(
            f"num_kv_shared_layers is {count!r}, and not a number from 0 to {len(types) - 1}, so that one "
            "layer has keys and values: correct it."
        )
    first = len(types) - count
    without = sorted(set(types[first:]) - set(types[:first]))
    if without:
        raise SdftError(
            f"num_kv_shared_layers is {count}, and no layer before the last {count} has the type "
            f"{without[0]}, whose keys and values they would share: correct it."
        )
    return [layer >= first for layer in range(len(types))]


def _expert_sizes(
    family: Family, config: Mapping[str, Any], kinds: tuple[LayerKind, ...]
) -> ExpertSizes | None:
    """Return the sizes of the mixtures of experts; None without such layers."""
    if family.mixture is None or not any(kind.feed_forward == "experts" for kind in kinds):
        return None
    keys = ("num_experts", family.mixture.per_token, family.mixture.width)
    for key in keys:
        if config.get(key) is None:
            raise SdftError(f"{key} is missing: a model with experts requires it.")
    count, chosen, width = (config[key] for key in keys)
    if chosen > count:
        raise SdftError(f"{keys[1]} {chosen} is above num_experts {count}: correct one of them.")
    clamped = None
    if family.mixture.clamped:
        clamped = float(config["swiglu_alpha"]), float(config["swiglu_limit"])
    if clamped and not all(0 < number < float("inf") for number in clamped):
        raise SdftError(
            f"swiglu_alpha and swiglu_limit are {clamped}, and not positive numbers: correct them."
        )
    normalized = bool(config[family.mixture.normalized]) if family.mixture.normalized else True
    return ExpertSizes(count, chosen, width, normalized, clamped)


def _delta_sizes(config: Mapping[str, Any]) -> DeltaSizes:
    """Return the sizes of gated delta nets."""
    heads, key_heads = config["linear_num_value_heads"], config["linear_num_key_heads"]
    if heads % key_heads:
        raise SdftError(
            f"linear_num_value_heads {heads} is not a multiple of linear_num_key_heads {key_heads}: correct "
            "one of them."
        )
    return DeltaSizes(
        key_heads,
        heads,
        config["linear_key_head_dim"],
        config["linear_value_head_dim"],
        config["linear_conv_kernel_dim"],
    )


def _check_numbers(architecture: Architecture) -> None:
    """Raise SdftError for numbers with which every activation would be NaN or infinite."""
    ropes = [kind.rope for kind in architecture.kinds]
    for kind in architecture.kinds:
        rope, head_dim = kind.rope, architecture.heads_of(kind).dim
        rotated = int(head_dim * rope.partial_rotary_factor)
        if rotated % 2 or head_dim % 2 or not 0 < rotated <= head_dim:
            share = "" if rotated == head_dim else ", times partial_rotary_factor"
            raise SdftError(
                f"head_dim{share} is {rotated}: rotary embeddings need an even number from 2 to head_dim "
                f"({head_dim}): correct it."
            )
        for name in ("short_factor", "long_factor") if rope.rope_type == "longrope" else ():
            if len(getattr(rope, name)) != rotated // 2:
                raise SdftError(
                    f"{name} of the rope parameters has {len(getattr(rope, name))} numbers, and heads have "
                    f"{rotated // 2} rotated pairs of dimensions: correct it."
                )
    with np.errstate(all="ignore"):
        frequencies = [
            inverse_frequencies(kind.rope, architecture.heads_of(kind).dim, long)
            for kind in architecture.kinds
            for long in (False, True)
        ]
    if architecture.softcap is not None and not 0 < architecture.softcap < np.inf:
        raise SdftError(
            f"final_logit_softcapping is {architecture.softcap}, and not a positive number: correct it."
        )
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
    unknown = sorted(set(types) - set(family.kinds))
    if unknown:
        raise SdftError(f"layer type '{unknown[0]}' is not supported; supported: {', '.join(family.kinds)}.")
    if len(types) != config["num_hidden_layers"]:
        raise SdftError(
            f"layer_types has {len(types)} entries, but num_hidden_layers is {config['num_hidden_layers']}: "
            "correct one of them."
        )
    full, sliding = family.ropes(config)
    window = config.get("sliding_window")
    if "sliding_attention" in types and not window:
        raise SdftError("layer_types contains sliding_attention, but sliding_window is not set: set it.")
    rotated = family.rotated(config) if family.rotated else [True] * len(types)
    if len(rotated) != len(types):
        raise SdftError(
            f"no_rope_layers has {len(rotated)} entries, but num_hidden_layers is {len(types)}: correct one "
            "of them."
        )
    heads = family.full_heads(config, types) if family.full_heads else None
    if heads and config["num_attention_heads"] % heads.count:
        raise SdftError(
            f"num_attention_heads {config['num_attention_heads']} is not a multiple of the number of "
            f"key-value heads in full attention, {heads.count}: correct one of them."
        )
    kinds = {
        "full_attention": LayerKind(None, full, heads=heads),
        "sliding_attention": LayerKind(window, sliding),
        "linear_attention": LayerKind(None, full, "gated_delta"),
    }

    sparse = family.mixture.layers(config) if family.mixture else [False] * len(types)

    shared = _shares_keys(family, config, types)

    def kind(number: int, without_rope: bool, with_experts: bool, shares_keys: bool) -> LayerKind:
        found = kinds[family.kinds[number]]
        found = dataclasses.replace(found, rope=NO_ROPE) if without_rope else found
        found = dataclasses.replace(found, feed_forward="experts") if with_experts else found
        wide = shares_keys and config.get("use_double_wide_mlp", False)
        return dataclasses.replace(found, shares_keys=shares_keys, wide=wide)

    layers = [
        (family.kinds.index(name), not rope, experts, shares_keys)
        for name, rope, experts, shares_keys in zip(types, rotated, sparse, shared, strict=True)
    ]
    used = sorted(set(layers))
    return tuple(kind(*own) for own in used), tuple(used.index(own) for own in layers)
