"""Reading Hugging Face checkpoints into sharded parameters, tensor by tensor."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sdft_jax.config.settings import Quantization
from sdft_jax.errors import SdftError
from sdft_jax.models.architecture import Architecture, check_quantizable, read_architecture
from sdft_jax.models.decoder import Model
from sdft_jax.models.families import EMBEDDING, HEAD, Tensor
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.models.hf.safetensors_io import (
    INDEX_FILE,
    SINGLE_FILE,
    Stored,
    checkpoint_files,
    read_header,
)
from sdft_jax.models.hf.stacked import separate
from sdft_jax.models.hf.wrapped import plain_name
from sdft_jax.models.lora import A, B, merged_weight
from sdft_jax.models.quantize import SCALE, dequantize, quantize
from sdft_jax.sharding import Sharding, single_device, tree_shardings
from sdft_jax.types import Params

QUANTIZED = ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32")
"""Dtypes of quantized weights, which mean nothing without their scales."""


def load_model(
    path: str | os.PathLike[str],
    dtype: Any = "float32",
    *,
    sharding: Sharding | None = None,
    compute_dtype: Any = None,
    remat: str = "none",
    quantize: Quantization | None = None,
) -> tuple[Model, Params]:
    """Read a Hugging Face checkpoint.

    Args:
        path: a directory with config.json and safetensors files; a Hub name; or a built-in model (`mini`).
        dtype: the dtype of the parameters.
        sharding: the mesh and rules of the parameters and activations; default: `single_device()`.
        compute_dtype: the dtype of activations; default: `dtype`.
        remat: a key of `decoder.REMAT_POLICIES`.
        quantize: the format of the projections, `int8` or `nf4`; they are quantized layer by layer.

    Returns:
        The model and its parameters. Each device reads only its own slices, and host memory contains at most
        the slices of one stacked parameter.

    Raises:
        SdftError: the model is not supported; a file is missing, truncated or corrupt; a tensor is missing,
            unexpected or of the wrong shape; the mesh does not divide the parameters; or there is no such
            format.
    """
    if quantize not in (None, *get_args(Quantization)):
        raise SdftError(f"quantize={quantize!r}: use one of {', '.join(get_args(Quantization))}, or None.")
    path = model_directory(os.fspath(path))
    architecture = dataclasses.replace(read_architecture(path), quantize=quantize)
    check_quantizable(architecture, quantize)
    if sharding is None:
        sharding = single_device()
    compute = jnp.dtype(dtype if compute_dtype is None else compute_dtype).name
    model = Model(architecture, compute, remat, sharding, str(path))
    shapes = model.abstract_params(dtype)
    shardings = tree_shardings(sharding, model.logical_axes(), shapes)
    stored = open_checkpoint(path, architecture)
    params: dict[str, Any] = {"layers": {}}
    for entry in entries(architecture):
        if quantize and entry.tensor in architecture.projections:
            params["layers"] |= _read_quantized(stored, model, entry, shardings["layers"])
        else:
            leaf = read_entry(stored, architecture, entry, range(entry.layers), dtype, entry.get(shardings))
            entry.put(params, leaf)
    refuse_non_finite(params, path)
    return model, params


def refuse_non_finite(params: Params, path: str | os.PathLike[str]) -> None:
    """Raise SdftError if a parameter is NaN or infinite."""
    finite = jax.device_get(_are_finite(params))
    bad = [jax.tree_util.keystr(at) for at, good in jax.tree_util.tree_leaves_with_path(finite) if not good]
    if bad:
        raise SdftError(
            f"{os.fspath(path)}: {len(bad)} parameters have values that are NaN or infinite, the first is "
            f"{bad[0]}: download the checkpoint again, or use an earlier one."
        )


@jax.jit
def _are_finite(params: Params) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of the tree, either inside the layers or outside them."""

    tensor: Tensor
    numbers: tuple[int, ...] = ()
    """The layers that have it, in the order in which it is stacked; empty outside the layers."""
    experts: int = 0
    """The number of experts, of a parameter of which a checkpoint stores a tensor of each."""

    @property
    def layers(self) -> int:
        """The length of the layer axis; 0 outside the layers."""
        return len(self.numbers)

    def get(self, tree: Mapping[str, Any]) -> Any:
        """Return this parameter's leaf of a tree; the head of a tree without one is the embedding."""
        own = tree["layers"] if self.layers else tree
        tied = self.tensor == HEAD and HEAD.name not in own
        return own[EMBEDDING.name if tied else self.tensor.name]

    def put(self, tree: dict[str, Any], leaf: Any) -> None:
        """Set this parameter's leaf of a tree."""
        (tree["layers"] if self.layers else tree)[self.tensor.name] = leaf

    @property
    def count(self) -> int:
        """The number of its tensors in a checkpoint."""
        return max(1, self.layers) * max(1, self.experts)

    def stored_names(self) -> list[str]:
        """Return the names of its tensors in a checkpoint, layer by layer."""
        return [name for *_, name in self.stored()]

    def stored(self) -> list[tuple[int | None, int | None, str]]:
        """Return the layer, the expert and the name of its tensors in a checkpoint.

        A layer is counted among those that have the parameter; it is None outside the layers, and an expert
        is None if the tensor is that of all experts.
        """
        source = self.tensor.source
        names: list[tuple[int | None, str]] = [(None, source)]
        if self.numbers:
            names = [(at, f"model.layers.{layer}.{source}") for at, layer in enumerate(self.numbers)]
        return [
            (layer, expert, name if expert is None else name.replace("*", str(expert)))
            for layer, name in names
            for expert in (range(self.experts) if self.experts else (None,))
        ]


def entries(architecture: Architecture) -> Iterator[Entry]:
    """Yield every parameter of a model's checkpoint, which holds no adapters."""
    plain = architecture.plain
    for tensor in plain.outer_tensors:
        yield Entry(tensor)
    for tensor in plain.layer_tensors:
        experts = plain.sizes["E"] if tensor.per_expert else 0
        yield Entry(tensor, plain.layers_with(tensor), experts)


def open_checkpoint(path: str | os.PathLike[str], architecture: Architecture) -> dict[str, Stored]:
    """Return the location of each tensor of a checkpoint by name; of a wrapper, those of its text model.

    Raises:
        SdftError: a file is missing or corrupt, weights are quantized, or names and shapes of the tensors do
            not match config.json.
    """
    directory = Path(path)
    stored = _text_tensors(_read_headers(directory), architecture)
    coded = next((name for name, tensor in stored.items() if tensor.code in QUANTIZED), None)
    mixture = architecture.family.mixture
    if coded and mixture and mixture.interleaved and coded.endswith(("_blocks", "_scales")):
        raise SdftError(
            f"{stored[coded].file}: {coded} is in MXFP4, and its blocks or scales are missing or of another "
            "shape: download the checkpoint again."
        )
    if coded:
        raise SdftError(
            f"{stored[coded].file}: {coded} has dtype {stored[coded].code}, that of quantized weights, whose "
            "format config.json does not name: use the original checkpoint, with bfloat16 or float32 weights."
        )
    if architecture.tie_word_embeddings and EMBEDDING.source not in stored and HEAD.source in stored:
        stored[EMBEDDING.source] = stored.pop(HEAD.source)  # safetensors keeps either name of a shared tensor
    count = sum(entry.count for entry in entries(architecture))
    expected = {
        name: entry.tensor.stored_shape(architecture.sizes)
        # a damaged config.json may have millions of layers
        for entry in (entries(architecture) if count <= 2 * len(stored) else ())
        for name in entry.stored_names()
    }
    missing = [name for name in expected if name not in stored]
    if missing or not expected:
        first = f", the first is {missing[0]}" if missing else ""
        raise SdftError(
            f"{directory}: {len(missing) or count - len(stored)} of {count} tensors are missing{first}: "
            "config.json and the weights are from different models, or a download is incomplete: download it "
            "again."
        )
    tied_head = {HEAD.source} if architecture.tie_word_embeddings else set()
    unexpected = [name for name in stored if name not in expected and name not in tied_head]
    if unexpected:
        kind = architecture.family.model_type
        raise SdftError(
            f"{directory}: {len(unexpected)} tensors do not belong to a {kind} model, the first is "
            f"{unexpected[0]}: config.json and the weights are from different models: download both again."
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise SdftError(
                f"{stored[name].file}: {name} has shape {list(stored[name].shape)}, but config.json implies "
                f"{list(shape)}: they are from different models: download both again."
            )
    if tied_head & stored.keys() and not _equal(stored[HEAD.source], stored[EMBEDDING.source]):
        raise SdftError(
            f"{directory}: config.json ties the head to the embedding, but {HEAD.source} differs from "
            f"{EMBEDDING.source}: set tie_word_embeddings to false in config.json."
        )
    return stored


def other_tensors(path: str | os.PathLike[str], architecture: Architecture) -> list[Stored]:
    """Return the tensors that are not those of the text model: those of a wrapper, and those which
    transformers does not read either: layers that predict several tokens (`mtp.`), and the projections to
    keys and values of layers that share those of another layer (in published files of Gemma 4 E2B and E4B).
    """
    if not path:
        return []
    unread = (_PREDICTION, *unread_names(architecture))

    def is_other(name: str) -> bool:
        own = plain_name(name) if architecture.wrapper else name
        return own is None or own.startswith(unread)

    return [tensor for name, tensor in _read_headers(Path(path)).items() if is_other(name)]


def unread_names(architecture: Architecture) -> tuple[str, ...]:
    """Return the beginnings of the names of keys and values that layers do not use."""
    return tuple(
        f"model.layers.{layer}.self_attn.{module}."
        for layer, kind in enumerate(architecture.kind_of_layer)
        if architecture.kinds[kind].shares_keys
        for module in ("k_proj", "v_proj", "k_norm", "v_norm")
    )


def _text_tensors(stored: dict[str, Stored], architecture: Architecture) -> dict[str, Stored]:
    """Return the parameters of a text model by the names that they have outside a wrapper."""
    if architecture.wrapper:
        stored = {own: tensor for name, tensor in stored.items() if (own := plain_name(name))}
    if architecture.family.mixture:
        stored = separate(stored, architecture.family.mixture)
    unread = (_PREDICTION, *unread_names(architecture))
    # Old Llama checkpoints contain the rotary frequencies, which are computed from config.json here.
    return {
        name: tensor
        for name, tensor in stored.items()
        if not name.endswith("rotary_emb.inv_freq") and not name.startswith(unread)
    }


def open_reference(path: str | os.PathLike[str], architecture: Architecture) -> dict[str, Stored]:
    """Return `open_checkpoint` of a model to compare with one of this architecture.

    Either may be tied, or within a wrapper.
    """
    own = read_architecture(path)
    own = dataclasses.replace(architecture, tie_word_embeddings=own.tie_word_embeddings, wrapper=own.wrapper)
    return open_checkpoint(path, own)


def weights_digest(stored: Mapping[str, Stored]) -> str:
    """Return a digest of the names, dtypes, shapes and some values of all tensors of a checkpoint.

    Training changes every tensor, so that some values of each distinguish two models without reading both.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(stored.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        for values in tensor.samples(_SAMPLE):
            digest.update(values.tobytes())
    return digest.hexdigest()[:16]


_PREDICTION = "mtp."
"""The beginning of the names of layers that predict several tokens."""
_SAMPLE = 1024
"""Number of values at the start, the middle and the end of each tensor that count in `weights_digest`."""


def read_entry(
    stored: Mapping[str, Stored],
    architecture: Architecture,
    entry: Entry,
    layers: range,
    dtype: Any,
    sharding: Any,
) -> jax.Array:
    """Read one parameter, or some of its layers, into a device array.

    `layers` is ignored outside the layers.
    """
    tensor, sizes, dtype = entry.tensor, architecture.sizes, jnp.dtype(dtype)
    shape, names = tensor.shape(sizes), {(layer, expert): name for layer, expert, name in entry.stored()}
    chosen = layers if entry.layers else (None,)
    slices: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        """Return the slice of one device; devices with the same slice share it."""
        assert index is not None
        if str(index) not in slices:
            inner = index[1:] if entry.layers else index
            numbers = range(*inner[0].indices(entry.experts)) if entry.experts else (None,)
            own = inner[1:] if entry.experts else inner
            lengths = (
                len(range(*part.indices(size))) for part, size in zip(own, shape[-len(own) :], strict=True)
            )
            out = np.empty((len(chosen), len(numbers), *lengths), dtype)
            for i, layer in enumerate(chosen):
                for j, expert in enumerate(numbers):
                    # mapped one by one: a map keeps its file open, and a layer may have hundreds of experts
                    source = stored[names[layer, expert]]
                    if expert is None:
                        out[i, j] = tensor.from_stored(source.map(), sizes)[own]
                    else:  # a matrix [outputs, inputs], of which only a part is decoded, or a bias
                        out[i, j] = source.part(own[::-1]).T
            out = out if entry.experts else out[:, 0]
            slices[str(index)] = out if entry.layers else out[0]
        return slices[str(index)]

    return jax.make_array_from_callback((len(chosen), *shape) if entry.layers else shape, sharding, read)


def _read_quantized(
    stored: Mapping[str, Stored], model: Model, entry: Entry, shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Read one projection into codes and scales, with one layer of it at a time on the devices."""
    tensor, format = entry.tensor, model.architecture.quantize
    assert format is not None
    names = (tensor.name, tensor.name + SCALE)
    place = tuple(shardings[name] for name in names)

    @functools.partial(jax.jit, out_shardings=place, donate_argnums=0)
    def put(parts: tuple[jax.Array, ...], weight: jax.Array, layer: Any) -> tuple[jax.Array, ...]:
        new = quantize(tensor, format, weight)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(part, own, layer, axis=0)
            for part, own in zip(parts, new, strict=True)
        )

    shapes = model.abstract_params()["layers"]
    parts = tuple(
        jnp.zeros(shapes[name].shape, shapes[name].dtype, device=own)
        for name, own in zip(names, place, strict=True)
    )
    for layer in range(entry.layers):
        one = range(layer, layer + 1)
        parts = put(parts, read_entry(stored, model.architecture, entry, one, "float32", place[0]), layer)
    return dict(zip(names, parts, strict=True))


def plain_parameter(
    model: Model, params: Params, entry: Entry, layer: int | None, expert: int | None = None
) -> jax.Array:
    """Return a parameter, or [1, ...] of one layer of it, or of one expert of a layer: quantized weights in
    float32, with the adapter merged into them.
    """
    lora, name = model.architecture.lora, entry.tensor.name
    tree = params["layers"] if entry.layers else params
    if expert is not None:
        return _expert_slice(entry.get(params), layer, expert)
    weight, *others = (
        leaf if layer is None else layer_slice(leaf, layer)
        for leaf in (entry.get(params), *(tree[name + end] for end in (SCALE, A, B) if name + end in tree))
    )
    if name + SCALE in tree:
        weight = jax.vmap(dequantize)(weight, others.pop(0))
    return merged_weight(lora, entry.tensor, weight, *others) if lora and others else weight


def layer_slice(leaf: jax.Array, layer: int) -> jax.Array:
    """Return one layer of a stacked parameter as [1, ...]; it compiles once per parameter, not per layer."""
    return _layer_slice(leaf, layer)


@jax.jit
def _layer_slice(leaf: jax.Array, layer: Any) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(leaf, layer, 1)


@jax.jit
def _expert_slice(leaf: jax.Array, layer: Any, expert: Any) -> jax.Array:
    others = leaf.shape[2:]
    return jax.lax.dynamic_slice(leaf, (layer, expert, *(0 for _ in others)), (1, 1, *others))[:, 0]


@jax.jit
def _squared_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))


def distance(model: Model, params: Params, path: str | os.PathLike[str]) -> float:
    """Return the Euclidean distance of the parameters from a checkpoint on disk, computed in float32.

    Adapters count as the change of the weights that they adapt. The checkpoint is rounded, or quantized, like
    their base, which has not moved.
    """
    format, stored = model.architecture.quantize, open_reference(path, model.architecture)
    stored.setdefault(HEAD.source, stored[EMBEDDING.source])
    rounded = params["norm"].dtype if model.architecture.lora else jnp.float32
    total = 0.0
    for entry in entries(model.architecture.merged):
        quantized = format if entry.tensor in model.architecture.projections else None
        dtype = jnp.float32 if quantized else rounded
        for layer in range(entry.layers or 1):
            trained = plain_parameter(model, params, entry, layer if entry.layers else None)
            base = read_entry(
                stored, model.architecture, entry, range(layer, layer + 1), dtype, trained.sharding
            )
            if quantized:
                base = jax.vmap(dequantize)(*quantize(entry.tensor, quantized, base))
            total += float(_squared_distance(trained, base))
    return math.sqrt(total)


def _read_headers(directory: Path) -> dict[str, Stored]:
    """Return the tensors in all files of a checkpoint."""
    files = checkpoint_files(directory)
    if not files:
        others = sorted(
            file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in directory.glob(pattern)
        )
        raise SdftError(
            f"{directory} has only weights in another format ({others[0]}); only safetensors are supported: "
            "convert pickled weights with transformers, `AutoModelForCausalLM.from_pretrained(path)"
            ".save_pretrained(path)`, and instead of a GGUF use the model that it was made from."
            if others
            else f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}: download the weights."
        )
    tensors: dict[str, Stored] = {}
    for file in files:
        header = read_header(file)
        if twice := min(header.keys() & tensors.keys(), default=None):
            raise SdftError(
                f"{directory}: {twice} is both in {tensors[twice].file.name} and in {file.name}, so that "
                f"{INDEX_FILE} lists files of different models: download it again, into a new directory."
            )
        tensors |= header
    return tensors


def _equal(a: Stored, b: Stored) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.map(), b.map())
