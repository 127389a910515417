"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685): a projection x W becomes x W + scale (x A) B.

The two factors of a projection follow from its entry in the table of its family, so that a new family has
them without a line of its own. They are leaves of the layers beside the weight that they adapt: `q`,
`q_lora_a`, `q_lora_b`. A tree without them is the base model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.config.settings import LoraConfig
from sdft_jax.errors import SdftError
from sdft_jax.models.families import PROJECTIONS, Tensor
from sdft_jax.types import Params

A, B = "_lora_a", "_lora_b"
"""The ends of the names of the factors."""
NO_ADAPTER = f"^(?!.*({A}|{B})$)"
"""A regular expression for the paths of all other parameters."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of a model; hashable, so static in `jax.jit`."""

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: tuple[str, ...]
    """The names of the adapted projections, in the order of `families.PROJECTIONS`."""

    @property
    def scale(self) -> float:
        """The factor on the product of A and B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the parameters of the adapters of one layer."""
        adapted = [tensor for tensor in PROJECTIONS if tensor.name in self.targets]
        return tuple(factor for tensor in adapted for factor in factors(tensor))


def factors(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parameters A and B of a projection, with their names in PEFT.

    For example, 'D>NH' has A 'D>R' and B 'R>NH': [D, R] and [R, N, H] in this library, [R, D] and [N*H, R] in
    a file of PEFT. R, the rank, is never split over devices.
    """
    inputs, _, outputs = tensor.dims.partition(">")
    source = tensor.source.removesuffix("weight")
    return (
        Tensor(tensor.name + A, f"{inputs}>R", f"{source}lora_A.weight", "uniform"),
        Tensor(tensor.name + B, f"R>{outputs}", f"{source}lora_B.weight", "zeros"),
    )


def make_lora(options: LoraConfig, sizes: dict[str, int]) -> Lora | None:
    """Return the adapters of a configuration for a model with these sizes; None for rank 0.

    Raises:
        SdftError: a target matches no projection or is not a regular expression, or the rank is above that of
            a projection.
    """
    if not options.rank:
        return None
    targets = _matched(options.targets)
    for tensor in (tensor for tensor in PROJECTIONS if tensor.name in targets):
        outputs, inputs = tensor.stored_shape(sizes)
        if options.rank > min(outputs, inputs):
            raise SdftError(
                f"lora.rank={options.rank} is above the rank of projection {tensor.name}, which has {inputs} "
                f"inputs and {outputs} outputs: set lora.rank to at most {min(outputs, inputs)}, or remove "
                f"{tensor.name} from lora.targets."
            )
    return Lora(options.rank, options.alpha, options.rank_stabilized, targets)


def _matched(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the projections that one of the patterns matches as a whole."""
    names = [tensor.name for tensor in PROJECTIONS]
    matched: set[str] = set()
    for pattern in patterns:
        try:
            found = {name for name in names if re.fullmatch(pattern, name)}
        except re.error as error:
            raise SdftError(
                f"lora.targets: {pattern!r} is not a regular expression ({error}): fix the pattern."
            ) from None
        if not found:
            raise SdftError(
                f"lora.targets: {pattern!r} matches no projection: use some of {', '.join(names)}."
            )
        matched |= found
    if not matched:
        raise SdftError(f"lora.targets is empty: use some of {', '.join(names)}, or set lora.rank=0.")
    return tuple(name for name in names if name in matched)


def is_adapter(name: str) -> bool:
    """Return True for the name of a factor."""
    return name.endswith((A, B))


def has_adapters(params: Params) -> bool:
    """Return True if a parameter tree has adapters."""
    layers = params["layers"]
    return any(is_adapter(name) for name in (layers[0] if isinstance(layers, tuple) else layers))


def base_params(params: Params) -> Params:
    """Return the tree of the base model: the same arrays without the adapters."""
    layers = {name: leaf for name, leaf in params["layers"].items() if not is_adapter(name)}
    return {**params, "layers": layers}


def adapter_params(params: Params) -> Params:
    """Return the tree of the adapters alone."""
    return {"layers": {name: leaf for name, leaf in params["layers"].items() if is_adapter(name)}}


def split_product(spec: str) -> tuple[str, str]:
    """Return the two narrow products of a projection's product.

    For example, "btd,dnh->btnh" becomes "btd,dr->btr" and "btr,rnh->btnh".
    """
    inputs, out = spec.split("->")
    x, weight = inputs.split(",")
    contracted = "".join(letter for letter in weight if letter in x)
    outputs = "".join(letter for letter in weight if letter not in x)
    kept = "".join(letter for letter in x if letter not in weight)
    return f"{x},{contracted}r->{kept}r", f"{kept}r,r{outputs}->{out}"


def merge(lora: Lora, params: Params) -> Params:
    """Return the parameters of a plain model with the weights W + scale A B; adapted ones are float32."""
    layers = params["layers"]
    merged = {
        name: merged_weight(lora, leaf, layers[name + A], layers[name + B])
        for name, leaf in layers.items()
        if name in lora.targets
    }
    return {**params, "layers": {**base_params(params)["layers"], **merged}}


@functools.partial(jax.jit, static_argnums=0)
def merged_weight(
    lora: Lora, weight: Float[Array, "L ..."], a: Float[Array, "L ..."], b: Float[Array, "L ..."]
) -> Float[Array, "L ..."]:
    """Return W + scale A B of stacked layers in float32."""
    layers, rank = len(a), a.shape[-1]
    a, b = (x.astype(jnp.float32) for x in (a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)))
    product = jnp.einsum("lir,lro->lio", a, b, precision="highest").reshape(weight.shape)
    return weight.astype(jnp.float32) + lora.scale * product
