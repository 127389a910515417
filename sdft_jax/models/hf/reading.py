"""Hugging Face checkpoints into sharded parameters, tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdft_jax.errors import SdftError
from sdft_jax.models.architecture import ModelConfig, read_config
from sdft_jax.models.decoder import Model
from sdft_jax.models.families import EMBEDDING, HEAD, Tensor
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.models.hf.safetensors_io import Stored, read_header
from sdft_jax.sharding import Sharding, tree_shardings
from sdft_jax.types import Params

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def load_model(
    path: str | os.PathLike[str],
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    *,
    sharding: Sharding | None = None,
    compute_dtype: Any = None,
    remat: str = "none",
) -> tuple[Model, Params]:
    """Read a Hugging Face checkpoint.

    Args:
        path: directory with config.json and safetensors files; a Hub name; or `mini`.
        dtype: of the parameters.
        mesh: devices to spread over, with the default rules; None for the default device.
        sharding: mesh and rules together, in place of `mesh`.
        compute_dtype: of activations; `dtype` unless given.
        remat: one of `decoder.REMAT_POLICIES`.

    Returns:
        The model and its parameters. Each device reads only its own slices, and the host holds no more
        than the slices of one stacked parameter.

    Raises:
        SdftError: an unsupported model, a missing, truncated or corrupt file, missing, unexpected or
            misshapen tensors, or a mesh that does not divide the parameters.
    """
    path = model_directory(os.fspath(path))
    config = read_config(path)
    if sharding is None and mesh is not None:
        sharding = Sharding(mesh)
    compute = jnp.dtype(dtype if compute_dtype is None else compute_dtype).name
    model = Model(config, compute, remat, sharding, str(path))
    shapes = model.abstract_params(dtype)
    if sharding is None:
        default_device = jnp.zeros(()).sharding
        placements = jax.tree.map(lambda _: default_device, shapes)
    else:
        placements = tree_shardings(sharding, model.logical_axes(), shapes)
    stored = open_checkpoint(path, config)
    params: dict[str, Any] = {"layers": {}}
    for entry in entries(config):
        place = entry.get(placements)
        entry.put(params, read_entry(stored, config, entry, range(entry.layers), dtype, place))
    return model, params


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter and where it stands in the tree: inside the layers, or beside them."""

    tensor: Tensor
    layers: int
    """Length of the axis of layers; 0 outside the layers."""

    def get(self, tree: Mapping[str, Any]) -> Any:
        """This parameter's leaf of a tree."""
        return (tree["layers"] if self.layers else tree)[self.tensor.name]

    def put(self, tree: dict[str, Any], leaf: Any) -> None:
        """Set this parameter's leaf of a tree."""
        (tree["layers"] if self.layers else tree)[self.tensor.name] = leaf

    def stored_names(self) -> list[str]:
        """Names of its tensors in a checkpoint, layer by layer."""
        source = self.tensor.source
        return [f"model.layers.{layer}.{source}" for layer in range(self.layers)] if self.layers else [source]


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every parameter of a model."""
    for tensor in config.outer_tensors:
        yield Entry(tensor, 0)
    for tensor in config.layer_tensors:
        yield Entry(tensor, config.num_hidden_layers)


def open_checkpoint(path: str | os.PathLike[str], config: ModelConfig) -> dict[str, Stored]:
    """Where each tensor of a checkpoint lies; names and shapes are checked against the configuration."""
    directory = Path(path)
    stored = _read_headers(directory)
    expected = {
        name: entry.tensor.stored_shape(config.sizes)
        for entry in entries(config)
        for name in entry.stored_names()
    }
    missing = [name for name in expected if name not in stored]
    if missing:
        raise SdftError(
            f"{directory}: {len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}: "
            "config.json and the weights are of different models, or a download is incomplete."
        )
    tied_head = {HEAD.source} if config.tie_word_embeddings else set()
    unexpected = [name for name in stored if name not in expected and name not in tied_head]
    if unexpected:
        raise SdftError(
            f"{directory}: {len(unexpected)} tensors have no place in a {config.family.model_type} model, "
            f"the first is {unexpected[0]}: config.json and the weights are of different models."
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise SdftError(
                f"{stored[name].file}: {name} has shape {list(stored[name].shape)} and config.json implies "
                f"{list(shape)}; they are of different models."
            )
    if tied_head & stored.keys() and not _equal(stored[HEAD.source], stored[EMBEDDING.source]):
        raise SdftError(
            f"{directory}: config.json ties the head to the embedding, but {HEAD.source} differs from "
            f"{EMBEDDING.source}; set tie_word_embeddings to false in config.json."
        )
    return stored


def read_entry(
    stored: Mapping[str, Stored], config: ModelConfig, entry: Entry, layers: range, dtype: Any, sharding: Any
) -> jax.Array:
    """One parameter, or some of its layers, as a device array; `layers` is ignored outside the layers."""
    shape, dtype = entry.tensor.shape(config.sizes), jnp.dtype(dtype)
    names = entry.stored_names()
    chosen = [names[layer] for layer in layers] if entry.layers else names
    views = [entry.tensor.from_stored(stored[name].map(), config.sizes) for name in chosen]
    slices: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        """The slice of one device; devices that hold the same slice share it."""
        assert index is not None
        if str(index) not in slices:
            inner = index[1:] if entry.layers else index
            out = np.empty((len(views), *views[0][inner].shape), dtype)
            for layer, view in enumerate(views):
                out[layer] = view[inner]
            slices[str(index)] = out if entry.layers else out[0]
        return slices[str(index)]

    return jax.make_array_from_callback((len(views), *shape) if entry.layers else shape, sharding, read)


def layer_slice(leaf: jax.Array, layer: int) -> jax.Array:
    """Layer `layer` of a stacked parameter, its axis kept; compiled once per parameter, not per layer."""
    return _layer_slice(leaf, layer)


@jax.jit
def _layer_slice(leaf: jax.Array, layer: Any) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(leaf, layer, 1)


@jax.jit
def _squared_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))


def distance(model: Model, params: Params, path: str | os.PathLike[str]) -> float:
    """Euclidean distance of the parameters from a checkpoint on disk, in float32, tensor by tensor."""
    stored = open_checkpoint(path, model.config)
    total = 0.0
    for entry in entries(model.config):
        leaf = entry.get(params)
        for layer in range(entry.layers or 1):
            mine = layer_slice(leaf, layer) if entry.layers else leaf
            base = read_entry(
                stored, model.config, entry, range(layer, layer + 1), jnp.float32, mine.sharding
            )
            total += float(_squared_distance(mine, base))
    return math.sqrt(total)


def _read_headers(directory: Path) -> dict[str, Stored]:
    """Tensors of all files of a checkpoint, less those that are not parameters."""
    if (directory / INDEX_FILE).exists():
        index = directory / INDEX_FILE
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SdftError(f"{index} is not a valid index ({error!r}); download it again.") from None
    elif (directory / SINGLE_FILE).exists():
        files = [SINGLE_FILE]
    else:
        pickles = sorted(
            file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern)
        )
        raise SdftError(
            f"{directory} has only pickled weights ({pickles[0]}), and only safetensors are read: convert it "
            "with transformers, `AutoModelForCausalLM.from_pretrained(path).save_pretrained(path)`."
            if pickles
            else f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; download the weights."
        )
    found = {name: where for file in files for name, where in read_header(directory / file).items()}
    # Old Llama checkpoints carry the rotary frequencies, which follow from config.json.
    return {name: where for name, where in found.items() if not name.endswith("rotary_emb.inv_freq")}


def _equal(a: Stored, b: Stored) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.map(), b.map())
