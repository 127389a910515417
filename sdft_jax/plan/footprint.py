"""The arrays in a device's memory during an update or an evaluation, and their sizes.

Everything follows from shapes and the mesh; nothing is compiled or run. The sum is a lower bound, since it
excludes the compiler's own temporary arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdft_jax.algorithm.learner import make_learner
from sdft_jax.algorithm.state import abstract_state
from sdft_jax.config import Config
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.data import padded_width
from sdft_jax.data.encoding import Encoded
from sdft_jax.data.lazy_rows import longest
from sdft_jax.kernels.attention import block_size
from sdft_jax.kernels.numerics import bits
from sdft_jax.models import Model
from sdft_jax.models.cache import state_shardings
from sdft_jax.models.families import (
    DELTA_PROJECTIONS,
    FULL,
    LAYER_EMBEDDINGS,
    LAYER_INPUT,
    LOGICAL_AXES,
    SHARED_GATE,
    SHARING,
)
from sdft_jax.models.gated_delta import CHUNK
from sdft_jax.models.lora import is_adapter
from sdft_jax.sampling.layout import decoding_model
from sdft_jax.sharding import Sharding, release_axes, tree_shardings
from sdft_jax.types import NO_STOP, Params, TrainState

GIB = 2.0**30
ALWAYS = "always"

DEPENDS_ON = {
    "frozen parameters": "mesh.fsdp, mesh.tensor, model.compute_dtype, lora.quantize",
    "parameters": "mesh.fsdp, mesh.tensor, model.param_dtype",
    "optimizer": "mesh.fsdp, mesh.tensor, optimizer.name, optimizer.moments, optimizer.freeze, lora.rank",
    "teacher": "mesh.fsdp, mesh.tensor, teacher.dtype, teacher.schedule=live",
    "base model": "mesh.fsdp, mesh.tensor, model.param_dtype",
    "gradients": "mesh.fsdp, mesh.tensor, model.param_dtype, optimizer.freeze, lora.rank",
    "activations": "train.micro_batch, model.remat, sharding.sequence, data.max_prompt",
    "logits": "divergence.chunk, mesh.tensor",
    "decoding weights": "mesh.fsdp, mesh.tensor, model.compute_dtype",
    "KV cache": "train.batch_size, sampling.max_new_tokens, data.max_prompt, mesh.tensor",
    "prefill": "train.batch_size, data.max_prompt, mesh.tensor",
    "evaluation KV cache": "eval.batch_size, eval.max_new_tokens, data.max_prompt, mesh.tensor",
    "evaluation prefill": "eval.batch_size, data.max_prompt, mesh.tensor",
}
"""Kind of array -> the settings that its size depends on."""


@dataclass(frozen=True)
class ArrayFootprint:
    """An array, and its size on one device."""

    kind: str
    """A key of `DEPENDS_ON`."""
    name: str
    shape: tuple[int, ...]
    """The shape of the whole array."""
    dtype: str
    bytes: int
    """Bytes on one device."""
    phase: str = ALWAYS
    """The phase in which the array exists: `always`, `rollout`, `learn` or `evaluation`."""


Count = Callable[[Config, Model], Sequence[ArrayFootprint]]
"""A function that returns the arrays of a configuration and its model."""


class Widths(NamedTuple):
    """The padded lengths of the longest rows, in tokens."""

    prompt: int
    teacher: int
    completion: int = 0
    """The length of given completions; 0 if completions are sampled."""


def widest(config: Config) -> Widths:
    """Return the maximum lengths that a configuration allows."""
    method = config.method
    prompt = max(config.data.prompt_buckets, default=config.data.max_prompt)
    teacher = max(config.data.teacher_buckets, default=config.data.max_teacher_prompt)
    completion = config.sampling.max_new_tokens if method.target else 0
    if method.target == "text":
        prompt, completion = 1, config.data.max_teacher_prompt
    return Widths(*map(padded_width, (prompt, teacher if method.context else 0, completion)))


def widths_of(*parts: Sequence[Encoded]) -> Widths:
    """Return the padded lengths of the longest rows of all parts; 0 if there are no rows."""
    columns = zip(*map(longest, [(), *parts]), strict=True)
    return Widths(*(padded_width(max(column)) for column in columns))


def update_arrays(config: Config, model: Model, widths: Widths | None = None) -> list[ArrayFootprint]:
    """Return the arrays of a training run: its state, and the arrays of sampling and learning.

    Args:
        config: the configuration of the run.
        model: its sharding determines the sizes on a device.
        widths: the lengths of the rows; None for the maximum lengths that the configuration allows.
    """
    widths, method = widths or widest(config), config.method
    state = _abstract_state(config, model)
    completion = config.sampling.max_new_tokens if method.sampler else widths.completion
    rows = config.train.micro_batch or config.train.batch_size
    whole = max(widths.prompt, widths.teacher) + completion
    arrays = [
        *_state_arrays(state),
        *_gradients(config, state.params),
        *_activations(model, rows, widths.prompt + completion, whole),
        *_logits(config.divergence, model, rows * completion, 2 if method.teacher else 1),
    ]
    if method.sampler:
        prompt = widths.teacher if method.sampler == "teacher" else widths.prompt
        arrays += _decoding("rollout", model, config.train.batch_size, prompt, completion)
    return arrays


def answer_arrays(
    config: Config, model: Model, widths: Widths, *, training: bool, base: bool = False
) -> list[ArrayFootprint]:
    """Return the arrays of an evaluation.

    Args:
        config: the configuration of the run.
        model: its sharding determines the sizes on a device.
        widths: the lengths of the evaluation's rows.
        training: count the whole training state instead of the parameters alone.
        base: also count the base model's parameters, unless they are the frozen base of adapters.
    """
    params = _abstract_params(model, config.model.param_dtype, model.sharding)
    completion = config.eval.max_new_tokens or config.sampling.max_new_tokens
    prompt = max(widths.prompt, widths.teacher)
    return [
        *(_state_arrays(_abstract_state(config, model)) if training else _tree("parameters", ALWAYS, params)),
        *_decoding("evaluation", model, config.eval.batch_size, prompt, completion),
        *(_tree("base model", "evaluation", params) if base and not config.lora.rank else []),
    ]


def by_kind(arrays: Iterable[ArrayFootprint]) -> dict[str, float]:
    """Return kind -> bytes on a device."""
    sizes: dict[str, float] = {}
    for array in arrays:
        sizes[array.kind] = sizes.get(array.kind, 0.0) + array.bytes
    return sizes


def peak_phase(arrays: Iterable[ArrayFootprint]) -> tuple[str, float]:
    """Return the phase that needs the most memory, and its bytes on a device with those of `always`."""
    sizes: dict[str, float] = {}
    for array in arrays:
        sizes[array.phase] = sizes.get(array.phase, 0.0) + array.bytes
    always = sizes.pop(ALWAYS, 0.0)
    phase = max(sizes, key=lambda name: sizes[name], default=ALWAYS)
    return phase, always + sizes.get(phase, 0.0)


def state_arrays(config: Config, model: Model) -> list[ArrayFootprint]:
    """Return the arrays of the training state, which are in memory during the whole run."""
    return _state_arrays(_abstract_state(config, model))


def least_arrays(config: Config, model: Model) -> list[ArrayFootprint]:
    """Return arrays that an update certainly holds at one time: its state and, if it samples, the KV cache of
    the shortest prompts.
    """
    arrays = state_arrays(config, model)
    if config.method.sampler:
        slots = padded_width(1) + config.sampling.max_new_tokens
        arrays += _cache("KV cache", "rollout", model, config.train.batch_size, slots)
    return arrays


def decoded_bytes(model: Model) -> int:
    """Return the bytes of the weights on a device that decoding reads for each token: all but the table of
    embeddings for each layer.
    """
    weights = _decoding_weights(model)
    read = {name: leaf for name, leaf in weights.items() if name != LAYER_EMBEDDINGS[0].name}
    return sum(array.bytes for array in _tree("decoding weights", ALWAYS, read))


def as_size(size: float) -> str:
    """Return a number of bytes with its unit, such as `9.69 GiB`."""
    for name, unit in (("TiB", 2.0**40), ("GiB", GIB), ("MiB", 2.0**20)):
        if size >= unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size / 2**10:.1f} KiB"


def _abstract_state(config: Config, model: Model) -> TrainState:
    # shapes depend neither on the number of steps nor on the stop tokens
    return abstract_state(make_learner(config, model, 1, NO_STOP))


def _abstract_params(model: Model, dtype: Any, sharding: Sharding) -> Any:
    """Return the shapes of the parameters with their shardings."""
    shapes = model.abstract_params(dtype)
    shardings = tree_shardings(sharding, model.logical_axes(), shapes)
    return jax.tree.map(
        lambda x, placement: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), shapes, shardings
    )


def _state_arrays(state: TrainState) -> list[ArrayFootprint]:
    return [
        *_tree("frozen parameters", ALWAYS, state.frozen),
        *_tree("parameters", ALWAYS, state.params),
        *_tree("optimizer", ALWAYS, state.opt_state),
        *_tree("teacher", ALWAYS, state.teacher),
    ]


def _gradients(config: Config, params: Any) -> list[ArrayFootprint]:
    """Return the gradients, which are float32 while micro-batches are added."""
    if config.train.micro_batch in (None, config.train.batch_size):
        return _tree("gradients", "learn", params)
    sums = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), params)
    return _tree("gradients", "learn", sums)


def _tree(kind: str, phase: str, tree: Any) -> list[ArrayFootprint]:
    """Return each array of a tree of shapes with shardings, named by its path."""
    return [
        ArrayFootprint(
            kind,
            _name(path),
            tuple(leaf.shape),
            str(leaf.dtype),
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * bits(leaf.dtype) // 8,
            phase,
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _name(path: Sequence[Any]) -> str:
    """Return the attributes, then the keys of a path, such as `mu layers/gate`, without indices of tuples."""
    attributes = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return " ".join([*attributes, *(["/".join(keys)] if keys else [])])


class _Intermediate(NamedTuple):
    """A result inside a program."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    """Logical axes, as `sharding.Rules` names them."""

    def bytes_on(self, sharding: Sharding) -> int:
        """Return the bytes on one device, rounded up: the compiler pads dimensions that the mesh does not
        divide.
        """
        # `batch` and `sequence` release the mesh axes of the last axis, as in the model's constraints
        owner = next((axis for axis in reversed(self.axes) if axis), "batch")
        inner = release_axes(sharding, owner, *({"batch", "sequence"} - {owner}))
        parts = [1 if axis is None else inner.size(axis) for axis in self.axes]
        local = [-(-size // count) for size, count in zip(self.shape, parts, strict=True)]
        return math.prod(local) * jnp.dtype(self.dtype).itemsize


def _intermediates(
    kind: str, phase: str, model: Model, arrays: Iterable[_Intermediate]
) -> list[ArrayFootprint]:
    return [ArrayFootprint(kind, x.name, x.shape, x.dtype, x.bytes_on(model.sharding), phase) for x in arrays]


_ATTENTION_PRODUCTS = {"q": "queries", "k": "keys", "v": "values", "o": "attention output"}
_OUTPUT = "feed-forward output"
_PRODUCTS = {
    **_ATTENTION_PRODUCTS,
    **{FULL + name: f"full attention: {product}" for name, product in _ATTENTION_PRODUCTS.items()},
    "gate": "gate",
    "up": "up",
    "down": _OUTPUT,
    SHARED_GATE.name: "gate of the shared expert",
    "layer_input_gate": "gate of the embedding for a layer",
    "layer_input_projection": "projected embedding for a layer",
    "qkv": "queries, keys and values",
    "gate_up": "gate and up",
    "delta_qkv": "delta queries, keys and values",
    "delta_z": "delta gate",
    "delta_b": "delta learning rate",
    "delta_a": "delta decay",
    "delta_o": "delta output",
}
"""Weight of a layer -> its matrix product."""

_ARGUMENTS = {
    "o": "attended values",
    FULL + "o": "full attention: attended values",
    "delta_o": "delta values",
    "down": "feed-forward hidden",
}
"""Weight of a layer -> the activation that it reads, which has a name for rematerialization."""

_SAVED: dict[str, tuple[dict[str, str], ...]] = {
    "full": (),
    "hidden": (_ARGUMENTS,),
    "dots_no_batch": (_PRODUCTS,),
    "dots": (_PRODUCTS,),
    "none": (_PRODUCTS, _ARGUMENTS),
}
"""Key of `models.REMAT_POLICIES` -> the activations that each layer saves for its backward pass, beside its
input. "none" saves more than these, and "dots" also the products of the delta rule, which `_delta_products`
counts, and the scores of plain JAX attention, which nothing counts."""


def _activation(model: Model, name: str, letters: str, layers: int, rows: int, length: int) -> _Intermediate:
    """Return an activation of all layers that have it, [layers, rows, length, ...]."""
    axes = ["activation" if letter == "D" else LOGICAL_AXES[letter] for letter in letters]
    shape = (layers, rows, length, *(model.architecture.sizes[letter] for letter in letters))
    return _Intermediate(name, shape, model.compute_dtype, (None, "batch", "sequence", *axes))


def _saved(model: Model, rows: int, length: int) -> Iterator[_Intermediate]:
    """Yield the activations that layers save; the last product only if a norm or a gate follows."""
    architecture = model.architecture.plain
    output_is_read = {"post_mlp_norm", SHARED_GATE.name} & {x.name for x in architecture.layer_tensors}
    yield _activation(model, "inputs", "D", architecture.num_hidden_layers, rows, length)
    if architecture.layer_embedding:
        yield _embeddings_for_layers(model, rows, length)
        yield _activation(model, "inputs of the embeddings", "D", 1, rows, length)
    yield from _shared_keys_values(model, rows, length)
    others = {tensor.name for tensor in (*LAYER_INPUT[:2], SHARED_GATE)}
    matrices = [
        tensor
        for tensor in architecture.layer_tensors
        if tensor in architecture.projections or tensor.name.removeprefix(SHARING) in others
    ]
    for names in _SAVED[model.remat]:
        for weight in matrices:
            inputs, _, outputs = weight.dims.partition(">")
            name = names.get(weight.name.removeprefix(SHARING))
            if name and (output_is_read or name != _OUTPUT):
                letters, layers = inputs if names is _ARGUMENTS else outputs, architecture.layers_with(weight)
                yield _activation(model, name, letters, len(layers), rows, length)
    if architecture.experts and _PRODUCTS in _SAVED[model.remat]:
        shape = (len(architecture.layers_with_experts), rows, length, architecture.experts.count)
        yield _Intermediate("router", shape, "float32", (None, "batch", "sequence", None))
    if model.remat == "none" and architecture.experts:
        count, choices = len(architecture.layers_with_experts), length * architecture.experts.per_token
        gathered = rows * model.sharding.size("experts")
        parts = {"inputs": "D", "gate": "M", "up": "M", "hidden": "M", "outputs": "D"}
        for part, letter in parts.items():
            yield _activation(model, f"expert {part}", letter, count, gathered, choices)
    if model.remat == "dots" and architecture.delta:
        nets = len(architecture.layers_with(DELTA_PROJECTIONS[0]))
        for product in _delta_products(model, rows, length):
            yield product._replace(shape=(nets, *product.shape), axes=(None, *product.axes))


def _embeddings_for_layers(model: Model, rows: int, length: int) -> _Intermediate:
    return _activation(model, "embeddings", "A", model.architecture.num_hidden_layers, rows, length)


def _shared_keys_values(model: Model, rows: int, length: int) -> Iterator[_Intermediate]:
    """Yield the keys and values that other layers read, those of one layer of a kind."""
    config = model.architecture
    sharing = [kind for kind, own in enumerate(config.kinds) if own.shares_keys]
    for owner in sorted(map(config.owner_of, sharing)):
        kind = config.kinds[owner]
        heads, full = config.heads_of(kind), kind.heads is not None
        shape = (1, rows, length, heads.count, heads.dim)
        axes = (None, "batch", "sequence", "full_kv_heads" if full else "kv_heads", None)
        for name in ("keys", "values"):
            label = f"{'full attention: ' if full else ''}shared {name}"
            yield _Intermediate(label, shape, model.compute_dtype, axes)


def _delta_products(model: Model, rows: int, length: int) -> list[_Intermediate]:
    """Return the products of the gated delta rule in one layer, of which the matrices are the last ones."""
    sizes = model.architecture.delta
    assert sizes is not None
    chunk = min(CHUNK, length)
    arrays = {
        "delta sums of decays": (chunk, chunk),
        "delta keys with keys": (chunk, chunk),
        "delta queries with keys": (chunk, chunk),
        "delta values read by keys": (chunk, sizes.value_dim),
        "delta values read by queries": (chunk, sizes.value_dim),
        "delta values of a chunk": (chunk, sizes.value_dim),
        "delta matrices": (sizes.key_dim, sizes.value_dim),
    }
    outer, axes = (-(-length // chunk), rows, sizes.value_heads), (None, "batch", "heads", None, None)
    return [_Intermediate(name, (*outer, *shape), "float32", axes) for name, shape in arrays.items()]


def _activations(model: Model, rows: int, length: int, longest: int) -> list[ArrayFootprint]:
    """Return the activations that all layers save for the backward pass, and the largest within one layer.

    Args:
        model: its `remat` determines what is saved.
        rows: the number of rows in a micro-batch.
        length: the number of tokens in the student's prompt and completion.
        longest: the same for the role with the longer prompt.
    """
    saved = [x._replace(name=f"{x.name} of all layers") for x in _saved(model, rows, length)]
    if model.architecture.layer_embedding:
        gradient = _embeddings_for_layers(model, rows, length)
        saved.append(gradient._replace(name="gradient of the embeddings for all layers"))
    within = _within_layer(model, rows, longest)
    if model.architecture.delta:
        delta = [*_within_delta_net(model, rows, length), within[-1]]
        within = max(delta, within, key=lambda arrays: sum(x.bytes_on(model.sharding) for x in arrays))
    return _intermediates("activations", "learn", model, [*saved, *within])


def _within_layer(model: Model, rows: int, length: int) -> list[_Intermediate]:
    """Return the largest arrays within one layer on whole sequences; that of the feed-forward is the last."""
    experts, arrays = model.architecture.experts, []
    if model.architecture.has_dense:
        letter = "U" if any(kind.wide for kind in model.architecture.kinds) else "F"
        arrays.append(_activation(model, "feed-forward hidden of a layer", letter, 1, rows, length))
    if experts:
        # a device has the rows of all devices that hold other experts
        choices, gathered = length * experts.per_token, rows * model.sharding.size("experts")
        arrays.append(_activation(model, "expert inputs of a layer", "D", 1, gathered, choices))
        arrays.append(_activation(model, "expert hidden of a layer", "M", 1, gathered, choices))
        weights = (3, experts.count, model.architecture.hidden_size, experts.width)
        split = (None, None, "experts", None, "mlp")
        arrays.append(_Intermediate("experts of a layer", (1, *weights), model.compute_dtype, split))
    arrays = [array._replace(shape=array.shape[1:], axes=array.axes[1:]) for array in arrays]
    if model.kernel == "xla":  # the other kernels never store the scores
        block = min(block_size(model.platform), length)
        shape = (rows, model.architecture.num_attention_heads, block, length)
        axes = ("batch", "heads", None, None)
        arrays.insert(0, _Intermediate("attention scores of a layer", shape, "float32", axes))
    return arrays


def _within_delta_net(model: Model, rows: int, length: int) -> list[_Intermediate]:
    """Return the largest arrays that the backward pass of a delta net reads."""
    sizes = model.architecture.delta
    assert sizes is not None
    shape = (rows, length, sizes.value_heads, 2 * sizes.key_dim + sizes.value_dim)
    name, axes = "delta queries, keys and values of a layer", ("batch", "sequence", "heads", None)
    # as many as chunks: the matrix before each
    matrices = _delta_products(model, rows, length)[-1]._replace(name="delta matrices of a layer")
    return [_Intermediate(name, shape, "float32", axes), matrices]


def _logits(options: DivergenceConfig, model: Model, tokens: int, roles: int) -> list[ArrayFootprint]:
    """Return the logits of a chunk for each role, their gradient, and the gradient of the head.

    Args:
        options: the settings with the chunk size.
        model: the model with the vocabulary and its sharding.
        tokens: the number of completion tokens in a micro-batch.
        roles: 2 for student and teacher, 1 for the student alone.
    """
    sizes = model.architecture.sizes
    parts = model.sharding.size("batch") * model.sharding.size("sequence")
    chunk = min(options.chunk, max(tokens // parts, 1))  # each device's own tokens
    shape = (chunk, sizes["V"])
    names = [*["student", "teacher"][:roles], "gradient"]
    arrays = [_Intermediate(f"of a chunk, {name}", shape, "float32", (None, "vocab")) for name in names]
    if model.architecture.lora:  # the head does not train
        return _intermediates("logits", "learn", model, arrays)
    head = (sizes["V"], sizes["D"])
    gradient = _Intermediate("of the head, gradient", head, "float32", ("vocab", None))
    return _intermediates("logits", "learn", model, [*arrays, gradient])


def _decoding_weights(model: Model) -> Params:
    """Return the parameters as decoding reads them, copied or not."""
    return _abstract_params(model, model.compute_dtype, decoding_model(model).sharding)


def _copied_for_decoding(model: Model) -> Params:
    """Return the parameters that are copied for decoding.

    The base of adapters already has the compute dtype, and is copied only if it moves to other devices.
    """
    weights = _decoding_weights(model)
    if model.architecture.lora is None:
        return weights
    stored = _abstract_params(model, model.compute_dtype, model.sharding)

    def copied(path: Any, weight: Any, before: Any) -> Any:
        stays = weight.sharding.is_equivalent_to(before.sharding, len(weight.shape))
        return None if stays and not is_adapter(path[-1].key) else weight

    return jax.tree_util.tree_map_with_path(copied, weights, stored)


def _decoding(phase: str, model: Model, rows: int, prompt: int, completion: int) -> list[ArrayFootprint]:
    """Return the weights and the KV cache for decoding, and the largest arrays of the prefill.

    Args:
        phase: `rollout` or `evaluation`.
        model: the model for training.
        rows: the number of rows in a batch.
        prompt: the number of tokens in a prompt.
        completion: the maximum number of tokens in a completion.
    """
    prefix = "evaluation " if phase == "evaluation" else ""
    shape = (rows, model.architecture.vocab_size)
    logits = _Intermediate("logits of a token", shape, "float32", ("batch", "vocab"))
    prefill = [*_within_layer(model, rows, prompt), logits]
    if model.architecture.layer_embedding:
        prefill.append(_embeddings_for_layers(model, rows, prompt))
    return [
        *_tree("decoding weights", phase, _copied_for_decoding(model)),
        *_cache(f"{prefix}KV cache", phase, model, rows, prompt + completion),
        *_intermediates(f"{prefix}prefill", phase, model, prefill),
    ]


def _cache(kind: str, phase: str, model: Model, rows: int, slots: int) -> list[ArrayFootprint]:
    """Return the arrays of a KV cache with a number of slots, for prompts and completions."""
    cache = jax.eval_shape(lambda: model.init_cache(rows, slots))
    placements = state_shardings(model.architecture.kinds, cache.states, model.sharding)
    states = jax.tree.map(
        lambda x, placement: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement),
        cache.states,
        placements,
    )
    return _tree(kind, phase, states)
