"""The decoder as pure functions of a parameter tree: full forward, prefill and decoding with a cache.

Layers are stacked and run by one `lax.scan`, so that the program does not grow with depth. Only
decoding goes without it on a GPU, and on a CPU where models are shallow (`layer_by_layer`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from sdft_jax.errors import SdftError
from sdft_jax.kernels.attention import attention, block_size, token_positions, visible_keys
from sdft_jax.kernels.fused_attention import Kernel, choose_kernel, fused_attention
from sdft_jax.models.architecture import ModelConfig
from sdft_jax.models.block import block_structure, embedding_scale, rms_norm
from sdft_jax.models.cache import KVCache, empty_cache, write, write_and_attend
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

_NO_WINDOW = jnp.iinfo(jnp.int32).max


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
    attention: str = "auto"
    """Of whole sequences: a kernel of `fused.py`, or `auto` for the device's own."""

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise SdftError(f"remat '{self.remat}' is not one of {', '.join(REMAT_POLICIES)}.")

    @property
    def kernel(self) -> Kernel:
        """What attends over whole sequences on this model's devices."""
        return choose_kernel(self.attention, self.device, self.compute_dtype, self.config.head_dim)

    @property
    def device(self) -> Any:
        """The first of the mesh, or of all."""
        return jax.devices()[0] if self.sharding is None else self.sharding.mesh.devices.flat[0]

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
        length = tokens.shape[1]
        if self.sharding is not None:  # columns of padding, so that the mesh divides the residual stream
            padding = [(0, 0), (0, -length % self.sharding.size("sequence"))]
            tokens, attention_mask = jnp.pad(tokens, padding), jnp.pad(attention_mask, padding)
        positions = token_positions(attention_mask)
        read = self._self_attention(attention_mask)

        def attend(store, layer, kind, q, k, v):
            return store, read(kind, q, k, v)

        return self._run(params, tokens, positions, attend, None)[0][:, :length]

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
        return empty_cache(self.config, batch, length, dtype or self.compute_dtype, self.sharding)

    def prefill(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        attention_mask: Bool[Array, "B T"],
        cache_length: int,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Read left-padded prompts. Returns their hidden states and a cache with `cache_length` slots."""
        positions = token_positions(attention_mask)
        read = self._self_attention(attention_mask)
        cache = self.init_cache(tokens.shape[0], cache_length)

        def attend(store, layer, kind, q, k, v):
            return write(store, layer, 0, k, v, self.sharding), read(kind, q, k, v)

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
        places = token_positions(mask) if windows else None

        def attend(store, layer, kind, q, k, v):
            visible = visible_keys(positions, places, mask, self._window(kind))
            return write_and_attend(
                store, layer, cache.length, q, k, v, visible, self.config.query_scale, self.sharding
            )

        hidden, (keys, values) = self._run(
            params, tokens[:, None], positions, attend, (cache.keys, cache.values)
        )
        return hidden[:, 0], KVCache(keys, values, mask, cache.length + 1, cache.positions + 1)

    def _self_attention(self, mask: Bool[Array, "B T"]) -> Callable[..., Any]:
        """(kind of layer, q, k, v) -> what each token reads in the real tokens up to itself."""
        kernel, scale = self.kernel, self.config.query_scale
        block = block_size(self.device.platform)

        def fused(window, q, k, v):
            return fused_attention(q, k, v, mask, window, scale, kernel, self.sharding)

        branches = [functools.partial(fused, kind.window) for kind in self.config.kinds]

        def read(kind, q, k, v):
            with jax.named_scope("self_attention"):
                if kernel == "xla":
                    return attention(q, k, v, mask, self._window(kind), scale, block)
                return jax.lax.switch(kind, branches, q, k, v)

        return read

    def _window(self, kind: Int[Array, ""]) -> Int[Array, ""] | None:
        """The sliding window of a kind of layer, where any has one."""
        windows = [layer.window for layer in self.config.kinds]
        if not any(windows):
            return None
        return jnp.array([window or _NO_WINDOW for window in windows], jnp.int32)[kind]

    def _embed(self, embedding: Array, tokens: Array) -> Array:
        """Look tokens up where the embedding lies, then bring the result to the rows' devices.

        Without the first pair of constraints the compiler replicates the result on every device on its way.
        """
        lookup = self.sharding and give_way(self.sharding, "embed", "batch", "sequence")
        lookup = lookup and give_way(lookup, "vocab", "batch", "sequence")
        tokens = constrain(tokens, lookup, "batch", "sequence")
        x = constrain(embedding[tokens].astype(self.compute_dtype), lookup, "batch", "sequence", "embed")
        x = constrain(x, self.sharding, "batch", "sequence", "activation")
        scale = embedding_scale(self.config, x.dtype)
        return x if scale is None else x * scale

    def _run(
        self, params: Params, tokens: Array, positions: Array, attend: Callable[..., Any], store: Any
    ) -> tuple[Array, Any]:
        """Embed, run the layers, norm. `attend` reads and updates `store`, which goes from layer to layer.

        attend: (store, layer, kind, q, k, v) -> (store, attended).
        """
        config, dtype = self.config, jnp.dtype(self.compute_dtype)
        x = self._embed(params["embed"], tokens)
        structure = block_structure(config, self.sharding)
        ropes = [rope_table(kind.rope, config.head_dim, positions) for kind in config.kinds]
        uniform = len(config.kinds) == 1
        cos, sin = ropes[0] if uniform else (jnp.stack(tables) for tables in zip(*ropes, strict=True))

        def run_layer(carry, weights, kind, index):
            x, store = carry
            block = nnx.merge(structure, jax.tree.map(lambda w: w.astype(dtype), weights))
            q, k, v = block.project(x, *((cos, sin) if uniform else (cos[kind], sin[kind])))
            store, attended = attend(store, index, kind, q, k, v)
            return block.combine(x, attended), store

        def body(carry, layer):
            return run_layer(carry, *layer), None

        if isinstance(params["layers"], tuple):
            for index, weights in enumerate(params["layers"]):
                x, store = run_layer((x, store), weights, config.kind_of_layer[index], index)
        else:
            if self.remat != "none":
                body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
            kinds = jnp.array(config.kind_of_layer, jnp.int32)
            layers = (params["layers"], kinds, jnp.arange(config.num_hidden_layers))
            (x, store), _ = jax.lax.scan(body, (x, store), layers)
        return rms_norm(x, params["norm"].astype(dtype), config), store

    def _tree(self, outer: Callable[..., Any], inner: Callable[..., Any]) -> dict[str, Any]:
        """The tree of parameters with a value for each tensor outside and inside the layers."""
        tree = {tensor.name: outer(tensor) for tensor in self.config.outer_tensors}
        tree["layers"] = {tensor.name: inner(tensor) for tensor in self.config.layer_tensors}
        return tree


def layer_by_layer(params: Params, cache: KVCache) -> tuple[Params, KVCache]:
    """Both with each layer in arrays of its own: `decode` then runs one after the other, without a scan."""

    def split(stacked: Any) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(stacked)
        return tuple(jax.tree.unflatten(treedef, own) for own in zip(*leaves, strict=True))

    cache = dataclasses.replace(cache, keys=split(cache.keys), values=split(cache.values))
    return {**params, "layers": split(params["layers"])}, cache
