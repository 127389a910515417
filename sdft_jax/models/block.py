"""One decoder layer in Flax NNX; its weights are a slice of the stacked parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from sdft_jax.kernels.matmul import matmul
from sdft_jax.models.architecture import Architecture, LayerKind
from sdft_jax.models.cache import DeltaState, empty_delta_state
from sdft_jax.models.experts import Routing, Weights, mixture
from sdft_jax.models.families import FULL, SHARING
from sdft_jax.models.gated_delta import DeltaInputs, causal_convolution, gated_delta
from sdft_jax.models.lora import A, B, split_product
from sdft_jax.models.quantize import SCALE, quantized_matmul
from sdft_jax.models.rope import rotate
from sdft_jax.sharding import Sharding, constrain, release_axes

ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


_WEIGHTS = (
    "router",
    "experts_gate",
    "experts_up",
    "experts_down",
    "router_factors",
    "router_bias",
    "experts_gate_bias",
    "experts_up_bias",
    "experts_down_bias",
)
"""The names of the parameters of a mixture, in the order of `experts.Weights`."""


def gated_function(activation: str, clamped: tuple[float, float] | None) -> Callable[[Array, Array], Array]:
    """Return the function of the outputs of gate and up: activation(gate) * up, or the clamped SwiGLU.

    The latter is (min(max(up, -l), l) + 1) min(gate, l) sigmoid(a min(gate, l)), with `clamped` a and l.
    """
    if clamped is None:
        return lambda gate, up: ACTIVATION_FUNCTIONS[activation](gate) * up
    factor, limit = clamped

    def clamped_swiglu(gate: Array, up: Array) -> Array:
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return (up + 1) * gate * jax.nn.sigmoid(factor * gate)

    return clamped_swiglu


def rms_norm(x: Array, weight: Array, config: Architecture) -> Array:
    """Normalize the trailing axes that `weight` has, in float32, with the order of casts of transformers."""
    wide = _normalized(x, tuple(range(-weight.ndim, 0)), config)
    weight = jnp.expand_dims(weight, tuple(range(x.ndim - weight.ndim)))
    if config.family.norm_style == "scale_after_cast":
        return wide.astype(x.dtype) * weight
    scale = weight.astype(jnp.float32)
    if config.family.norm_style == "one_plus_weight":
        scale = 1.0 + scale
    return (wide * scale).astype(x.dtype)


def _normalized(x: Array, axes: tuple[int, ...], config: Architecture) -> Array:
    """Return x in float32 with a mean square of 1 along these axes."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axes, keepdims=True) + config.rms_norm_eps)


class Block(nnx.Module):
    """Attention and gated feed-forward with residual connections and the norms of its family.

    The decoder calls `project`, attends (with or without a cache), and calls `combine`.
    """

    def __init__(self, config: Architecture, kind: LayerKind, sharding: Sharding, decoding: bool):
        self.config = config
        self.kind = kind
        self.sharding = sharding
        self.decoding = decoding
        for tensor in config.tensors_of(kind):
            name = tensor.name.removeprefix(SHARING)
            setattr(self, name, nnx.Param(jnp.zeros(tensor.shape(config.sizes))))

    def project(
        self, x: Float[Array, "B T D"], cos: Float[Array, "B T R"], sin: Float[Array, "B T R"]
    ) -> tuple[Float[Array, "B T N H"] | None, ...]:
        """Return queries, keys and values, normalized and rotated; and the gate, of gated attention.

        Keys and values are None if the layer shares those of another one.
        """
        x = self._inside(self._norm("pre_attention_norm", x), "heads", None)
        if self.kind.shares_keys:
            q = self._inside(self._matmul("btd,dnh->btnh", x, self._own("q")), "heads", "heads", None)
            return rotate(self._norm(self._own("q_norm"), q), cos, sin), None, None
        q, k, v = (
            self._inside(product, *(axis, axis, None))
            for product, axis in zip(self._heads_of(x), ("heads", "kv_heads", "kv_heads"), strict=True)
        )
        q, *gate = jnp.split(q, 2, axis=-1) if self.config.family.gated_attention else (q,)
        if self.config.family.value_norm:
            v = _normalized(v, (-1,), self.config).astype(v.dtype)
        return (
            rotate(self._norm(self._own("q_norm"), q), cos, sin),
            rotate(self._norm(self._own("k_norm"), k), cos, sin),
            v,
            *gate,
        )

    def _heads_of(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T N H"]]:
        """Return the products with the projections of queries, keys and values, or with the fused one."""
        if not self.config.family.fused_projections:
            names = ("q", "k", "k" if self.kind.heads and self.kind.heads.values_are_keys else "v")
            products = {
                name: self._add_bias(f"{name}_bias", self._matmul("btd,dnh->btnh", x, self._own(name)))
                for name in dict.fromkeys(names)
            }
            return [products[name] for name in names]
        sizes = self.config.sizes
        qkv = self._inside(self._matmul("btd,dw->btw", x, "qkv"), "heads", "heads")
        queries, keys = (sizes[letter] * sizes["H"] for letter in "NK")
        parts = jnp.split(qkv, (queries, queries + keys), axis=-1)
        return [part.reshape(*part.shape[:2], -1, sizes["H"]) for part in parts]

    def combine(
        self,
        x: Float[Array, "B T D"],
        attended: Float[Array, "B T N H"],
        gate: Float[Array, "B T N H"] | None = None,
        embedding: Float[Array, "B T A"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Routing | None]:
        """Return the residual stream after this layer, and the decisions of its router, if it has one.

        Args:
            x: the residual stream before this layer.
            attended: the output of its attention.
            gate: the gate of gated attention.
            embedding: the embeddings of the tokens for this layer (Gemma 4).
        """
        attended = checkpoint_name(attended, "attended")
        if gate is not None:
            attended = attended * jax.nn.sigmoid(gate)
        out = self._matmul("bthk,hkd->btd", attended, self._own("o"))
        return self._add_to(x, self._add_bias("o_bias", out), embedding)

    def _add_to(
        self,
        x: Float[Array, "B T D"],
        out: Float[Array, "B T D"],
        embedding: Float[Array, "B T A"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Routing | None]:
        """Return the residual stream after this layer, given the output of its token mixer and the
        embeddings of the tokens for this layer, and the decisions of its router.
        """
        x = x + self._norm("post_attention_norm", self._constrained(out))
        out, routing = self._feed_forward(x)
        x = x + self._norm("post_mlp_norm", self._constrained(out))
        if embedding is not None:
            x = x + self._layer_input(x, embedding)
        return x * self._weight("layer_scalar")[None, None] if hasattr(self, "layer_scalar") else x, routing

    def _layer_input(
        self, x: Float[Array, "B T D"], embedding: Float[Array, "B T A"]
    ) -> Float[Array, "B T D"]:
        """Return what this layer adds because of its own embeddings of the tokens."""
        platform = self.sharding.device.platform
        gate = matmul("btd,da->bta", x, self._weight("layer_input_gate"), platform)
        gated = ACTIVATION_FUNCTIONS[self.config.activation](gate) * embedding
        out = matmul("bta,ad->btd", gated, self._weight("layer_input_projection"), platform)
        return self._norm("post_layer_input_norm", self._constrained(out))

    @property
    def attention_sinks(self) -> Float[Array, " N"] | None:
        """The logits beside those of the keys, in float32; None in families without sinks."""
        return self._weight("sinks") if hasattr(self, "sinks") else None

    def _feed_forward(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], Routing | None]:
        """Return the output of the dense feed-forward, of a mixture, or their sum; and the mixture's
        decisions.
        """
        inner = self._norm("pre_mlp_norm", x)
        if self.kind.feed_forward == "dense" or self.config.experts is None:
            return self._mlp(inner), None
        weights = Weights._make(self._weight(name) if hasattr(self, name) else None for name in _WEIGHTS)
        experts_x, router_x = inner, None
        if hasattr(self, "router_norm"):  # both read the residual stream, each with a norm of its own
            experts_x, router_x = self._norm("pre_experts_norm", x), self._router_input(x)
        gated = gated_function(self.config.activation, self.config.experts.clamped)
        out, routing = mixture(experts_x, weights, self.config.experts, gated, self.sharding, router_x)
        out = self._norm("post_experts_norm", out)
        if self.config.family.mixture and self.config.family.mixture.dense:
            dense = self._norm("post_dense_norm", self._mlp(inner))
            out = out + (dense * self._shared_gate(inner) if hasattr(self, "shared_gate") else dense)
        return out, routing

    def _router_input(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Return what the router of Gemma 4 reads, in float32."""
        weight = self._weight("router_norm").astype(jnp.float32) / math.sqrt(self.config.hidden_size)
        return _normalized(x, (-1,), self.config) * weight[None, None]

    def _shared_gate(self, x: Float[Array, "B T D"]) -> Float[Array, "B T 1"]:
        """Return the factor of each token on the output of the expert that all tokens share."""
        gate = matmul("btd,de->bte", x, self._weight("shared_gate"), self.sharding.device.platform)
        return jax.nn.sigmoid(gate)

    def _mlp(self, x: Array) -> Array:
        x = self._inside(x, "mlp", None)  # while decoding, activations are moved instead of weights
        if self.config.family.fused_projections:
            gate_up = self._inside(self._matmul("btd,dyf->btyf", x, "gate_up"), "mlp", None, "mlp")
            gate, up = gate_up[:, :, 0], gate_up[:, :, 1]
        else:
            gate, up = (self._matmul("btd,df->btf", x, name) for name in ("gate", "up"))
        hidden = gated_function(self.config.activation, None)(gate, up)
        hidden = self._inside(checkpoint_name(hidden, "hidden"), "mlp", "mlp")
        return self._matmul("btf,fd->btd", hidden, "down")

    def _matmul(self, spec: str, x: Array, name: str) -> Array:
        """Return the product with a weight, and with its adapter, which is never merged into the weight."""
        platform, weight = self.sharding.device.platform, self._weight(name)
        if self.config.quantize:
            out = quantized_matmul(spec, x, weight, self._weight(name + SCALE), platform, self.decoding)
        else:
            out = matmul(spec, x, weight, platform)
        if self.config.lora is None or not hasattr(self, name + A):
            return out
        into_rank, out_of_rank = split_product(spec)
        low = matmul(into_rank, x, self._weight(name + A), platform)
        return out + self.config.lora.scale * matmul(out_of_rank, low, self._weight(name + B), platform)

    def _own(self, name: str) -> str:
        """Return the name of a parameter of attention in this kind of layers."""
        return FULL + name if self.kind.heads else name

    def _weight(self, name: str) -> Array:
        return getattr(self, name)[...]

    def _norm(self, name: str, x: Array) -> Array:
        """Return the normalized x, or x itself in a family without this norm."""
        return rms_norm(x, self._weight(name), self.config) if hasattr(self, name) else x

    def _add_bias(self, name: str, x: Array) -> Array:
        if not hasattr(self, name):
            return x
        bias = self._weight(name)
        return x + jnp.expand_dims(bias, tuple(range(x.ndim - bias.ndim)))

    def _inside(self, x: Array, owner: str, *trailing: str | None) -> Array:
        """Constrain x inside attention or feed-forward.

        The logical axis `owner` has priority over rows and positions if they use the same mesh axis.
        """
        inner = release_axes(self.sharding, owner, "batch", "sequence")
        return constrain(x, inner, "batch", "sequence", *trailing)

    def _constrained(self, x: Array) -> Array:
        # in two steps: in one, XLA (jax 0.10.2) permutes the rows of a product that it also splits by width
        x = constrain(x, self.sharding, "batch", "sequence", None)
        return constrain(x, self.sharding, "batch", "sequence", "activation")


class DeltaBlock(Block):
    """The same with a gated delta net instead of attention, as in Qwen3.5."""

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], state: DeltaState | None
    ) -> tuple[Float[Array, "B T D"], Routing | None, DeltaState]:
        """Return the residual stream after this layer, the decisions of its router, if it has one, and the
        state of the layer after these tokens.

        With a state, tokens are left-padded prompts, or one per row: padding then leaves no trace in it.
        Without one, the sequences begin here.
        """
        assert self.config.delta is not None
        activation = ACTIVATION_FUNCTIONS[self.config.activation]
        state = state or empty_delta_state(self.config.delta, x.shape[0], x.dtype)
        inner = jnp.where(mask[:, :, None], self._norm("pre_attention_norm", x), 0)
        inner = self._inside(inner, "heads", None)
        qkv = self._inside(self._matmul("btd,dc->btc", inner, "delta_qkv"), "heads", "heads")
        qkv, tail = causal_convolution(qkv, self._weight("delta_convolution")[:, 0], state.tail)
        tail = jnp.where(mask[:, -1:, None], tail, state.tail)  # a row without a token keeps its own
        inputs = DeltaInputs(*self._heads(activation(qkv)), *self._rates(inner, mask))
        out, matrix = gated_delta(inputs, state.matrix)
        gate = jax.nn.silu(self._matmul("btd,dgp->btgp", inner, "delta_z").astype(jnp.float32))
        out = self._inside((self._unit_scale(out) * gate).astype(x.dtype), "heads", "heads", None)
        out = self._matmul("btgp,gpd->btd", checkpoint_name(out, "attended"), "delta_o")
        return *self._add_to(x, out), DeltaState(tail, matrix)

    def _heads(self, qkv: Float[Array, "B T C"]) -> list[Float[Array, "B T G ..."]]:
        """Return queries, keys and values of each value head."""
        sizes = self.config.delta
        assert sizes is not None
        keys = sizes.key_heads * sizes.key_dim
        q, k, v = jnp.split(qkv, (keys, 2 * keys), axis=-1)
        q, k = (x.reshape(*x.shape[:2], sizes.key_heads, sizes.key_dim) for x in (q, k))
        q, k = (jnp.repeat(x, sizes.value_heads // sizes.key_heads, axis=2) for x in (q, k))
        v = v.reshape(*v.shape[:2], sizes.value_heads, sizes.value_dim)
        return [self._inside(x, "heads", "heads", None) for x in (q, k, v)]

    def _rates(self, inner: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> list[Float[Array, "B T G"]]:
        """Return the logarithm of the decay and the learning rate of each token; both are 0 for padding."""
        a, b = (
            self._matmul("btd,dg->btg", inner, name).astype(jnp.float32) for name in ("delta_a", "delta_b")
        )
        log_rate, bias = (
            self._weight(name).astype(jnp.float32)[None, None]
            for name in ("delta_log_rate", "delta_rate_bias")
        )
        log_decay = -jnp.exp(log_rate) * jax.nn.softplus(a + bias)
        return [jnp.where(mask[:, :, None], x, 0.0) for x in (log_decay, jax.nn.sigmoid(b))]

    def _unit_scale(self, x: Float[Array, "B T G P"]) -> Float[Array, "B T G P"]:
        """Return each head with a mean square of 1, times the weight of its norm."""
        return (
            _normalized(x, (-1,), self.config)
            * self._weight("delta_norm").astype(jnp.float32)[None, None, None]
        )


@functools.cache
def block_structure(
    config: Architecture, sharding: Sharding, decoding: bool = False, kind: LayerKind | None = None
) -> Any:
    """Return the block without its weights: `nnx.merge(block_structure(...), weights)` is a Block, or a
    DeltaBlock.

    `decoding` states that it reads one token per row and has no gradient. Without a kind of layers, it is the
    first one.
    """
    kind = kind or config.kinds[0]
    make = DeltaBlock if kind.mixer == "gated_delta" else Block
    return nnx.split(nnx.eval_shape(lambda: make(config, kind, sharding, decoding)))[0]


def embedding_scale(config: Architecture, dtype: Any) -> Float[Array, ""] | None:
    """Return the factor on embeddings (Gemma: sqrt(D) rounded to the compute dtype, as in transformers)."""
    return jnp.asarray(math.sqrt(config.hidden_size), dtype) if config.family.scale_embedding else None
