"""The tables of the supported model families and of the tensors in their checkpoints.

One `Tensor` describes one parameter: its shape, logical axes, initialization, and Hugging Face name and
layout. Loading, saving and sharding use these descriptions. Dimensions are letters: D model width, N query
heads, K key-value heads, H head dimension, F feed-forward width, V vocabulary, R rank of an adapter.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from sdft_jax.models.rope import Rope, rope_from_dict

LOGICAL_AXES = {"D": "embed", "N": "heads", "K": "kv_heads", "H": None, "F": "mlp", "V": "vocab", "R": None}

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter and its layout in a Hugging Face checkpoint.

    `dims` is the shape in letters. With '>' between inputs and outputs the parameter is a matrix, which a
    checkpoint stores as [outputs, inputs]. A checkpoint stores heads and head dimension as one axis: 'D>NH'
    is [D, N, H] in this library and [N*H, D] in a checkpoint.
    """

    name: str
    dims: str
    source: str
    """The Hugging Face name; for a tensor of a layer, without the prefix `model.layers.<i>.`."""
    init: Literal["normal", "zeros", "ones", "uniform"] = "normal"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in this library, without the layer axis."""
        return tuple(sizes[letter] for letter in self.dims.replace(">", ""))

    @property
    def axes(self) -> tuple[str | None, ...]:
        """The logical axes, without the layer axis."""
        return tuple(LOGICAL_AXES[letter] for letter in self.dims.replace(">", ""))

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in a checkpoint."""
        inputs, _, outputs = self.dims.rpartition(">")
        fused = re.findall("NH|KH|[A-Z]", outputs) + re.findall("NH|KH|[A-Z]", inputs)
        return tuple(math.prod(sizes[letter] for letter in group) for group in fused)

    def from_stored(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return a view of a checkpoint's array in the layout of this library, without a copy."""
        return (array.T if ">" in self.dims else array).reshape(self.shape(sizes))

    def to_stored(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return an array in the layout of a checkpoint: the inverse of `from_stored`."""
        stored = self.stored_shape(sizes)
        return array.reshape(stored[::-1]).T if ">" in self.dims else array.reshape(stored)


PROJECTIONS = (
    Tensor("q", "D>NH", "self_attn.q_proj.weight"),
    Tensor("k", "D>KH", "self_attn.k_proj.weight"),
    Tensor("v", "D>KH", "self_attn.v_proj.weight"),
    Tensor("o", "NH>D", "self_attn.o_proj.weight"),
    Tensor("gate", "D>F", "mlp.gate_proj.weight"),
    Tensor("up", "D>F", "mlp.up_proj.weight"),
    Tensor("down", "F>D", "mlp.down_proj.weight"),
)
QKV_BIASES = (
    Tensor("q_bias", "NH", "self_attn.q_proj.bias", "zeros"),
    Tensor("k_bias", "KH", "self_attn.k_proj.bias", "zeros"),
    Tensor("v_bias", "KH", "self_attn.v_proj.bias", "zeros"),
)
OUTPUT_BIASES = (Tensor("o_bias", "D", "self_attn.o_proj.bias", "zeros"),)
EMBEDDING = Tensor("embed", "VD", "model.embed_tokens.weight")
FINAL_NORM = Tensor("norm", "D", "model.norm.weight", "ones")
HEAD = Tensor("head", "VD", "lm_head.weight")


@dataclasses.dataclass(frozen=True)
class Family:
    """The differences between one model family and the others."""

    model_type: str
    architecture: str
    norms: tuple[Tensor, ...]
    """The norms of a layer: any of pre_ and post_attention_norm, pre_ and post_mlp_norm, q_norm and k_norm.

    q_norm and k_norm normalize each head ('H') or all heads together ('NH', 'KH').
    """
    ropes: Callable[[Json], tuple[Rope, Rope]]
    """A function from config.json to the rotary embeddings of full and of sliding layers."""
    layer_types: Callable[[Json], list[str]]
    """A function from config.json to the type of each layer, used if config.json has no `layer_types`."""
    always_qkv_bias: bool = False
    """True if q, k and v have biases and the output projection has none.

    Otherwise `attention_bias` in config.json applies to all four.
    """
    norm_style: Literal["scale_after_cast", "scale_before_cast", "one_plus_weight"] = "scale_after_cast"
    activation_key: str = "hidden_act"
    scale_embedding: bool = False
    defaults: tuple[tuple[str, Any], ...] = ()
    """Default values of keys that config.json may omit, the same as in the transformers class."""


def _norms(sources: Mapping[str, str], q: str = "", k: str = "", init: Any = "ones") -> tuple[Tensor, ...]:
    """Return the norms with these names and Hugging Face names, and q_norm and k_norm with these dims."""
    norms = [
        Tensor(f"{name}_norm", "D", f"{source}_layernorm.weight", init) for name, source in sources.items()
    ]
    if q:
        norms.append(Tensor("q_norm", q, "self_attn.q_norm.weight", init))
        norms.append(Tensor("k_norm", k, "self_attn.k_norm.weight", init))
    return tuple(norms)


PRE_NORMS = {"pre_attention": "input", "pre_mlp": "post_attention"}
POST_NORMS = {"post_attention": "post_attention", "post_mlp": "post_feedforward"}
SANDWICH_NORMS = {"pre_attention": "input", "pre_mlp": "pre_feedforward", **POST_NORMS}


def _all_full(config: Json) -> list[str]:
    """Return full attention for every layer."""
    return ["full_attention"] * config["num_hidden_layers"]


def _sliding_after(config: Json) -> list[str]:
    """Return the layer types of Qwen: sliding from `max_window_layers` on if `use_sliding_window` is set."""
    first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else math.inf
    return [
        "sliding_attention" if layer >= first else "full_attention"
        for layer in range(config["num_hidden_layers"])
    ]


def _full_every(config: Json) -> list[str]:
    """Return full attention for every n-th layer and sliding attention for the others.

    n is 4 in OLMo 3 and `sliding_window_pattern` in Gemma 3.
    """
    period = config.get("sliding_window_pattern", 4)
    return [
        "sliding_attention" if (layer + 1) % period else "full_attention"
        for layer in range(config["num_hidden_layers"])
    ]


def _one_rope(config: Json) -> tuple[Rope, Rope]:
    """Return one rotary embedding for all layers."""
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope = rope_from_dict(parameters, float(config["rope_theta"]), config["max_position_embeddings"])
    return rope, rope


def _rope_by_layer_type(config: Json) -> tuple[Rope, Rope]:
    """Return a separate rotary embedding for sliding layers; the scaling applies only to full layers."""
    parameters = config.get("rope_parameters") or {}
    nested = "full_attention" in parameters or "sliding_attention" in parameters
    full = (parameters.get("full_attention") if nested else parameters) or {}
    sliding = (parameters.get("sliding_attention") if nested else None) or {}
    full = {**full, **(config.get("rope_scaling") or {})}
    theta, length = float(config["rope_theta"]), config["max_position_embeddings"]
    local_theta = float(config.get("rope_local_base_freq", theta))
    return rope_from_dict(full, theta, length), rope_from_dict(sliding, local_theta, length)


_COMMON = (("rms_norm_eps", 1e-6), ("max_position_embeddings", 2048), ("rope_theta", 10_000.0))
_GEMMA = (
    ("rms_norm_eps", 1e-6),
    ("max_position_embeddings", 131_072),
    ("rope_theta", 1_000_000.0),
    ("rope_local_base_freq", 10_000.0),
    ("hidden_activation", "gelu_pytorch_tanh"),
    ("head_dim", 256),
    ("query_pre_attn_scalar", 256),
    ("sliding_window", 4096),
    ("sliding_window_pattern", 6),
    ("tie_word_embeddings", True),
)

FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            _norms(PRE_NORMS),
            _one_rope,
            _sliding_after,
            always_qkv_bias=True,
            defaults=(*_COMMON, ("sliding_window", 4096)),
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            _norms(PRE_NORMS, q="H", k="H"),
            _one_rope,
            _sliding_after,
            defaults=(*_COMMON, ("sliding_window", 4096), ("head_dim", 128)),
        ),
        Family("llama", "LlamaForCausalLM", _norms(PRE_NORMS), _one_rope, _all_full, defaults=_COMMON),
        Family(
            "olmo2",
            "Olmo2ForCausalLM",
            _norms(POST_NORMS, q="NH", k="KH"),
            _one_rope,
            _all_full,
            norm_style="scale_before_cast",
            defaults=(*_COMMON, ("rms_norm_eps", 1e-5)),
        ),
        Family(
            "olmo3",
            "Olmo3ForCausalLM",
            _norms(POST_NORMS, q="NH", k="KH"),
            _rope_by_layer_type,
            _full_every,
            norm_style="scale_before_cast",
            defaults=(*_COMMON, ("rms_norm_eps", 1e-5), ("rope_theta", 500_000.0), ("sliding_window", 4096)),
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            _norms(SANDWICH_NORMS, q="H", k="H", init="zeros"),
            _rope_by_layer_type,
            _full_every,
            norm_style="one_plus_weight",
            activation_key="hidden_activation",
            scale_embedding=True,
            defaults=_GEMMA,
        ),
    )
}
