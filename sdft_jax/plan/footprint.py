"""What a device's memory holds, array by array, and which settings would make it less.

All of it follows from shapes and the mesh; nothing is compiled or run. What the compiler needs besides is not
here, so that a total is a lower bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import abstract_state, check_batch, sharding_of
from sdft_jax.config import Config
from sdft_jax.config.methods import METHODS
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.data import padded_width
from sdft_jax.data.encoding import Encoded
from sdft_jax.errors import SdftError
from sdft_jax.kernels.attention import block_size
from sdft_jax.models import Model
from sdft_jax.models.cache import AXES as CACHE_AXES
from sdft_jax.sampling.layout import decoding_model
from sdft_jax.sharding import Sharding, give_way, make_mesh, tree_shardings
from sdft_jax.types import TrainState

GIB = 2.0**30
ALWAYS = "always"
STEPS = 8
"""Changes that are combined at most; one setting may change more than once."""

SHRUNK_BY = {
    "parameters": "mesh.fsdp, mesh.tensor, model.param_dtype",
    "optimizer": "mesh.fsdp, mesh.tensor, model.param_dtype, optimizer.freeze",
    "teacher": "mesh.fsdp, mesh.tensor, teacher.dtype, teacher.schedule=live",
    "base model": "mesh.fsdp, mesh.tensor, model.param_dtype",
    "gradients": "mesh.fsdp, mesh.tensor, model.param_dtype, optimizer.freeze",
    "activations": "train.micro_batch, model.remat, sharding.sequence, data.max_prompt",
    "logits": "divergence.chunk, mesh.tensor",
    "decoding weights": "mesh.fsdp, mesh.tensor, model.compute_dtype",
    "KV cache": "train.batch_size, sampling.max_new_tokens, data.max_prompt, mesh.tensor",
    "prefill": "train.batch_size, data.max_prompt, mesh.tensor",
    "answers' KV cache": "eval.batch_size, eval.max_new_tokens, data.max_prompt, mesh.tensor",
    "answers' prefill": "eval.batch_size, data.max_prompt, mesh.tensor",
}
"""Kind of array -> the settings that it depends on."""


@dataclasses.dataclass(frozen=True)
class Held:
    """An array, and how much of it one device holds."""

    kind: str
    name: str
    shape: tuple[int, ...]
    """Of the whole array."""
    dtype: str
    bytes: int
    """On one device."""
    phase: str = ALWAYS
    """When it is there: always, or while rolling out, learning or answering."""


Count = Callable[[Config, Model], Sequence[Held]]
"""What is held under a configuration, by a model whose sharding is the mesh."""


class Widths(NamedTuple):
    """Tokens of the longest rows; of completions that are given, not sampled."""

    prompt: int
    teacher: int
    completion: int = 0


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A setting that would need less memory."""

    text: str
    """Such as `train.micro_batch=16`, with its price."""
    config: Config
    mesh: Mapping[str, int]
    saves: float
    """Bytes on a device at the fullest phase, counted from known shapes."""


def widest(config: Config) -> Widths:
    """The longest rows that the limits of a configuration allow."""
    method = METHODS[config.train.method]
    prompt = max(config.data.prompt_buckets, default=config.data.max_prompt)
    teacher = max(config.data.teacher_buckets, default=config.data.max_teacher_prompt)
    completion = config.sampling.max_new_tokens if method.completion else 0
    if method.completion == "text":
        prompt, completion = 1, config.data.max_teacher_prompt
    return Widths(*map(padded_width, (prompt, teacher if method.context else 0, completion)))


def widths_of(rows: Iterable[Encoded]) -> Widths:
    """The longest of these rows, of which there may be none."""
    found = [(len(row.prompt), len(row.teacher_prompt), len(row.demonstration)) for row in rows] or [
        (0, 0, 0)
    ]
    return Widths(*(padded_width(max(lengths)) for lengths in zip(*found, strict=True)))


def update_arrays(config: Config, model: Model, widths: Widths | None = None) -> list[Held]:
    """Of a training run: its state, and what an update adds while it samples and while it learns."""
    widths, method = widths or widest(config), METHODS[config.train.method]
    state = _state(config, model)
    held = state_arrays(config, model)
    held += _tree("gradients", "learn", state.params)
    completion = config.sampling.max_new_tokens if method.samples else widths.completion
    rows = config.train.micro_batch or config.train.batch_size
    longest = max(widths.prompt, widths.teacher) + completion
    held += _activations(model, rows, widths.prompt + completion, longest)
    held += _logits(config.divergence, model, rows * completion, 2 if method.teacher else 1)
    if method.samples:
        prompt = widths.teacher if method.samples == "teacher" else widths.prompt
        held += _decoding("", "rollout", model, config.train.batch_size, prompt, completion)
    return held


def answer_arrays(
    config: Config, model: Model, widths: Widths, *, training: bool, base: bool = False
) -> list[Held]:
    """Of an evaluation: parameters or a whole training state, the base model's, and what answering adds."""
    params = _laid_out(model, config.model.param_dtype, sharding_of(model))
    held = state_arrays(config, model) if training else _tree("parameters", ALWAYS, params)
    completion = config.eval.max_new_tokens or config.sampling.max_new_tokens
    prompt = max(widths.prompt, widths.teacher)
    held += _decoding("answers' ", "answers", model, config.eval.batch_size, prompt, completion)
    return held + (_tree("base model", "answers", params) if base else [])


def state_arrays(config: Config, model: Model) -> list[Held]:
    """Parameters, optimizer and teacher."""
    state = _state(config, model)
    return [
        *_tree("parameters", ALWAYS, (state.params, state.frozen)),
        *_tree("optimizer", ALWAYS, state.opt_state),
        *_tree("teacher", ALWAYS, state.teacher),
    ]


def by_kind(held: Iterable[Held]) -> dict[str, float]:
    """Bytes on a device of each kind."""
    found: dict[str, float] = {}
    for one in held:
        found[one.kind] = found.get(one.kind, 0.0) + one.bytes
    return found


def fullest(held: Iterable[Held]) -> tuple[str, float]:
    """(phase, bytes on a device) of the phase that needs most, with what is always there."""
    phases: dict[str, float] = {}
    for one in held:
        phases[one.phase] = phases.get(one.phase, 0.0) + one.bytes
    always = phases.pop(ALWAYS, 0.0)
    name = max(phases, key=lambda key: phases[key], default=ALWAYS)
    return name, always + phases.get(name, 0.0)


def remedies(config: Config, model: Model, count: Count) -> list[Remedy]:
    """Settings that would need less, the most effective first; those that save next to nothing left out."""
    _, now = fullest(count(config, model))
    mesh = dict(sharding_of(model).mesh.shape)
    found = []
    for text, changed, sizes in _changes(config, mesh):
        try:
            other = _model(changed, model, sizes)
            check_batch(changed, sharding_of(other))
            _, then = fullest(count(changed, other))
        except SdftError:  # the mesh does not divide it
            continue
        if now - then > 0.01 * now:
            found.append(Remedy(text, changed, sizes, now - then))
    return sorted(found, key=lambda one: -one.saves)


def combined(config: Config, model: Model, count: Count, wanted: float) -> Remedy | None:
    """Several settings that together save so many bytes, the most effective first; None where one does.

    Where all of them do not save as much, they are what comes nearest.
    """
    begun = dict(sharding_of(model).mesh.shape)
    texts: dict[str, str] = {}
    saved, mesh = 0.0, begun
    for _ in range(STEPS):
        found = remedies(config, model, count)
        if saved >= wanted or not found:
            break
        best = found[0]
        config, mesh, model = best.config, dict(best.mesh), _model(best.config, model, best.mesh)
        key = "mesh" if best.text.startswith("mesh.") else best.text.partition("=")[0]
        moved = " ".join(f"mesh.{axis}={size}" for axis, size in mesh.items() if size != begun[axis])
        texts[key], saved = moved if key == "mesh" else best.text, saved + best.saves
    return Remedy(" with ".join(texts.values()), config, mesh, saved) if len(texts) > 1 else None


def as_size(size: float) -> str:
    """Bytes in words."""
    for unit, one in (("TiB", 2.0**40), ("GiB", GIB), ("MiB", 2.0**20)):
        if size >= one:
            return f"{size / one:,.2f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def _changes(config: Config, mesh: Mapping[str, int]) -> list[tuple[str, Config, dict[str, int]]]:
    """(what to set and its price, the configuration then, the mesh then)."""
    found: list[tuple[str, Config, dict[str, int]]] = []

    def change(key: str, value: Any, price: str = "") -> None:
        section, _, name = key.partition(".")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        changed = dataclasses.replace(config, **{section: part})
        found.append((f"{key}={value}{price and f' ({price})'}", changed, dict(mesh)))

    def move(source: str, target: str) -> None:
        if mesh[source] % 2 == 0:
            sizes = dict(mesh) | {source: mesh[source] // 2, target: mesh[target] * 2}
            found.append((" ".join(f"mesh.{axis}={sizes[axis]}" for axis in (source, target)), config, sizes))

    def halve(key: str, value: int | None, price: str = "") -> None:
        if value and value > 1:
            change(key, value // 2, price)

    for source, target in (("data", "fsdp"), ("data", "tensor"), ("fsdp", "tensor")):
        move(source, target)
    train, evaluation = config.train, config.eval
    halve("train.micro_batch", train.micro_batch or train.batch_size)
    if not train.micro_batch:  # else the micro-batch bounds what learning needs
        halve("train.batch_size", train.batch_size, "another run")
    halve("sampling.max_new_tokens", config.sampling.max_new_tokens, "shorter completions")
    halve("eval.batch_size", evaluation.batch_size)
    halve(
        "eval.max_new_tokens", evaluation.max_new_tokens or config.sampling.max_new_tokens, "shorter answers"
    )
    halve("divergence.chunk", config.divergence.chunk, "slower")
    if mesh["tensor"] > 1 and not config.sharding.sequence:
        change("sharding.sequence", "tensor", "more exchanges")
    if config.model.remat != "full":
        change("model.remat", "full", "slower")
    if config.teacher.dtype == "float32":
        change("teacher.dtype", "bfloat16", "it then moves less")
    if config.model.param_dtype == "float32":
        change("model.param_dtype", "bfloat16", "small steps are then lost")
    return found


def _model(config: Config, model: Model, mesh: Mapping[str, int]) -> Model:
    """The model as a changed configuration makes it, on a changed mesh of the same devices."""
    sharding = sharding_of(model)
    devices = list(sharding.mesh.devices.flat)
    moved = Sharding(make_mesh(**mesh, devices=devices), config.sharding)
    return dataclasses.replace(
        model, compute_dtype=config.model.compute_dtype, remat=config.model.remat, sharding=moved
    )


def _state(config: Config, model: Model) -> TrainState:
    return abstract_state(model, make_optimizer(config.optimizer, 1000), config)  # of any number of steps


def _laid_out(model: Model, dtype: Any, sharding: Sharding) -> Any:
    """Shapes of the parameters, each with its sharding."""
    shapes = model.abstract_params(dtype)
    shardings = tree_shardings(sharding, model.logical_axes(), shapes)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )


def _decoding(prefix: str, phase: str, model: Model, rows: int, prompt: int, completion: int) -> list[Held]:
    """Weights laid out for decoding, the cache, and what reading the prompts and choosing a token take."""
    c, dtype = model.config, model.compute_dtype
    held = _tree("decoding weights", phase, _laid_out(model, dtype, sharding_of(decoding_model(model))))
    shape = (c.num_hidden_layers, rows, c.num_key_value_heads, c.head_dim, prompt + completion)
    make = _maker(model, phase)
    held += [make(f"{prefix}KV cache", name, shape, dtype, CACHE_AXES) for name in ("keys", "values")]
    hidden = (rows, prompt, c.intermediate_size)
    return [
        *held,
        *_scores(f"{prefix}prefill", model, make, rows, prompt),
        make(f"{prefix}prefill", "feed-forward of a layer", hidden, dtype, ("batch", "sequence", "mlp")),
        make(f"{prefix}prefill", "logits of a token", (rows, c.vocab_size), "float32", ("batch", "vocab")),
    ]


def _activations(model: Model, rows: int, length: int, longest: int) -> list[Held]:
    """What the backward pass keeps of every layer, and the largest arrays within one.

    Args:
        model: its `remat` says what is kept.
        rows: of a micro-batch.
        length: tokens of the student's prompt and completion.
        longest: of either role's.
    """
    c, dtype = model.config, model.compute_dtype
    make = _maker(model, "learn")
    width = (c.hidden_size,), (("batch", "sequence", "activation"))
    heads = (c.num_attention_heads, c.head_dim), ("batch", "sequence", "heads", None)
    kv_heads = (c.num_key_value_heads, c.head_dim), ("batch", "sequence", "kv_heads", None)
    hidden = (c.intermediate_size,), ("batch", "sequence", "mlp")
    products = {
        "queries": heads,
        "keys": kv_heads,
        "values": kv_heads,
        "attention's output": width,
        "gate": hidden,
        "up": hidden,
        "feed-forward's output": width,
    }
    read = {"what attention read": heads, "feed-forward": hidden}
    kept = {"full": {}, "hidden": read, "dots_no_batch": products, "dots": products, "none": products | read}
    held = [
        make(
            "activations",
            f"{name} of all layers",
            (c.num_hidden_layers, rows, length, *size),
            dtype,
            (None, *axes),
        )
        for name, (size, axes) in ({"inputs": width} | kept[model.remat]).items()
    ]
    return [
        *held,
        *_scores("activations", model, make, rows, longest),
        make("activations", "feed-forward of a layer", (rows, longest, *hidden[0]), dtype, hidden[1]),
    ]


def _scores(kind: str, model: Model, make: Callable[..., Held], rows: int, length: int) -> list[Held]:
    """Of attention over whole sequences, which kernels never hold."""
    if model.kernel != "xla":
        return []
    shape = (rows, model.config.num_attention_heads, min(block_size(model.device.platform), length), length)
    return [make(kind, "attention scores of a layer", shape, "float32", ("batch", "heads", None, None))]


def _logits(options: DivergenceConfig, model: Model, tokens: int, roles: int) -> list[Held]:
    """A chunk of every role's logits with its gradient, and the head's gradient."""
    c, sharding = model.config, sharding_of(model)
    parts = sharding.size("batch") * sharding.size("sequence")
    chunk = min(options.chunk, max(tokens // parts, 1))  # of each device's own tokens
    make = _maker(model, "learn")
    names = [*["student", "teacher"][:roles], "gradient"]
    return [
        *(
            make("logits", f"of a chunk, {name}", (chunk, c.vocab_size), "float32", (None, "vocab"))
            for name in names
        ),
        make("logits", "of the head, gradient", (c.vocab_size, c.hidden_size), "float32", ("vocab", None)),
    ]


def _maker(model: Model, phase: str) -> Callable[..., Held]:
    sharding = sharding_of(model)

    def make(kind: str, name: str, shape: tuple[int, ...], dtype: str, axes: Sequence[str | None]) -> Held:
        # Rounded up: the compiler pads what the mesh does not divide. The last axis has the first choice.
        owner = next((axis for axis in reversed(axes) if axis), "batch")
        inner = give_way(sharding, owner, *({"batch", "sequence"} - {owner}))
        parts = [1 if axis is None else inner.size(axis) for axis in axes]
        local = [-(-size // part) for size, part in zip(shape, parts, strict=True)]
        return Held(kind, name, shape, dtype, math.prod(local) * jnp.dtype(dtype).itemsize, phase)

    return make


def _tree(kind: str, phase: str, tree: Any) -> list[Held]:
    """Every array of a tree of shapes with shardings, by its path."""
    held = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        local = math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        held.append(Held(kind, _name(path), tuple(leaf.shape), str(leaf.dtype), local, phase))
    return held


def _name(path: Sequence[Any]) -> str:
    """Such as `mu layers/gate`: attributes, then keys; places in tuples say nothing."""
    attributes = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return " ".join([*attributes, *(["/".join(keys)] if keys else [])])
