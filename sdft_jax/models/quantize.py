"""Quantized projections of a frozen base model (QLoRA; Dettmers et al. 2023, arXiv 2305.14314).

A quantized projection is two leaves of the layers: `q` has codes in the shape of the weight, and `q_scale`
the factors of its groups of weights.

| format | codes                  | scale                                    | bits per weight |
| ------ | ---------------------- | ---------------------------------------- | --------------- |
| `int8` | int8, from -127 to 127 | bfloat16, one per output                 | 8               |
| `nf4`  | uint4, indices of NF4  | bfloat16, one per 64 inputs of an output | 4.25            |

The arrays are those of qwix, which needs a newer flax than Colab has. Scales in bfloat16 replace the double
quantization of QLoRA: they take 0.25 bits per weight, 0.12 more than twice quantized ones. The codes are
computed from the rounded scales, so that rounding these loses nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from sdft_jax.config.settings import Quantization
from sdft_jax.kernels.matmul import matmul
from sdft_jax.models.families import (
    DELTA_PROJECTIONS,
    FULL_ATTENTION,
    FUSED_PROJECTIONS,
    PROJECTIONS,
    SHARING,
    TILES,
    Tensor,
)
from sdft_jax.types import Params

SCALE = "_scale"
"""The end of the names of scales."""
FLOAT32 = (
    "delta_log_rate",
    "delta_rate_bias",
    "router",
    "router_norm",
    "router_factors",
    "router_bias",
    "sinks",
)
"""Parameters that products in a narrower dtype do not read."""

TILE = 64
"""The number of inputs that share a scale in nf4."""
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The values of the codes of nf4 (arXiv 2305.14314, appendix E)."""


def quantized(tensor: Tensor, format: Quantization) -> tuple[Tensor, Tensor]:
    """Return the parameters of a projection's codes and scale.

    For example, 'D>NH' has a scale 'NH' in int8, and 'dNH' in nf4, where d is the number of tiles of D.
    """
    inputs, _, outputs = tensor.dims.partition(">")
    tiles = "" if format == "int8" else inputs[:-1] + TILES[inputs[-1]]
    return (
        Tensor(tensor.name, tensor.dims, tensor.source, dtype="int8" if format == "int8" else "uint4"),
        Tensor(tensor.name + SCALE, tiles + outputs, "", dtype="bfloat16"),
    )


def is_scale(name: str) -> bool:
    """Return True for the name of a scale."""
    return name.endswith(SCALE)


def tile_count(size: int) -> int:
    """Return the number of tiles of a dimension; a tile is shorter than 64 if 64 does not divide it."""
    return size // math.gcd(size, TILE)


@functools.partial(jax.jit, static_argnums=(0, 1))
def quantize(
    tensor: Tensor, format: Quantization, weights: Float[Array, "L ..."]
) -> tuple[Integer[Array, "L ..."], Float[Array, "L ..."]]:
    """Return the codes and scales of a projection's weights in stacked layers.

    For example, an output with the weights (-2, 1) has in int8 the scale 2 / 127 and the codes (-127, 64).
    """
    inputs = len(tensor.dims.partition(">")[0])
    layer = _int8 if format == "int8" else _nf4
    return jax.vmap(functools.partial(layer, inputs))(weights.astype(jnp.float32))


def dequantize(
    codes: Integer[Array, "..."], scale: Float[Array, "..."], dtype: Any = jnp.float32, platform: str = "cpu"
) -> Float[Array, "..."]:
    """Return the weights of one layer, computed in float32."""
    values = _nf4_values(codes) if codes.dtype == jnp.uint4 else codes.astype(jnp.float32)
    return (values * _per_weight(scale, codes.shape, platform)).astype(dtype)


def quantized_matmul(
    spec: str,
    x: Float[Array, "..."],
    codes: Integer[Array, "..."],
    scale: Float[Array, "..."],
    platform: str,
    decoding: bool = False,
) -> Float[Array, "..."]:
    """Return `kernels.matmul` with the quantized weights of one layer.

    Args:
        spec: as in `kernels.matmul`.
        x: the activations.
        codes: from `quantize`, of one layer.
        scale: its scale.
        platform: selects the fastest program.
        decoding: True for one token per row without a gradient.
    """
    if codes.dtype == jnp.uint4:
        return matmul(spec, x, dequantize(codes, scale, x.dtype, platform), platform)
    if decoding and platform == "tpu":
        out = _int8_product(spec, x, codes)
    else:
        out = matmul(spec, x, codes.astype(x.dtype), platform)
    # the scale of an output is a factor of its product
    return (out * _expand(scale, out.ndim).astype(out.dtype)).astype(x.dtype)


def _int8_product(spec: str, x: Float[Array, "..."], codes: Integer[Array, "..."]) -> Float[Array, "..."]:
    """Return the product with int8 codes in float32, without a conversion of the codes.

    For few rows, a TPU takes longer to convert int8 to bfloat16 than to read it. It multiplies int8 with int8
    instead: each row becomes 16-bit fixed-point numbers, x = unit (256 high + low), where high and low are
    int8. They are as exact as bfloat16 down to 1/128 of the row's largest value.
    """
    axes = tuple(range(2, x.ndim))
    wide = x.astype(jnp.float32)
    unit = jnp.max(jnp.abs(wide), axes, keepdims=True) / (127 * 256)
    fixed = jnp.round(wide / jnp.where(unit == 0, 1.0, unit)).astype(jnp.int32)
    high = (fixed + 128) >> 8
    # as two tokens of a row: devices hold different rows, which would move
    halves = jnp.concatenate([high, fixed - 256 * high], axis=1).astype(jnp.int8)
    products = jnp.einsum(spec, halves, codes, preferred_element_type=jnp.int32)
    high, low = jnp.split(products, 2, axis=1)
    product = 256.0 * high.astype(jnp.float32) + low.astype(jnp.float32)
    return product * unit.reshape(*unit.shape[:2], *(1,) * (product.ndim - 2))


def quantize_params(params: Params, format: Quantization) -> Params:
    """Return a parameter tree with quantized projections; the layers are stacked."""
    layers = dict(params["layers"])
    for tensor in (*PROJECTIONS, *FULL_ATTENTION, *DELTA_PROJECTIONS, *FUSED_PROJECTIONS):
        for name in (tensor.name, SHARING + tensor.name):
            if name in layers:
                layers[name], layers[name + SCALE] = quantize(tensor, format, layers[name])
    return {**params, "layers": layers}


def cast(params: Params, dtype: Any) -> Any:
    """Return the parameters in a floating dtype; codes keep theirs, and those in `FLOAT32` are float32.

    In bfloat16, a rate exp(2.7) would be off by up to 0.8 %, and its decay by that power of every token.
    """

    def cast_leaf(path: tuple[Any, ...], w: Array) -> Array:
        if jnp.issubdtype(w.dtype, jnp.integer):
            return w
        name = getattr(path[-1], "key", "") if path else ""
        precise = name.removeprefix(SHARING) in FLOAT32
        return w.astype(jnp.float32 if precise else dtype)

    return jax.tree_util.tree_map_with_path(cast_leaf, params)


def _int8(inputs: int, weight: Array) -> tuple[Array, Array]:
    scale = _scale(jnp.max(jnp.abs(weight), tuple(range(inputs))) / 127)
    relative = weight / _per_weight(scale, weight.shape)
    return jnp.clip(jnp.round(relative), -127, 127).astype(jnp.int8), scale


def _nf4(inputs: int, weight: Array) -> tuple[Array, Array]:
    shape, last = weight.shape, inputs - 1
    tiles = tile_count(shape[last])
    tiled = weight.reshape(*shape[:last], tiles, shape[last] // tiles, *shape[inputs:])
    scale = _scale(jnp.max(jnp.abs(tiled), inputs))
    relative = weight / _per_weight(scale, shape)
    middles = [(low + high) / 2 for low, high in itertools.pairwise(NF4)]
    code = sum((relative > middle).astype(jnp.int32) for middle in middles)
    return jnp.asarray(code).astype(jnp.uint4), scale


def _scale(largest: Array) -> Array:
    """Return the scale of groups with this largest value; 1 for a group of zeros."""
    return jnp.where(largest == 0, 1.0, largest).astype(jnp.bfloat16)


def _per_weight(scale: Array, shape: tuple[int, ...], platform: str = "cpu") -> Array:
    """Return a scale in float32, repeated until it can be multiplied with weights of this shape."""
    wide = scale.astype(jnp.float32)
    for axis in range(-scale.ndim, 0):
        tiles, size = scale.shape[axis], shape[axis]
        if tiles == size:
            continue
        if platform != "tpu":
            wide = jnp.repeat(wide, size // tiles, axis)
        else:  # a product: the compiler fuses it with the weight's own, and writes repeated scales to memory
            tile_of = jnp.arange(size) // (size // tiles)
            is_own = jax.nn.one_hot(tile_of, tiles, dtype=scale.dtype)
            spread = jnp.tensordot(is_own, scale, (1, axis), preferred_element_type=jnp.float32)
            wide = jnp.moveaxis(spread, 0, axis)
    return _expand(wide, len(shape))


def _expand(x: Array, ndim: int) -> Array:
    """Return x with leading dimensions of size 1."""
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))


def _nf4_values(codes: Integer[Array, "..."]) -> Float[Array, "..."]:
    """Return the values of codes.

    They are selected bit by bit: a TPU reads numbers from a table one by one.
    """
    bits = codes.astype(jnp.int32)
    values: list[Any] = list(NF4)
    for bit in range(4):
        is_set = (bits >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]
