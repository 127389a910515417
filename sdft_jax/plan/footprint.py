"""The arrays in a device's memory during an update or an evaluation, and their sizes.

Everything follows from shapes and the mesh; nothing is compiled or run. The sum is a lower bound, since it
excludes the compiler's own temporary arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
from sdft_jax.kernels.attention import block_size
from sdft_jax.models import Model
from sdft_jax.models.cache import AXES as CACHE_AXES
from sdft_jax.models.families import LOGICAL_AXES
from sdft_jax.models.lora import is_adapter
from sdft_jax.sampling.layout import decoding_model
from sdft_jax.sharding import Sharding, release_axes, tree_shardings
from sdft_jax.types import NO_STOP, Params, TrainState

GIB = 2.0**30
ALWAYS = "always"

DEPENDS_ON = {
    "parameters": "mesh.fsdp, mesh.tensor, model.param_dtype",
    "optimizer": "mesh.fsdp, mesh.tensor, model.param_dtype, optimizer.freeze, lora.rank",
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


def widths_of(rows: Iterable[Encoded]) -> Widths:
    """Return the lengths of the longest rows; 0 if there are no rows."""
    lengths = [(len(row.prompt), len(row.teacher_prompt), len(row.target)) for row in rows]
    return Widths(*(padded_width(max(column)) for column in zip(*(lengths or [(0, 0, 0)]), strict=True)))


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
    longest = max(widths.prompt, widths.teacher) + completion
    arrays = [
        *_state_arrays(state),
        *_tree("gradients", "learn", state.params),
        *_activations(model, rows, widths.prompt + completion, longest),
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
        *_tree("parameters", ALWAYS, (state.params, state.frozen)),
        *_tree("optimizer", ALWAYS, state.opt_state),
        *_tree("teacher", ALWAYS, state.teacher),
    ]


def _tree(kind: str, phase: str, tree: Any) -> list[ArrayFootprint]:
    """Return each array of a tree of shapes with shardings, named by its path."""
    return [
        ArrayFootprint(
            kind,
            _name(path),
            tuple(leaf.shape),
            str(leaf.dtype),
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
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


_WEIGHT_OF = {
    "inputs": "o",  # the residual stream
    "queries": "q",
    "keys": "k",
    "values": "v",
    "attended values": "q",
    "attention output": "o",
    "gate": "gate",
    "up": "up",
    "feed-forward hidden": "gate",
    "feed-forward output": "down",
}
"""Activation of a layer -> the weight whose matrix product has its shape."""

_MATRIX_PRODUCTS = (
    "queries",
    "keys",
    "values",
    "attention output",
    "gate",
    "up",
    "feed-forward output",
)
_NAMED = ("attended values", "feed-forward hidden")
_SAVED: dict[str, tuple[str, ...]] = {
    "full": ("inputs",),
    "hidden": ("inputs", *_NAMED),
    "dots_no_batch": ("inputs", *_MATRIX_PRODUCTS),
    "dots": ("inputs", *_MATRIX_PRODUCTS),
    "none": ("inputs", *_MATRIX_PRODUCTS, *_NAMED),
}
"""Key of `models.REMAT_POLICIES` -> the activations that each layer saves for its backward pass. "none" saves
more than these, and "dots" also the scores of plain JAX attention."""


def _activation(model: Model, name: str, rows: int, length: int) -> _Intermediate:
    """Return an activation of one layer, [rows, length, ...]."""
    architecture = model.architecture
    weight = next(tensor for tensor in architecture.layer_tensors if tensor.name == _WEIGHT_OF[name])
    letters = weight.dims.partition(">")[2]
    axes = ["activation" if letter == "D" else LOGICAL_AXES[letter] for letter in letters]
    shape = (rows, length, *(architecture.sizes[letter] for letter in letters))
    return _Intermediate(name, shape, model.compute_dtype, ("batch", "sequence", *axes))


def _saved(model: Model) -> list[str]:
    """Return the activations that a layer saves; its last product only if a norm follows."""
    normalized = any(tensor.name == "post_mlp_norm" for tensor in model.architecture.layer_tensors)
    return [name for name in _SAVED[model.remat] if normalized or name != "feed-forward output"]


def _activations(model: Model, rows: int, length: int, longest: int) -> list[ArrayFootprint]:
    """Return the activations that all layers save for the backward pass, and the largest within one layer.

    Args:
        model: its `remat` determines what is saved.
        rows: the number of rows in a micro-batch.
        length: the number of tokens in the student's prompt and completion.
        longest: the same for the role with the longer prompt.
    """
    layers = model.architecture.num_hidden_layers
    saved = [
        x._replace(name=f"{x.name} of all layers", shape=(layers, *x.shape), axes=(None, *x.axes))
        for x in (_activation(model, name, rows, length) for name in _saved(model))
    ]
    return _intermediates("activations", "learn", model, [*saved, *_within_layer(model, rows, longest)])


def _within_layer(model: Model, rows: int, length: int) -> list[_Intermediate]:
    """Return the largest arrays within one layer on whole sequences."""
    hidden = _activation(model, "feed-forward hidden", rows, length)
    arrays = [hidden._replace(name="feed-forward hidden of a layer")]
    if model.kernel == "xla":  # the other kernels never store the scores
        block = min(block_size(model.platform), length)
        shape = (rows, model.architecture.num_attention_heads, block, length)
        axes = ("batch", "heads", None, None)
        arrays.insert(0, _Intermediate("attention scores of a layer", shape, "float32", axes))
    return arrays


def _logits(options: DivergenceConfig, model: Model, tokens: int, roles: int) -> list[ArrayFootprint]:
    """Return the logits of a chunk for each role, their gradient, and the gradient of the head.

    Args:
        options: the settings with the chunk size.
        model: the model with the vocabulary and its sharding.
        tokens: the number of completion tokens in a micro-batch.
        roles: 2 for student and teacher, 1 for the student alone.
    """
    head = model.head(model.abstract_params())
    parts = model.sharding.size("batch") * model.sharding.size("sequence")
    chunk = min(options.chunk, max(tokens // parts, 1))  # each device's own tokens
    shape = (chunk, head.shape[0])
    names = [*["student", "teacher"][:roles], "gradient"]
    arrays = [_Intermediate(f"of a chunk, {name}", shape, "float32", (None, "vocab")) for name in names]
    if model.architecture.lora:  # the head does not train
        return _intermediates("logits", "learn", model, arrays)
    gradient = _Intermediate("of the head, gradient", head.shape, "float32", ("vocab", None))
    return _intermediates("logits", "learn", model, [*arrays, gradient])


def _copied_for_decoding(model: Model) -> Params:
    """Return the parameters that are copied for decoding.

    The base of adapters already has the compute dtype, and is copied only if it moves to other devices.
    """
    weights = _abstract_params(model, model.compute_dtype, decoding_model(model).sharding)
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
    placement = model.sharding.named(*CACHE_AXES)
    cache = jax.eval_shape(lambda: model.init_cache(rows, prompt + completion))
    stores = {
        name: jax.ShapeDtypeStruct(store.shape, store.dtype, sharding=placement)
        for name, store in (("keys", cache.keys), ("values", cache.values))
    }
    shape = (rows, model.architecture.vocab_size)
    logits = _Intermediate("logits of a token", shape, "float32", ("batch", "vocab"))
    prefill = [*_within_layer(model, rows, prompt), logits]
    return [
        *_tree("decoding weights", phase, _copied_for_decoding(model)),
        *_tree(f"{prefix}KV cache", phase, stores),
        *_intermediates(f"{prefix}prefill", phase, model, prefill),
    ]
