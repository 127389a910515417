"""A mixture of experts: a router chooses a few feed-forward networks for each token (Shazeer et al. 2017,
arXiv 1701.06538), as in Qwen3-MoE, Qwen3.5-MoE, Gemma 4 and gpt-oss. No token is dropped, whatever the
load of an expert.

The choices of all tokens are sorted by expert, and `grouped_matmul` multiplies the rows of each expert with
its own matrix. For example, the experts (2, 0), (0, 1) of two tokens are sorted 0, 0, 1, 2: the rows of the
tokens are 0, 1, 1, 0, and the groups have 2, 1 and 1 rows.

While decoding, a batch of at most 700 rows has too few to gain from their order: every expert computes every
row in one batched product, which reads each matrix once, and the factors of the experts that a row did not
choose are 0.

Devices along the mesh axes of `experts` hold different experts. Each computes its own experts' part of every
row among them, and the parts are added up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from sdft_jax.kernels.grouped_matmul import grouped_matmul
from sdft_jax.kernels.matmul import einsum_float32
from sdft_jax.models.architecture import ExpertSizes
from sdft_jax.sharding import Sharding, partition_spec, release_axes

_FEW_ROWS = 700
"""The number of rows that a TPU v5e (197 TFLOP/s, 819 GB/s) multiplies with a matrix while it could move the
matrix three times: to copy it, and to read the copy."""

Gated = Callable[[Array, Array], Array]
"""A function of the outputs of gate and up, to the inputs of down."""


class Weights(NamedTuple):
    """The parameters of one mixture; the router's are float32."""

    router: Float[Array, "D E"]
    gate: Float[Array, "E D M"]
    up: Float[Array, "E D M"]
    down: Float[Array, "E M D"]
    scale: Float[Array, " E"] | None = None
    """The factor on the outputs of each expert, in float32 (Gemma 4); None without factors."""
    router_bias: Float[Array, " E"] | None = None
    """The biases of the router, in float32, and of the experts (gpt-oss); None without biases."""
    gate_bias: Float[Array, "E M"] | None = None
    up_bias: Float[Array, "E M"] | None = None
    down_bias: Float[Array, "E D"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """The decisions of one router, computed in float32."""

    experts: Int[Array, "*B T k"]
    """The experts of each token, the most probable first."""
    probabilities: Float[Array, "*B T E"]
    """The probabilities of all experts."""


def route(
    x: Float[Array, "*B T D"], weights: Weights, sizes: ExpertSizes
) -> tuple[Routing, Float[Array, "*B T k"]]:
    """Return the decisions for each token, and the weights of its experts, times `weights.scale`."""
    logits = jnp.einsum(
        "...d,de->...e",
        x.astype(jnp.float32),
        weights.router,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    if weights.router_bias is not None:
        logits += jnp.expand_dims(weights.router_bias, tuple(range(x.ndim - 1)))
    probabilities = jax.nn.softmax(logits)
    factors, chosen = jax.lax.top_k(probabilities, sizes.per_token)
    if sizes.normalized:
        factors /= jnp.sum(factors, axis=-1, keepdims=True)
    factors = factors if weights.scale is None else factors * weights.scale[chosen]
    return Routing(chosen, probabilities), factors


def mixture(
    x: Float[Array, "B T D"],
    weights: Weights,
    sizes: ExpertSizes,
    gated: Gated,
    sharding: Sharding,
    router_x: Float[Array, "B T D"] | None = None,
) -> tuple[Float[Array, "B T D"], Routing]:
    """Return the weighted sum of the outputs of each token's experts, and the decisions of the router.

    Args:
        x: the normalized residual stream.
        weights: the parameters of the layer.
        sizes: the sizes of the mixture.
        gated: the function of the outputs of gate and up.
        sharding: experts are split over the devices by the rule `experts`, their width by `mlp`.
        router_x: what the router reads; None for x.
    """
    inner = release_axes(sharding, "experts", "batch", "sequence")
    inner = release_axes(inner, "mlp", "batch", "sequence")
    summed = sharding.split("experts", "mlp")

    def local(x: Array, weights: Weights, router_x: Array | None = None) -> tuple[Array, Routing]:
        rows = x.reshape(-1, x.shape[-1])
        router_rows = rows if router_x is None else router_x.reshape(rows.shape)
        routing, factors = route(router_rows, weights, sizes)
        own = sharding.split("experts")
        first = jax.lax.axis_index(own) * len(weights.gate) if own else 0
        if weights.down_bias is not None and (parts := sharding.split("mlp")):  # parts of its sum
            is_first = jax.lax.axis_index(parts) == 0
            weights = weights._replace(down_bias=jnp.where(is_first, weights.down_bias, 0))
        # for ragged_dot, a TPU copies each layer's matrices out of their stack, and a CPU multiplies
        # every matrix with the rows of all groups
        compute = _every_expert
        if x.shape[1] > 1 or len(rows) > _FEW_ROWS:
            compute = functools.partial(_experts, platform=sharding.device.platform)
        out = compute(rows, weights, routing.experts - first, factors, gated)
        out = jax.lax.psum(out, summed) if summed else out
        routing = jax.tree.map(lambda leaf: leaf.reshape(*x.shape[:2], -1), routing)
        return out.astype(x.dtype).reshape(x.shape), routing

    if sharding.mesh.size == 1:
        return local(x, weights, router_x)
    rows = partition_spec(inner.rules, ("batch", "sequence", None))
    specs = Weights._make(_spec(name, own, sharding) for name, own in weights._asdict().items())
    others = () if router_x is None else (router_x,)
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(rows, specs, *(rows for _ in others)),
        out_specs=(rows, rows),
        check_vma=False,
    )(x, weights, *others)


_AXES: dict[str, tuple[str | None, ...]] = {
    "gate": ("experts", None, "mlp"),
    "up": ("experts", None, "mlp"),
    "down": ("experts", "mlp", None),
    "gate_bias": ("experts", "mlp"),
    "up_bias": ("experts", "mlp"),
    "down_bias": ("experts", None),
}
"""Name of a field of `Weights` -> its logical axes on a device; the others are whole."""


def _spec(name: str, weight: Array | None, sharding: Sharding) -> PartitionSpec | None:
    return None if weight is None else partition_spec(sharding.rules, _AXES.get(name, ()))


def _experts(
    rows: Float[Array, "T D"],
    weights: Weights,
    chosen: Int[Array, "T k"],
    factors: Float[Array, "T k"],
    gated: Gated,
    platform: str,
) -> Float[Array, "T D"]:
    """Return the part of the given experts in the weighted sum, in float32.

    `chosen` counts from the first of them; other numbers are those of experts on other devices.
    """
    count, (tokens, per_token) = len(weights.gate), chosen.shape
    is_own = (chosen >= 0) & (chosen < count)
    expert = jnp.where(is_own, chosen, count).reshape(-1)
    order = jnp.argsort(expert, stable=True)
    groups = jnp.bincount(expert, length=count).astype(jnp.int32)
    repeated = jnp.broadcast_to(rows[:, None], (tokens, per_token, rows.shape[-1]))
    x = _permuted(repeated.reshape(tokens * per_token, -1), order)
    of_row = expert[order]
    expected = -(-len(x) // weights.router.shape[-1])

    def projected(x: Array, matrix: Array, bias: Array | None) -> Array:
        out = grouped_matmul(x, matrix, groups, platform, expected)
        if bias is None:
            return out
        # the gradient of a bias is a sum over thousands of rows, in the dtype that is indexed
        added = bias.astype(jnp.float32)[jnp.minimum(of_row, count - 1)].astype(out.dtype)
        return out + jnp.where((of_row < count)[:, None], added, 0)

    gate = projected(x, weights.gate, weights.gate_bias)
    up = projected(x, weights.up, weights.up_bias)
    out = projected(gated(gate, up), weights.down, weights.down_bias)
    out = _permuted(out, jnp.argsort(order)).reshape(tokens, per_token, -1)
    return jnp.sum(out.astype(jnp.float32) * factors[:, :, None], axis=1)


def _every_expert(
    rows: Float[Array, "T D"],
    weights: Weights,
    chosen: Int[Array, "T k"],
    factors: Float[Array, "T k"],
    gated: Gated,
) -> Float[Array, "T D"]:
    """Return the same as `_experts` up to rounding, from the outputs of every expert for every row."""
    count = len(weights.gate)
    factor = jnp.einsum("tk,tke->et", factors, jax.nn.one_hot(chosen, count))[:, :, None]
    x = jnp.broadcast_to(rows, (count, *rows.shape))

    def projected(matrices: Array, biases: Array | None) -> Array:
        out = jnp.einsum("etd,edm->etm", x, matrices)
        return out if biases is None else out + biases[:, None]

    hidden = gated(projected(weights.gate, weights.gate_bias), projected(weights.up, weights.up_bias))
    hidden = jnp.where(factor != 0, hidden * factor, 0).astype(rows.dtype)
    out = einsum_float32("etm,emd->td", hidden, weights.down)
    if weights.down_bias is None:
        return out
    return out + einsum_float32("et,ed->td", factor[:, :, 0], weights.down_bias.astype(jnp.float32))


def _permuted(x: Float[Array, "R D"], order: Int[Array, " R"]) -> Array:
    return x.at[order].get(unique_indices=True, mode="promise_in_bounds")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decisions:
    """The decisions of the routers of all layers; L are the layers with experts."""

    experts: Int[Array, "L B T k"]
    """The experts of each token."""
    entropy: Float[Array, "B T"]
    """The entropy of a router's probabilities in nats, as a mean over the layers."""
    probabilities: Float[Array, "L B E"]
    """The sum of the probabilities of each expert over the tokens of a row that count."""
    load: Float[Array, "L B E"]
    """The number of these tokens that each expert computes."""


def no_decisions(layers: int, shape: tuple[int, ...], sizes: ExpertSizes) -> Decisions:
    """Return the decisions before the first layer, for tokens [B, T]."""
    return Decisions(
        jnp.zeros((layers, *shape, sizes.per_token), jnp.int16),
        jnp.zeros(shape, jnp.float32),
        *jnp.zeros((2, layers, shape[0], sizes.count), jnp.float32),
    )


def with_decision(
    decisions: Decisions, index: int | Int[Array, ""], routing: Routing, counts: Bool[Array, "B T"]
) -> Decisions:
    """Return the decisions with those of one more layer, the index-th of those with experts."""
    p, counted = routing.probabilities, counts.astype(jnp.float32)
    is_chosen = jnp.sum(jax.nn.one_hot(routing.experts, p.shape[-1]), axis=-2)
    load = jnp.einsum("bte,bt->be", is_chosen, counted)
    entropy = -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1) / len(decisions.experts)
    return Decisions(
        decisions.experts.at[index].set(routing.experts.astype(jnp.int16)),
        decisions.entropy + entropy,
        decisions.probabilities.at[index].set(jnp.einsum("bte,bt->be", p, counted)),
        decisions.load.at[index].set(load),
    )
