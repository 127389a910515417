"""The placement of parameters and activations while decoding."""

from __future__ import annotations

import dataclasses
import math

import jax

from sdft_jax.models import Model
from sdft_jax.models.quantize import cast
from sdft_jax.sharding import decoding_sharding, tree_shardings
from sdft_jax.types import Params


def lay_out_for_decoding(model: Model, params: Params) -> tuple[Model, Params]:
    """Return the parameters in the compute dtype, moved once to their devices for decoding, and a model for
    them.

    With the training model, the compiler would split the embedding again inside the loop, and gather it for
    the tied head at every token.
    """
    params = cast(params, model.compute_dtype)
    model = decoding_model(model)
    shardings = tree_shardings(model.sharding, model.logical_axes(), params)
    return model, jax.lax.with_sharding_constraint(params, shardings)


def decoding_model(model: Model) -> Model:
    """Return the model as it runs inside the decode loop."""
    architecture = model.architecture
    sizes = {"mlp": math.gcd(*architecture.feed_forward_widths), "vocab": architecture.vocab_size}
    return dataclasses.replace(model, sharding=decoding_sharding(model.sharding, sizes))


def prefill_model(model: Model) -> Model:
    """Return the model without a split of sequences, so that every device has each prompt's last position."""
    rules = dataclasses.replace(model.sharding.rules, sequence=None)
    return dataclasses.replace(model, sharding=dataclasses.replace(model.sharding, rules=rules))
