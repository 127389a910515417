"""The decoder as pure functions of a parameter tree: full forward, prefill and decoding with a cache.

Layers are stacked and run by one `lax.scan`, so that the program does not grow with depth.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from sdft_jax.errors import SdftError
from sdft_jax.models.attention import Visibility, attention, token_positions
from sdft_jax.models.block import block_structure, embedding_scale, rms_norm
from sdft_jax.models.config import ModelConfig
from sdft_jax.models.rope import rope_table
from sdft_jax.sharding import Sharding, constrain, give_way
from sdft_jax.types import Params

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "hidden": jax.checkpoint_policies.save_only_these_names("attended", "hidden"),
}
"""What the backward pass of a layer finds in memory besides its input: "none" (no rematerialisation) all;
"full" nothing; "dots" every matrix product; "dots_no_batch" those without batch dimensions, so not the
attention logits; "hidden" what attention read and the feed-forward's hidden activations."""

_CACHE_AXES = (None, "batch", None, "kv_heads", None)
_NO_WINDOW = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer. Prompts are left-padded, so all rows share the next slot."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    mask: Bool[Array, "B S"]
    """True on slots that hold tokens."""
    length: Int[Array, ""]
    """The next slot, the same in all rows."""
    positions: Int[Array, " B"]
    """Position of each row's next token."""


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture and how to run it; hashable, so that it can be a static argument of `jax.jit`.

    Parameters are not part of it: every method takes them as a nested dictionary
    `{"embed": [V, D], "layers": {name: [L, ...]}, "norm": [D], "head": [V, D] unless tied}`.
    """

    config: ModelConfig
    compute_dtype: str = "float32"
    remat: str = "none"
    """One of `REMAT_POLICIES`."""
    sharding: Sharding | None = None
    """Where activations live; None leaves it to the compiler."""
    source: str = dataclasses.field(default="", compare=False)
    """Directory that the checkpoint was read from."""

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise SdftError(f"remat '{self.remat}' is not one of {', '.join(REMAT_POLICIES)}.")

    def matmul_precision(self) -> contextlib.AbstractContextManager[Any]:
        """While tracing: float32 products are float32 on TPU and GPU too, whose default is less."""
        return jax.default_matmul_precision("float32" if self.compute_dtype == "float32" else None)

    def abstract_params(self, dtype: Any = jnp.float32) -> dict[str, Any]:
        """Shapes of the parameters."""
        sizes, layers = self.config.sizes, self.config.num_hidden_layers
        return self._tree(
            lambda tensor: jax.ShapeDtypeStruct(tensor.shape(sizes), dtype),
            lambda tensor: jax.ShapeDtypeStruct((layers, *tensor.shape(sizes)), dtype),
        )

    def logical_axes(self) -> dict[str, Any]:
        """For each parameter, the names of its dimensions in `sharding.Rules`."""
        return self._tree(lambda tensor: tensor.axes, lambda tensor: (None, *tensor.axes))

    def init(self, key: Key[Array, ""] | Array, dtype: Any = jnp.float32) -> Params:
        """Random parameters: normal with standard deviation 0.02, scales of norms one, biases zero."""
        inits = self._tree(lambda tensor: tensor.init, lambda tensor: tensor.init)
        shapes, treedef = jax.tree.flatten(self.abstract_params(dtype))
        keys = jax.random.split(key, len(shapes))
        make = {
            "normal": lambda key, s: 0.02 * jax.random.normal(key, s.shape, s.dtype),
            "ones": lambda key, s: jnp.ones(s.shape, s.dtype),
            "zeros": lambda key, s: jnp.zeros(s.shape, s.dtype),
        }
        leaves = [make[how](k, s) for how, k, s in zip(jax.tree.leaves(inits), keys, shapes, strict=True)]
        return jax.tree.unflatten(treedef, leaves)

    def hidden_states(
        self, params: Params, tokens: Int[Array, "B T"], attention_mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm. The head is applied by the caller."""
        positions = token_positions(attention_mask)
        visibility = Visibility(positions, positions, attention_mask)

        def attend(store, layer, q, k, v, window):
            return store, attention(q, k, v, visibility, window, self.config.query_scale)

        return self._run(params, tokens, positions, attend, None)[0]

    def head(self, params: Params) -> Float[Array, "V D"]:
        """The output matrix; the embedding where they are tied."""
        return params["embed"] if self.config.tie_word_embeddings else params["head"]

    def logits(
        self, params: Params, tokens: Int[Array, "B T"], attention_mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T V"]:
        """Next-token logits at every position, accumulated in float32."""
        with self.matmul_precision():
            hidden = self.hidden_states(params, tokens, attention_mask)
            head = self.head(params).astype(hidden.dtype)
            return jnp.einsum("btd,vd->btv", hidden, head, preferred_element_type=jnp.float32)

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> KVCache:
        """An empty cache of `length` slots, in the compute dtype unless `dtype` says otherwise."""
        c = self.config
        shape = (c.num_hidden_layers, batch, length, c.num_key_value_heads, c.head_dim)
        keys, values = (  # two buffers, so that the cache can be donated
            constrain(jnp.zeros(shape, dtype or self.compute_dtype), self.sharding, *_CACHE_AXES)
            for _ in range(2)
        )
        mask = jnp.zeros((batch, length), bool)
        return KVCache(keys, values, mask, jnp.int32(0), jnp.zeros((batch,), jnp.int32))

    def prefill(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        attention_mask: Bool[Array, "B T"],
        cache_length: int,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Read left-padded prompts. Returns their hidden states and a cache with `cache_length` slots."""
        positions = token_positions(attention_mask)
        visibility = Visibility(positions, positions, attention_mask)
        cache = self.init_cache(tokens.shape[0], cache_length)

        def attend(store, layer, q, k, v, window):
            attended = attention(q, k, v, visibility, window, self.config.query_scale)
            return self._store(store, layer, 0, k, v), attended

        hidden, (keys, values) = self._run(params, tokens, positions, attend, (cache.keys, cache.values))
        length = tokens.shape[1]
        mask = jax.lax.dynamic_update_slice(cache.mask, attention_mask, (0, 0))
        count = jnp.sum(attention_mask, axis=1, dtype=jnp.int32)
        return hidden, KVCache(keys, values, mask, jnp.int32(length), count)

    def decode(
        self, params: Params, tokens: Int[Array, " B"], cache: KVCache
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """Read one token a row into the slot `cache.length`. Rows that are done may read anything."""
        written = jnp.ones((tokens.shape[0], 1), bool)
        mask = jax.lax.dynamic_update_slice(cache.mask, written, (0, cache.length))
        windows = any(kind.window for kind in self.config.kinds)
        positions = cache.positions[:, None]
        visibility = Visibility(positions, token_positions(mask) if windows else None, mask)

        def attend(store, layer, q, k, v, window):
            keys, values = store = self._store(store, layer, cache.length, k, v)
            k, v = keys[layer].astype(q.dtype), values[layer].astype(q.dtype)
            return store, attention(q, k, v, visibility, window, self.config.query_scale)

        hidden, (keys, values) = self._run(
            params, tokens[:, None], positions, attend, (cache.keys, cache.values)
        )
        return hidden[:, 0], KVCache(keys, values, mask, cache.length + 1, cache.positions + 1)

    def _embed(self, embedding: Array, tokens: Array) -> Array:
        """Look tokens up where the embedding lies, then bring the result to the rows' devices.

        Without the first pair of constraints the compiler replicates the result on every device on its way.
        """
        lookup = self.sharding and give_way(self.sharding, "embed", "batch", "sequence")
        tokens = constrain(tokens, lookup, "batch", None)
        x = constrain(embedding[tokens].astype(self.compute_dtype), lookup, "batch", "sequence", "embed")
        x = constrain(x, self.sharding, "batch", "sequence", "activation")
        scale = embedding_scale(self.config, x.dtype)
        return x if scale is None else x * scale

    def _run(
        self, params: Params, tokens: Array, positions: Array, attend: Callable[..., Any], store: Any
    ) -> tuple[Array, Any]:
        """Embed, scan over the layers, norm. `attend` reads and updates `store`, which the scan carries."""
        config, dtype = self.config, jnp.dtype(self.compute_dtype)
        x = self._embed(params["embed"], tokens)
        structure = block_structure(config, self.sharding)
        ropes = [rope_table(kind.rope, config.head_dim, positions) for kind in config.kinds]
        windows = jnp.array([kind.window or _NO_WINDOW for kind in config.kinds], jnp.int32)
        uniform = len(config.kinds) == 1
        cos, sin = ropes[0] if uniform else (jnp.stack(tables) for tables in zip(*ropes, strict=True))

        def body(carry, layer):
            x, store = carry
            weights, kind, index = layer
            block = nnx.merge(structure, jax.tree.map(lambda w: w.astype(dtype), weights))
            q, k, v = block.project(x, *((cos, sin) if uniform else (cos[kind], sin[kind])))
            window = None if uniform and config.kinds[0].window is None else windows[kind]
            store, attended = attend(store, index, q, k, v, window)
            return (block.combine(x, attended), store), None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        kinds = jnp.array(config.kind_of_layer, jnp.int32)
        layers = (params["layers"], kinds, jnp.arange(config.num_hidden_layers))
        (x, store), _ = jax.lax.scan(body, (x, store), layers)
        return rms_norm(x, params["norm"].astype(dtype), config), store

    def _store(self, store: tuple[Array, Array], layer: Array, slot: Any, k: Array, v: Array):
        """Write one layer's new keys and values from `slot` on, in place."""
        start = (layer, 0, slot, 0, 0)
        return tuple(
            constrain(
                jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), start),
                self.sharding,
                *_CACHE_AXES,
            )
            for whole, new in zip(store, (k, v), strict=True)
        )

    def _tree(self, outer: Callable[..., Any], inner: Callable[..., Any]) -> dict[str, Any]:
        """The tree of parameters with a value for each tensor outside and inside the layers."""
        tree = {tensor.name: outer(tensor) for tensor in self.config.outer_tensors}
        tree["layers"] = {tensor.name: inner(tensor) for tensor in self.config.layer_tensors}
        return tree
