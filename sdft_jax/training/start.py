"""The parameters that a run starts from, and the frozen base of its adapters."""

from __future__ import annotations

import sys

import jax

from sdft_jax.algorithm import join
from sdft_jax.config import Config
from sdft_jax.models import Model, load_model
from sdft_jax.models.hf.adapter import load_adapter, other_base_note
from sdft_jax.models.lora import adapter_params
from sdft_jax.sampling import make_key
from sdft_jax.sharding import tree_shardings
from sdft_jax.types import Params


def load_start(config: Config, model: Model, directory: str) -> Params:
    """Return the parameters that training starts from: a checkpoint, and the adapters if there are any."""
    base = load_base(config, model, directory)
    if model.architecture.lora is None:
        return base
    if config.lora.adapter:
        adapter = load_adapter(model, config.lora.adapter, config.model.param_dtype, directory)
        for sentence in other_base_note(config.lora.adapter, config.model.path, directory):
            if jax.process_index() == 0:
                print(f"sdft: {sentence}", file=sys.stderr, flush=True)
        return join(base, adapter)
    return join(base, new_adapters(config, model))


def load_base(config: Config, model: Model, directory: str) -> Params:
    """Return the parameters of a checkpoint: those that train, or the frozen base of adapters."""
    architecture = model.architecture
    dtype = model.compute_dtype if architecture.lora else config.model.param_dtype
    return load_model(directory, dtype, sharding=model.sharding, quantize=architecture.quantize)[1]


def new_adapters(config: Config, model: Model) -> Params:
    """Return initial adapters, the same on every mesh, with which the model equals its base."""
    dtype = config.model.param_dtype
    shardings = tree_shardings(model.sharding, model.logical_axes(), model.abstract_params(dtype))
    initialize = jax.jit(
        lambda key: adapter_params(model.init(key, dtype)), out_shardings=adapter_params(shardings)
    )
    return initialize(make_key(config.train.seed))
