"""The table of every supported model family and of every tensor that a checkpoint of it holds.

A tensor is one record: from it follow its shape, its logical axes, its initialisation, its Hugging Face
name and layout, and so loading, saving and sharding. Dimensions are letters: D width, N query heads,
K key-value heads, H head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from sdft_jax.models.rope import Rope, rope_from_dict

LOGICAL_AXES = {"D": "embed", "N": "heads", "K": "kv_heads", "H": None, "F": "mlp", "V": "vocab"}

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter, and how Hugging Face stores it.

    `dims` spells the shape; with '>' between inputs and outputs it is a matrix, stored as [outputs, inputs].
    Heads are stored fused with their width: 'D>NH' is [D, N, H] here and [N*H, D] there.
    """

    name: str
    dims: str
    source: str
    """Hugging Face name, inside `model.layers.<i>.` for a tensor of a layer."""
    init: Literal["normal", "zeros", "ones"] = "normal"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape here, without the axis of layers."""
        return tuple(sizes[letter] for letter in self.dims.replace(">", ""))

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Logical axes, without that of layers."""
        return tuple(LOGICAL_AXES[letter] for letter in self.dims.replace(">", ""))

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape in a checkpoint."""
        inputs, _, outputs = self.dims.rpartition(">")
        fused = re.findall("NH|KH|[A-Z]", outputs) + re.findall("NH|KH|[A-Z]", inputs)
        return tuple(math.prod(sizes[letter] for letter in group) for group in fused)

    def from_stored(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """View of a checkpoint's array in the layout used here; copies nothing."""
        return (array.T if ">" in self.dims else array).reshape(self.shape(sizes))

    def to_stored(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of `from_stored`."""
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
    """What sets one architecture apart from the others."""

    model_type: str
    architecture: str
    norms: tuple[Tensor, ...]
    """Of a layer: any of pre_ and post_attention_norm, pre_ and post_mlp_norm, q_norm and k_norm.

    q_norm and k_norm are over a head ('H') or over all heads together ('NH', 'KH').
    """
    ropes: Callable[[Json], tuple[Rope, Rope]]
    """Rotary embeddings of full and of sliding layers, from config.json."""
    layer_types: Callable[[Json], list[str]]
    """`full_attention` or `sliding_attention` for each layer, where config.json does not list them."""
    always_qkv_bias: bool = False
    """Biases on q, k and v but not on the output; otherwise `attention_bias` decides over all four."""
    norm_style: Literal["scale_after_cast", "scale_before_cast", "one_plus_weight"] = "scale_after_cast"
    activation_key: str = "hidden_act"
    scale_embedding: bool = False
    defaults: tuple[tuple[str, Any], ...] = ()
    """Values of keys that config.json may leave out, as in the transformers class."""


def _norms(sources: Mapping[str, str], q: str = "", k: str = "", init: Any = "ones") -> tuple[Tensor, ...]:
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
    return ["full_attention"] * config["num_hidden_layers"]


def _sliding_after(config: Json) -> list[str]:
    """Qwen: layers from `max_window_layers` on slide, where `use_sliding_window` says so."""
    first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else math.inf
    return [
        "sliding_attention" if layer >= first else "full_attention"
        for layer in range(config["num_hidden_layers"])
    ]


def _full_every(config: Json) -> list[str]:
    """Every n-th layer is full, the others slide: n is 4 in OLMo 3, `sliding_window_pattern` in Gemma 3."""
    period = config.get("sliding_window_pattern", 4)
    return [
        "sliding_attention" if (layer + 1) % period else "full_attention"
        for layer in range(config["num_hidden_layers"])
    ]


def _one_rope(config: Json) -> tuple[Rope, Rope]:
    """One embedding in all layers."""
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope = rope_from_dict(parameters, float(config["rope_theta"]), config["max_position_embeddings"])
    return rope, rope


def _rope_by_layer_type(config: Json) -> tuple[Rope, Rope]:
    """Sliding layers have a plain embedding of their own; only that of full layers is stretched."""
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
