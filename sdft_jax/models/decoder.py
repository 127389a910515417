"""The decoder as pure functions of a parameter tree: full forward, prefill and decoding with a cache.

Layers are stacked and run by one `lax.scan`, so that the program does not grow with depth. Decoding alone
runs them one by one on a GPU, and on a CPU if the model is shallow (`layer_by_layer`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from sdft_jax.errors import SdftError
from sdft_jax.kernels.attention import AttentionCall, attention, block_size, token_positions, visible_keys
from sdft_jax.kernels.fused_attention import Kernel, choose_kernel, fused_attention
from sdft_jax.kernels.matmul import einsum_float32
from sdft_jax.kernels.numerics import numerics
from sdft_jax.models.architecture import Architecture
from sdft_jax.models.block import block_structure, embedding_scale, rms_norm
from sdft_jax.models.cache import KVCache, empty_cache, write, write_and_attend
from sdft_jax.models.families import Tensor
from sdft_jax.models.lora import has_adapters, is_adapter
from sdft_jax.models.rope import rope_table
from sdft_jax.sharding import Sharding, constrain, release_axes, single_device
from sdft_jax.types import Params, Sequences

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "hidden": jax.checkpoint_policies.save_only_these_names("attended", "hidden"),
}
"""The activations that a layer saves for its backward pass, in addition to its input: "none" (no
rematerialization) everything; "full" nothing; "dots" every matrix product; "dots_no_batch" those without
batch dimensions, so not the attention scores; "hidden" the output of attention and the feed-forward's hidden
activations."""

_NO_WINDOW = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture with the settings that run it; hashable, so static in `jax.jit`.

    Parameters are not part of it: every method takes them as a nested dictionary
    `{"embed": [V, D], "layers": {name: [L, ...]}, "norm": [D], "head": [V, D] unless tied}`. A tree without
    the adapters of the architecture is the base model.
    """

    architecture: Architecture
    compute_dtype: str = "float32"
    """The dtype of activations and matrix products."""
    remat: str = "none"
    """A key of `REMAT_POLICIES`."""
    sharding: Sharding = dataclasses.field(default_factory=single_device)
    """The mesh and the rules by which activations are placed."""
    source: str = dataclasses.field(default="", compare=False)
    """The directory that the checkpoint was read from."""
    attention: str = "auto"
    """The kernel for whole sequences: one of `fused_attention.Kernel`, or `auto` for the platform's own."""

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise SdftError(f"remat={self.remat!r} is not a policy: use one of {', '.join(REMAT_POLICIES)}.")

    @property
    def kernel(self) -> Kernel:
        """The attention kernel for whole sequences on this model's devices."""
        device = self.sharding.device
        return choose_kernel(self.attention, device, self.compute_dtype, self.architecture.head_dim)

    @property
    def platform(self) -> str:
        """The platform of this model's devices, such as `tpu`."""
        return self.sharding.device.platform

    def numerics(self) -> contextlib.AbstractContextManager[None]:
        """Return the context for tracing this model's programs: float32 products have float32 precision."""
        return numerics("float32" if self.compute_dtype == "float32" else None)

    def abstract_params(self, dtype: Any = jnp.float32) -> dict[str, Any]:
        """Return the shapes of the parameters.

        The base of adapters never changes, and has the dtype of the products that read it.
        """
        sizes, layers = self.architecture.sizes, self.architecture.num_hidden_layers

        def shape(tensor: Tensor, *leading: int) -> jax.ShapeDtypeStruct:
            trains = self.architecture.lora is None or is_adapter(tensor.name)
            return jax.ShapeDtypeStruct(
                (*leading, *tensor.shape(sizes)), dtype if trains else self.compute_dtype
            )

        return self._tree(shape, lambda tensor: shape(tensor, layers))

    def logical_axes(self) -> dict[str, Any]:
        """Return the logical axes of each parameter, as `sharding.Rules` names them."""
        return self._tree(lambda tensor: tensor.axes, lambda tensor: (None, *tensor.axes))

    def init(self, key: Key[Array, ""] | Array, dtype: Any = jnp.float32) -> Params:
        """Return random parameters: normal with standard deviation 0.02; norm scales are one, biases zero.

        Of adapters, A is uniform within 1 / sqrt(inputs), as in PEFT, and B zero.
        """
        inits = self._tree(lambda tensor: tensor.init, lambda tensor: tensor.init)
        shapes, treedef = jax.tree.flatten(self.abstract_params(dtype))
        keys = jax.random.split(key, len(shapes))
        make = {
            "normal": lambda key, s: 0.02 * jax.random.normal(key, s.shape, s.dtype),
            "ones": lambda key, s: jnp.ones(s.shape, s.dtype),
            "zeros": lambda key, s: jnp.zeros(s.shape, s.dtype),
            "uniform": lambda key, s: _uniform(key, s.shape, s.dtype),
        }
        leaves = [make[init](k, s) for init, k, s in zip(jax.tree.leaves(inits), keys, shapes, strict=True)]
        return jax.tree.unflatten(treedef, leaves)

    def hidden_states(self, params: Params, sequences: Sequences) -> Float[Array, "B T D"]:
        """Return the hidden states after the final norm; the caller applies the head."""
        length = sequences.tokens.shape[1]
        # padding, so that the mesh divides the residual stream
        padding = [(0, 0), (0, -length % self.sharding.size("sequence"))]
        tokens, mask = (jnp.pad(x, padding) for x in (sequences.tokens, sequences.mask))
        self_attention = self._self_attention(mask)

        def attend(store, layer, kind, q, k, v):
            return store, self_attention(kind, q, k, v)

        return self._run(params, tokens, token_positions(mask), attend, None)[0][:, :length]

    def completion_hidden(
        self, params: Params, prompt: Sequences, completion: Sequences
    ) -> Float[Array, "B N D"]:
        """Return the hidden states that predict each completion token: those of the preceding token.

        For example, with a prompt of 3 and a completion of 2 tokens, positions 2 and 3 of 0..4 predict the
        completion.
        """
        tokens = jnp.concatenate([prompt.tokens, completion.tokens], axis=1)
        mask = jnp.concatenate([prompt.mask, completion.mask], axis=1)
        hidden = self.hidden_states(params, Sequences(tokens, mask))
        return hidden[:, prompt.tokens.shape[1] - 1 : -1]

    def head(self, params: Params) -> Float[Array, "V D"]:
        """Return the output matrix, which is the embedding if they are tied."""
        return params["embed"] if self.architecture.tie_word_embeddings else params["head"]

    def logits(self, params: Params, sequences: Sequences) -> Float[Array, "B T V"]:
        """Return the next-token logits at every position, accumulated in float32."""
        with self.numerics():
            hidden = self.hidden_states(params, sequences)
            head = self.head(params).astype(hidden.dtype)
            return einsum_float32("btd,vd->btv", hidden, head)

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> KVCache:
        """Return an empty cache of `length` slots, in the compute dtype unless `dtype` is given."""
        return empty_cache(self.architecture, batch, length, dtype or self.compute_dtype, self.sharding)

    def prefill(
        self, params: Params, prompt: Sequences, cache_length: int
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Return the hidden states of left-padded prompts and a cache of them with `cache_length` slots."""
        self_attention = self._self_attention(prompt.mask)
        batch, length = prompt.tokens.shape
        cache = self.init_cache(batch, cache_length)

        def attend(store, layer, kind, q, k, v):
            return write(store, layer, 0, k, v, self.sharding), self_attention(kind, q, k, v)

        hidden, (keys, values) = self._run(
            params, prompt.tokens, token_positions(prompt.mask), attend, (cache.keys, cache.values)
        )
        mask = jax.lax.dynamic_update_slice(cache.mask, prompt.mask, (0, 0))
        count = jnp.sum(prompt.mask, axis=1, dtype=jnp.int32)
        return hidden, KVCache(keys, values, mask, jnp.int32(length), count)

    def decode(
        self, params: Params, tokens: Int[Array, " B"], cache: KVCache
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """Return the hidden state of one new token per row, and the cache with it in slot `cache.length`.

        Rows that have ended may pass any token.
        """
        written = jnp.ones((tokens.shape[0], 1), bool)
        mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, written, cache.length, axis=1)
        windows = any(kind.window for kind in self.architecture.kinds)
        positions = cache.positions[:, None]
        key_positions = token_positions(mask) if windows else None
        scale = self.architecture.query_scale

        def attend(store, layer, kind, q, k, v):
            visible = visible_keys(positions, key_positions, mask, self._window(kind))
            call = AttentionCall(q, k, v, visible, None, scale)
            return write_and_attend(store, layer, cache.length, call, self.sharding)

        hidden, (keys, values) = self._run(
            params, tokens[:, None], positions, attend, (cache.keys, cache.values)
        )
        return hidden[:, 0], KVCache(keys, values, mask, cache.length + 1, cache.positions + 1)

    def _self_attention(self, mask: Bool[Array, "B T"]) -> Callable[..., Any]:
        """Return a function (kind, q, k, v) -> attention of each token to the real tokens up to itself."""
        kernel, scale = self.kernel, self.architecture.query_scale
        block = block_size(self.platform)

        def fused(window, q, k, v):
            return fused_attention(AttentionCall(q, k, v, mask, window, scale), kernel, self.sharding)

        branches = [functools.partial(fused, kind.window) for kind in self.architecture.kinds]

        def self_attention(kind, q, k, v):
            with jax.named_scope("self_attention"):
                if kernel == "xla":
                    return attention(AttentionCall(q, k, v, mask, self._window(kind), scale), block)
                return jax.lax.switch(kind, branches, q, k, v)

        return self_attention

    def _window(self, kind: Int[Array, ""]) -> Int[Array, ""] | None:
        """Return the sliding window of a kind of layer, or None if no layer has one."""
        windows = [layer.window for layer in self.architecture.kinds]
        if not any(windows):
            return None
        return jnp.array([window or _NO_WINDOW for window in windows], jnp.int32)[kind]

    def _embed(self, embedding: Array, tokens: Array) -> Array:
        """Look tokens up on the devices that hold their embeddings, then move the result to the rows'
        devices.

        Without the first pair of constraints the compiler replicates the intermediate result on every device.
        """
        lookup = release_axes(self.sharding, "embed", "batch", "sequence")
        lookup = release_axes(lookup, "vocab", "batch", "sequence")
        tokens = constrain(tokens, lookup, "batch", "sequence")
        x = constrain(embedding[tokens].astype(self.compute_dtype), lookup, "batch", "sequence", "embed")
        x = constrain(x, self.sharding, "batch", "sequence", "activation")
        scale = embedding_scale(self.architecture, x.dtype)
        return x if scale is None else x * scale

    def _run(
        self, params: Params, tokens: Array, positions: Array, attend: Callable[..., Any], store: Any
    ) -> tuple[Array, Any]:
        """Embed, run the layers and apply the final norm.

        Args:
            params: the whole parameter tree.
            tokens: [B, T].
            positions: [B, T], of each token in its row.
            attend: (store, layer, kind, q, k, v) -> (store, attended).
            store: read and updated by `attend`, passed from layer to layer.
        """
        config, dtype = self.architecture, jnp.dtype(self.compute_dtype)
        x = self._embed(params["embed"], tokens)
        structure = block_structure(config if has_adapters(params) else config.base, self.sharding)
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
        """Return the parameter tree with `outer(tensor)` outside and `inner(tensor)` inside the layers."""
        tree = {tensor.name: outer(tensor) for tensor in self.architecture.outer_tensors}
        tree["layers"] = {tensor.name: inner(tensor) for tensor in self.architecture.layer_tensors}
        return tree


def _uniform(key: Key[Array, ""] | Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return numbers within 1 / sqrt(inputs); `shape` is [L, *inputs, R]."""
    bound = 1 / math.sqrt(math.prod(shape[1:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def layer_by_layer(params: Params, cache: KVCache) -> tuple[Params, KVCache]:
    """Return both with each layer in arrays of its own, so that `decode` runs layers without a scan."""

    def split(stacked: Any) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(stacked)
        return tuple(jax.tree.unflatten(treedef, own) for own in zip(*leaves, strict=True))

    cache = dataclasses.replace(cache, keys=split(cache.keys), values=split(cache.values))
    return {**params, "layers": split(params["layers"])}, cache
