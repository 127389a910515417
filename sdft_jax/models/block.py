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
from jaxtyping import Array, Float

from sdft_jax.kernels.matmul import matmul
from sdft_jax.models.architecture import Architecture
from sdft_jax.models.lora import A, B, split_product
from sdft_jax.models.rope import rotate
from sdft_jax.sharding import Sharding, constrain, release_axes

ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def rms_norm(x: Array, weight: Array, config: Architecture) -> Array:
    """Normalize the trailing axes that `weight` has, in float32, with the order of casts of transformers."""
    axes = tuple(range(-weight.ndim, 0))
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axes, keepdims=True) + config.rms_norm_eps)
    weight = jnp.expand_dims(weight, tuple(range(x.ndim - weight.ndim)))
    if config.family.norm_style == "scale_after_cast":
        return wide.astype(x.dtype) * weight
    scale = weight.astype(jnp.float32)
    if config.family.norm_style == "one_plus_weight":
        scale = 1.0 + scale
    return (wide * scale).astype(x.dtype)


class Block(nnx.Module):
    """Attention and gated feed-forward with residual connections and the norms of its family.

    The scan over layers calls `project`, attends (with or without a cache), and calls `combine`.
    """

    def __init__(self, config: Architecture, sharding: Sharding):
        self.config = config
        self.sharding = sharding
        for tensor in config.layer_tensors:
            setattr(self, tensor.name, nnx.Param(jnp.zeros(tensor.shape(config.sizes))))

    def project(
        self, x: Float[Array, "B T D"], cos: Float[Array, "B T R"], sin: Float[Array, "B T R"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Return queries, keys and values, normalized and rotated."""
        x = self._inside(self._norm("pre_attention_norm", x), "heads", None)
        q, k, v = (
            self._inside(
                self._add_bias(f"{name}_bias", self._matmul("btd,dnh->btnh", x, name)),
                *(axis, axis, None),
            )
            for name, axis in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads"))
        )
        return rotate(self._norm("q_norm", q), cos, sin), rotate(self._norm("k_norm", k), cos, sin), v

    def combine(self, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """Return the residual stream after this layer, given the output of its attention."""
        attended = checkpoint_name(attended, "attended")
        out = self._add_bias("o_bias", self._matmul("bthk,hkd->btd", attended, "o"))
        x = x + self._norm("post_attention_norm", self._constrained(out))
        out = self._mlp(self._norm("pre_mlp_norm", x))
        return x + self._norm("post_mlp_norm", self._constrained(out))

    def _mlp(self, x: Array) -> Array:
        x = self._inside(x, "mlp", None)  # while decoding, activations are moved instead of weights
        gate, up = (self._matmul("btd,df->btf", x, name) for name in ("gate", "up"))
        hidden = ACTIVATION_FUNCTIONS[self.config.activation](gate) * up
        hidden = self._inside(checkpoint_name(hidden, "hidden"), "mlp", "mlp")
        return self._matmul("btf,fd->btd", hidden, "down")

    def _matmul(self, spec: str, x: Array, name: str) -> Array:
        """Return the product with a weight, and with its adapter, which is never merged into the weight."""
        multiply = functools.partial(matmul, platform=self.sharding.device.platform)
        out = multiply(spec, x, self._weight(name))
        if self.config.lora is None or name not in self.config.lora.targets:
            return out
        into_rank, out_of_rank = split_product(spec)
        low = multiply(into_rank, x, self._weight(name + A))
        return out + self.config.lora.scale * multiply(out_of_rank, low, self._weight(name + B))

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


@functools.cache
def block_structure(config: Architecture, sharding: Sharding) -> Any:
    """Return the block without its weights: `nnx.merge(block_structure(...), weights)` is a Block."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, sharding)))[0]


def embedding_scale(config: Architecture, dtype: Any) -> Float[Array, ""] | None:
    """Return the factor on embeddings (Gemma: sqrt(D) rounded to the compute dtype, as in transformers)."""
    return jnp.asarray(math.sqrt(config.hidden_size), dtype) if config.family.scale_embedding else None
