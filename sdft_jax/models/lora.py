"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685): a projection x W becomes x W + scale (x A) B.

The two factors of a projection follow from its entry in the table of its family, so that a new family has
them without a line of its own. They are leaves beside the weight that they adapt: `q`, `q_lora_a`,
`q_lora_b`. A tree without them is the base model.

The embedding is a projection from tokens, whose adapter looks a token's row of A up, and the head one to
tokens. If they are one matrix (tied), an adapter of `embed` changes the lookup only, and one of `head` the
logits only, as in PEFT; merged, they are two matrices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.config.settings import LAYERS, LoraConfig
from sdft_jax.errors import SdftError
from sdft_jax.models.families import EMBEDDING, HEAD, PARTS, PROJECTIONS, Tensor, common_name
from sdft_jax.types import Params

A, B = "_lora_a", "_lora_b"
"""The ends of the names of the factors."""
NO_ADAPTER = f"^(?!.*({A}|{B})$)"
"""A regular expression for the paths of all other parameters."""
ADAPTABLE = (*PROJECTIONS, EMBEDDING, HEAD)
"""The matrices of most families, which may have adapters."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of a model; hashable, so static in `jax.jit`."""

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: tuple[str, ...]
    """The names of the adapted matrices, in the order of the model's projections."""

    @property
    def scale(self) -> float:
        """The factor on the product of A and B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def adapters(self, matrices: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the parameters of the adapters of those matrices that are adapted."""
        adapted = [tensor for tensor in matrices if tensor.name in self.targets]
        return tuple(factor for tensor in adapted for factor in factors(tensor))

    @property
    def outer_tensors(self) -> tuple[Tensor, ...]:
        """The parameters of the adapters outside the layers."""
        return self.adapters((EMBEDDING, HEAD))


def factors(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parameters A and B of a matrix, with their names and initial values in PEFT.

    For example, 'D>NH' has A 'D>R' and B 'R>NH': [D, R] and [R, N, H] in this library, [R, D] and [N*H, R] in
    a file of PEFT. R, the rank, is never split over devices.
    """
    source = tensor.source.removesuffix("weight")
    a, b = f"{source}lora_A.weight", f"{source}lora_B.weight"
    if tensor == EMBEDDING:
        a, b = f"{source}lora_embedding_A", f"{source}lora_embedding_B"
        return Tensor(tensor.name + A, "V>R", a, "zeros"), Tensor(tensor.name + B, "R>D", b, "standard")
    if tensor == HEAD:  # B has the layout of the head
        return Tensor(tensor.name + A, "D>R", a, "uniform"), Tensor(tensor.name + B, "VR", b, "zeros")
    inputs, _, outputs = tensor.dims.partition(">")
    return (
        Tensor(tensor.name + A, f"{inputs}>R", a, "uniform"),
        Tensor(tensor.name + B, f"R>{outputs}", b, "zeros"),
    )


def make_lora(
    options: LoraConfig, sizes: dict[str, int], projections: Sequence[Tensor] = PROJECTIONS
) -> Lora | None:
    """Return the adapters of a configuration; None for rank 0.

    Args:
        options: the settings of the adapters.
        sizes: the sizes of the model.
        projections: the projections of its layers.

    Raises:
        SdftError: a target matches no projection or is not a regular expression, or the rank is above that of
            a projection.
    """
    if not options.rank:
        return None
    adaptable = (*projections, EMBEDDING, HEAD)
    wide = tuple(common_name(tensor.name) for tensor in projections if not _is_per_head(tensor))
    patterns = [p for target in options.targets for p in (wide if target == LAYERS else (target,))]
    targets = _matched(patterns, [tensor.name for tensor in adaptable])
    shapes = {
        tensor.name: tensor.stored_shape(sizes)[:: -1 if tensor == EMBEDDING else 1]
        for tensor in adaptable
        if tensor.name in targets
    }
    narrowest = min(shapes, key=lambda name: min(shapes[name]))
    outputs, inputs = shapes[narrowest]
    if options.rank > min(outputs, inputs):
        raise SdftError(
            f"lora.rank={options.rank} is above the rank of projection {narrowest}, which has {inputs} "
            f"inputs and {outputs} outputs: set lora.rank to at most {min(outputs, inputs)}, or leave "
            f"{narrowest} out of lora.targets."
        )
    return Lora(options.rank, options.alpha, options.rank_stabilized, targets)


def _is_per_head(tensor: Tensor) -> bool:
    """Return True for a projection to one number per head, such as the rates of a delta net."""
    return tensor.dims.partition(">")[2] in ("N", "K", "G")


def _matched(patterns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return those names of projections that one of the patterns matches as a whole.

    Patterns that match all parts of a fused projection match the projection too: with q, k and v, qkv. `q` is
    also `full_q`, since both are the module q_proj of their layers, which PEFT cannot tell apart.
    """
    own = {name: common_name(name) for name in names}
    fused = {whole: set(parts) for whole, parts in PARTS.items() if whole in names}
    matched: set[str] = set()
    choice = f"use {LAYERS}, or some of {', '.join(dict.fromkeys(own.values()))}"
    for pattern in patterns:
        try:
            found = {name for name in names if re.fullmatch(pattern, own[name])}
            found |= {part for parts in fused.values() for part in parts if re.fullmatch(pattern, part)}
        except re.error as error:
            raise SdftError(
                f"lora.targets: {pattern!r} is not a regular expression ({error}): fix the pattern."
            ) from None
        if not found:
            raise SdftError(f"lora.targets: {pattern!r} matches no projection: {choice}.")
        matched |= found
    for whole, parts in fused.items():
        if parts <= matched:
            matched.add(whole)
        elif parts & matched and whole not in matched:
            raise SdftError(
                f"lora.targets has {', '.join(sorted(parts & matched))}, but this model has one matrix for "
                f"{', '.join(sorted(parts))}: use {whole}."
            )
    if not matched:
        raise SdftError(f"lora.targets is empty: {choice}, or set lora.rank=0.")
    return tuple(name for name in names if name in matched)


def is_adapter(name: str) -> bool:
    """Return True for the name of a factor."""
    return name.endswith((A, B))


def base_params(params: Params) -> dict[str, Any]:
    """Return the tree of the base model: the same arrays without the adapters."""
    return _part(params, lambda name: not is_adapter(name))


def adapter_params(params: Params) -> dict[str, Any]:
    """Return the tree of the adapters alone."""
    return _part(params, is_adapter)


def _part(params: Params, keep: Callable[[str], bool]) -> dict[str, Any]:
    outer = {name: leaf for name, leaf in params.items() if name != "layers" and keep(name)}
    return {**outer, "layers": {name: leaf for name, leaf in params["layers"].items() if keep(name)}}


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def merged_weight(
    lora: Lora, tensor: Tensor, weight: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return W + scale A B in float32, of one matrix or of stacked layers."""
    letters = [f"...{part.dims.replace('>', '')}" for part in (*factors(tensor), tensor)]
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    product = jnp.einsum(f"{letters[0]},{letters[1]}->{letters[2]}", a, b, precision="highest")
    return weight.astype(jnp.float32) + lora.scale * product
