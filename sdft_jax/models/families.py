"""The tables of the supported model families and of the tensors in their checkpoints.

One `Tensor` describes one parameter: its shape, logical axes, initialization, and Hugging Face name and
layout. Loading, saving and sharding use these descriptions. Dimensions are letters: D model width, N query
heads, K key-value heads, H head dimension, Q query and gate (2 H), F feed-forward width, V vocabulary, R rank
of an adapter; J key-value heads and X head dimension of full attention, if they are not those of sliding
attention; of a gated delta net G heads, P dimension of values, C channels and S width of the convolution;
of a mixture E experts and M width of an expert; of fused projections W (N + 2 K) H and Y 2,
gate and up; U 2 F; of embeddings for each layer L layers, A width and Z L A; and d, h, f, u, p, x the numbers
of tiles of D, H, F, U, P and X in a quantized weight.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.models.rope import Rope, rope_from_dict

TILES = {"D": "d", "H": "h", "F": "f", "U": "u", "P": "p", "X": "x"}
"""Last dimension of a weight's inputs -> its number of tiles, which no mesh axis splits."""
LOGICAL_AXES = {
    "D": "embed",
    "N": "heads",
    "K": "kv_heads",
    "H": None,
    "F": "mlp",
    "V": "vocab",
    "R": None,
    "Q": None,
    "J": "full_kv_heads",
    "X": None,
    "G": "heads",
    "P": None,
    "C": "heads",
    "W": "heads",
    "U": "mlp",
    "Y": None,
    "S": None,
    "E": "experts",
    "M": "mlp",
    "L": None,
    "A": None,
    "Z": "embed",
    "1": None,
    **dict.fromkeys(TILES.values()),
}

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter and its layout in a Hugging Face checkpoint.

    `dims` is the shape in letters. With '>' between inputs and outputs the parameter is a matrix, which a
    checkpoint stores as [outputs, inputs]. A checkpoint stores heads and head dimension as one axis: 'D>NH'
    is [D, N, H] in this library and [N*H, D] in a checkpoint. Before '|' is the axis of experts: 'E|D>M' is
    [E, D, M], of E tensors [M, D] if the source has a '*' for the number of the expert, else of one tensor
    [E, M, D].
    """

    name: str
    dims: str
    source: str
    """The Hugging Face name; for a tensor of a layer, without the prefix `model.layers.<i>.`."""
    init: Literal["normal", "zeros", "ones", "uniform", "standard"] = "normal"
    dtype: str | None = None
    """The dtype of a part of a quantized weight; None for that of the model's parameters."""
    trains: bool = True
    """False for a constant, which training does not change: a buffer in transformers."""

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in this library, without the layer axis."""
        return tuple(sizes[letter] for letter in self.letters)

    @property
    def axes(self) -> tuple[str | None, ...]:
        """The logical axes, without the layer axis."""
        return tuple(LOGICAL_AXES[letter] for letter in self.letters)

    @property
    def letters(self) -> str:
        """The dimensions in order, one letter each."""
        return re.sub("[|>]", "", self.dims)

    @property
    def per_expert(self) -> bool:
        """True if a checkpoint stores a tensor of each expert."""
        return "*" in self.source

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in a checkpoint, of one expert if it stores each."""
        experts, _, own = self.dims.rpartition("|")
        inputs, _, outputs = own.rpartition(">")
        fused = [group for part in (outputs, inputs) for group in re.findall("[NKGJLY][HQPXAF]|[A-Z1]", part)]
        shape = tuple(math.prod(sizes[letter] for letter in group) for group in fused)
        return shape if self.per_expert else (*(sizes[letter] for letter in experts), *shape)

    def from_stored(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return a view of a checkpoint's array in the layout of this library, without a copy; of one expert
        if it stores each.
        """
        shape = self.shape(sizes)[1 if self.per_expert else 0 :]
        return (array.swapaxes(-1, -2) if ">" in self.dims else array).reshape(shape)

    def to_stored(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return an array in the layout of a checkpoint: the inverse of `from_stored`."""
        stored = self.stored_shape(sizes)
        if ">" not in self.dims:
            return array.reshape(stored)
        *experts, outputs, inputs = stored
        return array.reshape(*experts, inputs, outputs).swapaxes(-1, -2)


ATTENTION = (
    Tensor("q", "D>NH", "self_attn.q_proj.weight"),
    Tensor("k", "D>KH", "self_attn.k_proj.weight"),
    Tensor("v", "D>KH", "self_attn.v_proj.weight"),
    Tensor("o", "NH>D", "self_attn.o_proj.weight"),
)
GATED_ATTENTION = (Tensor("q", "D>NQ", "self_attn.q_proj.weight"), *ATTENTION[1:])
FULL = "full_"
"""The beginning of the names of parameters of full attention with heads of its own."""


def of_full_attention(tensor: Tensor) -> Tensor:
    """Return the parameter that takes the place of `tensor` in full attention with heads of its own.

    Its name differs because arrays of different shapes cannot be stacked: `k`, 'D>KH', becomes `full_k`,
    'D>JX'. A parameter without these dimensions is returned unchanged.
    """
    dims = tensor.dims.translate(str.maketrans("KH", "JX"))
    return tensor if dims == tensor.dims else dataclasses.replace(tensor, name=FULL + tensor.name, dims=dims)


FULL_ATTENTION = tuple(map(of_full_attention, ATTENTION))
FEED_FORWARD = (
    Tensor("gate", "D>F", "mlp.gate_proj.weight"),
    Tensor("up", "D>F", "mlp.up_proj.weight"),
    Tensor("down", "F>D", "mlp.down_proj.weight"),
)
WIDE_FEED_FORWARD = tuple(
    dataclasses.replace(tensor, dims=tensor.dims.replace("F", "U")) for tensor in FEED_FORWARD
)
SHARING = "sharing_"
"""The beginning of the names of parameters of layers that share the keys and values of another layer. They
are stacks of their own, since a scan over a part of a stack would copy that part."""


def common_name(name: str) -> str:
    """Return the name of a parameter without the prefixes of full attention and of shared keys and values."""
    return name.removeprefix(SHARING).removeprefix(FULL)


ROUTER = Tensor("router", "D>E", "mlp.gate.weight")
EXPERTS = (
    Tensor("experts_gate", "E|D>M", "mlp.experts.*.gate_proj.weight"),
    Tensor("experts_up", "E|D>M", "mlp.experts.*.up_proj.weight"),
    Tensor("experts_down", "E|M>D", "mlp.experts.*.down_proj.weight"),
)
SHARED_EXPERT = tuple(
    dataclasses.replace(tensor, source=tensor.source.replace("mlp.", "mlp.shared_expert."))
    for tensor in FEED_FORWARD
)
SHARED_GATE = Tensor("shared_gate", "D>1", "mlp.shared_expert_gate.weight")
PROJECTIONS = (*ATTENTION, *FEED_FORWARD)
FUSED_ATTENTION = (Tensor("qkv", "D>W", "self_attn.qkv_proj.weight"), ATTENTION[3])
FUSED_FEED_FORWARD = (Tensor("gate_up", "D>YF", "mlp.gate_up_proj.weight"), FEED_FORWARD[2])
FUSED_PROJECTIONS = (FUSED_ATTENTION[0], FUSED_FEED_FORWARD[0])
PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Name of a fused projection -> the names, in other families, of the projections that it consists of."""
DELTA_PROJECTIONS = (
    Tensor("delta_qkv", "D>C", "linear_attn.in_proj_qkv.weight"),
    Tensor("delta_z", "D>GP", "linear_attn.in_proj_z.weight"),
    Tensor("delta_b", "D>G", "linear_attn.in_proj_b.weight"),
    Tensor("delta_a", "D>G", "linear_attn.in_proj_a.weight"),
    Tensor("delta_o", "GP>D", "linear_attn.out_proj.weight"),
)
DELTA_PARAMETERS = (
    Tensor("delta_convolution", "C1S", "linear_attn.conv1d.weight"),
    Tensor("delta_log_rate", "G", "linear_attn.A_log", "zeros"),
    Tensor("delta_rate_bias", "G", "linear_attn.dt_bias", "ones"),
    Tensor("delta_norm", "P", "linear_attn.norm.weight", "ones"),
)
QKV_BIASES = (
    Tensor("q_bias", "NH", "self_attn.q_proj.bias", "zeros"),
    Tensor("k_bias", "KH", "self_attn.k_proj.bias", "zeros"),
    Tensor("v_bias", "KH", "self_attn.v_proj.bias", "zeros"),
)
OUTPUT_BIASES = (Tensor("o_bias", "D", "self_attn.o_proj.bias", "zeros"),)
GEMMA4_EXPERTS = tuple(
    dataclasses.replace(tensor, source=tensor.source.removeprefix("mlp.")) for tensor in EXPERTS
)
GEMMA4_MIXTURE = (
    Tensor("router", "D>E", "router.proj.weight"),
    Tensor("router_norm", "D", "router.scale", "ones"),
    Tensor("router_factors", "E", "router.per_expert_scale", "ones"),
    *GEMMA4_EXPERTS,
    Tensor("pre_experts_norm", "D", "pre_feedforward_layernorm_2.weight", "ones"),
    Tensor("post_experts_norm", "D", "post_feedforward_layernorm_2.weight", "ones"),
    Tensor("post_dense_norm", "D", "post_feedforward_layernorm_1.weight", "ones"),
)
GPT_OSS_MIXTURE = (
    Tensor("router", "D>E", "mlp.router.weight"),
    Tensor("router_bias", "E", "mlp.router.bias", "zeros"),
    *EXPERTS,
    Tensor("experts_gate_bias", "E|M", "mlp.experts.*.gate_proj.bias", "zeros"),
    Tensor("experts_up_bias", "E|M", "mlp.experts.*.up_proj.bias", "zeros"),
    Tensor("experts_down_bias", "E|D", "mlp.experts.*.down_proj.bias", "zeros"),
)
SINKS = Tensor("sinks", "N", "self_attn.sinks")
LAYER_SCALAR = Tensor("layer_scalar", "1", "layer_scalar", "ones", trains=False)
LAYER_EMBEDDINGS = (
    Tensor("layer_embed", "VZ", "model.embed_tokens_per_layer.weight"),
    Tensor("layer_embed_projection", "D>LA", "model.per_layer_model_projection.weight"),
    Tensor("layer_embed_norm", "A", "model.per_layer_projection_norm.weight", "ones"),
)
"""An embedding of each token for each layer, and a projection of its usual embedding that is added."""
LAYER_INPUT = (
    Tensor("layer_input_gate", "D>A", "per_layer_input_gate.weight"),
    Tensor("layer_input_projection", "A>D", "per_layer_projection.weight"),
    Tensor("post_layer_input_norm", "D", "post_per_layer_input_norm.weight", "ones"),
)
"""The parameters by which a layer reads its own embedding of a token."""
EMBEDDING = Tensor("embed", "VD", "model.embed_tokens.weight")
FINAL_NORM = Tensor("norm", "D", "model.norm.weight", "ones")
HEAD = Tensor("head", "VD", "lm_head.weight")


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of keys and values in attention layers."""

    count: int
    dim: int
    """The head dimension, also of queries."""
    values_are_keys: bool = False
    """True if values are the projection of keys, before the norm and the rotation of keys."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The mixtures of experts of a family."""

    layers: Callable[[Json], list[bool]]
    """A function from config.json to True for each layer that has one."""
    parameters: tuple[Tensor, ...] = (ROUTER, *EXPERTS)
    """The parameters of one mixture, without adapters and quantization."""
    dense: tuple[Tensor, ...] = ()
    """The dense feed-forward whose output is added, if there is one."""
    dense_width: str = "intermediate_size"
    """The key of its hidden width in config.json."""
    per_token: str = "num_experts_per_tok"
    """The key of the number of experts of a token in config.json."""
    width: str = "moe_intermediate_size"
    """The key of the hidden width of an expert in config.json."""
    normalized: str | None = None
    """The key in config.json that is true if the weights of a token's experts add up to 1; None: they do."""
    stacked: bool = False
    """True if transformers reads the experts of a layer from one tensor only (`hf.stacked`)."""
    clamped: bool = False
    """True if `swiglu_alpha` and `swiglu_limit` in config.json change the function of gate and up."""
    interleaved: bool = False
    """True if the outputs of gate and up alternate in that tensor, which may be in MXFP4 (gpt-oss)."""


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
    rotated: Callable[[Json], list[bool]] | None = None
    """A function from config.json to True for each layer with a rotary embedding; None: all have one."""
    always_qkv_bias: bool = False
    """True if q, k and v have biases and the output projection has none.

    Otherwise `attention_bias` in config.json applies to all four.
    """
    norm_style: Literal["scale_after_cast", "scale_before_cast", "one_plus_weight"] = "scale_after_cast"
    activation_key: str = "hidden_act"
    scale_embedding: bool = False
    kinds: tuple[str, ...] = ("full_attention", "sliding_attention")
    """The types of layers."""
    mixture: Mixture | None = None
    """The mixtures of experts; None: no layer has one."""
    gated_attention: bool = False
    """True if queries have a second half, whose sigmoid is a factor on the output of attention."""
    fused_projections: bool = False
    """True if queries, keys and values are outputs of one matrix, and gate and up of another."""
    full_heads: Callable[[Json, list[str]], Heads] | None = None
    """A function from config.json and the types of layers to the heads of full attention; None: all layers
    have the same heads."""
    value_norm: bool = False
    """True if each head of the values is normalized, without a weight."""
    query_scale: float | None = None
    """The factor on attention logits; None: the one of config.json, or the head dimension ** -0.5."""
    others: tuple[Tensor, ...] = ()
    """The other parameters of each layer."""
    softcapping: bool = False
    """True if `final_logit_softcapping` in config.json may bound the logits."""
    image_attention: bool = False
    """True if `use_bidirectional_attention` may be "vision", which changes the attention to images only."""
    layer_embeddings: bool = False
    """True if tokens may have an embedding for each layer, of the width `hidden_size_per_layer_input`."""
    shared_keys: bool = False
    """True if the last `num_kv_shared_layers` layers may read the keys and values of the last layer of their
    type before them, with feed-forwards of twice the width if `use_double_wide_mlp` is set."""
    defaults: tuple[tuple[str, Any], ...] = ()
    """Default values of keys that config.json may omit, the same as in the transformers class."""


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A multimodal model, whose text model is trained; all its other tensors remain unchanged."""

    model_type: str
    architecture: str
    text_types: tuple[str, ...]
    """The model types of its text model; the first is that of a `text_config` without one."""


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
    return _periodic(config, config.get("sliding_window_pattern", 4), "sliding_attention")


def _all_alike(config: Json) -> list[str]:
    """Return sliding attention for every layer if there is a window, as in Mistral."""
    kind = "sliding_attention" if config.get("sliding_window") else "full_attention"
    return [kind] * config["num_hidden_layers"]


def _sliding_without_rope(config: Json) -> list[str]:
    """Return the layer types of SmolLM3: sliding for layers without rope if `use_sliding_window` is set."""
    sliding = config.get("use_sliding_window") and config.get("sliding_window")
    return ["sliding_attention" if sliding and not rope else "full_attention" for rope in _rotated(config)]


def _rotated(config: Json) -> list[bool]:
    """Return False for the layers of SmolLM3 without rope: those listed as 0, or every n-th one."""
    count, period = config["num_hidden_layers"], config["no_rope_layer_interval"]
    listed = config.get("no_rope_layers") or [(layer + 1) % period for layer in range(count)]
    return [bool(rope) for rope in listed[:count]]


def _all_alike_if_used(config: Json) -> list[str]:
    """Return sliding attention for every layer if `use_sliding_window` is set, as in Qwen3-MoE."""
    return _all_alike(config if config.get("use_sliding_window") else {**config, "sliding_window": None})


def _sparse_every(config: Json) -> list[bool]:
    """Return True for the layers of Qwen3-MoE with experts: every n-th one that is not listed as dense."""
    dense, period = config.get("mlp_only_layers") or (), config["decoder_sparse_step"]
    return [layer not in dense and (layer + 1) % period == 0 for layer in range(config["num_hidden_layers"])]


def _every_layer(config: Json) -> list[bool]:
    """Return True for every layer."""
    return [True] * config["num_hidden_layers"]


def _every_layer_if_enabled(config: Json) -> list[bool]:
    """Return True for every layer of Gemma 4 if `enable_moe_block` is set."""
    return [bool(config.get("enable_moe_block"))] * config["num_hidden_layers"]


def _sliding_or_full(config: Json) -> list[str]:
    """Return full attention for every second layer, as in gpt-oss."""
    return _periodic(config, 2, "sliding_attention")


def _full_or_linear(config: Json) -> list[str]:
    """Return full attention for every n-th layer, n being `full_attention_interval`, and delta nets else."""
    return _periodic(config, config["full_attention_interval"], "linear_attention")


def _periodic(config: Json, period: int, other: str) -> list[str]:
    """Return full attention for every `period`-th layer, and another type for the others."""
    layers = range(config["num_hidden_layers"])
    return [other if (layer + 1) % period else "full_attention" for layer in layers]


def _rope_parameters(config: Json) -> Json:
    """Return the parameters of one rotary embedding, of either age of config.json."""
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def _one_rope(config: Json, **defaults: Any) -> tuple[Rope, Rope]:
    """Return one rotary embedding for all layers; its parameters may be missing if they have defaults."""
    parameters = {**defaults, **_rope_parameters(config)}
    rope = rope_from_dict(parameters, float(config["rope_theta"]), config["max_position_embeddings"])
    return rope, rope


def _ministral_rope(config: Json) -> tuple[Rope, Rope]:
    """Return the rotary embedding of Ministral 3, which also scales queries."""
    parameters = _rope_parameters(config) or dict(_MINISTRAL_ROPE)
    rope, _ = _one_rope({**config, "rope_parameters": parameters})
    rope = dataclasses.replace(
        rope,
        original_max_position_embeddings=int(
            parameters.get("original_max_position_embeddings") or config["max_position_embeddings"]
        ),
        llama_4_scaling_beta=float(parameters.get("llama_4_scaling_beta") or 0),
    )
    return rope, rope


def _last_is_full(config: Json) -> list[str]:
    """Return the layer types of Gemma 4: full attention for every 6th layer, and for the last one."""
    return [*_periodic(config, 6, "sliding_attention")[:-1], "full_attention"]


def _gemma4_ropes(config: Json) -> tuple[Rope, Rope]:
    """Return the rotary embeddings of Gemma 4; transformers requires their base frequencies."""
    parameters = config.get("rope_parameters") or _GEMMA4_ROPES
    full, sliding = (parameters[name] for name in ("full_attention", "sliding_attention"))
    for one in (full, sliding):
        if (name := one["rope_type"]) not in ("default", "proportional"):
            raise SdftError(f"rope type '{name}' is not supported in Gemma 4: use default or proportional.")
    return rope_from_dict(full, full["rope_theta"], 0), rope_from_dict(sliding, sliding["rope_theta"], 0)


def _gemma4_heads(config: Json, types: list[str]) -> Heads:
    """Return the heads of full attention in Gemma 4.

    Published files have `global_head_dim` and `num_global_key_value_heads`, of which the second counts only
    if values are keys; transformers 5.24 writes `per_layer_config`, {layer: {key: value}}.
    """
    if types[-1] != "full_attention":
        raise SdftError(
            f"the last entry of layer_types is {types[-1]}, and transformers computes full attention there: "
            "correct it."
        )
    names, values_are_keys = ("num_key_value_heads", "head_dim"), bool(config["attention_k_eq_v"])
    model = {name: config[name] for name in names}
    if config.get("per_layer_config") is None:
        count = config.get("num_global_key_value_heads") if values_are_keys else None
        return Heads(count or model["num_key_value_heads"], config["global_head_dim"], values_are_keys)
    listed = {int(layer): changes for layer, changes in config["per_layer_config"].items()}
    layers = [(name, {**model, **listed.pop(layer, {})}) for layer, name in enumerate(types)]
    full = layers[-1][1]
    regular = all(own == (full if name == "full_attention" else model) for name, own in layers)
    plausible = all(type(size) is int and 0 < size < 1 << 16 for size in full.values())
    if listed or not regular or not plausible or full.keys() != model.keys():
        raise SdftError(
            "per_layer_config is not supported unless it gives all layers of full attention the same "
            "head_dim and num_key_value_heads, and changes nothing else: use another model."
        )
    return Heads(full["num_key_value_heads"], full["head_dim"], values_are_keys)


def _gpt_oss_rope(config: Json) -> tuple[Rope, Rope]:
    """Return the rotary embedding of gpt-oss, by default with YaRN."""
    parameters = _rope_parameters(config) or dict(_GPT_OSS_ROPE)
    return _one_rope({**config, "rope_parameters": parameters})


def _partial_rope(config: Json) -> tuple[Rope, Rope]:
    """Return one rotary embedding, for the first dimensions of each head only."""
    return _one_rope(config, partial_rotary_factor=config["partial_rotary_factor"])


def _phi_rope(config: Json) -> tuple[Rope, Rope]:
    """Return the rotary embedding of Phi-3, which has no scaling or longrope, also named su or yarn.

    As in transformers, the original length is the one beside the parameters.
    """
    parameters = dict(_rope_parameters(config))
    kind = parameters.pop("type", None)
    kind = parameters.get("rope_type") or kind or "default"
    parameters["rope_type"] = "longrope" if kind in ("su", "yarn") else kind
    if parameters["rope_type"] not in ("default", "longrope"):
        raise SdftError(f"rope type '{kind}' is not supported for phi3 models: use default or longrope.")
    parameters["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return _partial_rope({**config, "rope_scaling": None, "rope_parameters": parameters})


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
_SMOLLM = (
    *_COMMON,
    ("max_position_embeddings", 32_768),
    ("rope_theta", 2_000_000.0),
    ("num_key_value_heads", 4),
    ("no_rope_layer_interval", 4),
    ("tie_word_embeddings", True),
)
_MISTRAL = (
    *_COMMON,
    ("max_position_embeddings", 131_072),
    ("num_key_value_heads", 8),
    ("sliding_window", 4096),
)
_MINISTRAL = (
    *_COMMON,
    ("rms_norm_eps", 1e-5),
    ("max_position_embeddings", 262_144),
    ("num_key_value_heads", 8),
    ("head_dim", 128),
)
_MINISTRAL_ROPE = (
    ("rope_theta", 1_000_000.0),
    ("rope_type", "yarn"),
    ("factor", 16.0),
    ("original_max_position_embeddings", 16_384),
    ("mscale", 1.0),
    ("mscale_all_dim", 1.0),
    ("llama_4_scaling_beta", 0.1),
)
_PHI = (
    *_COMMON,
    ("rms_norm_eps", 1e-5),
    ("max_position_embeddings", 4096),
    ("original_max_position_embeddings", 4096),
    ("partial_rotary_factor", 1.0),
)
_GEMMA = (
    ("rms_norm_eps", 1e-6),
    ("max_position_embeddings", 131_072),
    ("rope_theta", 1_000_000.0),
    ("rope_local_base_freq", 10_000.0),
    ("hidden_activation", "gelu_pytorch_tanh"),
    ("vocab_size", 262_208),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("query_pre_attn_scalar", 256),
    ("sliding_window", 4096),
    ("sliding_window_pattern", 6),
    ("tie_word_embeddings", True),
)
_GEMMA4 = (
    *_COMMON,
    ("max_position_embeddings", 131_072),
    ("hidden_activation", "gelu_pytorch_tanh"),
    ("vocab_size", 262_144),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 30),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("global_head_dim", 512),
    ("attention_k_eq_v", False),
    ("sliding_window", 512),
    ("tie_word_embeddings", True),
    ("hidden_size_per_layer_input", 256),
    ("vocab_size_per_layer_input", 262_144),
)
_GEMMA4_ROPES: Json = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_QWEN35 = (
    ("rms_norm_eps", 1e-6),
    ("max_position_embeddings", 32_768),
    ("rope_theta", 10_000.0),
    ("partial_rotary_factor", 0.25),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("full_attention_interval", 4),
    ("linear_conv_kernel_dim", 4),
    ("linear_key_head_dim", 128),
    ("linear_value_head_dim", 128),
    ("linear_num_key_heads", 16),
    ("linear_num_value_heads", 32),
)

_QWEN35_FAMILY = Family(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    _norms(PRE_NORMS, q="H", k="H", init="zeros"),
    _partial_rope,
    _full_or_linear,
    norm_style="one_plus_weight",
    kinds=("full_attention", "linear_attention"),
    gated_attention=True,
    defaults=_QWEN35,
)
_QWEN3_MOE = (
    *_COMMON,
    ("max_position_embeddings", 32_768),
    ("num_key_value_heads", 4),
    ("sliding_window", 4096),
    ("decoder_sparse_step", 1),
    ("moe_intermediate_size", 768),
    ("num_experts_per_tok", 8),
    ("num_experts", 128),
    ("norm_topk_prob", False),
)

_GPT_OSS = (
    *_COMMON,
    ("rms_norm_eps", 1e-5),
    ("max_position_embeddings", 131_072),
    ("rope_theta", 150_000.0),
    ("attention_bias", True),
    ("head_dim", 64),
    ("hidden_size", 2880),
    ("intermediate_size", 2880),
    ("num_attention_heads", 64),
    ("num_key_value_heads", 8),
    ("num_experts_per_tok", 4),
    ("sliding_window", 128),
    ("swiglu_alpha", 1.702),
    ("swiglu_limit", 7.0),
)
_GPT_OSS_ROPE = (
    ("rope_type", "yarn"),
    ("factor", 32.0),
    ("beta_fast", 32.0),
    ("beta_slow", 1.0),
    ("truncate", False),
    ("original_max_position_embeddings", 4096),
)
_QWEN35_MOE = (
    *_QWEN35,
    ("num_key_value_heads", 2),
    ("moe_intermediate_size", 512),
    ("shared_expert_intermediate_size", 512),
    ("num_experts_per_tok", 8),
    ("num_experts", 256),
)

_GEMMA4_FAMILY = Family(
    "gemma4_text",
    "Gemma4ForCausalLM",
    _norms(SANDWICH_NORMS, q="H", k="H"),
    _gemma4_ropes,
    _last_is_full,
    norm_style="scale_before_cast",
    activation_key="hidden_activation",
    scale_embedding=True,
    full_heads=_gemma4_heads,
    value_norm=True,
    query_scale=1.0,
    others=(LAYER_SCALAR,),
    softcapping=True,
    image_attention=True,
    mixture=Mixture(
        _every_layer_if_enabled, GEMMA4_MIXTURE, FEED_FORWARD, per_token="top_k_experts", stacked=True
    ),
    layer_embeddings=True,
    shared_keys=True,
    defaults=_GEMMA4,
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
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            _norms(PRE_NORMS, q="H", k="H"),
            _one_rope,
            _all_alike_if_used,
            mixture=Mixture(_sparse_every, normalized="norm_topk_prob"),
            defaults=_QWEN3_MOE,
        ),
        Family("llama", "LlamaForCausalLM", _norms(PRE_NORMS), _one_rope, _all_full, defaults=_COMMON),
        Family("mistral", "MistralForCausalLM", _norms(PRE_NORMS), _one_rope, _all_alike, defaults=_MISTRAL),
        Family(
            "ministral3",
            "Ministral3ForCausalLM",
            _norms(PRE_NORMS),
            _ministral_rope,
            _all_alike,
            defaults=_MINISTRAL,
        ),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            _norms(PRE_NORMS),
            _one_rope,
            _sliding_without_rope,
            rotated=_rotated,
            defaults=_SMOLLM,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            _norms(PRE_NORMS),
            _phi_rope,
            _all_alike,
            fused_projections=True,
            defaults=_PHI,
        ),
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
        Family(
            "gpt_oss",
            "GptOssForCausalLM",
            _norms(PRE_NORMS),
            _gpt_oss_rope,
            _sliding_or_full,
            norm_style="scale_before_cast",
            mixture=Mixture(
                _every_layer,
                GPT_OSS_MIXTURE,
                width="intermediate_size",
                clamped=True,
                stacked=True,
                interleaved=True,
            ),
            others=(SINKS,),
            defaults=_GPT_OSS,
        ),
        _QWEN35_FAMILY,
        dataclasses.replace(
            _QWEN35_FAMILY,
            model_type="qwen3_5_moe_text",
            architecture="Qwen3_5MoeForCausalLM",
            mixture=Mixture(
                _every_layer,
                (ROUTER, *EXPERTS, SHARED_GATE),
                SHARED_EXPERT,
                "shared_expert_intermediate_size",
            ),
            defaults=_QWEN35_MOE,
        ),
        _GEMMA4_FAMILY,
        dataclasses.replace(
            _GEMMA4_FAMILY,
            model_type="gemma4_unified_text",
            architecture="Gemma4UnifiedForCausalLM",
            mixture=None,
            layer_embeddings=False,
            defaults=(
                *_GEMMA4,
                ("max_position_embeddings", 262_144),
                ("sliding_window", 1024),
                ("hidden_size_per_layer_input", 0),
            ),
        ),
    )
}

WRAPPERS = {
    wrapper.model_type: wrapper
    for wrapper in (
        Wrapper("gemma3", "Gemma3ForConditionalGeneration", ("gemma3_text",)),
        Wrapper("mistral3", "Mistral3ForConditionalGeneration", ("mistral", "ministral3")),
        Wrapper("qwen3_5", "Qwen3_5ForConditionalGeneration", ("qwen3_5_text",)),
        Wrapper("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", ("qwen3_5_moe_text",)),
        Wrapper("gemma4", "Gemma4ForConditionalGeneration", ("gemma4_text",)),
        Wrapper("gemma4_unified", "Gemma4UnifiedForConditionalGeneration", ("gemma4_unified_text",)),
    )
}
