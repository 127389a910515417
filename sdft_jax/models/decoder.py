"""The decoder as pure functions of a parameter tree: full forward, prefill and decoding with a cache.

Layers are stacked and run by one `lax.scan` (`layers`), so that the program does not grow with depth.
Decoding alone runs them one by one on a GPU, and on a CPU if the model is shallow (`layer_by_layer`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from sdft_jax.errors import SdftError
from sdft_jax.kernels.attention import AttentionCall, attention, block_size, token_positions
from sdft_jax.kernels.fused_attention import Kernel, choose_kernel, fused_attention
from sdft_jax.kernels.matmul import matmul
from sdft_jax.kernels.numerics import numerics
from sdft_jax.models.architecture import Architecture, LayerKind
from sdft_jax.models.block import DeltaBlock, block_structure, embedding_scale, rms_norm
from sdft_jax.models.cache import (
    Cache,
    KeysValues,
    State,
    attend_to_shared,
    empty_cache,
    kind_sharding,
    last_layer,
    read_delta,
    replaced,
    separate_states,
    visible_slots,
    write_and_attend,
    write_delta,
    write_prompt,
)
from sdft_jax.models.experts import Decisions, no_decisions, with_decision
from sdft_jax.models.families import SHARING, Tensor
from sdft_jax.models.head import AdaptedHead, CappedHead, Head, UncappedHead, head_logits
from sdft_jax.models.layers import EMBEDDING_OF_LAYER, run_layers, separate_layers
from sdft_jax.models.lora import A, B, is_adapter
from sdft_jax.models.quantize import cast, quantize_params
from sdft_jax.models.rope import query_factors, rope_table
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
batch dimensions, so neither the attention scores nor the float32 products within the delta rule, which are
larger than all others of a delta net; "hidden" the output of attention and the feed-forward's hidden
activations. Only "none" saves the products of experts."""

_NO_WINDOW = jnp.iinfo(jnp.int32).max


LatestKeysValues = tuple[tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]] | None, ...]
"""The keys and values of the last layer of each kind so far; None for a kind that shares those of another."""


class _Carry(NamedTuple):
    """The values that a layer passes to the next one."""

    x: Float[Array, "B T D"]
    states: tuple[State, ...] | None
    decisions: Decisions | None
    latest: LatestKeysValues | None
    """None if no layer after this part shares keys and values, or if it reads them from a state."""


class _Rows(NamedTuple):
    """The tokens that layers read."""

    sequences: Sequences
    positions: Int[Array, "B T"]
    """The position of each token in its row."""
    limits: Int[Array, " B"]
    """The number of tokens that each row may reach."""


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture with the settings that run it; hashable, so static in `jax.jit`.

    Parameters are not part of it: every method takes them as a nested dictionary
    `{"embed": [V, D], "layers": {name: [L, ...]}, "norm": [D], "head": [V, D] unless tied}`, where L are the
    layers that have a parameter of this name; in Gemma 4 E2B and E4B also layer_embed [V, L*A],
    layer_embed_projection [D, L, A] and layer_embed_norm [A], where L are all layers. A tree without the
    adapters of the architecture is the base model.
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
        if self.architecture.has_sinks and self.attention not in ("auto", "xla"):
            raise SdftError(
                f"attention={self.attention!r} does not compute the sinks of "
                f"{self.architecture.family.model_type} models: use auto or xla."
            )

    @property
    def kernel(self) -> Kernel:
        """The attention kernel for whole sequences on this model's devices."""
        if self.architecture.has_sinks:
            return "xla"
        device = self.sharding.device
        head_dim = max(self.architecture.heads_of(kind).dim for kind in self.architecture.kinds)
        return choose_kernel(self.attention, device, self.compute_dtype, head_dim)

    @property
    def platform(self) -> str:
        """The platform of this model's devices, such as `tpu`."""
        return self.sharding.device.platform

    def numerics(self) -> contextlib.AbstractContextManager[None]:
        """Return the context for tracing this model's programs: float32 products have float32 precision."""
        return numerics("float32" if self.compute_dtype == "float32" else None)

    def abstract_params(self, dtype: Any = jnp.float32) -> dict[str, Any]:
        """Return the shapes of the parameters.

        The base of adapters never changes, and has the dtype of the products that read it; quantized
        projections have their own.
        """
        sizes = self.architecture.sizes

        def shape(tensor: Tensor, *leading: int) -> jax.ShapeDtypeStruct:
            trains = self.architecture.lora is None or is_adapter(tensor.name)
            own = tensor.dtype or (dtype if trains else self.compute_dtype)
            return jax.ShapeDtypeStruct((*leading, *tensor.shape(sizes)), own)

        return self._tree(shape, lambda tensor: shape(tensor, len(self.architecture.layers_with(tensor))))

    def logical_axes(self) -> dict[str, Any]:
        """Return the logical axes of each parameter, as `sharding.Rules` names them."""
        return self._tree(lambda tensor: tensor.axes, lambda tensor: (None, *tensor.axes))

    def init(self, key: Key[Array, ""] | Array, dtype: Any = jnp.float32) -> Params:
        """Return random parameters: normal with standard deviation 0.02; norm scales are one, biases zero.

        Of adapters, A is uniform within 1 / sqrt(inputs), and B zero; of the embedding's, A is zero and B
        standard normal, as in PEFT.
        """
        if self.architecture.quantize:
            plain = dataclasses.replace(self.architecture, quantize=None)
            params = dataclasses.replace(self, architecture=plain).init(key, dtype)
            return quantize_params(params, self.architecture.quantize)
        tensors = self._tree(lambda tensor: tensor, lambda tensor: tensor)
        shapes, treedef = jax.tree.flatten(self.abstract_params(dtype))
        keys = jax.random.split(key, len(shapes))

        def initial(tensor: Tensor, key: Array, shape: jax.ShapeDtypeStruct) -> Array:
            bound = 1 / math.sqrt(tensor.stored_shape(self.architecture.sizes)[-1])
            make: dict[str, Callable[..., Array]] = {
                "normal": lambda s: 0.02 * jax.random.normal(key, s.shape, s.dtype),
                "standard": lambda s: jax.random.normal(key, s.shape, s.dtype),
                "uniform": lambda s: jax.random.uniform(key, s.shape, s.dtype, -bound, bound),
                "ones": lambda s: jnp.ones(s.shape, s.dtype),
                "zeros": lambda s: jnp.zeros(s.shape, s.dtype),
            }
            return make[tensor.init](shape)

        return jax.tree.unflatten(treedef, map(initial, jax.tree.leaves(tensors), keys, shapes))

    def hidden_states(
        self, params: Params, sequences: Sequences, limits: Int[Array, " B"] | None = None
    ) -> Float[Array, "B T D"]:
        """Return the hidden states after the final norm; the caller applies the head.

        Args:
            params: the whole parameter tree.
            sequences: [B, T].
            limits: the number of tokens that each row may reach, as in `Cache`; None for the number that it
                has.
        """
        return self._score(params, sequences, limits, None)[0]

    def _score(
        self,
        params: Params,
        sequences: Sequences,
        limits: Int[Array, " B"] | None,
        counts: Bool[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T D"], Decisions | None]:
        """Return the hidden states, and the decisions of the routers if `counts` is given."""
        length = sequences.tokens.shape[1]
        # padding, so that the mesh divides the residual stream
        padding = [(0, 0), (0, -length % self.sharding.size("sequence"))]
        tokens, mask = (jnp.pad(x, padding) for x in (sequences.tokens, sequences.mask))
        self_attention = self._self_attention(mask)

        def attend(state, kind, index, q, k, v, sinks):
            return state, self_attention(kind, q, k, v, sinks)

        limits = _count(mask) if limits is None else limits
        counts = None if counts is None else jnp.pad(counts, padding)
        rows = _Rows(Sequences(tokens, mask), token_positions(mask), limits)
        x, _, decisions = self._run(params, rows, attend, None, counts)
        return x[:, :length], decisions

    def completion_hidden(
        self, params: Params, prompt: Sequences, completion: Sequences
    ) -> Float[Array, "B N D"]:
        """Return the hidden states that predict each completion token: those of the preceding token.

        For example, with a prompt of 3 and a completion of 2 tokens, positions 2 and 3 of 0..4 predict the
        completion.
        """
        whole, limits = _joined(prompt, completion), _limits(prompt, completion)
        return self.hidden_states(params, whole, limits)[:, prompt.tokens.shape[1] - 1 : -1]

    def completion_decisions(
        self,
        params: Params,
        prompt: Sequences,
        completion: Sequences,
        counts: Bool[Array, "B N"],
        limits: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Decisions | None]:
        """Return `completion_hidden`, and the decisions of the routers at the same positions.

        Args:
            params: the whole parameter tree.
            prompt: [B, P].
            completion: [B, N].
            counts: the completion tokens whose predictions count in `Decisions.probabilities`.
            limits: as in `hidden_states`; None for those with which a completion of this width is sampled.

        Returns:
            The hidden states, and the decisions; None for a model without experts.
        """
        before, whole = prompt.tokens.shape[1] - 1, _joined(prompt, completion)
        limits = _limits(prompt, completion) if limits is None else limits
        places = slice(before, before + completion.tokens.shape[1])
        if self.architecture.experts is None:
            return self.hidden_states(params, whole, limits)[:, places], None
        counts = jnp.pad(counts, [(0, 0), (before, 1)])
        hidden, decisions = self._score(params, whole, limits, counts)
        assert decisions is not None
        experts, entropy = decisions.experts[:, :, places], decisions.entropy[:, places]
        return hidden[:, places], dataclasses.replace(decisions, experts=experts, entropy=entropy)

    def head(self, params: Params) -> Head:
        """Return the output matrix, which is the embedding in a tree without one, its adapter and softcap."""
        matrix, lora = params.get("head", params["embed"]), self.architecture.lora
        head: UncappedHead = matrix
        if lora is not None and "head" + A in params:
            head = AdaptedHead(matrix, lora.scale * params["head" + A], params["head" + B])
        softcap = self.architecture.softcap
        return head if softcap is None else CappedHead(head, softcap)

    def logits(self, params: Params, sequences: Sequences) -> Float[Array, "B T V"]:
        """Return the next-token logits at every position, accumulated in float32."""
        with self.numerics():
            return head_logits(self.hidden_states(params, sequences), self.head(params))

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> Cache:
        """Return an empty cache for `length` tokens, in the compute dtype unless `dtype` is given."""
        return empty_cache(self.architecture, batch, length, dtype or self.compute_dtype, self.sharding)

    def prefill(
        self, params: Params, prompt: Sequences, cache_length: int, new_tokens: int | None = None
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Return the hidden states of left-padded prompts and a cache of them for `cache_length` tokens.

        `new_tokens` is the maximum number of tokens after the prompts; None for that of the cache, which may
        grow.
        """
        self_attention = self._self_attention(prompt.mask)
        batch, length = prompt.tokens.shape

        def attend(state, kind, index, q, k, v, sinks):
            if index is not None:
                state = write_prompt(state, index, k, v, self._sharding_of(kind))
            return state, self_attention(kind, q, k, v, sinks)

        empty = self.init_cache(batch, cache_length).states
        count = _count(prompt.mask)
        limits = count + (cache_length - length if new_tokens is None else new_tokens)
        rows = _Rows(prompt, token_positions(prompt.mask), limits)
        hidden, states, _ = self._run(params, rows, attend, empty)
        return hidden, Cache(states, jnp.int32(length), count, limits)

    def decode(
        self, params: Params, tokens: Int[Array, " B"], cache: Cache, real: Bool[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Return the hidden state of one new token per row, and the cache with it.

        Args:
            params: the whole parameter tree.
            tokens: the new tokens.
            cache: the state before them.
            real: False for rows that have ended, whose token is padding: they cannot go on later, and their
                hidden state means nothing. None if all rows go on.
        """
        real = jnp.ones(tokens.shape, bool) if real is None else real
        visible = [
            visible_slots(state, cache) if isinstance(state, KeysValues) else None for state in cache.states
        ]
        scale = self.architecture.query_scale

        def attend(state, kind, index, q, k, v, sinks):
            if index is None:
                return state, attend_to_shared(k, v, q, visible[kind], scale, self._sharding_of(kind))
            call = AttentionCall(q, k, v, visible[kind], None, scale, sinks)
            return write_and_attend(state, index, cache.length, call, self._sharding_of(kind))

        token = Sequences(tokens[:, None], real[:, None])
        rows = _Rows(token, cache.positions[:, None], cache.limits)
        hidden, states, _ = self._run(params, rows, attend, cache.states, shared_in_states=True)
        return hidden[:, 0], Cache(states, cache.length + 1, cache.positions + real, cache.limits)

    def layer_by_layer(self, params: Params, cache: Cache) -> tuple[Params, Cache]:
        """Return both with each layer in arrays of its own, so that `decode` runs layers without a scan."""
        layers = separate_layers(self.architecture.of_tree(params), params["layers"])
        return {**params, "layers": layers}, separate_states(cache)

    def _self_attention(self, mask: Bool[Array, "B T"]) -> Callable[..., Any]:
        """Return a function (kind, q, k, v, sinks) -> attention of each token to real tokens up to itself."""
        kernel, scale = self.kernel, self.architecture.query_scale
        block = block_size(self.platform)

        def fused(kind, q, k, v):
            call = AttentionCall(q, k, v, mask, self._window(kind), scale)
            return fused_attention(call, kernel, self._sharding_of(kind))

        branches = [functools.partial(fused, kind) for kind in range(len(self.architecture.kinds))]

        def self_attention(kind, q, k, v, sinks):
            with jax.named_scope("self_attention"):
                if kernel == "xla":
                    return attention(AttentionCall(q, k, v, mask, self._window(kind), scale, sinks), block)
                if isinstance(kind, int):
                    return branches[kind](q, k, v)
                return jax.lax.switch(kind, branches, q, k, v)

        return self_attention

    def _sharding_of(self, kind: Int[Array, ""] | int) -> Sharding:
        """Return the sharding inside a kind of layer; kinds that differ in it are static."""
        kinds = self.architecture.kinds
        return kind_sharding(kinds[kind if isinstance(kind, int) else 0], self.sharding)

    def _window(self, kind: Int[Array, ""] | int) -> Int[Array, ""] | int | None:
        """Return the sliding window of a kind of layer, or None if it has none, or no layer has one."""
        windows = [layer.window for layer in self.architecture.kinds]
        if isinstance(kind, int):
            return windows[kind]
        if not any(windows):
            return None
        return jnp.array([window or _NO_WINDOW for window in windows], jnp.int32)[kind]

    def _embed(self, params: Params, tokens: Array) -> Array:
        """Look tokens up on the devices that hold their embeddings, then move the result to the rows'
        devices.

        Without the first pair of constraints the compiler replicates the intermediate result on every device.
        """
        lookup = self._lookup
        tokens = constrain(tokens, lookup, "batch", "sequence")

        def rows(name: str, width: str | None) -> Array:
            found = params[name][tokens].astype(self.compute_dtype)
            return constrain(found, lookup, "batch", "sequence", width)

        x, lora = rows("embed", "embed"), self.architecture.lora
        if lora is not None and "embed" + A in params:
            b = params["embed" + B].astype(self.compute_dtype)
            added = lora.scale * matmul("btr,rd->btd", rows("embed" + A, None), b, self.platform)
            x += constrain(added, lookup, "batch", "sequence", "embed")
        x = constrain(x, self.sharding, "batch", "sequence", "activation")
        scale = embedding_scale(self.architecture, x.dtype)
        return x if scale is None else x * scale

    def _layer_embeddings(
        self, params: Params, tokens: Int[Array, "B T"], x: Float[Array, "B T D"]
    ) -> Float[Array, "L B T A"]:
        """Return the embeddings of the tokens for each layer (Gemma 4 E2B and E4B).

        They are (projection + row) / sqrt(2), of a normalized projection of the usual embedding x, and a row
        of the table times sqrt(A).
        """
        width, lookup, dtype = self.architecture.layer_embedding, self._lookup, x.dtype
        tokens = constrain(tokens, lookup, "batch", "sequence")
        rows = constrain(params["layer_embed"][tokens].astype(dtype), lookup, "batch", "sequence", "embed")
        rows = constrain(rows, self.sharding, "batch", "sequence", None)
        rows = rows.reshape(*tokens.shape, -1, width)
        projection = params["layer_embed_projection"].astype(dtype)
        projected = matmul("btd,dla->btla", x, projection, self.platform).astype(jnp.float32)
        projected = (projected * self.architecture.hidden_size**-0.5).astype(dtype)
        projected = constrain(projected, self.sharding, "batch", "sequence", None, None)
        normed = rms_norm(projected, params["layer_embed_norm"].astype(dtype), self.architecture)
        both = normed + rows * jnp.asarray(math.sqrt(width), dtype)
        return jnp.moveaxis((both.astype(jnp.float32) * 2**-0.5).astype(dtype), 2, 0)

    @property
    def _lookup(self) -> Sharding:
        """The sharding of rows that are looked up in an embedding, on the devices that hold them."""
        lookup = release_axes(self.sharding, "embed", "batch", "sequence")
        return release_axes(lookup, "vocab", "batch", "sequence")

    def _run(
        self,
        params: Params,
        rows: _Rows,
        attend: Callable[..., Any],
        states: tuple[State, ...] | None,
        counts: Array | None = None,
        shared_in_states: bool = False,
    ) -> tuple[Array, Any, Decisions | None]:
        """Embed, run the layers and apply the final norm.

        Args:
            params: the whole parameter tree.
            rows: the tokens and their positions.
            attend: (state, kind, index, q, k, v, sinks) -> (state, attended), of the index-th layer of a
                kind; of a layer that shares keys and values, the index is None.
            states: the states of each kind, which `attend` reads and updates; None without states.
            counts: [B, T], the tokens that count in the decisions of routers; None to return no decisions.
            shared_in_states: True if layers that share keys and values get those in the states, of all tokens
                so far, with the layout of `cache.last_layer`.
        """
        config, tokens = self.architecture, rows.sequences.tokens
        of_tree, decisions = config.of_tree(params), None
        if counts is not None and config.experts:
            decisions = no_decisions(len(config.layers_with_experts), tokens.shape, config.experts)
        learning = states is None and self.remat != "none"
        run_layer = self._run_layer(of_tree, rows, attend, counts, states is not None)
        if learning:
            run_layer = _checkpointed(run_layer, REMAT_POLICIES[self.remat])
        x, layers, latest = self._embed(params, tokens), params["layers"], None
        if config.layer_embedding:
            embed = jax.checkpoint(self._layer_embeddings) if learning else self._layer_embeddings
            layers = _with_embeddings(layers, embed(params, tokens, x))
        for part in of_tree.parts:
            if shared_in_states and part.start:
                latest = self._latest_in(states)
            run_part = functools.partial(run_layer, latest)
            is_last = part.stop == config.num_hidden_layers
            latest = None if is_last or shared_in_states else self._no_keys_values(tokens.shape)
            carry = _Carry(x, states, decisions, latest)
            x, states, decisions, latest = run_layers(
                of_tree, run_part, carry, layers, part, states is not None
            )
        return rms_norm(x, params["norm"].astype(self.compute_dtype), config), states, decisions

    def _run_layer(
        self,
        of_tree: Architecture,
        rows: _Rows,
        attend: Callable[..., Any],
        counts: Array | None,
        with_states: bool,
    ) -> Callable[..., _Carry]:
        """Return a function (shared, carry, parameters, kind, index, layer) -> carry that runs one layer.

        `shared` has the keys and values of the part before; the other arguments are those of
        `layers.RunLayer`, and those of this method are as in `_run`.
        """
        config, dtype = self.architecture, jnp.dtype(self.compute_dtype)
        (sequences, positions, limits), sparse = rows, config.layers_with_experts
        decoding = with_states and sequences.tokens.shape[1] == 1
        structures = [
            block_structure(of_tree, kind_sharding(kind, self.sharding), decoding, kind)
            for kind in config.kinds
        ]
        ropes = [rope_table(k.rope, config.heads_of(k).dim, positions, limits) for k in config.kinds]
        factors = query_factors([kind.rope for kind in config.kinds], positions)
        # in layers with parameters of their own, the kind is static, and head dimensions may differ
        stacked_ropes = [jnp.stack(tables) for tables in zip(*ropes, strict=True)] if of_tree.uniform else []

        def run_layer(shared, carry, weights, kind, index, layer):
            x, states, decisions, latest = carry
            static = isinstance(kind, int)
            shares_keys = static and config.kinds[kind].shares_keys
            weights = cast({name.removeprefix(SHARING): own for name, own in weights.items()}, dtype)
            embedding = weights.pop(EMBEDDING_OF_LAYER, None)
            block = nnx.merge(structures[kind if static else 0], weights)
            owner = config.owner_of(kind) if static else kind
            state = None if states is None else states[owner]
            if isinstance(block, DeltaBlock):
                x, routing, new = block(x, sequences.mask, read_delta(state, index) if state else None)
                state = write_delta(state, index, new, self.sharding) if state else None
            else:
                cos, sin = ropes[kind] if static else (stack[kind] for stack in stacked_ropes)
                q, k, v, *gate = block.project(x, cos, sin)
                q = q if factors is None else q * factors[kind].astype(dtype)
                if shares_keys:
                    index, (k, v) = None, shared[owner]
                elif state is not None:  # padding leaves no trace in it
                    k, v = (jnp.where(sequences.mask[:, :, None, None], x, 0) for x in (k, v))
                if latest is not None and not shares_keys:
                    latest = replaced(latest, kind, (k, v))
                state, attended = attend(state, owner, index, q, k, v, block.attention_sinks)
                x, routing = block.combine(x, attended, *gate, embedding=embedding)
            if decisions is not None and routing is not None:
                index = jnp.searchsorted(jnp.array(sparse), layer)
                decisions = with_decision(decisions, index, routing, counts)
            return _Carry(x, states and replaced(states, owner, state), decisions, latest)

        return run_layer

    def _latest_in(self, states: Any) -> LatestKeysValues:
        """Return the keys and values of the last layer of each kind, as decoding reads them."""
        return tuple(
            last_layer(state, self._sharding_of(kind)) if isinstance(state, KeysValues) else None
            for kind, state in enumerate(states)
        )

    def _no_keys_values(self, shape: tuple[int, ...]) -> LatestKeysValues:
        """Return zeros in place of keys and values of tokens [B, T] before the first layer."""

        def zeros(kind: LayerKind) -> Float[Array, "B T K H"]:
            heads = self.architecture.heads_of(kind)
            inner = release_axes(kind_sharding(kind, self.sharding), "kv_heads", "batch", "sequence")
            empty = jnp.zeros((*shape, heads.count, heads.dim), self.compute_dtype)
            return constrain(empty, inner, "batch", "sequence", "kv_heads", None)

        return tuple(
            None if kind.shares_keys else (zeros(kind), zeros(kind)) for kind in self.architecture.kinds
        )

    def _tree(self, outer: Callable[..., Any], inner: Callable[..., Any]) -> dict[str, Any]:
        """Return the parameter tree with `outer(tensor)` outside and `inner(tensor)` inside the layers."""
        tree = {tensor.name: outer(tensor) for tensor in self.architecture.outer_tensors}
        tree["layers"] = {tensor.name: inner(tensor) for tensor in self.architecture.layer_tensors}
        return tree


def _joined(prompt: Sequences, completion: Sequences) -> Sequences:
    """Return prompts and their completions as one sequence each."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), prompt, completion)


def _limits(prompt: Sequences, completion: Sequences) -> Int[Array, " B"]:
    """Return the numbers of tokens that rows may reach with which a completion of this width is sampled."""
    return _count(prompt.mask) + completion.tokens.shape[1]


def _count(mask: Bool[Array, "B T"]) -> Int[Array, " B"]:
    """Return the number of real tokens of each row."""
    return jnp.sum(mask, axis=1, dtype=jnp.int32)


def _with_embeddings(layers: Any, embeddings: Float[Array, "L B T A"]) -> Any:
    """Return the parameters of layers, stacked or a tuple, with the embeddings for each layer."""
    if isinstance(layers, tuple):
        return tuple({**own, EMBEDDING_OF_LAYER: x} for own, x in zip(layers, embeddings, strict=True))
    return {**layers, EMBEDDING_OF_LAYER: embeddings}


def _checkpointed(run_layer: Callable[..., _Carry], policy: Any) -> Callable[..., _Carry]:
    """Return the function with a backward pass that recomputes what the policy does not save."""

    def run(shared, carry, weights, kind, index, layer):
        own = functools.partial(run_layer, kind=kind, index=index, layer=layer)
        # the compiler would merge the two passes outside a scan, which keeps them apart in two loops
        outside = isinstance(layer, int)
        return jax.checkpoint(own, policy=policy, prevent_cse=outside)(shared, carry, weights)

    return run
