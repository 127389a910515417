"""Where parameters and activations live while decoding."""

from __future__ import annotations

import dataclasses

import jax

from sdft_jax.models import Model
from sdft_jax.sharding import for_decoding, tree_shardings
from sdft_jax.types import Params

UNROLLED = 8
"""Layers up to which a CPU decodes without a scan; each so adds 0.1 s to compilation."""


def unrolled(platform: str, layers: int) -> bool:
    """Whether to decode without a scan over layers, which on a GPU and a CPU copies each layer's weights and
    cache at every token; a TPU reads them where they lie."""
    return platform == "gpu" or (platform == "cpu" and layers <= UNROLLED)


def lay_out_for_decoding(model: Model, params: Params) -> tuple[Model, Params]:
    """Parameters in the compute dtype, moved once to where `for_decoding` wants them.

    The model that comes back reads them so: under the rules of training the compiler would split the
    embedding again inside the loop, and gather it for the head it is tied to at every token.
    """
    params = jax.tree.map(lambda p: p.astype(model.compute_dtype), params)
    model = decoding_model(model)
    if model.sharding is None:
        return model, params
    shardings = tree_shardings(model.sharding, model.logical_axes(), params)
    return model, jax.lax.with_sharding_constraint(params, shardings)


def decoding_model(model: Model) -> Model:
    """The model as it runs inside the decode loop."""
    if model.sharding is None:
        return model
    sizes = {"mlp": model.config.intermediate_size, "vocab": model.config.vocab_size}
    return dataclasses.replace(model, sharding=for_decoding(model.sharding, sizes))


def prefill_model(model: Model) -> Model:
    """Without splitting positions: a prompt's last one stands in every device's last column."""
    if model.sharding is None:
        return model
    rules = dataclasses.replace(model.sharding.rules, sequence=None)
    return dataclasses.replace(model, sharding=dataclasses.replace(model.sharding, rules=rules))
